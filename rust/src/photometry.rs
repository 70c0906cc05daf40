//! Background matching.

use std::sync::atomic::Ordering;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use zmrs_core::budget::Ledger;
use zmrs_core::cancel::CancelToken;
use zmrs_core::photometry::{self, Progress, Samples, Solution};

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

    /// The offsets after the given gains, one an input.
    #[pyo3(signature = (gains=None))]
    fn solve_offsets(&self, py: Python<'_>, gains: Option<Vec<f64>>) -> PyResult<OffsetSolution> {
        let gains = gains.unwrap_or_else(|| vec![1.0; self.0.inputs()]);
        if gains.len() != self.0.inputs() {
            return Err(PyValueError::new_err("one gain an input is needed"));
        }
        let channels = self.0.channels();
        let gains: Vec<f64> = gains.into_iter().flat_map(|g| vec![g; channels]).collect();
        let cancel = CancelToken::default();
        let solved = gate::run(py, &cancel, |_| Ok(()), || self.0.solve(&gains, &cancel))?;
        Ok(OffsetSolution(solved))
    }
}

/// Offsets of all inputs, and how well they agree with what was compared.
#[pyclass(frozen, module = "zmrs._zmrs")]
pub struct OffsetSolution(Solution);

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

    #[getter]
    fn components(&self) -> Vec<usize> {
        self.0.groups.clone()
    }

    #[getter]
    fn rms(&self) -> f64 {
        self.0.rms
    }
}
