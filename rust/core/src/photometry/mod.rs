//! Background matching: offsets that make inputs agree where they overlap.
//!
//! Inputs are compared at a coarse lattice of output pixels. [`sample`] reads every input once, from
//! its first row to its last, and keeps its samples there: those that the pass would find with the
//! bilinear kernel, exact cells included. Then it chooses the pairs of inputs that are worth
//! comparing. [`Samples::solve`] finds the typical difference of each pair and from these the
//! offsets, by least squares. It can be asked again, with other gains, without reading.
//!
//! Nothing here depends on workers or on the memory limit: the lattice is that of the job, a sample
//! is found by one worker, and sums run in job order.

mod lattice;
mod pairs;
mod sampling;
mod solve;

use std::sync::Arc;

use crate::budget::{Lease, Ledger};
use crate::cancel::CancelToken;
use crate::job::Job;
use crate::plan::Plan;
use crate::{Error, Result};

use lattice::Lattice;
pub use pairs::Pair;
pub use sampling::Progress;
use sampling::Sampled;
use solve::Groups;

/// The samples of all inputs on the common lattice, and which inputs are compared.
pub struct Samples {
    lattice: Lattice,
    channels: usize,
    inputs: Vec<Sampled>,
    pairs: Vec<Pair>,
    workers: usize,
    bytes: u64,
    ledger: Arc<Ledger>,
    _pairs: Lease,
}

/// Offsets, and how well they agree with the differences that they come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// By input and channel: what is to be added to its values, after its gain.
    pub offsets: Vec<Vec<f64>>,
    /// The pairs that were compared, in ascending order.
    pub pairs: Vec<Pair>,
    /// By pair, and then by channel: by how much the first is still above the second.
    pub residuals: Vec<f64>,
    /// By input: the group of inputs that it is connected with by pairs. The mean offset of each
    /// group is zero; groups are numbered in the order in which they appear.
    pub groups: Vec<usize>,
    /// Root mean square of the residuals, weighted with the numbers of common points.
    pub rms: f64,
}

/// Bytes that [`sample`] and [`Samples::solve`] lease at most, with so many workers.
pub fn bytes(job: &Job, workers: u64) -> u64 {
    let lattice = Lattice::of(job);
    let (inputs, workers) = (job.inputs.len(), workers as usize);
    let most_pairs = pairs::most_pairs(inputs);
    let tallies = job.inputs.iter().map(|input| lattice.tally(&input.grid));
    let buckets = tallies.map(pairs::most_buckets).sum();
    let sampling = workers.min(inputs) as u64 * sampling::worker_bytes(job, &lattice);
    let finding = pairs::finding_bytes(inputs, buckets, workers);
    let solving = pairs::comparing_bytes(most_pairs, job.channels, workers)
        + solve::bytes(inputs, most_pairs, job.channels);
    sampling::held_bytes(job, &lattice) + pair_bytes(inputs) + sampling.max(finding).max(solving)
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

    /// Bytes that the samples and the pairs hold.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Most bytes on loan from the ledger at once.
    pub fn ledger_peak(&self) -> u64 {
        self.ledger.peak()
    }

    /// The offsets after the given gains, one an input and channel.
    pub fn solve(&self, gains: &[f64], cancel: &CancelToken) -> Result<Solution> {
        if gains.len() != self.inputs.len() * self.channels || gains.iter().any(|g| !g.is_finite())
        {
            return Err(Error::Argument(
                "one finite gain an input and channel is needed".to_owned(),
            ));
        }
        let (inputs, pairs, ledger) = (&self.inputs[..], &self.pairs[..], &self.ledger);
        let _lease = ledger.reserve(solve::bytes(inputs.len(), pairs.len(), self.channels))?;
        let mut differences = pairs::compare(inputs, pairs, gains, self.workers, ledger, cancel)?;
        let groups = Groups::of(inputs.len(), pairs);
        let mut offsets = vec![Vec::with_capacity(self.channels); inputs.len()];
        for channel in 0..self.channels {
            let of_pairs = differences.iter().skip(channel).step_by(self.channels);
            let of_pairs: Vec<f64> = of_pairs.copied().collect();
            let solved = solve::offsets(&groups, pairs, &of_pairs, cancel)?;
            for (offsets, solved) in offsets.iter_mut().zip(solved) {
                offsets.push(solved);
            }
        }
        let (mut sum, mut weight) = (0.0, 0.0);
        for (pair, differences) in pairs.iter().zip(differences.chunks_mut(self.channels)) {
            let (of_i, of_j) = (&offsets[pair.i as usize], &offsets[pair.j as usize]);
            for (difference, (i, j)) in differences.iter_mut().zip(of_i.iter().zip(of_j)) {
                *difference += i - j;
                sum += f64::from(pair.n) * *difference * *difference;
                weight += f64::from(pair.n);
            }
        }
        Ok(Solution {
            offsets,
            pairs: pairs.to_vec(),
            residuals: differences,
            groups: groups.number,
            rms: if weight > 0.0 { (sum / weight).sqrt() } else { 0.0 },
        })
    }
}
