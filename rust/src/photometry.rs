//! Photometric matching.

use std::sync::atomic::Ordering;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use zmrs_core::budget::Ledger;
use zmrs_core::cancel::CancelToken;
use zmrs_core::photometry::{self, Entry, Gains, Offsets, Progress, Samples};

use crate::gate;
use crate::job::Job;
use crate::plan::Plan;

/// Bytes that sampling a job and solving for its offsets lease at most.
#[pyfunction]
pub fn lattice_bytes(py: Python<'_>, job: &Job, plan: &Plan) -> u64 {
    py.detach(|| photometry::bytes(&job.0, plan.0.cpu_workers))
}

/// Sample every input at the lattice on which inputs are compared.
#[pyfunction]
#[pyo3(signature = (job, plan, *, progress=None))]
pub fn sample_lattice(
    py: Python<'_>,
    job: &Job,
    plan: &Plan,
    progress: Option<Py<PyAny>>,
) -> PyResult<LatticeSamples> {
    let cancel = CancelToken::default();
    let so_far = Progress::default();
    let tick = |py: Python<'_>| {
        if let Some(progress) = &progress {
            let inputs = so_far.inputs.load(Ordering::Relaxed);
            progress.call1(py, (so_far.read_bytes.load(Ordering::Relaxed), inputs))?;
        }
        Ok(())
    };
    let samples = gate::run(py, &cancel, tick, || {
        let ledger = Ledger::new(plan.0.memory_bytes.unwrap_or(u64::MAX));
        photometry::sample(&job.0, &plan.0, &ledger, &cancel, &so_far)
    })?;
    Ok(LatticeSamples(samples))
}

/// The samples of all inputs on the common lattice, and which inputs are compared.
#[pyclass(frozen, module = "zmrs._zmrs")]
pub struct LatticeSamples(Samples);

#[pymethods]
impl LatticeSamples {
    #[getter]
    fn spacing(&self) -> usize {
        self.0.spacing()
    }

    /// Valid samples of all inputs.
    #[getter]
    fn count(&self) -> usize {
        self.0.counts().iter().sum()
    }

    /// Valid samples of each input.
    #[getter]
    fn counts(&self) -> Vec<usize> {
        self.0.counts()
    }

    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    #[getter]
    fn ledger_peak(&self) -> u64 {
        self.0.ledger_peak()
    }

    /// The gains with which inputs show the same structure, by the rules of the job.
    fn solve_gains(&self, py: Python<'_>) -> PyResult<GainSolution> {
        let cancel = CancelToken::default();
        let found = gate::run(py, &cancel, |_| Ok(()), || self.0.gains(&cancel))?;
        let pairs = self.0.pairs().iter().map(|pair| (pair.i, pair.j)).collect();
        Ok(GainSolution { found, pairs, channels: self.0.channels() })
    }

    /// The offsets after the given gains, one an input, and after the matched ones, by input and
    /// channel, if any.
    #[pyo3(signature = (gains=None, matched=None))]
    fn solve_offsets(
        &self,
        py: Python<'_>,
        gains: Option<Vec<f64>>,
        matched: Option<Vec<Vec<f64>>>,
    ) -> PyResult<OffsetSolution> {
        let (inputs, channels) = (self.0.inputs(), self.0.channels());
        let gains = gains.unwrap_or_else(|| vec![1.0; inputs]);
        let is_complete = |all: &Vec<Vec<f64>>| {
            all.len() == inputs && all.iter().all(|each| each.len() == channels)
        };
        if gains.len() != inputs || !matched.as_ref().is_none_or(is_complete) {
            return Err(PyValueError::new_err("one gain an input is needed"));
        }
        let gains: Vec<f64> = gains.into_iter().flat_map(|g| vec![g; channels]).collect();
        let matched = matched.map(|all| all.concat());
        let cancel = CancelToken::default();
        let solve = || self.0.offsets(&gains, matched.as_deref(), &cancel);
        Ok(OffsetSolution(gate::run(py, &cancel, |_| Ok(()), solve)?))
    }
}

/// Gains of all inputs, and how well they agree with what was measured.
#[pyclass(frozen, module = "zmrs._zmrs")]
pub struct GainSolution {
    found: Gains,
    pairs: Vec<(u32, u32)>,
    channels: usize,
}

#[pymethods]
impl GainSolution {
    #[getter]
    fn gains(&self) -> Vec<Vec<f64>> {
        self.found.gains.chunks(self.channels).map(<[f64]>::to_vec).collect()
    }

    /// What was measured: both inputs, and of each channel the logarithm of the ratio of their
    /// gains, its error, and what is left of it.
    #[getter]
    #[expect(clippy::type_complexity, reason = "a row of a table")]
    fn pairs(&self) -> Vec<(u32, u32, Vec<f64>, Vec<f64>, Vec<f64>)> {
        let ratios = self.found.ratios.chunks(self.channels);
        let all = self.pairs.iter().zip(ratios.zip(self.found.residuals.chunks(self.channels)));
        let row =
            |(&(i, j), (ratios, residuals)): (&(u32, u32), (&[photometry::Ratio], &[f64]))| {
                let logs = ratios.iter().map(|ratio| ratio.log).collect();
                let errors = ratios.iter().map(|ratio| ratio.error).collect();
                (i, j, logs, errors, residuals.to_vec())
            };
        all.map(row).collect()
    }

    /// Pairs that measured a ratio in some channel.
    #[getter]
    fn n_pairs(&self) -> usize {
        let of_pairs = self.found.residuals.chunks(self.channels);
        of_pairs.filter(|residuals| residuals.iter().any(|left| !left.is_nan())).count()
    }

    /// Pairs that contradict the others.
    #[getter]
    fn rejected(&self) -> Vec<(u32, u32)> {
        let flagged = self.pairs.iter().zip(&self.found.rejected);
        flagged.filter(|(_, is_rejected)| **is_rejected).map(|(pair, _)| *pair).collect()
    }

    #[getter]
    fn n_groups(&self) -> usize {
        self.found.groups
    }

    #[getter]
    fn n_clipped(&self) -> usize {
        self.found.clipped
    }

    #[getter]
    fn rms(&self) -> f64 {
        self.found.rms
    }
}

/// Offsets of all inputs, and how well they agree with what was compared.
#[pyclass(frozen, module = "zmrs._zmrs")]
pub struct OffsetSolution(Offsets);

#[pymethods]
impl OffsetSolution {
    #[getter]
    fn offsets(&self) -> Vec<Vec<f64>> {
        self.0.offsets.clone()
    }

    #[getter]
    fn n_pairs(&self) -> usize {
        self.0.pairs.len()
    }

    /// What was compared: both inputs, their common points, and the residual of each channel.
    #[getter]
    fn pairs(&self) -> Vec<(u32, u32, u32, Vec<f64>)> {
        let channels = self.0.offsets[0].len();
        let residuals = self.0.residuals.chunks(channels).map(<[f64]>::to_vec);
        let pairs = self.0.pairs.iter().zip(residuals);
        pairs.map(|(pair, residuals)| (pair.i, pair.j, pair.n, residuals)).collect()
    }

    /// Pairs that contradict the others.
    #[getter]
    fn rejected(&self) -> Vec<(u32, u32)> {
        let flagged = self.0.pairs.iter().zip(&self.0.rejected);
        flagged.filter(|(_, is_rejected)| **is_rejected).map(|(pair, _)| pair.ends()).collect()
    }

    /// The residual that is furthest from 0, without its sign.
    #[getter]
    fn greatest_residual(&self) -> f64 {
        self.0.residuals.iter().fold(0.0, |most, residual| residual.abs().max(most))
    }

    #[getter]
    fn components(&self) -> Vec<usize> {
        self.0.groups.clone()
    }

    #[getter]
    fn n_clipped(&self) -> usize {
        self.0.clipped
    }

    #[getter]
    fn rms(&self) -> f64 {
        self.0.rms
    }
}

/// Gain and offset of each input from straight lines between inputs: rows of both inputs, slope,
/// value at zero and weight.
#[pyfunction]
pub fn solve_entries(
    py: Python<'_>,
    inputs: usize,
    entries: Vec<(u32, u32, f64, f64, f64)>,
    anchor: usize,
    gains: bool,
) -> PyResult<Vec<(f64, f64)>> {
    let entry = |(i, j, gain, offset, weight)| Entry { i, j, gain, offset, weight };
    let entries: Vec<_> = entries.into_iter().map(entry).collect();
    let cancel = CancelToken::default();
    let solve = || photometry::solve_entries(inputs, &entries, anchor, gains, &cancel);
    gate::run(py, &cancel, |_| Ok(()), solve)
}
