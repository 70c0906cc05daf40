//! Saturated pixels: invalid where anything else covers, and better than nothing elsewhere.
//!
//! In a window a saturated pixel is NaN, so that every kernel treats it as invalid, at no cost.
//! It is a NaN that remembers the value in its payload. A sample that is invalid because of such
//! pixels is found again from the values, and goes on with a negative weight, which says that it
//! gives way (see [`Tile::make_way`](crate::coadd::Tile::make_way)).

use crate::resample::{Kernel, Plane, RUN, Run, SLACK, TapTable, sample};

/// Bits of a NaN that says nothing.
const PLAIN: u32 = 0x7fc0_0000;

/// Bits of the payload beside the sign, which holds one more.
const PAYLOAD: u32 = 0x003f_ffff;

/// Values closer than this to the level, in units of the last place, are remembered exactly: all
/// up to 1.75 times the level. Those beyond are rounded, to 2⁻¹³ of their size.
const FINE: u32 = (1 << 23) - (1 << 20);
const COARSE_BITS: u32 = 11;

/// Pixels at or above a level are saturated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Saturation {
    level: f32,
}

impl Saturation {
    /// Saturation from `level` on, which must be positive and finite.
    pub fn new(level: f32) -> Option<Self> {
        (level > 0.0 && level < f32::INFINITY).then_some(Self { level })
    }

    /// The least value that is saturated.
    pub fn level(self) -> f32 {
        self.level
    }

    /// Hide the values of saturated pixels in NaN.
    pub fn hide(self, pixels: &mut [f32]) {
        for pixel in pixels {
            *pixel = if *pixel >= self.level { self.hidden(*pixel) } else { *pixel };
        }
    }

    fn hidden(self, value: f32) -> f32 {
        let above = value.to_bits() - self.level.to_bits();
        let code =
            if above < FINE - 1 { above + 1 } else { FINE + ((above - (FINE - 1)) >> COARSE_BITS) };
        f32::from_bits(PLAIN | code & PAYLOAD | (code & !PAYLOAD) << 9)
    }

    /// The value of a pixel, be it hidden or not.
    #[inline(always)]
    fn shown(self, pixel: f32) -> f32 {
        if !is_hidden(pixel) {
            return pixel;
        }
        let bits = pixel.to_bits();
        let code = bits & PAYLOAD | (bits >> 31) << 22;
        let above = if code < FINE {
            code - 1
        } else {
            FINE - 1 + ((code - FINE) << COARSE_BITS) + (1 << (COARSE_BITS - 1))
        };
        f32::from_bits((self.level.to_bits() + above).min(f32::MAX.to_bits()))
    }
}

/// Whether an invalid pixel is a saturated one.
#[inline(always)]
pub(crate) fn is_hidden(pixel: f32) -> bool {
    pixel.is_nan() && pixel.to_bits() != PLAIN
}

/// Pixels around the positions of a run, copied out with their values shown.
#[derive(Default)]
pub struct Patches {
    pixels: Vec<f32>,
    run: Run,
}

/// Edge of a patch: the taps of the widest kernel, and what is read in excess.
const EDGE: usize = 8;

impl Patches {
    /// Find the samples of `run` again that saturated pixels have made invalid. `planes` are the
    /// channels, `values` their samples; those that are found get a negative weight, and are then
    /// valid in all channels; the others are invalid in all.
    pub fn recover<'a>(
        &mut self,
        saturation: Saturation,
        (kernel, table): (Kernel, &TapTable),
        planes: impl Iterator<Item = Plane<'a>> + Clone,
        run: &Run,
        values: &mut [[f32; RUN]],
        weights: &mut [f64; RUN],
    ) {
        let mut lost = 0_u64;
        for samples in &*values {
            for (k, sample) in samples.iter().enumerate().take(run.len) {
                lost |= u64::from(sample.is_nan()) << k;
            }
        }
        if lost == 0 {
            return;
        }
        let mut found = 0;
        for k in (0..run.len).filter(|k| lost >> k & 1 == 1) {
            let has_place = !run.fx[k].is_nan() && !weights[k].is_nan();
            if has_place && planes.clone().any(|plane| touches_hidden(plane, run, k)) {
                found |= 1 << k;
            }
        }
        if found != 0 {
            for (plane, samples) in planes.zip(values.iter_mut()) {
                self.sample(saturation, (kernel, table), plane, run, found, samples);
            }
        }
        for k in (0..run.len).filter(|k| lost >> k & 1 == 1) {
            if found >> k & 1 == 1 && values.iter().all(|samples| !samples[k].is_nan()) {
                weights[k] = -weights[k];
            } else {
                for samples in &mut *values {
                    samples[k] = f32::NAN;
                }
            }
        }
    }

    /// Sample the positions named by `found` with the values shown.
    fn sample(
        &mut self,
        saturation: Saturation,
        (kernel, table): (Kernel, &TapTable),
        plane: Plane,
        run: &Run,
        found: u64,
        samples: &mut [f32; RUN],
    ) {
        let reach = kernel.radius() - 1;
        self.pixels.resize(RUN * EDGE * EDGE + SLACK, 0.0);
        self.run.len = run.len;
        (self.run.fx, self.run.fy) = (run.fx, run.fy);
        for k in (0..RUN).filter(|k| found >> k & 1 == 1) {
            let first = run.index[k] as usize - reach * (plane.stride + 1);
            for row in 0..2 * kernel.radius() {
                let from = &plane.pixels[first + row * plane.stride..][..2 * kernel.radius()];
                let patch = &mut self.pixels[(k * EDGE + row) * EDGE..][..from.len()];
                for (shown, &pixel) in patch.iter_mut().zip(from) {
                    *shown = saturation.shown(pixel);
                }
            }
        }
        for k in 0..RUN {
            self.run.index[k] = (k * EDGE * EDGE + reach * (EDGE + 1)) as u32;
        }
        let mut out = [0.0; RUN];
        let patches = Plane { pixels: &self.pixels, stride: EDGE };
        sample(kernel, table, patches, &self.run, &mut out);
        for k in (0..RUN).filter(|k| found >> k & 1 == 1) {
            samples[k] = out[k];
        }
    }
}

/// Whether one of the four pixels around a position hides a value.
#[inline(always)]
fn touches_hidden(plane: Plane, run: &Run, k: usize) -> bool {
    let first = run.index[k] as usize;
    let corners = [first, first + 1, first + plane.stride, first + plane.stride + 1];
    corners.into_iter().any(|at| is_hidden(plane.pixels[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(level: f32) -> Saturation {
        Saturation::new(level).unwrap()
    }

    #[test]
    fn a_level_must_be_one() {
        for level in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(Saturation::new(level), None);
        }
    }

    #[test]
    fn values_near_the_level_come_back_exactly_and_all_nearly() {
        for level in [1e-30_f32, 0.7, 40_000.0, 60_000.0, 65_535.0, 1e30] {
            let mut worst = 0.0_f64;
            for step in 0..400 {
                let value = level * 1.05_f32.powi(step);
                if !value.is_finite() {
                    break;
                }
                let mut pixels = [value, level * 0.999, f32::NAN];
                at(level).hide(&mut pixels);
                assert!(is_hidden(pixels[0]), "{value} of {level}");
                assert!(!is_hidden(pixels[1]) && !is_hidden(pixels[2]));
                let back = at(level).shown(pixels[0]);
                if value < 1.75 * level {
                    assert_eq!(back.to_bits(), value.to_bits(), "{value} of {level}");
                }
                worst = worst.max((f64::from(back) / f64::from(value) - 1.0).abs());
            }
            assert!(worst < 1.0 / 8192.0, "{level}: {worst:e}");
        }
        let mut greatest = [f32::MAX];
        at(1.0).hide(&mut greatest);
        assert!(at(1.0).shown(greatest[0]) > 0.9999 * f32::MAX);
    }

    #[test]
    fn sixteen_bits_lose_nothing() {
        for level in [36_000.0_f32, 50_000.0, 60_000.0] {
            for value in [level, level + 1.0, level + 1234.0, 64_000.0, 65_535.0] {
                let mut pixel = [value];
                at(level).hide(&mut pixel);
                assert!(is_hidden(pixel[0]));
                if value < 1.75 * level {
                    assert_eq!(at(level).shown(pixel[0]), value, "of {level}");
                }
            }
        }
    }

    /// Every kernel finds again what it would have found in the values themselves.
    #[test]
    fn samples_come_back_bit_for_bit() {
        const STRIDE: usize = 40;
        let value = |k: usize| 50.0 + (k * 7919 % 101) as f32;
        let plain: Vec<f32> = (0..STRIDE * 40 + SLACK).map(value).collect();
        let mut hidden = plain.clone();
        hidden[813] = f32::NAN;
        at(140.0).hide(&mut hidden);
        let mut run = Run { len: RUN, ..Run::default() };
        for k in 0..RUN {
            run.index[k] = (5 * STRIDE + 6 + 17 * k) as u32;
            (run.fx[k], run.fy[k]) = ((k % 8) as f32 / 8.0, (k % 5) as f32 / 5.0);
        }
        run.fx[9] = f32::NAN;
        for kernel in [Kernel::Nearest, Kernel::Bilinear, Kernel::Bicubic, Kernel::Lanczos3] {
            let table = TapTable::new(kernel);
            let of = |pixels: &[f32]| {
                let mut out = [0.0; RUN];
                sample(kernel, &table, Plane { pixels, stride: STRIDE }, &run, &mut out);
                out
            };
            let (mut truth, before) = (plain.clone(), of(&hidden));
            truth[813] = f32::NAN;
            let truth = of(&truth);
            let (mut values, mut weights) = ([before], [3.0; RUN]);
            let plane = Plane { pixels: &hidden, stride: STRIDE };
            let planes = std::iter::once(plane);
            let mut patches = Patches::default();
            let how = (kernel, &table);
            patches.recover(at(140.0), how, planes, &run, &mut values, &mut weights);
            let mut recovered = 0;
            for k in 0..RUN {
                if weights[k] < 0.0 {
                    recovered += 1;
                    assert_eq!(values[0][k].to_bits(), truth[k].to_bits(), "{kernel:?} {k}");
                } else {
                    let same = values[0][k].to_bits() == before[k].to_bits();
                    assert!(same || before[k].is_nan() && values[0][k].is_nan());
                }
            }
            assert!(recovered > 3, "{kernel:?}: {recovered}");
            assert!(values[0][9].is_nan());
        }
    }

    #[test]
    fn a_sample_is_saturated_in_all_channels_or_in_none() {
        let mut red = [10.0_f32; 64];
        let green = [20.0_f32; 64];
        red[18] = 150.0;
        at(100.0).hide(&mut red);
        let mut run = Run { len: 2, ..Run::default() };
        run.index[..2].copy_from_slice(&[18, 30]);
        let mut values = [[10.0; RUN], [20.0; RUN]];
        values[0][0] = f32::NAN;
        let (mut weights, table) = ([1.0; RUN], TapTable::new(Kernel::Bilinear));
        let planes = [&red, &green].map(|pixels| Plane { pixels, stride: 8 });
        Patches::default().recover(
            at(100.0),
            (Kernel::Bilinear, &table),
            planes.into_iter(),
            &run,
            &mut values,
            &mut weights,
        );
        assert_eq!([values[0][0], values[1][0], values[0][1]], [150.0, 20.0, 10.0]);
        assert_eq!(weights[..2], [-1.0, 1.0]);
    }
}
