//! Kernels that are the product of a row of taps and a column of taps: bicubic and Lanczos.
//!
//! The taps as functions of the fraction are smooth on [0, 1], so each is kept as a polynomial:
//! exact for the cubic, a Chebyshev interpolant good to single precision for Lanczos. That
//! vectorises, and gives the same bits with every instruction set.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod native;

use std::f64::consts::PI;

use super::{Kernel, LEAST_TAP, Plane, RUN, Run};

/// Degree of the polynomials: the least that leaves Lanczos-3 within 1e-7 (see the test).
const DEGREE: usize = 9;

/// Most taps in a row.
const MOST: usize = 6;

/// The taps of a kernel: `at_centre + f · q(t)`, with the polynomial q in t = 2 f − 1, lowest power
/// first. In this form they are exactly 1 and 0 at the centre of a pixel, f = 0.
pub struct TapTable {
    at_centre: [f32; MOST],
    coefficients: [[f32; DEGREE + 1]; MOST],
}

impl TapTable {
    /// The table of a kernel; it is not used by those that are not separable.
    pub fn new(kernel: Kernel) -> Self {
        let radius = kernel.radius();
        let mut table = Self { at_centre: [0.0; MOST], coefficients: [[0.0; DEGREE + 1]; MOST] };
        for k in 0..2 * radius {
            // Tap k sits at pixel k − (radius − 1), the position at the fraction.
            let tap = |fraction: f64| {
                let x = fraction - (k as f64 - (radius as f64 - 1.0));
                match kernel {
                    Kernel::Bicubic => keys(x),
                    _ => lanczos(x, radius as f64),
                }
            };
            let at_centre = if k == radius - 1 { 1.0 } else { 0.0 };
            table.at_centre[k] = at_centre as f32;
            let quotient = |t: f64| {
                let fraction = f64::midpoint(t, 1.0);
                (tap(fraction) - at_centre) / fraction
            };
            table.coefficients[k] = interpolate(quotient).map(|c| c as f32);
        }
        table
    }

    /// Tap by tap, its value at the centre and the coefficients.
    pub fn values(&self) -> Vec<f32> {
        let each = self.at_centre.iter().zip(&self.coefficients);
        each.flat_map(|(centre, powers)| std::iter::once(*centre).chain(*powers)).collect()
    }

    /// The taps of a run at these fractions, one row a tap.
    #[inline(always)]
    pub(crate) fn taps<const N: usize>(&self, fractions: &[f32; RUN], taps: &mut [[f32; RUN]; N]) {
        for (k, row) in taps.iter_mut().enumerate() {
            let (c, at_centre) = (&self.coefficients[k], self.at_centre[k]);
            for (tap, fraction) in row.iter_mut().zip(fractions) {
                let t = 2.0 * fraction - 1.0;
                let mut quotient = c[DEGREE];
                for power in (0..DEGREE).rev() {
                    quotient = quotient * t + c[power];
                }
                *tap = at_centre + fraction * quotient;
            }
        }
    }
}

/// Keys' cubic convolution kernel with a = −0.5.
fn keys(x: f64) -> f64 {
    let x = x.abs();
    if x <= 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    } else {
        0.0
    }
}

fn lanczos(x: f64, radius: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
    sinc(x) * sinc(x / radius)
}

/// The polynomial of degree [`DEGREE`] through `f` at the Chebyshev points of [−1, 1].
fn interpolate(f: impl Fn(f64) -> f64) -> [f64; DEGREE + 1] {
    const N: usize = DEGREE + 1;
    let angle = |j: usize| PI * (j as f64 + 0.5) / N as f64;
    // Chebyshev coefficients by the discrete cosine sum, then T_k into powers by its recurrence.
    let mut powers = [0.0; N];
    let (mut before, mut current) = ([0.0; N], [0.0; N]);
    current[0] = 1.0;
    for k in 0..N {
        let sum: f64 = (0..N).map(|j| f(angle(j).cos()) * (k as f64 * angle(j)).cos()).sum();
        let weight = if k == 0 { 1.0 } else { 2.0 } / N as f64 * sum;
        for (power, c) in powers.iter_mut().zip(current) {
            *power += weight * c;
        }
        let mut next = [0.0; N];
        let factor = if k == 0 { 1.0 } else { 2.0 };
        for p in 0..N {
            let raised = if p > 0 { factor * current[p - 1] } else { 0.0 };
            next[p] = raised - if k == 0 { 0.0 } else { before[p] };
        }
        (before, current) = (current, next);
    }
    powers
}

/// The taps of a run, one row a tap.
pub struct Taps<const N: usize> {
    across: [[f32; RUN]; N],
    down: [[f32; RUN]; N],
    /// What a sample is divided by: the sum of its products of taps.
    totals: [f32; RUN],
}

/// Values of `N` × `N` pixels around each position, weighted. Whether some of these are invalid.
#[inline(always)]
pub fn sample<const N: usize>(
    table: &TapTable,
    plane: Plane,
    run: &Run,
    out: &mut [f32; RUN],
) -> bool {
    let mut taps = Taps { across: [[0.0; RUN]; N], down: [[0.0; RUN]; N], totals: [0.0; RUN] };
    table.taps(&run.fx, &mut taps.across);
    table.taps(&run.fy, &mut taps.down);
    for i in 0..RUN {
        taps.totals[i] = sum_of(&taps.across, i) * sum_of(&taps.down, i);
    }
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::level() == crate::cpu::Level::Baseline {
        native::weigh(plane, run, &taps, out);
    } else {
        // SAFETY: every level above the baseline has AVX2.
        unsafe { avx2::weigh(plane, run, &taps, out) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    native::weigh(plane, run, &taps, out);

    let has_nan = out.iter().any(|value| value.is_nan());
    if has_nan {
        for i in 0..run.len {
            if out[i].is_nan() && !run.fx[i].is_nan() {
                let pairs = std::array::from_fn(|k| (taps.across[k][i], taps.down[k][i]));
                out[i] = careful::<N>(plane, first_tap::<N>(plane, run, i), pairs);
            }
        }
    }
    has_nan
}

#[inline(always)]
fn sum_of<const N: usize>(taps: &[[f32; RUN]; N], i: usize) -> f32 {
    taps.iter().fold(0.0, |sum, weights| sum + weights[i])
}

/// Index of the first pixel under the taps of a position.
#[inline(always)]
pub(crate) fn first_tap<const N: usize>(plane: Plane, run: &Run, i: usize) -> usize {
    run.index[i] as usize - (N / 2 - 1) * (plane.stride + 1)
}

/// The sample from its valid taps alone; NaN if one of the inner four that has weight is invalid.
#[cold]
#[inline(never)]
fn careful<const N: usize>(plane: Plane, first: usize, taps: [(f32, f32); N]) -> f32 {
    let inner = N / 2 - 1..=N / 2;
    let (mut sum, mut total) = (0.0, 0.0);
    for (row, (_, down)) in taps.iter().enumerate() {
        for (column, (across, _)) in taps.iter().enumerate() {
            let tap = across * down;
            let value = plane.pixels[first + row * plane.stride + column];
            if !value.is_nan() {
                sum += tap * value;
                total += tap;
            } else if inner.contains(&row) && inner.contains(&column) && tap.abs() > LEAST_TAP {
                return f32::NAN;
            }
        }
    }
    // Where nearly all weight is lost the quotient means nothing.
    if total > 0.1 { sum / total } else { f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kernel; 3] = [Kernel::Bicubic, Kernel::Lanczos2, Kernel::Lanczos3];

    fn exact(kernel: Kernel, x: f64) -> f64 {
        match kernel {
            Kernel::Bicubic => keys(x),
            _ => lanczos(x, kernel.radius() as f64),
        }
    }

    #[test]
    fn the_polynomials_are_good_to_single_precision() {
        for kernel in ALL {
            let table = TapTable::new(kernel);
            let radius = kernel.radius();
            for step in 0..=1000 {
                let fraction = step as f32 / 1000.0;
                let fractions = [fraction; RUN];
                let mut taps = [[0.0; RUN]; 6];
                table.taps(&fractions, &mut taps);
                for (k, row) in taps.iter().enumerate().take(2 * radius) {
                    let x = f64::from(fraction) - (k as f64 - (radius as f64 - 1.0));
                    let error = (f64::from(row[0]) - exact(kernel, x)).abs();
                    assert!(error < 4e-7, "{kernel:?} tap {k} at {fraction}: {error:e}");
                }
            }
        }
    }

    fn at(kernel: Kernel, pixels: &[f32], stride: usize, index: usize, fx: f32, fy: f32) -> f32 {
        let mut padded = pixels.to_vec();
        padded.extend([f32::NAN; 8]);
        let plane = Plane { pixels: &padded, stride };
        let mut run = Run { len: 1, ..Run::default() };
        (run.index[0], run.fx[0], run.fy[0]) = (index as u32, fx, fy);
        let mut out = [0.0; RUN];
        super::super::sample(kernel, &TapTable::new(kernel), plane, &run, &mut out);
        out[0]
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn instruction_sets_agree_bit_for_bit() {
        if crate::cpu::level() == crate::cpu::Level::Baseline {
            return; // there is only one on this processor
        }
        let mut seed = 7_u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed as f32 / u32::MAX as f32
        };
        let pixels: Vec<f32> = (0..4096).map(|_| 1e3 * random()).collect();
        let plane = Plane { pixels: &pixels, stride: 50 };
        let mut run = Run { len: RUN, ..Run::default() };
        for i in 0..RUN {
            run.index[i] = 200 + (3000.0 * random()) as u32;
            (run.fx[i], run.fy[i]) = (random(), random());
        }
        let table = TapTable::new(Kernel::Lanczos3);
        let mut taps = Taps { across: [[0.0; RUN]; 6], down: [[0.0; RUN]; 6], totals: [1.5; RUN] };
        table.taps(&run.fx, &mut taps.across);
        table.taps(&run.fy, &mut taps.down);
        let (mut plain, mut wide) = ([0.0; RUN], [0.0; RUN]);
        native::weigh(plane, &run, &taps, &mut plain);
        // SAFETY: every level above the baseline has AVX2.
        unsafe { avx2::weigh(plane, &run, &taps, &mut wide) };
        assert_eq!(plain.map(f32::to_bits), wide.map(f32::to_bits));
    }

    #[test]
    fn constants_and_centres_are_kept() {
        for kernel in ALL {
            let flat = [7.25; 64];
            assert!((at(kernel, &flat, 8, 27, 0.3, 0.8) - 7.25).abs() < 1e-5);
            let ramp: Vec<f32> = (0..64).map(|k| k as f32).collect();
            assert_eq!(at(kernel, &ramp, 8, 27, 0.0, 0.0), 27.0, "{kernel:?}");
        }
    }

    #[test]
    fn only_inner_pixels_decide_validity() {
        for kernel in ALL {
            let mut pixels = [1.0; 64];
            pixels[18] = f32::NAN; // a neighbour on the diagonal, outside the inner four
            let value = at(kernel, &pixels, 8, 27, 0.4, 0.4);
            assert!((value - 1.0).abs() < 1e-5, "{kernel:?}: {value}");
            pixels[28] = f32::NAN; // to the right: among the inner four
            assert!(at(kernel, &pixels, 8, 27, 0.4, 0.4).is_nan());
        }
    }
}
