//! Offsets from the differences that are left between inputs.

use std::f64::consts::FRAC_PI_2;

use super::Samples;
use super::groups::Groups;
use super::levels::{self, Level};
use super::pairs::Pair;
use super::robust::{self, Settled, settle};
use super::solve::{self, Link, solve};
use crate::Result;
use crate::cancel::CancelToken;

/// Part of the scatter within an overlap that its median may be off by, however many points there
/// are: skies have slopes of their own.
const UNEVENNESS: f64 = 0.05;

/// Part of a level that is rounding.
const ROUNDING: f64 = 1e-6;

/// Offsets, and how well they agree with the differences that they come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Offsets {
    /// By input and channel: what is to be added to its values, after its gain.
    pub offsets: Vec<Vec<f64>>,
    /// The pairs that were compared, in ascending order.
    pub pairs: Vec<Pair>,
    /// By pair, and then by channel: by how much the first is still above the second.
    pub residuals: Vec<f64>,
    /// By pair: whether it contradicts the others in some channel; looked for with gains only.
    pub rejected: Vec<bool>,
    /// By input: the group of inputs that it is connected with by pairs, numbered in the order in
    /// which they appear.
    pub groups: Vec<usize>,
    /// Offsets that were clipped.
    pub clipped: usize,
    /// Root mean square of the residuals, weighted with the numbers of common points.
    pub rms: f64,
}

/// Bytes that [`find`] leases at most, with gains or without.
pub fn bytes(inputs: usize, pairs: usize, channels: usize, workers: usize, gains: bool) -> u64 {
    let comparing = levels::comparing_bytes(pairs, channels, workers);
    let kept = (pairs * (size_of::<Pair>() + size_of::<bool>() + channels * size_of::<f64>())
        + inputs * (channels + 1) * size_of::<f64>()) as u64;
    let more = if gains {
        let errors = (pairs * size_of::<f64>()) as u64;
        let levels = levels::level_bytes(inputs, channels, workers);
        robust::bytes(pairs) + errors + levels
    } else {
        0
    };
    comparing + kept + solve::bytes(inputs, pairs) + more
}

/// As [`Samples::offsets`] says.
pub fn find(
    samples: &Samples,
    factors: &[f64],
    matched: Option<&[f64]>,
    cancel: &CancelToken,
) -> Result<Offsets> {
    let Samples { inputs, pairs, channels, workers, ledger, .. } = samples;
    let (channels, workers) = (*channels, *workers);
    // The comparison leases its own part.
    let all = bytes(inputs.len(), pairs.len(), channels, workers, matched.is_some());
    let comparing = levels::comparing_bytes(pairs.len(), channels, workers);
    let _lease = ledger.reserve(all - comparing)?;
    let ones = || vec![1.0; factors.len()];
    let gains = factors.iter().zip(matched.map_or_else(ones, <[f64]>::to_vec)).map(|(f, g)| f * g);
    let gains: Vec<f64> = gains.collect();
    let levels = match matched {
        Some(_) => Some(levels::levels(inputs, channels, workers, cancel)?),
        None => None,
    };
    let compared = levels::compare(inputs, pairs, &gains, workers, ledger, cancel)?;
    let groups = Groups::of(inputs.len(), pairs.iter().map(Pair::ends));
    let mut found = Offsets {
        offsets: vec![Vec::with_capacity(channels); inputs.len()],
        pairs: pairs.clone(),
        residuals: compared.iter().map(|level| level.difference).collect(),
        rejected: vec![false; pairs.len()],
        groups: Vec::new(),
        clipped: 0,
        rms: 0.0,
    };
    for channel in 0..channels {
        let of_channel = compared.iter().skip(channel).step_by(channels);
        let mut offsets = match &levels {
            None => solve(&groups, &links(pairs, of_channel), 0.0, cancel)?,
            Some(levels) => {
                let levels: Vec<f64> =
                    levels.iter().skip(channel).step_by(channels).copied().collect();
                found.robustly(&groups, of_channel, &levels, cancel)?
            }
        };
        if let Some(levels) = &levels {
            let change = |k: usize| (gains[k] - factors[k]) * levels[k];
            let changes: Vec<f64> = (channel..gains.len()).step_by(channels).map(change).collect();
            let means = groups.means(&changes);
            for (offset, &group) in offsets.iter_mut().zip(&groups.number) {
                *offset -= means[group];
            }
        }
        found.take(&offsets, samples.rules.most_offset);
    }
    found.judge(channels);
    found.groups = groups.number;
    Ok(found)
}

/// What a channel of all pairs asks for.
fn links<'a>(pairs: &[Pair], levels: impl Iterator<Item = &'a Level>) -> Vec<Link> {
    let both = pairs.iter().zip(levels);
    let link = |(pair, level): (&Pair, &Level)| {
        let (weight, difference) = (f64::from(pair.n), level.difference);
        Link { i: pair.i, j: pair.j, weight, difference }
    };
    both.map(link).collect()
}

impl Offsets {
    /// Offsets of a channel, in which a pair counts by how sure its difference is; those that
    /// contradict the others hardly do.
    fn robustly<'a>(
        &mut self,
        groups: &Groups,
        compared: impl Iterator<Item = &'a Level> + Clone,
        levels: &[f64],
        cancel: &CancelToken,
    ) -> Result<Vec<f64>> {
        let highest = levels.iter().fold(0.0, |most: f64, level| most.max(level.abs()));
        let rounding = (ROUNDING * highest).max(f64::MIN_POSITIVE);
        let errors = self.pairs.iter().zip(compared.clone()).map(|(pair, level)| {
            let of_median = FRAC_PI_2 / f64::from(pair.n) + UNEVENNESS * UNEVENNESS;
            level.sigma * of_median.sqrt() + rounding
        });
        let errors: Vec<f64> = errors.collect();
        let mut links = links(&self.pairs, compared);
        for (link, error) in links.iter_mut().zip(&errors) {
            link.weight = error.powi(-2);
        }
        let Settled { values, rejected } = settle(groups, &mut links, &errors, 0.0, cancel)?;
        for (all, is_rejected) in self.rejected.iter_mut().zip(rejected) {
            *all |= is_rejected;
        }
        Ok(values)
    }

    /// Take over the offsets of the next channel.
    fn take(&mut self, offsets: &[f64], most: f64) {
        for (all, offset) in self.offsets.iter_mut().zip(offsets) {
            let clipped = offset.clamp(-most, most);
            self.clipped += usize::from(*offset != clipped);
            all.push(clipped);
        }
    }

    /// Turn differences into residuals.
    fn judge(&mut self, channels: usize) {
        let (mut sum, mut weight) = (0.0, 0.0);
        for (pair, residuals) in self.pairs.iter().zip(self.residuals.chunks_mut(channels)) {
            let (of_i, of_j) = (&self.offsets[pair.i as usize], &self.offsets[pair.j as usize]);
            for (residual, (i, j)) in residuals.iter_mut().zip(of_i.iter().zip(of_j)) {
                *residual += i - j;
                sum += f64::from(pair.n) * *residual * *residual;
                weight += f64::from(pair.n);
            }
        }
        self.rms = if weight > 0.0 { (sum / weight).sqrt() } else { 0.0 };
    }
}
