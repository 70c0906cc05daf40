//! Gains from the structure that inputs have in common.
//!
//! Pairs tell ratios of gains, so sums of logarithms are solved for: equations between the gains
//! themselves are all true of gains of zero, to which least squares then draws them wherever loops
//! contradict themselves.

use std::sync::Arc;

use super::groups::Groups;
use super::pairs::Pair;
use super::robust::{self, settle};
use super::sampling::Sampled;
use super::solve::{self, Link};
use super::structure::{Ratio, Scratch};
use crate::budget::Ledger;
use crate::cancel::CancelToken;
use crate::{Error, Result, parallel};

/// Pairs that a worker takes at once.
const AT_ONCE: usize = 16;

/// A pair whose ratio is less certain does not measure one: it takes no part.
const MOST_ERROR: f64 = 0.05;

/// Flat fields and nonlinearity leave no ratio better than this, however small its noise.
const LEAST_ERROR: f64 = 1e-3;

/// How far gains are from 1, before anything is known of them.
const EXPECTED: f64 = 0.1;

/// Rules for gains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GainRules {
    /// Least and greatest gain.
    pub limits: (f64, f64),
    /// Percentiles of brightness within an overlap between which gains are measured.
    pub band: (f64, f64),
}

impl GainRules {
    /// Refuse what makes no sense.
    pub fn validate(&self) -> Result<()> {
        let (low, high) = self.limits;
        if !(low > 0.0 && low <= 1.0 && high >= 1.0 && high.is_finite()) {
            return Err(Error::Argument(
                "limits of gains must be above 0, with 1 between".to_owned(),
            ));
        }
        let (low, high) = self.band;
        if !(low >= 0.0 && low < high && high <= 100.0) {
            return Err(Error::Argument("percentiles must rise, within 0 to 100".to_owned()));
        }
        Ok(())
    }
}

/// Gains, and how well they agree with the ratios that they come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Gains {
    /// By input, and then by channel.
    pub gains: Vec<f64>,
    /// By pair, and then by channel, what was measured; [`Ratio::NONE`] where the overlap does not
    /// tell enough.
    pub ratios: Vec<Ratio>,
    /// By pair, and then by channel, logarithm of the ratio of structure that is left once the
    /// gains are applied; NaN where none was measured.
    pub residuals: Vec<f64>,
    /// By pair: whether it contradicts the others in some channel.
    pub rejected: Vec<bool>,
    /// How many groups of inputs are connected by measured ratios, in the channel with most. The
    /// mean gain of each is 1, unless gains were clipped.
    pub groups: usize,
    /// Gains that were clipped.
    pub clipped: usize,
    /// Root mean square of the residuals, weighted with their certainty.
    pub rms: f64,
}

/// Bytes that [`find`] leases at most, for inputs with at most so many points each in common.
pub fn bytes(inputs: usize, pairs: usize, channels: usize, common: usize, workers: usize) -> u64 {
    let each = channels * (size_of::<Ratio>() + size_of::<f64>()) + size_of::<bool>();
    // Which pair a link comes from, and its error.
    let link = size_of::<u32>() + size_of::<f64>();
    let settling = solve::bytes(inputs, pairs) + robust::bytes(pairs) + (pairs * link) as u64;
    let kept = (pairs * each + inputs * channels * size_of::<f64>()) as u64;
    kept + settling.max(workers as u64 * Scratch::bytes(common))
}

/// Measure all pairs, and find the gains that agree best with all of them.
pub fn find(
    samples: &[Sampled],
    pairs: &[Pair],
    channels: usize,
    rules: &GainRules,
    workers: usize,
    ledger: &Arc<Ledger>,
    cancel: &CancelToken,
) -> Result<Gains> {
    let common = pairs.iter().map(|pair| pair.n as usize).max().unwrap_or(0);
    let workers = workers.min(pairs.len().div_ceil(AT_ONCE)).max(1);
    let _lease = ledger.reserve(bytes(samples.len(), pairs.len(), channels, common, workers))?;
    let ratios = measure(samples, pairs, channels, rules.band, common, workers, cancel)?;
    let mut found = Gains {
        gains: vec![1.0; samples.len() * channels],
        residuals: vec![f64::NAN; ratios.len()],
        ratios,
        rejected: vec![false; pairs.len()],
        groups: 0,
        clipped: 0,
        rms: 0.0,
    };
    for channel in 0..channels {
        found.solve_channel(channel, samples.len(), pairs, channels, cancel)?;
    }
    let (mut sum, mut weight) = (0.0, 0.0);
    for (ratio, left) in found.ratios.iter().zip(&found.residuals).filter(|(_, r)| !r.is_nan()) {
        sum += weight_of(ratio) * left * left;
        weight += weight_of(ratio);
    }
    found.rms = if weight > 0.0 { (sum / weight).sqrt() } else { 0.0 };
    for gain in &mut found.gains {
        let clipped = gain.clamp(rules.limits.0, rules.limits.1);
        found.clipped += usize::from(*gain != clipped);
        *gain = clipped;
    }
    Ok(found)
}

/// The ratio of every pair and channel.
fn measure(
    samples: &[Sampled],
    pairs: &[Pair],
    channels: usize,
    band: (f64, f64),
    common: usize,
    workers: usize,
    cancel: &CancelToken,
) -> Result<Vec<Ratio>> {
    let mut crew: Vec<_> = (0..workers).map(|_| Scratch::new(common)).collect();
    let mut all = vec![Ratio::NONE; pairs.len() * channels];
    let tasks = pairs.chunks(AT_ONCE).zip(all.chunks_mut(AT_ONCE * channels)).collect();
    parallel::run(&mut crew, tasks, |(pairs, all): (&[Pair], &mut [Ratio]), scratch| {
        for (pair, each) in pairs.iter().zip(all.chunks_mut(channels)) {
            cancel.check()?;
            let [a, b] = [pair.i, pair.j].map(|input| &samples[input as usize]);
            for (channel, ratio) in each.iter_mut().enumerate() {
                let found = scratch.measure(a, b, pair.n, channel, band);
                *ratio = if found.error <= MOST_ERROR { found } else { Ratio::NONE };
            }
        }
        Ok(())
    })?;
    Ok(all)
}

fn error_of(ratio: &Ratio) -> f64 {
    libm::hypot(ratio.error, LEAST_ERROR)
}

fn weight_of(ratio: &Ratio) -> f64 {
    error_of(ratio).powi(-2)
}

impl Gains {
    /// Find the gains of a channel, whose ratios are measured.
    fn solve_channel(
        &mut self,
        channel: usize,
        inputs: usize,
        pairs: &[Pair],
        channels: usize,
        cancel: &CancelToken,
    ) -> Result<()> {
        let (mut links, mut errors, mut origins) = (Vec::new(), Vec::new(), Vec::new());
        for (k, pair) in (0_u32..).zip(pairs) {
            let ratio = &self.ratios[k as usize * channels + channel];
            if *ratio != Ratio::NONE {
                // The first gain is to be above the second by the logarithm.
                let (weight, difference) = (weight_of(ratio), -ratio.log);
                links.push(Link { i: pair.i, j: pair.j, weight, difference });
                errors.push(error_of(ratio));
                origins.push(k as usize);
            }
        }
        let groups = Groups::of(inputs, links.iter().map(|link| (link.i, link.j)));
        let prior = EXPECTED.powi(-2);
        let settled = settle(&groups, &mut links, &errors, prior, cancel)?;
        for ((link, k), is_rejected) in links.iter().zip(origins).zip(settled.rejected) {
            let [x, y] = [link.i, link.j].map(|input| settled.values[input as usize]);
            self.residuals[k * channels + channel] = x - y + link.difference;
            self.rejected[k] |= is_rejected;
        }
        let gains: Vec<f64> = settled.values.iter().map(|&value| libm::exp(value)).collect();
        let means = groups.means(&gains);
        for (input, gain) in gains.iter().enumerate() {
            self.gains[input * channels + channel] = gain / means[groups.number[input]];
        }
        let mut sizes = vec![0; groups.count];
        groups.number.iter().for_each(|&group| sizes[group] += 1);
        self.groups = self.groups.max(sizes.iter().filter(|&&size| size > 1).count());
        Ok(())
    }
}
