//! Photometric matching: gains and offsets that make inputs agree where they overlap.
//!
//! Inputs are compared at a coarse lattice of output pixels. [`sample`] reads every input once, from
//! its first row to its last, and keeps its samples there: those that the pass would find with the
//! bilinear kernel, exact cells included. Then it chooses the pairs of inputs that are worth
//! comparing. [`Samples::gains`] finds by which factors they show the same structure,
//! [`Samples::offsets`] the typical difference of each pair that is left, and both from these what
//! suits all inputs best, by least squares. They can be asked again without reading.
//!
//! Nothing here depends on workers or on the memory limit: the lattice is that of the job, a sample
//! is found by one worker, and sums run in job order.

mod blocks;
mod entries;
mod gains;
mod groups;
mod lattice;
mod levels;
mod line;
mod offsets;
mod pairs;
mod robust;
mod sampling;
mod solve;
mod structure;

use std::sync::Arc;

use crate::budget::{Lease, Ledger};
use crate::cancel::CancelToken;
use crate::job::Job;
use crate::plan::Plan;
use crate::{Error, Result};

pub use entries::{Entry, solve_entries};
pub use gains::{GainRules, Gains};
use lattice::Lattice;
pub use offsets::Offsets;
pub use pairs::Pair;
pub use sampling::Progress;
use sampling::Sampled;
pub use structure::Ratio;

/// How inputs are matched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Rules for gains, if there are to be any.
    pub gains: Option<GainRules>,
    /// Greatest offset, up or down.
    pub most_offset: f64,
}

impl Rules {
    /// Offsets of any size.
    pub const OFFSETS: Self = Self { gains: None, most_offset: f64::INFINITY };

    /// Refuse what makes no sense.
    pub fn validate(&self) -> Result<()> {
        if self.most_offset.is_nan() || self.most_offset < 0.0 {
            return Err(Error::Argument("the limit of offsets must not be below 0".to_owned()));
        }
        self.gains.as_ref().map_or(Ok(()), GainRules::validate)
    }
}

/// The samples of all inputs on the common lattice, and which inputs are compared.
pub struct Samples {
    lattice: Lattice,
    channels: usize,
    rules: Rules,
    inputs: Vec<Sampled>,
    pairs: Vec<Pair>,
    workers: usize,
    bytes: u64,
    ledger: Arc<Ledger>,
    _pairs: Lease,
}

/// Bytes that [`sample`], [`Samples::gains`] and [`Samples::offsets`] lease at most, with so many
/// workers.
pub fn bytes(job: &Job, workers: u64) -> u64 {
    let lattice = Lattice::of(job);
    let (inputs, workers, channels) = (job.inputs.len(), workers as usize, job.channels);
    let most_pairs = pairs::most_pairs(inputs);
    let tallies = || job.inputs.iter().map(|input| lattice.tally(&input.grid));
    let buckets = tallies().map(pairs::most_buckets).sum();
    let sampling = workers.min(inputs) as u64 * sampling::worker_bytes(job, &lattice);
    let finding = pairs::finding_bytes(inputs, buckets, workers);
    let has_gains = job.matching.is_some_and(|rules| rules.gains.is_some());
    let common = tallies().map(|tally| tally.points).max().unwrap_or(0);
    let gains =
        if has_gains { gains::bytes(inputs, most_pairs, channels, common, workers) } else { 0 };
    let offsets = offsets::bytes(inputs, most_pairs, channels, workers, has_gains);
    let most = sampling.max(finding).max(gains).max(offsets);
    sampling::held_bytes(job, &lattice) + pair_bytes(inputs) + most
}

fn pair_bytes(inputs: usize) -> u64 {
    (pairs::most_pairs(inputs) * size_of::<Pair>()) as u64
}

/// Sample every input of a job on the lattice, and find the pairs to compare.
///
/// Gains and offsets that the inputs have already are left out of account.
pub fn sample(
    job: &Job,
    plan: &Plan,
    ledger: &Arc<Ledger>,
    cancel: &CancelToken,
    progress: &Progress,
) -> Result<Samples> {
    job.validate()?;
    let lattice = Lattice::of(job);
    let workers = plan.cpu_workers as usize;
    let inputs = sampling::run(job, &lattice, workers, ledger, cancel, progress)?;
    let lease = ledger.reserve(pair_bytes(inputs.len()))?;
    let pairs = pairs::find(&lattice, &inputs, workers, ledger, cancel)?;
    Ok(Samples {
        lattice,
        channels: job.channels,
        rules: job.matching.unwrap_or(Rules::OFFSETS),
        workers,
        bytes: sampling::held_bytes(job, &lattice) + pair_bytes(inputs.len()),
        inputs,
        pairs,
        ledger: Arc::clone(ledger),
        _pairs: lease,
    })
}

impl Samples {
    /// Distance of neighbouring lattice points, in output pixels.
    pub fn spacing(&self) -> usize {
        self.lattice.spacing
    }

    /// Valid samples of each input.
    pub fn counts(&self) -> Vec<usize> {
        self.inputs.iter().map(|sampled| sampled.valid).collect()
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Channels of each.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The pairs that are compared, in ascending order.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Bytes that the samples and the pairs hold.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Most bytes on loan from the ledger at once.
    pub fn ledger_peak(&self) -> u64 {
        self.ledger.peak()
    }

    /// The gains with which inputs show the same structure, by the rules of the job.
    pub fn gains(&self, cancel: &CancelToken) -> Result<Gains> {
        let Some(rules) = &self.rules.gains else {
            return Err(Error::Argument("the job has no rules for gains".to_owned()));
        };
        let (inputs, pairs) = (&self.inputs[..], &self.pairs[..]);
        gains::find(inputs, pairs, self.channels, rules, self.workers, &self.ledger, cancel)
    }

    /// The offsets after the given factors, one an input and channel, and after the gains that were
    /// matched, if any.
    ///
    /// Within each group of connected inputs the plain mean of the sky levels is what the factors
    /// alone would make it; without matched gains the mean offset is zero, therefore.
    pub fn offsets(
        &self,
        factors: &[f64],
        matched: Option<&[f64]>,
        cancel: &CancelToken,
    ) -> Result<Offsets> {
        for gains in [Some(factors), matched].into_iter().flatten() {
            let wanted = self.inputs.len() * self.channels;
            if gains.len() != wanted || gains.iter().any(|g| !g.is_finite()) {
                return Err(Error::Argument(
                    "one finite gain an input and channel is needed".to_owned(),
                ));
            }
        }
        offsets::find(self, factors, matched, cancel)
    }
}
