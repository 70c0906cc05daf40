//! The weighted sums with AVX2: rows of taps eight pixels wide, columns eight positions at once.
//! The operations and their order are those of `native`, so the bits are too.

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_div_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_permute2f128_ps,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps,
    _mm256_unpacklo_ps,
};

use super::super::{Plane, RUN, Run, SLACK};
use super::{Taps, first_tap};

const LANES: usize = 8;
const _: () = assert!(RUN.is_multiple_of(LANES) && SLACK >= LANES);

/// As [`super::native::weigh`]; positions beyond the run's length get values of no meaning.
#[target_feature(enable = "avx2")]
pub fn weigh<const N: usize>(plane: Plane, run: &Run, taps: &Taps<N>, out: &mut [f32; RUN]) {
    for group in (0..run.len).step_by(LANES) {
        let mut rows = [_mm256_setzero_ps(); LANES];
        for (lane, sums) in rows.iter_mut().enumerate() {
            let i = group + lane;
            let first = first_tap::<N>(plane, run, i);
            for (k, weights) in taps.down.iter().enumerate() {
                let pixels = load(plane, first + k * plane.stride);
                *sums = _mm256_add_ps(*sums, _mm256_mul_ps(_mm256_set1_ps(weights[i]), pixels));
            }
        }
        let columns = transpose(rows);
        let mut values = _mm256_setzero_ps();
        for (weights, column) in taps.across.iter().zip(columns) {
            values = _mm256_add_ps(values, _mm256_mul_ps(eight(weights, group), column));
        }
        values = _mm256_div_ps(values, eight(&taps.totals, group));
        // SAFETY: `out` holds a full run, and the run is a multiple of eight.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(group), values) };
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(plane: Plane, first: usize) -> __m256 {
    debug_assert!(first + LANES <= plane.pixels.len());
    // SAFETY: a run names only pixels that have all their taps in the plane, and the slack after
    // its last row is at least eight values.
    unsafe { _mm256_loadu_ps(plane.pixels.as_ptr().add(first)) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn eight(values: &[f32; RUN], group: usize) -> __m256 {
    // SAFETY: the array holds a full run, and the run is a multiple of eight.
    unsafe { _mm256_loadu_ps(values.as_ptr().add(group)) }
}

/// Rows to columns of an 8 × 8 matrix.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose(r: [__m256; LANES]) -> [__m256; LANES] {
    let low = |k: usize| _mm256_unpacklo_ps(r[k], r[k + 1]);
    let high = |k: usize| _mm256_unpackhi_ps(r[k], r[k + 1]);
    let pairs = [low(0), high(0), low(2), high(2), low(4), high(4), low(6), high(6)];
    let first = |a: usize, b: usize| _mm256_shuffle_ps::<0b01_00_01_00>(pairs[a], pairs[b]);
    let second = |a: usize, b: usize| _mm256_shuffle_ps::<0b11_10_11_10>(pairs[a], pairs[b]);
    let top = [first(0, 2), second(0, 2), first(1, 3), second(1, 3)];
    let bottom = [first(4, 6), second(4, 6), first(5, 7), second(5, 7)];
    let left = |k: usize| _mm256_permute2f128_ps::<0x20>(top[k], bottom[k]);
    let right = |k: usize| _mm256_permute2f128_ps::<0x31>(top[k], bottom[k]);
    [left(0), left(1), left(2), left(3), right(0), right(1), right(2), right(3)]
}
