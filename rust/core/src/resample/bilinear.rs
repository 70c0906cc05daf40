//! Bilinear interpolation.

use super::{LEAST_TAP, Plane, RUN, Run};

/// Values of the four pixels around each position, mixed.
#[inline(always)]
pub fn sample(plane: Plane, run: &Run, out: &mut [f32; RUN]) {
    let mut invalid = false;
    for i in 0..RUN {
        let [a, b, c, d] = corners(plane, run.index[i] as usize);
        let (fx, fy) = (run.fx[i], run.fy[i]);
        let top = a + fx * (b - a);
        let bottom = c + fx * (d - c);
        let value = top + fy * (bottom - top);
        out[i] = value;
        invalid |= value.is_nan();
    }
    if invalid {
        for i in 0..run.len {
            if out[i].is_nan() && !run.fx[i].is_nan() {
                out[i] = careful(plane, run.index[i] as usize, run.fx[i], run.fy[i]);
            }
        }
    }
}

#[inline(always)]
fn corners(plane: Plane, index: usize) -> [f32; 4] {
    debug_assert!(index + plane.stride + 1 < plane.pixels.len());
    // Two neighbours at once, as one 64-bit value: half as many loads to gather.
    let pair = |first: usize| {
        // SAFETY: a run names only pixels that have a neighbour to the right and below in the
        // plane.
        let both = unsafe { plane.pixels.as_ptr().add(first).cast::<u64>().read_unaligned() };
        let (low, high) = (f32::from_bits(both as u32), f32::from_bits((both >> 32) as u32));
        if cfg!(target_endian = "little") { (low, high) } else { (high, low) }
    };
    let (a, b) = pair(index);
    let (c, d) = pair(index + plane.stride);
    [a, b, c, d]
}

/// The sample with its pixels of no weight left out; NaN if one of weight is invalid.
#[cold]
fn careful(plane: Plane, index: usize, fx: f32, fy: f32) -> f32 {
    let taps = [(1.0 - fx) * (1.0 - fy), fx * (1.0 - fy), (1.0 - fx) * fy, fx * fy];
    let (mut sum, mut total) = (0.0, 0.0);
    for (tap, value) in taps.into_iter().zip(corners(plane, index)) {
        if tap > LEAST_TAP {
            sum += tap * value;
            total += tap;
        }
    }
    sum / total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(pixels: [f32; 4], fx: f32, fy: f32) -> f32 {
        let mut padded = pixels.to_vec();
        padded.extend([0.0; 8]);
        let plane = Plane { pixels: &padded, stride: 2 };
        let mut run = Run { len: 1, ..Run::default() };
        (run.fx[0], run.fy[0]) = (fx, fy);
        let mut out = [0.0; RUN];
        sample(plane, &run, &mut out);
        out[0]
    }

    #[test]
    fn mixes_linearly_and_is_exact_at_centres() {
        assert_eq!(one([1.0, 2.0, 3.0, 4.0], 0.5, 0.5), 2.5);
        assert_eq!(one([0.1, 2.0, 3.0, 4.0], 0.0, 0.0), 0.1);
    }

    #[test]
    fn invalid_pixels_matter_only_where_they_have_weight() {
        let nan = f32::NAN;
        assert!(one([1.0, nan, 3.0, 4.0], 0.5, 0.5).is_nan());
        assert_eq!(one([1.0, nan, 3.0, nan], 0.0, 0.5), 2.0);
        assert!((one([nan, nan, 3.0, nan], 0.0, 1.0 - 1e-7) - 3.0).abs() < 1e-6);
        assert!(one([nan, nan, nan, nan], 0.0, 0.0).is_nan());
        assert!(one([1.0, 2.0, 3.0, 4.0], nan, 0.5).is_nan());
    }
}
