//! Clipping about the mean in two sweeps over the inputs, without holding samples.
//!
//! First sweep: mean and squared deviations of the samples of a pixel, updated sample by sample
//! (Welford 1962, Technometrics 4, 419), which loses no digits however far the samples lie from
//! zero; then the bounds. Second sweep: the weighted mean of the samples within them.
//!
//! Samples are compared in single precision, and bounds are rounded outward to it. Some sample lies
//! no further from the mean than the standard deviation, so with kappas of 1 and more some sample is
//! always kept, also when all lie on the bounds: rounding errors are far below the last digit of the
//! greatest.

use super::accumulate::Affine;
use super::variance::Noise;
use super::{Streamed, clean};
use crate::resample::RUN;

/// Running planes of a channel in the first sweep: the mean, and the sum of squared deviations from
/// it. The number of samples is one more plane, for all channels.
pub const MOMENTS: usize = 2;

/// Running planes of a channel in the second sweep: sum, weight, and numbers of rejected samples.
pub const WITHIN: usize = 3;

/// What a sample above the upper bound adds to the numbers of rejected ones; one below the lower
/// bound adds 1. A double holds both numbers exactly for up to 2^26 inputs.
const ABOVE: f64 = (1_u32 << 26) as f64;

/// A sample as it counts. What no float can hold is as far out as one can be; NaN stays.
#[inline(always)]
fn sample_of(affine: Affine, value: f32) -> f64 {
    affine.of(value).clamp(f64::from(f32::MIN), f64::from(f32::MAX))
}

/// Bring a run of one channel into its moments, given the number of samples before it.
#[inline(always)]
pub fn add_moments(
    affine: Affine,
    values: &[f32],
    numbers: &[f64],
    moments: [&mut [f64]; MOMENTS],
) {
    let [means, squares] = moments.map(|plane| &mut plane[..values.len()]);
    let numbers = &numbers[..values.len()];
    for (i, &value) in values.iter().enumerate() {
        let sample = f64::from(sample_of(affine, value) as f32);
        let off = sample - means[i];
        let mean = means[i] + off / (numbers[i].abs() + 1.0);
        let square = squares[i] + off * (sample - mean);
        means[i] = if value.is_nan() { means[i] } else { mean };
        squares[i] = if value.is_nan() { squares[i] } else { square };
    }
}

/// Lower and upper bounds of some pixels of one channel; NaN where there are no samples. Where all
/// are saturated, which a negative number says, nothing is to be rejected, and bounds are infinite.
#[inline(always)]
pub fn finish_moments(
    how: &Streamed,
    [means, squares]: [&[f64]; MOMENTS],
    numbers: &[f64],
    [low, high]: [&mut [f32]; 2],
) {
    for i in 0..low.len() {
        let sigma = (squares[i] / numbers[i].abs()).sqrt();
        let finite = [
            at_most(means[i] - how.kappa.0 * sigma).max(f32::MIN),
            (-at_most(-(means[i] + how.kappa.1 * sigma))).min(f32::MAX),
        ];
        let without = if numbers[i] < 0.0 { f32::INFINITY } else { f32::NAN };
        [low[i], high[i]] = if numbers[i] > 0.0 { finite } else { [-without, without] };
    }
}

/// Whether all samples of the pixel with this lower bound are saturated.
pub fn has_no_bounds(low: f32) -> bool {
    low == f32::NEG_INFINITY
}

/// The greatest single-precision number that is not above a double.
fn at_most(value: f64) -> f32 {
    let single = value as f32;
    if f64::from(single) > value { single.next_down() } else { single }
}

/// For each sample of a run, in how many channels it lies out of bounds.
pub type Outside = [f64; RUN];

/// Count the samples of a run of one channel that lie out of bounds.
#[inline(always)]
pub fn count_outside(affine: Affine, values: &[f32], bounds: [&[f32]; 2], outside: &mut Outside) {
    let bounds = bounds.map(|plane| &plane[..values.len()]);
    let outside = &mut outside[..values.len()];
    for (i, &value) in values.iter().enumerate() {
        let (below, above) = compare(sample_of(affine, value), bounds, i);
        outside[i] += if below | above { 1.0 } else { 0.0 };
    }
}

/// Whether a sample lies below or above the bounds of a pixel.
#[inline(always)]
fn compare(sample: f64, [low, high]: [&[f32]; 2], i: usize) -> (bool, bool) {
    // As doubles, so that all numbers of the loops are of one width.
    let single = f64::from(sample as f32);
    (single < f64::from(low[i]), single > f64::from(high[i]))
}

/// What becomes of a sample in the second sweep.
struct Fate {
    is_kept: bool,
    /// Whether it is the first that is kept, where others have stood in.
    is_first: bool,
    /// Whether it comes together with others because none is kept until now.
    stands_in: bool,
}

/// The fate of a sample that lies within the bounds of its own channel, or does not, where this
/// weight has come together before.
#[inline(always)]
fn fate_of<const TOGETHER: bool>(
    is_valid: bool,
    is_within: bool,
    outside: f64,
    total: f64,
) -> Fate {
    let is_kept = is_valid & is_within & (!TOGETHER | (outside == 0.0));
    let is_first = TOGETHER & is_kept & (total < 0.0);
    let stands_in = TOGETHER & is_valid & !is_kept & (total <= 0.0);
    Fate { is_kept, is_first, stands_in }
}

/// Bring the variances of a run of one channel into the sum of those that count, each times its
/// squared weight. `totals` are the weights from before this run.
#[inline(always)]
pub fn add_variance<const TOGETHER: bool>(
    affine: Affine,
    (values, weights): (&[f32], &[f64]),
    noise: Noise,
    bounds: [&[f32]; 2],
    outside: &Outside,
    totals: &[f64],
    variances: &mut [f64],
) {
    for (i, state) in variances.iter_mut().enumerate() {
        let (below, above) = compare(sample_of(affine, values[i]), bounds, i);
        let is_within = !below & !above;
        let fate = fate_of::<TOGETHER>(!values[i].is_nan(), is_within, outside[i], totals[i]);
        let before = if fate.is_first { 0.0 } else { *state };
        let more = weights[i] * weights[i] * noise.of(i);
        *state = before + if fate.is_kept | fate.stands_in { more } else { 0.0 };
    }
}

/// Bring a run of one channel into its sums. Returns how many samples are left out.
///
/// With `TOGETHER` those are left out, too, that lie `outside` in some channel. Then none may be
/// left: until the first sample is kept all come together, with a negative weight.
#[inline(always)]
pub fn add_within<const TOGETHER: bool>(
    affine: Affine,
    (values, weights): (&[f32], &[f64]),
    bounds: [&[f32]; 2],
    outside: &Outside,
    within: [&mut [f64]; WITHIN],
) -> u32 {
    let mut left_out = 0;
    let [sums, totals, rejected] = within.map(|plane| &mut plane[..values.len()]);
    let bounds = bounds.map(|plane| &plane[..values.len()]);
    let (outside, weights) = (&outside[..values.len()], &weights[..values.len()]);
    for (i, &value) in values.iter().enumerate() {
        let sample = sample_of(affine, value);
        let (below, above) = compare(sample, bounds, i);
        let is_valid = !value.is_nan();
        let fate = fate_of::<TOGETHER>(is_valid, !below & !above, outside[i], totals[i]);
        let Fate { is_kept, is_first, stands_in } = fate;
        let (sum, total) = if is_first { (0.0, 0.0) } else { (sums[i], totals[i]) };
        let weighted = weights[i] * sample;
        sums[i] = sum + if is_kept | stands_in { weighted } else { 0.0 };
        let weight = if is_kept { weights[i] } else { -weights[i] };
        totals[i] = total + if is_kept | stands_in { weight } else { 0.0 };
        rejected[i] += if below { 1.0 } else { 0.0 } + if above { ABOVE } else { 0.0 };
        left_out += u32::from(is_valid & !is_kept);
    }
    left_out
}

/// Means of some pixels of one channel, NaN without samples, and the numbers of samples rejected
/// below and above.
#[inline(always)]
pub fn finish_within(
    [sums, totals, rejected]: [&[f64]; WITHIN],
    image: &mut [f32],
    [below, above]: [&mut [f32]; 2],
) {
    for i in 0..image.len() {
        let mean = clean(sums[i] / totals[i].abs());
        image[i] = if totals[i] == 0.0 { f32::NAN } else { mean };
        let counts = if totals[i] < 0.0 { 0.0 } else { rejected[i] };
        let greater = (counts / ABOVE).floor();
        above[i] = greater as f32;
        below[i] = (counts - greater * ABOVE) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AS_IT_IS: Affine = Affine { gain: 1.0, offset: 0.0 };

    /// Bounds of the samples of one pixel.
    fn bounds_of(samples: &[f32], kappa: (f64, f64)) -> [f32; 2] {
        let (mut mean, mut squares, mut number) = ([0.0], [0.0], 0.0);
        for &sample in samples {
            add_moments(AS_IT_IS, &[sample], &[number], [&mut mean, &mut squares]);
            number += f64::from(u8::from(!sample.is_nan()));
        }
        let (mut low, mut high) = ([0.0], [0.0]);
        let how = Streamed { kappa, together: false };
        finish_moments(&how, [&mean, &squares], &[number], [&mut low, &mut high]);
        [low[0], high[0]]
    }

    /// Value, weight, and numbers of samples rejected below and above.
    fn within<const TOGETHER: bool>(samples: &[(f32, f64)], bounds: [f32; 2]) -> [f32; 4] {
        let (mut sum, mut total, mut rejected) = ([0.0], [0.0], [0.0]);
        for &(value, outside) in samples {
            let outside = [outside; RUN];
            let bounds = [&bounds[..1], &bounds[1..]];
            let into = [&mut sum[..], &mut total, &mut rejected];
            add_within::<TOGETHER>(AS_IT_IS, (&[value], &[2.0]), bounds, &outside, into);
        }
        let (mut image, mut below, mut above) = ([0.0], [0.0], [0.0]);
        finish_within([&sum, &total, &rejected], &mut image, [&mut below, &mut above]);
        [image[0], total[0].abs() as f32, below[0], above[0]]
    }

    #[test]
    fn bounds_lie_about_the_mean_and_no_digits_are_lost() {
        assert_eq!(bounds_of(&[1.0, 3.0, f32::NAN], (3.0, 2.0)), [-1.0, 4.0]);
        assert_eq!(
            bounds_of(&[16_777_214.0, 16_777_216.0], (1.0, 3.0)),
            [16_777_214.0, 16_777_218.0]
        );
        assert_eq!(bounds_of(&[0.1; 1000], (3.0, 3.0)), [0.1, 0.1]);
        assert!(bounds_of(&[f32::NAN], (3.0, 3.0)).iter().all(|bound| bound.is_nan()));
        let (mut low, mut high) = ([0.0], [0.0]);
        let how = Streamed { kappa: (3.0, 3.0), together: false };
        finish_moments(&how, [&[5.0], &[1.0]], &[-2.0], [&mut low, &mut high]);
        assert!(has_no_bounds(low[0]) && high[0] == f32::INFINITY);
        finish_moments(&how, [&[f64::from(f32::MIN)], &[1e30]], &[2.0], [&mut low, &mut high]);
        assert!(!has_no_bounds(low[0]));
    }

    #[test]
    fn bounds_are_rounded_outward() {
        let third = 1.0 / 3.0;
        assert!(f64::from(at_most(third)) < third);
        assert!(f64::from(at_most(third).next_up()) > third);
        assert_eq!(at_most(-0.5), -0.5);
        for odd in 1..200_u8 {
            // Two values, as often: all samples lie on the bounds.
            let pair = [f32::from(odd) / 7.0, -1e6 / f32::from(odd)];
            let samples: Vec<_> = pair.iter().cycle().take(60).copied().collect();
            let [low, high] = bounds_of(&samples, (1.0, 1.0));
            assert!(low <= pair[1] || high >= pair[0], "{pair:?}: {low} to {high}");
        }
    }

    #[test]
    fn samples_without_are_counted_and_left_out() {
        let samples = [1.0, 2.0, -9.0, 8.0, 3.0, 9.0, f32::NAN].map(|value| (value, 0.0));
        assert_eq!(within::<false>(&samples, [0.0, 5.0]), [2.0, 6.0, 1.0, 2.0]);
        assert_eq!(within::<true>(&samples, [0.0, 5.0]), [2.0, 6.0, 1.0, 2.0]);
        let nothing = within::<false>(&[(f32::NAN, 0.0)], [f32::NAN; 2])[0];
        assert_eq!(nothing.to_bits(), f32::NAN.to_bits());
    }

    #[test]
    fn where_none_is_left_all_are_kept() {
        let samples = [(1.0, 1.0), (6.0, 1.0), (2.0, 1.0)];
        assert_eq!(within::<true>(&samples, [0.0, 5.0]), [3.0, 6.0, 0.0, 0.0]);
        let one_is_left = [(1.0, 1.0), (4.0, 0.0), (6.0, 1.0), (2.0, 1.0)];
        assert_eq!(within::<true>(&one_is_left, [0.0, 5.0]), [4.0, 2.0, 0.0, 1.0]);
    }
}
