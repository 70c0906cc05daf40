//! Kernels that are the product of a row of taps and a column of taps: bicubic and Lanczos.
//!
//! The taps as functions of the fraction are smooth on [0, 1], so each is kept as a polynomial:
//! exact for the cubic, a Chebyshev interpolant good to single precision for Lanczos. That
//! vectorises, and gives the same bits with every instruction set.

use std::f64::consts::PI;

use super::{Kernel, LEAST_TAP, Plane, RUN, Run};

/// Degree of the polynomials: the least that leaves Lanczos-3 within 1e-7 (see the test).
const DEGREE: usize = 9;

/// Most taps in a row.
const MOST: usize = 6;

/// The taps of a kernel as polynomials in t = 2 · fraction − 1, lowest power first.
pub struct TapTable {
    coefficients: [[f32; DEGREE + 1]; MOST],
}

impl TapTable {
    /// The table of a kernel; it is not used by those that are not separable.
    pub fn new(kernel: Kernel) -> Self {
        let radius = kernel.radius();
        let mut coefficients = [[0.0; DEGREE + 1]; MOST];
        for (k, row) in coefficients.iter_mut().enumerate().take(2 * radius) {
            // Tap k sits at pixel k − (radius − 1), the position at the fraction.
            let distance = |fraction: f64| fraction - (k as f64 - (radius as f64 - 1.0));
            let tap = |t: f64| {
                let x = distance(f64::midpoint(t, 1.0));
                match kernel {
                    Kernel::Bicubic => keys(x),
                    _ => lanczos(x, radius as f64),
                }
            };
            *row = interpolate(tap).map(|c| c as f32);
        }
        Self { coefficients }
    }

    #[inline(always)]
    fn taps<const N: usize>(&self, fractions: &[f32; RUN], taps: &mut [[f32; RUN]; N]) {
        for (row, c) in taps.iter_mut().zip(&self.coefficients) {
            for (tap, fraction) in row.iter_mut().zip(fractions) {
                let t = 2.0 * fraction - 1.0;
                let mut value = c[DEGREE];
                for power in (0..DEGREE).rev() {
                    value = value * t + c[power];
                }
                *tap = value;
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

/// Values of `N` × `N` pixels around each position, weighted.
#[inline(always)]
pub fn sample<const N: usize>(table: &TapTable, plane: Plane, run: &Run, out: &mut [f32; RUN]) {
    let (mut across, mut down) = ([[0.0; RUN]; N], [[0.0; RUN]; N]);
    table.taps(&run.fx, &mut across);
    table.taps(&run.fy, &mut down);
    let reach = (N / 2 - 1) * (plane.stride + 1);
    for i in 0..run.len {
        let first = run.index[i] as usize - reach;
        // Columns first, eight at once (the last two are read but not used), then along the row.
        let mut columns = [0.0_f32; 8];
        let mut sum_down = 0.0;
        for (k, weights) in down.iter().enumerate() {
            let row = pixels(plane, first + k * plane.stride);
            for (column, pixel) in columns.iter_mut().zip(row) {
                *column += weights[i] * pixel;
            }
            sum_down += weights[i];
        }
        let (mut value, mut sum_across) = (0.0, 0.0);
        for (weights, column) in across.iter().zip(columns) {
            value += weights[i] * column;
            sum_across += weights[i];
        }
        out[i] = value / (sum_across * sum_down);
    }
    for i in 0..run.len {
        if out[i].is_nan() && !run.fx[i].is_nan() {
            let taps = std::array::from_fn(|k| (across[k][i], down[k][i]));
            out[i] = careful::<N>(plane, run.index[i] as usize - reach, taps);
        }
    }
}

#[inline(always)]
fn pixels(plane: Plane<'_>, first: usize) -> &[f32; 8] {
    debug_assert!(first + 8 <= plane.pixels.len());
    // SAFETY: a run names only pixels that have `radius` neighbours on each side in the plane, and
    // eight values follow its last row.
    unsafe { &*plane.pixels.as_ptr().add(first).cast() }
}

/// The sample from its valid taps alone; NaN if one of the inner four that has weight is invalid.
#[cold]
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

    #[test]
    fn constants_and_centres_are_kept() {
        for kernel in ALL {
            let flat = [7.25; 64];
            assert!((at(kernel, &flat, 8, 27, 0.3, 0.8) - 7.25).abs() < 1e-5);
            let ramp: Vec<f32> = (0..64).map(|k| k as f32).collect();
            assert!((at(kernel, &ramp, 8, 27, 0.0, 0.0) - 27.0).abs() < 1e-4, "{kernel:?}");
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
