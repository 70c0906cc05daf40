//! How much noise a sample has: the sum over its pixels of tap² times variance.
//!
//! The noise of different pixels is taken as independent, so the variance of a sample
//! Σ tap · pixel / Σ tap is Σ tap² · variance / (Σ tap)². Where the weight map of the input says the
//! variances of its pixels, they are 1 / weight; elsewhere all are alike, and what is computed here,
//! the *share*, is to be multiplied by that one variance. Taps that a kernel drops beside invalid
//! pixels are dropped here too.

use crate::cpu::dispatched;
use crate::resample::{Kernel, LEAST_TAP, Plane, RUN, Run, TapTable, first_tap};
use crate::weights::is_hidden;

dispatched! {
    /// Shares of the samples of a run of one channel, if no tap is dropped. `weights` is the map of
    /// inverse variances of the input, if it has one. Where the sample is invalid they mean nothing.
    pub fn shares(
        kernel: Kernel,
        table: &TapTable,
        weights: Option<Plane>,
        run: &Run,
        out: &mut [f32; RUN],
    ) = shares_here
}

#[inline(always)]
fn shares_here(
    kernel: Kernel,
    table: &TapTable,
    weights: Option<Plane>,
    run: &Run,
    out: &mut [f32; RUN],
) {
    match (kernel, weights) {
        (Kernel::Nearest, None) => out.fill(1.0),
        (Kernel::Nearest, Some(weights)) => {
            crate::resample::sample(kernel, table, weights, run, out);
            for share in out {
                *share = 1.0 / *share;
            }
        }
        (Kernel::Bilinear, None) => {
            let squares = |f: f32| (1.0 - f) * (1.0 - f) + f * f;
            for k in 0..RUN {
                out[k] = squares(run.fx[k]) * squares(run.fy[k]);
            }
        }
        (Kernel::Bilinear, Some(weights)) => bilinear(weights, run, out),
        (Kernel::Bicubic | Kernel::Lanczos2, _) => separable::<4>(table, weights, run, out),
        (Kernel::Lanczos3, _) => separable::<6>(table, weights, run, out),
    }
}

/// As the kernel, without pixels of no weight, which may be invalid.
#[inline(always)]
fn bilinear(weights: Plane, run: &Run, out: &mut [f32; RUN]) {
    for (k, share) in out.iter_mut().enumerate().take(run.len) {
        let (fx, fy, first) = (run.fx[k], run.fy[k], run.index[k] as usize);
        let below = first + weights.stride;
        let taps = [
            (first, (1.0 - fx) * (1.0 - fy)),
            (first + 1, fx * (1.0 - fy)),
            (below, (1.0 - fx) * fy),
            (below + 1, fx * fy),
        ];
        let (mut sum, mut total) = (0.0, 0.0);
        for (at, tap) in taps {
            let counts = tap > LEAST_TAP;
            sum += if counts { tap * tap / weights.pixels[at] } else { 0.0 };
            total += if counts { tap } else { 0.0 };
        }
        *share = sum / (total * total);
    }
}

#[inline(always)]
fn separable<const N: usize>(
    table: &TapTable,
    weights: Option<Plane>,
    run: &Run,
    out: &mut [f32; RUN],
) {
    let Taps { mut across, mut down } = Taps::<N>::of(table, run);
    let (total_x, total_y) = (sum_of(&across), sum_of(&down));
    for tap in across.iter_mut().chain(&mut down) {
        for tap in tap {
            *tap *= *tap;
        }
    }
    match weights {
        None => {
            let (squares_x, squares_y) = (sum_of(&across), sum_of(&down));
            for k in 0..RUN {
                out[k] = squares_x[k] * squares_y[k];
            }
        }
        Some(plane) => {
            for (k, out) in out.iter_mut().enumerate().take(run.len) {
                let first = first_tap::<N>(plane, run, k);
                let mut columns = [0.0; N];
                for (row, down) in down.iter().enumerate() {
                    let line = &plane.pixels[first + row * plane.stride..][..N];
                    for (column, weight) in columns.iter_mut().zip(line) {
                        *column += down[k] / weight;
                    }
                }
                *out = across.iter().zip(columns).fold(0.0, |sum, (a, column)| sum + a[k] * column);
            }
        }
    }
    for k in 0..RUN {
        let total = total_x[k] * total_y[k];
        out[k] /= total * total;
    }
}

#[inline(always)]
fn sum_of<const N: usize>(taps: &[[f32; RUN]; N]) -> [f32; RUN] {
    let mut sums = [0.0; RUN];
    for tap in taps {
        for (sum, tap) in sums.iter_mut().zip(tap) {
            *sum += tap;
        }
    }
    sums
}

/// The taps of a run.
struct Taps<const N: usize> {
    across: [[f32; RUN]; N],
    down: [[f32; RUN]; N],
}

impl<const N: usize> Taps<N> {
    #[inline(always)]
    fn of(table: &TapTable, run: &Run) -> Self {
        let mut taps = Self { across: [[0.0; RUN]; N], down: [[0.0; RUN]; N] };
        table.taps(&run.fx, &mut taps.across);
        table.taps(&run.fy, &mut taps.down);
        taps
    }
}

dispatched! {
    /// Correct the shares of those valid samples of a channel of which the kernel has dropped taps,
    /// because pixels are invalid. `pixels` is the channel, `samples` what was sampled there; samples
    /// of negative weight count saturated pixels.
    pub fn correct_shares(
        kernel: Kernel,
        table: &TapTable,
        planes: (Plane, Option<Plane>),
        run: &Run,
        samples: (&[f32; RUN], &[f64]),
        out: &mut [f32; RUN],
    ) = correct_shares_here
}

#[inline(always)]
fn correct_shares_here(
    kernel: Kernel,
    table: &TapTable,
    planes: (Plane, Option<Plane>),
    run: &Run,
    samples: (&[f32; RUN], &[f64]),
    out: &mut [f32; RUN],
) {
    match kernel {
        // They drop taps of no weight only.
        Kernel::Nearest | Kernel::Bilinear => {}
        Kernel::Bicubic | Kernel::Lanczos2 => correct::<4>(table, planes, run, samples, out),
        Kernel::Lanczos3 => correct::<6>(table, planes, run, samples, out),
    }
}

#[inline(always)]
fn correct<const N: usize>(
    table: &TapTable,
    (pixels, weights): (Plane, Option<Plane>),
    run: &Run,
    (values, sample_weights): (&[f32; RUN], &[f64]),
    out: &mut [f32; RUN],
) {
    let mut taps = None;
    for k in 0..run.len {
        if values[k].is_nan() {
            continue;
        }
        let first = first_tap::<N>(pixels, run, k);
        let mut sum = 0.0;
        for row in 0..N {
            for pixel in &pixels.pixels[first + row * pixels.stride..][..N] {
                sum += pixel;
            }
        }
        if sum.is_nan() {
            let taps: &Taps<N> = taps.get_or_insert_with(|| Taps::of(table, run));
            let pairs = std::array::from_fn(|n| (taps.across[n][k], taps.down[n][k]));
            out[k] = careful::<N>(pixels, weights, first, sample_weights[k] < 0.0, pairs);
        }
    }
}

/// The share of a sample from its valid taps alone.
#[cold]
#[inline(never)]
fn careful<const N: usize>(
    pixels: Plane,
    weights: Option<Plane>,
    first: usize,
    is_saturated: bool,
    taps: [(f32, f32); N],
) -> f32 {
    let (mut sum, mut total) = (0.0, 0.0);
    for (row, (_, down)) in taps.iter().enumerate() {
        for (column, (across, _)) in taps.iter().enumerate() {
            let (tap, at) = (across * down, first + row * pixels.stride + column);
            let pixel = pixels.pixels[at];
            if !pixel.is_nan() || is_saturated && is_hidden(pixel) {
                sum += tap * tap * weights.map_or(1.0, |plane| 1.0 / plane.pixels[at]);
                total += tap;
            }
        }
    }
    sum / (total * total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIDE: usize = 16;
    const KERNELS: [Kernel; 5] =
        [Kernel::Nearest, Kernel::Bilinear, Kernel::Bicubic, Kernel::Lanczos2, Kernel::Lanczos3];

    fn run() -> Run {
        let mut run = Run { len: 3, ..Run::default() };
        for (k, (fx, fy)) in [(0.3, 0.8), (0.0, 0.0), (0.5, 0.25)].into_iter().enumerate() {
            run.index[k] = (5 * STRIDE + 5 + k) as u32;
            (run.fx[k], run.fy[k]) = (fx, fy);
        }
        for k in 3..RUN {
            run.index[k] = run.index[0];
        }
        run
    }

    /// Responses of a sample to each pixel, found with the kernel itself: its taps.
    fn responses(kernel: Kernel, pixels: &[f32], run: &Run) -> [Vec<f64>; 3] {
        let table = TapTable::new(kernel);
        let of = |pixels: &[f32]| {
            let mut out = [0.0; RUN];
            sample(kernel, &table, Plane { pixels, stride: STRIDE }, run, &mut out);
            out
        };
        let zeros: Vec<f32> = pixels.iter().map(|p| if p.is_nan() { *p } else { 0.0 }).collect();
        let mut found = [const { Vec::new() }; 3];
        for at in 0..STRIDE * STRIDE {
            let mut probe = zeros.clone();
            probe[at] = if probe[at].is_nan() { f32::NAN } else { 1.0 };
            let out = of(&probe);
            for k in 0..3 {
                found[k].push(if probe[at].is_nan() { 0.0 } else { f64::from(out[k]) });
            }
        }
        found
    }

    use crate::resample::{SLACK, sample};

    fn shares_of(kernel: Kernel, pixels: &[f32], map: Option<&[f32]>, weights: &[f64]) -> Vec<f64> {
        let (table, run) = (TapTable::new(kernel), run());
        let plane = |pixels| Plane { pixels, stride: STRIDE };
        let (mut values, mut out) = ([0.0; RUN], [0.0; RUN]);
        sample(kernel, &table, plane(pixels), &run, &mut values);
        shares(kernel, &table, map.map(plane), &run, &mut out);
        let planes = (plane(pixels), map.map(plane));
        correct_shares(kernel, &table, planes, &run, (&values, weights), &mut out);
        out[..3].iter().map(|share| f64::from(*share)).collect()
    }

    #[test]
    fn they_are_the_squares_of_the_responses() {
        let whole = vec![7.0; STRIDE * STRIDE + SLACK];
        let mut holed = whole.clone();
        for at in [3 * STRIDE + 4, 4 * STRIDE + 8, 6 * STRIDE + 3] {
            holed[at] = f32::NAN;
        }
        for pixels in [&whole, &holed] {
            let map = |k: usize| 0.5 + (k * 37 % 11) as f32;
            let map: Vec<f32> = (0..pixels.len()).map(map).collect();
            let map: Vec<f32> =
                map.iter().zip(pixels).map(|(m, p)| if p.is_nan() { *p } else { *m }).collect();
            for kernel in KERNELS {
                let taps = responses(kernel, pixels, &run());
                let plain = shares_of(kernel, pixels, None, &[1.0; RUN]);
                let mapped = shares_of(kernel, pixels, Some(&map), &[1.0; RUN]);
                for k in 0..3 {
                    let squares = taps[k].iter().map(|tap| tap * tap);
                    let valid = |(tap, m): (f64, &f32)| {
                        if tap == 0.0 { 0.0 } else { tap / f64::from(*m) }
                    };
                    let want = [squares.clone().sum::<f64>(), squares.zip(&map).map(valid).sum()];
                    for (want, got) in want.into_iter().zip([plain[k], mapped[k]]) {
                        assert!((got / want - 1.0).abs() < 3e-6, "{kernel:?} {k}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn saturated_pixels_count_in_samples_that_are_saturated() {
        let mut pixels = vec![7.0; STRIDE * STRIDE + SLACK];
        pixels[4 * STRIDE + 4] = 100.0;
        let whole = shares_of(Kernel::Bicubic, &pixels, None, &[1.0; RUN]);
        crate::weights::Saturation::new(50.0).unwrap().hide(&mut pixels);
        let without = shares_of(Kernel::Bicubic, &pixels, None, &[1.0; RUN]);
        let with = shares_of(Kernel::Bicubic, &pixels, None, &[-1.0; RUN]);
        assert!((with[0] / whole[0] - 1.0).abs() < 1e-6);
        assert!((without[0] / whole[0] - 1.0).abs() > 1e-4);
    }
}
