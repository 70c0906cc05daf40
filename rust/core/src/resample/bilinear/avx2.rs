//! The mixing with AVX2, eight positions at once. The operations and their order are those of
//! `native`, so the bits are too.
//!
//! Neighbours in a row are loaded as one 64-bit value, two positions into a register half each:
//! the gather instructions take three times as long (`cargo bench`, pass/mean/bilinear).

use std::arch::x86_64::{
    __m128, __m256, _CMP_UNORD_Q, _MM_HINT_T0, _mm_castpd_ps, _mm_load_sd, _mm_loadh_pd,
    _mm_prefetch, _mm256_add_ps, _mm256_cmp_ps, _mm256_loadu_ps, _mm256_movemask_ps, _mm256_mul_ps,
    _mm256_or_ps, _mm256_set_m128, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
    _mm256_sub_ps,
};

use super::super::{Plane, RUN, Run};

const LANES: usize = 8;

/// Pixels of a cache line.
const LINE: usize = 16;

/// Rows below a position whose pixels are asked for early. The next output rows will need them,
/// and a path across the rows is one that the processor does not foresee: 15 % less time
/// (`cargo bench`, pass/mean/bilinear; 4 rows gain half of that). A frame that is upside down
/// gains nothing.
const AHEAD_ROWS: usize = 12;

const _: () = assert!(RUN.is_multiple_of(LANES));

/// As [`super::native::mix`].
#[target_feature(enable = "avx2")]
pub fn mix(plane: Plane, run: &Run, out: &mut [f32; RUN]) -> bool {
    let mut invalid = _mm256_setzero_ps();
    for group in (0..RUN).step_by(LANES) {
        let index = &run.index[group..group + LANES];
        if group % LINE == 0 {
            prefetch(plane, index[0] as usize + AHEAD_ROWS * plane.stride);
        }
        let (a, b) = neighbours(plane, index, 0);
        let (c, d) = neighbours(plane, index, plane.stride);
        let (fx, fy) = (eight(&run.fx, group), eight(&run.fy, group));
        let top = _mm256_add_ps(a, _mm256_mul_ps(fx, _mm256_sub_ps(b, a)));
        let bottom = _mm256_add_ps(c, _mm256_mul_ps(fx, _mm256_sub_ps(d, c)));
        let value = _mm256_add_ps(top, _mm256_mul_ps(fy, _mm256_sub_ps(bottom, top)));
        invalid = _mm256_or_ps(invalid, _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
        // SAFETY: `out` holds a full run, and the run is a multiple of eight.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(group), value) };
    }
    _mm256_movemask_ps(invalid) != 0
}

/// For eight positions: the pixels `below` values after them, and those to their right.
#[target_feature(enable = "avx2")]
#[inline]
fn neighbours(plane: Plane, index: &[u32], below: usize) -> (__m256, __m256) {
    let at = |k: usize| index[k] as usize + below;
    let early = _mm256_set_m128(two(plane, at(4), at(5)), two(plane, at(0), at(1)));
    let late = _mm256_set_m128(two(plane, at(6), at(7)), two(plane, at(2), at(3)));
    let left = _mm256_shuffle_ps::<0b10_00_10_00>(early, late);
    let right = _mm256_shuffle_ps::<0b11_01_11_01>(early, late);
    (left, right)
}

/// The pixel at `first` and its right neighbour, then those of `second`.
#[target_feature(enable = "avx2")]
#[inline]
fn two(plane: Plane, first: usize, second: usize) -> __m128 {
    debug_assert!(first.max(second) + 1 < plane.pixels.len());
    let pixels = plane.pixels.as_ptr();
    // SAFETY: a run names only pixels that have a neighbour to the right and below in the plane.
    unsafe {
        let low = _mm_load_sd(pixels.add(first).cast());
        _mm_castpd_ps(_mm_loadh_pd(low, pixels.add(second).cast()))
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn prefetch(plane: Plane, index: usize) {
    // SAFETY: this is a hint; an address beyond the plane is ignored. (Newer compilers know that.)
    #[allow(unused_unsafe)]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(plane.pixels.as_ptr().wrapping_add(index).cast());
    };
}

#[target_feature(enable = "avx2")]
#[inline]
fn eight(values: &[f32; RUN], group: usize) -> __m256 {
    // SAFETY: the array holds a full run, and the run is a multiple of eight.
    unsafe { _mm256_loadu_ps(values.as_ptr().add(group)) }
}
