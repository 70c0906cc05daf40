//! A look at the inputs before the passes.

use std::sync::atomic::Ordering;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use zmrs_core::budget::Ledger;
use zmrs_core::cancel::CancelToken;
use zmrs_core::survey::{self, Progress, Wanted};

use crate::job::Job;
use crate::plan::Plan;
use crate::{errors, gate};

/// What was found in an input.
#[pyclass(frozen, get_all, module = "zmrs._zmrs")]
pub struct Findings {
    valid_share: f64,
    zero_share: f64,
    has_blank_zeros: bool,
    full_share: f64,
    is_constant: bool,
    noise: Vec<f64>,
    noise_without_zeros: Vec<f64>,
    map_greatest: f32,
}

/// Inputs by number, and whether their pixels, noise and weight maps are to be looked at.
type Asked = Vec<(usize, bool, bool, bool)>;

fn wanted(job: &Job, asked: Asked) -> PyResult<Vec<Wanted>> {
    if asked.iter().any(|one| one.0 >= job.0.inputs.len()) {
        return Err(PyValueError::new_err("the job has no such input"));
    }
    let one = |(input, image, noise, map)| Wanted { input, image, noise, map };
    Ok(asked.into_iter().map(one).collect())
}

/// Bytes of files that a look at some inputs of a job reads, if nothing in them needs a second one.
#[pyfunction]
pub fn survey_bytes(job: &Job, asked: Asked) -> PyResult<u64> {
    Ok(survey::read_bytes(&job.0, &wanted(job, asked)?))
}

/// Look at some inputs of a job; returns what was found, in the order asked, and the bytes read.
#[pyfunction]
#[pyo3(signature = (job, plan, asked, *, progress=None))]
pub fn survey_inputs(
    py: Python<'_>,
    job: &Job,
    plan: &Plan,
    asked: Asked,
    progress: Option<Py<PyAny>>,
) -> PyResult<(Vec<Findings>, u64)> {
    let wanted = wanted(job, asked)?;
    job.0.validate().map_err(|e| errors::to_py(py, &e))?;
    let (cancel, so_far) = (CancelToken::default(), Progress::default());
    let tick = |py: Python<'_>| match &progress {
        Some(progress) => progress.call1(py, (so_far.inputs.load(Ordering::Relaxed),)).map(|_| ()),
        None => Ok(()),
    };
    let found = gate::run(py, &cancel, tick, || {
        let ledger = Ledger::new(plan.0.memory_bytes.unwrap_or(u64::MAX));
        let workers = plan.0.cpu_workers as usize;
        survey::survey(&job.0, &wanted, workers, &ledger, &cancel, &so_far)
    })?;
    let findings = found.into_iter().map(|found| Findings {
        valid_share: found.valid_share,
        zero_share: found.zero_share,
        has_blank_zeros: found.has_blank_zeros,
        full_share: found.full_share,
        is_constant: found.is_constant,
        noise: found.noise,
        noise_without_zeros: found.noise_without_zeros,
        map_greatest: found.map_greatest,
    });
    Ok((findings.collect(), so_far.read_bytes.into_inner()))
}
