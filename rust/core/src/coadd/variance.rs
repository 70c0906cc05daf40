//! The variance of combined values, from that of their samples, which are independent.
//!
//! With weights w and variances v of the samples that count, it is Σ w² v / (Σ w)² for a mean,
//! Σ w² v for a sum, and that of the sample itself where one is chosen. What was rejected, and what
//! all samples of an input have in common, such as an error of its sky level, is not in it.

use std::f64::consts::{FRAC_PI_2, PI};

use super::Running;
use super::accumulate::Affine;
use super::estimate::{LANES, Lanes, Verdict};
use crate::cpu::dispatched;

/// Variances of a run of samples of one channel: those of the pixels, times the samples' shares.
#[derive(Clone, Copy)]
pub struct Noise<'a> {
    /// Of the pixels.
    pub variance: f64,
    /// See [`crate::noise`].
    pub shares: &'a [f32],
}

impl Noise<'_> {
    /// Of the sample `i`.
    #[inline(always)]
    pub fn of(&self, i: usize) -> f64 {
        self.variance * f64::from(self.shares[i])
    }
}

dispatched! {
    /// Bring the variances of a run into the running ones. `seen` and `running` are the running
    /// weights and values from before this run, which say what is chosen.
    pub fn add(
        combine: Running,
        affine: Affine,
        samples: (&[f32], &[f64]),
        noise: Noise,
        seen: &[f64],
        running: &[f64],
        variances: &mut [f64],
    ) = add_here
}

#[inline(always)]
fn add_here(
    combine: Running,
    affine: Affine,
    (values, weights): (&[f32], &[f64]),
    noise: Noise,
    seen: &[f64],
    running: &[f64],
    variances: &mut [f64],
) {
    for (i, state) in variances.iter_mut().enumerate() {
        let (value, variance) = (affine.of(values[i]), noise.of(i));
        let is_first = seen[i] == 0.0;
        let next = match combine {
            Running::Mean | Running::Sum => *state + weights[i] * weights[i] * variance,
            Running::Min if is_first || value < running[i] => variance,
            Running::Max if is_first || value > running[i] => variance,
            Running::First if is_first => variance,
            Running::Last => variance,
            Running::Min | Running::Max | Running::First => *state,
        };
        *state = if values[i].is_nan() { *state } else { next };
    }
}

dispatched! {
    /// The finished variances of a run; NaN where no weight has come together.
    pub fn finish(combine: Running, variances: &[f64], weights: &[f64], out: &mut [f32]) =
        finish_here
}

#[inline(always)]
fn finish_here(combine: Running, variances: &[f64], weights: &[f64], out: &mut [f32]) {
    for ((target, &state), &weight) in out.iter_mut().zip(variances).zip(weights) {
        let variance = if combine == Running::Mean { state / (weight * weight) } else { state };
        *target = if weight == 0.0 { f32::NAN } else { variance as f32 };
    }
}

/// What is needed of the samples of one input and channel in sixteen pixels.
#[derive(Clone, Copy)]
pub struct Sampled<'a> {
    /// Their values, NaN where invalid.
    pub values: &'a Lanes,
    /// Their shares of noise.
    pub shares: &'a Lanes,
    /// Their weights.
    pub weights: [f64; LANES],
    /// Variance of the pixels.
    pub variance: f64,
    /// Whether all channels keep them.
    pub kept: [bool; LANES],
}

/// The variance of the values of sixteen pixels that an estimator has found; `samples` are those of
/// all inputs, in job order.
pub fn of_lanes<'a>(
    verdict: &Verdict,
    samples: impl Iterator<Item = Sampled<'a>> + Clone,
) -> Lanes {
    if let Verdict::Values(_) = verdict {
        return std::array::from_fn(|lane| {
            let valid = samples.clone().filter(|one| !one.values[lane].is_nan());
            of_median(
                valid.map(|one| (one.weights[lane], one.variance * f64::from(one.shares[lane]))),
            ) as f32
        });
    }
    let (mut sum, mut total) = ([0.0; LANES], [0.0; LANES]);
    for one in samples {
        for lane in 0..LANES {
            let weight = one.weights[lane];
            let variance = one.variance * f64::from(one.shares[lane]);
            let counts = verdict.look(one.values[lane], lane, one.kept[lane]).counts;
            sum[lane] += if counts { weight * weight * variance } else { 0.0 };
            total[lane] += if counts { weight } else { 0.0 };
        }
    }
    std::array::from_fn(|lane| (sum[lane] / (total[lane] * total[lane])) as f32)
}

/// The variance of a weighted median of samples of these weights and variances; NaN of none.
///
/// The median m solves Σ w sign(x − m) = 0, of variance Σ w² and, for normal noise, of slope
/// √(2/π) Σ w/σ, which makes (π/2) Σ w² / (Σ w/σ)² when there are many samples. Medians of few that
/// weigh alike are less noisy than that (see [`few`]). Of one sample the variance is its own; of two,
/// that of their mean, or with unlike weights that of the heavier one.
fn of_median(samples: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (mut n, mut squares, mut slope, mut are_alike) = (0, 0.0, 0.0, true);
    let mut two = [(0.0, 0.0); 2];
    for (weight, variance) in samples {
        are_alike &= n == 0 || weight == two[1].0;
        two = [two[1], (weight, variance)];
        squares += weight * weight;
        slope += weight / variance.sqrt();
        n += 1;
    }
    let [(a, of_a), (b, of_b)] = two;
    match n {
        0 => f64::NAN,
        1 => of_b,
        2 if are_alike => 0.25 * (of_a + of_b),
        2 if a > b => of_a,
        2 => of_b,
        _ if are_alike => FRAC_PI_2 * few(n) * squares / (slope * slope),
        _ => FRAC_PI_2 * squares / (slope * slope),
    }
}

/// The variance of the median of `n` equal normal variates over π/(2n): n / (n + c), where c is the
/// simplest function that is exact for one and two of them and has the right limits; it is good to
/// 1 % between (see the test, whose numbers are integrals over order statistics).
fn few(n: u32) -> f64 {
    let n = f64::from(n);
    let c = if n % 2.0 == 1.0 {
        2.0 - FRAC_PI_2 + (PI - 3.0) / n
    } else {
        3.0 - FRAC_PI_2 - (10.0 - 3.0 * PI) / n
    };
    n / (n + c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn median(samples: &[(f64, f64)]) -> f64 {
        of_median(samples.iter().copied())
    }

    #[test]
    fn medians_of_few_samples() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[(5.0, 3.0)]), 3.0);
        assert_eq!(median(&[(5.0, 3.0), (5.0, 1.0)]), 1.0);
        assert_eq!(median(&[(5.0, 3.0), (4.0, 1.0)]), 3.0);
        assert_eq!(median(&[(4.0, 3.0), (5.0, 1.0)]), 1.0);
        assert_eq!([1, 2].map(|n| FRAC_PI_2 * few(n)).map(|v| (v * 1e12).round()), [1e12, 1e12]);
        // n times the variance of the median of n standard normal variates.
        for (n, want) in [(3, 1.3460), (4, 1.1928), (5, 1.4342), (6, 1.2885), (10, 1.3833)] {
            let got = median(&vec![(0.7, 1.0); n]) * n as f64;
            assert!((got / want - 1.0).abs() < 0.01, "{n}: {got} {want}");
        }
    }

    #[test]
    fn of_many_samples_the_precise_ones_count() {
        let mut samples = vec![(1.0, 1.0); 1000];
        samples.extend([(1.0, 1e6); 10]);
        let got = median(&samples);
        assert!((got * 1000.0 / FRAC_PI_2 - 1.0).abs() < 0.02, "{got}");
        let unlike: Vec<_> = (1..=9).map(|k| (1.0 / f64::from(k), f64::from(k))).collect();
        let sum = |of: &dyn Fn(f64) -> f64| (1..=9).map(|k| of(f64::from(k))).sum::<f64>();
        let want = FRAC_PI_2 * sum(&|k| 1.0 / (k * k)) / sum(&|k| k.powf(-1.5)).powi(2);
        assert!((median(&unlike) / want - 1.0).abs() < 1e-12);
    }
}
