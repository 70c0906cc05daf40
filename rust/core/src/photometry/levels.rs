//! By how much inputs differ where they overlap.

use std::sync::Arc;

use super::pairs::Pair;
use super::sampling::{Sampled, Stretch};
use crate::budget::Ledger;
use crate::cancel::CancelToken;
use crate::{Result, parallel};

/// Pairs, or inputs, that a worker takes at once.
const AT_ONCE: usize = 16;

/// Values whose median is found, at most: evenly chosen ones of more. The error of the median is
/// then a two-hundredth of their scatter.
const MOST_VALUES: usize = 1 << 16;

/// Differences further from the median than so many standard deviations are left out.
const CLIP_SIGMA: f64 = 3.0;

/// How often that is done at most.
const CLIP_ROUNDS: usize = 3;

/// Standard deviations of a normal distribution in its median absolute deviation.
const SIGMA_OF_MAD: f64 = 1.482_602_218_505_602;

/// How two inputs differ in a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Level {
    /// The typical difference of the first from the second; 0 of nothing.
    pub difference: f64,
    /// Scatter about it, as a standard deviation.
    pub sigma: f64,
}

/// Bytes that are leased while the differences of pairs are found.
pub fn comparing_bytes(pairs: usize, channels: usize, workers: usize) -> u64 {
    let values = workers * MOST_VALUES * size_of::<i32>();
    (values + pairs * channels * size_of::<Level>()) as u64
}

/// Bytes that are leased while the levels of inputs are found.
pub fn level_bytes(inputs: usize, channels: usize, workers: usize) -> u64 {
    (workers * MOST_VALUES * size_of::<i32>() + inputs * channels * size_of::<f64>()) as u64
}

/// For every input and channel the median of its samples; 0 of nothing.
pub fn levels(
    samples: &[Sampled],
    channels: usize,
    workers: usize,
    cancel: &CancelToken,
) -> Result<Vec<f64>> {
    let workers = workers.min(samples.len().div_ceil(AT_ONCE)).max(1);
    let mut crew: Vec<_> = (0..workers).map(|_| Vec::with_capacity(MOST_VALUES)).collect();
    let mut all = vec![0.0; samples.len() * channels];
    let tasks = samples.chunks(AT_ONCE).zip(all.chunks_mut(AT_ONCE * channels)).collect();
    parallel::run(&mut crew, tasks, |(samples, all): (&[Sampled], &mut [f64]), keys| {
        for (sampled, each) in samples.iter().zip(all.chunks_mut(channels)) {
            cancel.check()?;
            let every = sampled.valid.div_ceil(MOST_VALUES).max(1);
            for (channel, level) in each.iter_mut().enumerate() {
                let valid = sampled.plane(channel).iter().filter(|value| !value.is_nan());
                keys.clear();
                keys.extend(valid.step_by(every).map(|&value| key(value)));
                keys.sort_unstable();
                *level = median(keys);
            }
        }
        Ok(())
    })?;
    Ok(all)
}

/// For every pair and channel the typical difference of the first input, with its gain, from the
/// second. `gains` are one an input and channel.
pub fn compare(
    samples: &[Sampled],
    pairs: &[Pair],
    gains: &[f64],
    workers: usize,
    ledger: &Arc<Ledger>,
    cancel: &CancelToken,
) -> Result<Vec<Level>> {
    let channels = gains.len() / samples.len();
    let workers = workers.min(pairs.len().div_ceil(AT_ONCE)).max(1);
    let _lease = ledger.reserve(comparing_bytes(pairs.len(), channels, workers))?;
    let mut crew: Vec<_> = (0..workers).map(|_| Vec::with_capacity(MOST_VALUES)).collect();
    let mut all = vec![Level::default(); pairs.len() * channels];
    let tasks = pairs.chunks(AT_ONCE).zip(all.chunks_mut(AT_ONCE * channels)).collect();
    parallel::run(&mut crew, tasks, |(pairs, all): (&[Pair], &mut [Level]), differences| {
        for (pair, each) in pairs.iter().zip(all.chunks_mut(channels)) {
            cancel.check()?;
            let [i, j] = [pair.i, pair.j].map(|input| input as usize);
            for (channel, level) in each.iter_mut().enumerate() {
                let gain = [i, j].map(|input| gains[input * channels + channel]);
                gather(&samples[i], &samples[j], pair.n, channel, gain, differences);
                *level = clipped_median(differences);
            }
        }
        Ok(())
    })?;
    Ok(all)
}

/// The differences of two inputs in a channel, in an order in which they sort as integers.
fn gather(a: &Sampled, b: &Sampled, n: u32, channel: usize, gain: [f64; 2], into: &mut Vec<i32>) {
    into.clear();
    let every = (n as usize).div_ceil(MOST_VALUES);
    let (of_a, of_b) = (a.plane(channel), b.plane(channel));
    let mut seen = 0;
    for Stretch { at: [at_a, at_b], len, .. } in a.common(b) {
        for (&a, &b) in of_a[at_a..at_a + len].iter().zip(&of_b[at_b..at_b + len]) {
            if a.is_nan() | b.is_nan() {
                continue;
            }
            if seen % every == 0 {
                into.push(key((gain[0] * f64::from(a) - gain[1] * f64::from(b)) as f32));
            }
            seen += 1;
        }
    }
}

/// An integer that is ordered as the number is.
fn key(value: f32) -> i32 {
    flip(value.to_bits() as i32)
}

/// The number of a key.
fn value(key: i32) -> f64 {
    f64::from(f32::from_bits(flip(key) as u32))
}

fn flip(bits: i32) -> i32 {
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// Median and scatter of what is left after outliers were clipped.
fn clipped_median(keys: &mut [i32]) -> Level {
    keys.sort_unstable();
    let mut kept = &*keys;
    for _ in 0..CLIP_ROUNDS {
        let middle = median(kept);
        let reach = CLIP_SIGMA * SIGMA_OF_MAD * median_deviation(kept, middle);
        let first = kept.partition_point(|&k| value(k) < middle - reach);
        let past = kept.partition_point(|&k| value(k) <= middle + reach);
        if (first, past) == (0, kept.len()) {
            break;
        }
        kept = &kept[first..past];
    }
    let difference = median(kept);
    Level { difference, sigma: SIGMA_OF_MAD * median_deviation(kept, difference) }
}

fn median(sorted: &[i32]) -> f64 {
    let n = sorted.len();
    if n == 0 { 0.0 } else { 0.5 * (value(sorted[(n - 1) / 2]) + value(sorted[n / 2])) }
}

/// The median distance of sorted values from their middle: the nearest half of them, found by
/// walking outwards.
fn median_deviation(sorted: &[i32], middle: f64) -> f64 {
    let mut past = sorted.partition_point(|&k| value(k) < middle);
    let mut first = past;
    let mut farthest = 0.0;
    for _ in 0..sorted.len().div_ceil(2) {
        let below = first.checked_sub(1).map_or(f64::INFINITY, |k| middle - value(sorted[k]));
        let above = sorted.get(past).map_or(f64::INFINITY, |&k| value(k) - middle);
        if below <= above {
            first -= 1;
            farthest = below;
        } else {
            past += 1;
            farthest = above;
        }
    }
    farthest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(values: &[f32]) -> Vec<i32> {
        values.iter().map(|&v| key(v)).collect()
    }

    #[test]
    fn keys_keep_the_order_and_the_values() {
        let values = [f32::NEG_INFINITY, -3.5, -1e-40, -0.0, 0.0, 1e-40, 2.0, f32::INFINITY];
        let keys = keys(&values);
        assert!(keys.is_sorted_by(|a, b| a < b));
        assert!(keys.iter().zip(values).all(|(&k, v)| value(k) == f64::from(v)));
    }

    #[test]
    fn outliers_do_not_move_the_median() {
        let mut values: Vec<f32> = (0..101).map(|k| (k as f32 - 50.0) / 10.0).collect();
        assert_eq!(clipped_median(&mut keys(&values)).difference, 0.0);
        values.extend([1e6; 20]);
        assert_eq!(clipped_median(&mut keys(&values)).difference, 0.0);
        assert_eq!(clipped_median(&mut keys(&[7.0; 9])), Level { difference: 7.0, sigma: 0.0 });
        assert_eq!(clipped_median(&mut keys(&[1.0, 2.0])).difference, 1.5);
    }

    #[test]
    fn the_median_deviation_is_that_of_the_nearest_half() {
        let sorted = keys(&[-9.0, -2.0, 0.0, 1.0, 30.0]);
        assert_eq!(median_deviation(&sorted, 0.0), 2.0);
        assert_eq!(median_deviation(&keys(&[4.0, 4.0, 4.0]), 4.0), 0.0);
    }
}
