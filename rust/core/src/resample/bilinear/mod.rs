//! Bilinear interpolation.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod native;

use super::{LEAST_TAP, Plane, RUN, Run};

/// Values of the four pixels around each position, mixed.
#[inline(always)]
pub fn sample(plane: Plane, run: &Run, out: &mut [f32; RUN]) {
    #[cfg(target_arch = "x86_64")]
    let has_nan = if crate::cpu::level() == crate::cpu::Level::Baseline {
        native::mix(plane, run, out)
    } else {
        // SAFETY: every level above the baseline has AVX2.
        unsafe { avx2::mix(plane, run, out) }
    };
    #[cfg(not(target_arch = "x86_64"))]
    let has_nan = native::mix(plane, run, out);

    if has_nan {
        for i in 0..run.len {
            if out[i].is_nan() && !run.fx[i].is_nan() {
                out[i] = careful(plane, run.index[i] as usize, run.fx[i], run.fy[i]);
            }
        }
    }
}

/// The sample with its pixels of no weight left out; NaN if one of weight is invalid.
#[cold]
fn careful(plane: Plane, index: usize, fx: f32, fy: f32) -> f32 {
    let taps = [(1.0 - fx) * (1.0 - fy), fx * (1.0 - fy), (1.0 - fx) * fy, fx * fy];
    let (mut sum, mut total) = (0.0, 0.0);
    for (tap, value) in taps.into_iter().zip(native::corners(plane, index)) {
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

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn instruction_sets_agree_bit_for_bit() {
        if crate::cpu::level() == crate::cpu::Level::Baseline {
            return; // there is only one on this processor
        }
        let pixels: Vec<f32> = (0..4096_u32).map(|k| (k * 7919 % 4001) as f32 / 3.0).collect();
        let plane = Plane { pixels: &pixels, stride: 50 };
        let mut run = Run { len: RUN, ..Run::default() };
        for i in 0..RUN {
            run.index[i] = (i * 61 % 4000) as u32;
            run.fx[i] = (i * 37 % 64) as f32 / 64.3;
            run.fy[i] = (i * 29 % 64) as f32 / 64.7;
        }
        let (mut plain, mut wide) = ([0.0; RUN], [0.0; RUN]);
        native::mix(plane, &run, &mut plain);
        // SAFETY: every level above the baseline has AVX2.
        unsafe { avx2::mix(plane, &run, &mut wide) };
        assert_eq!(plain.map(f32::to_bits), wide.map(f32::to_bits));
    }
}
