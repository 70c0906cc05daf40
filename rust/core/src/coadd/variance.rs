//! The variance of combined values, from that of their samples, which are independent.
//!
//! With weights w and variances v of the samples that count, it is Σ w² v / (Σ w)² for a mean,
//! Σ w² v for a sum, and that of the sample itself where one is chosen. What was rejected, and what
//! all samples of an input have in common, such as an error of its sky level, is not in it.

use std::f64::consts::{FRAC_PI_2, PI};

use super::accumulate::Affine;
use super::estimate::{LANES, Lanes, Verdict};
use super::{Running, clean};
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
        *target = if weight == 0.0 { f32::NAN } else { clean(variance) };
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
#[inline(always)]
pub fn of_lanes<'a>(verdict: &Verdict, samples: impl Iterator<Item = Sampled<'a>>) -> Lanes {
    if let Verdict::Values(_) = verdict {
        return of_medians(samples);
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
    std::array::from_fn(|lane| clean(sum[lane] / (total[lane] * total[lane])))
}

/// The variances of the weighted medians of sixteen pixels; NaN of no samples.
///
/// The median m solves Σ w sign(x − m) = 0, of variance Σ w² and, for normal noise, of slope
/// √(2/π) Σ w/σ, which makes (π/2) Σ w² / (Σ w/σ)² when there are many samples. Medians of few that
/// weigh alike are less noisy than that (see [`few`]). Of one sample the variance is its own; of two,
/// that of their mean, or with unlike weights that of the heavier one.
#[inline(always)]
fn of_medians<'a>(samples: impl Iterator<Item = Sampled<'a>>) -> Lanes {
    let mut medians = Medians::default();
    for one in samples {
        for lane in 0..LANES {
            let variance = one.variance * f64::from(one.shares[lane]);
            medians.add(lane, !one.values[lane].is_nan(), one.weights[lane], variance);
        }
    }
    std::array::from_fn(|lane| clean(medians.variance(lane)))
}

/// What the variances of medians follow from, by lane.
#[derive(Default)]
struct Medians {
    n: [f64; LANES],
    /// Sum of squared weights.
    squares: [f64; LANES],
    /// Sum of weights over standard deviations.
    slope: [f64; LANES],
    /// Sum of variances.
    total: [f64; LANES],
    lightest: [f64; LANES],
    heaviest: [f64; LANES],
    /// Variance of the heaviest sample.
    of_heaviest: [f64; LANES],
}

impl Medians {
    /// Add a sample of a lane, if it is valid.
    #[inline(always)]
    fn add(&mut self, lane: usize, is_valid: bool, weight: f64, variance: f64) {
        let is_first = self.n[lane] == 0.0;
        let is_heaviest = is_valid & (is_first | (weight > self.heaviest[lane]));
        let is_lightest = is_valid & (is_first | (weight < self.lightest[lane]));
        self.n[lane] += if is_valid { 1.0 } else { 0.0 };
        self.squares[lane] += if is_valid { weight * weight } else { 0.0 };
        self.slope[lane] += if is_valid { weight / variance.sqrt() } else { 0.0 };
        self.total[lane] += if is_valid { variance } else { 0.0 };
        self.lightest[lane] = if is_lightest { weight } else { self.lightest[lane] };
        self.heaviest[lane] = if is_heaviest { weight } else { self.heaviest[lane] };
        self.of_heaviest[lane] = if is_heaviest { variance } else { self.of_heaviest[lane] };
    }

    #[inline(always)]
    fn variance(&self, lane: usize) -> f64 {
        let n = self.n[lane];
        let are_alike = self.lightest[lane] == self.heaviest[lane];
        let of_many = FRAC_PI_2 * self.squares[lane] / (self.slope[lane] * self.slope[lane]);
        if n == 0.0 {
            f64::NAN
        } else if n <= 2.0 && are_alike {
            self.total[lane] / (n * n)
        } else if n == 2.0 {
            self.of_heaviest[lane]
        } else if are_alike {
            of_many * few(n)
        } else {
            of_many
        }
    }
}

/// The variance of the median of `n` equal normal variates over π/(2n): n / (n + c), where c is the
/// simplest function that is exact for one and two of them and has the right limits; it is good to
/// 1 % between (see the test, whose numbers are integrals over order statistics).
fn few(n: f64) -> f64 {
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
        let mut medians = Medians::default();
        medians.add(5, false, f64::NAN, f64::NAN);
        for (weight, variance) in samples {
            medians.add(5, true, *weight, *variance);
        }
        medians.variance(5)
    }

    #[test]
    fn medians_of_few_samples() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[(5.0, 3.0)]), 3.0);
        assert_eq!(median(&[(5.0, 3.0), (5.0, 1.0)]), 1.0);
        assert_eq!(median(&[(5.0, 3.0), (4.0, 1.0)]), 3.0);
        assert_eq!(median(&[(4.0, 3.0), (5.0, 1.0)]), 1.0);
        assert_eq!(
            [1.0, 2.0].map(|n| FRAC_PI_2 * few(n)).map(|v| (v * 1e12).round()),
            [1e12, 1e12]
        );
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
