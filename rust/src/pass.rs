//! Planning and running a pass.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use numpy::{PyReadwriteArray2, PyReadwriteArray3};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use zmrs_core::budget::{Ledger, Projection};
use zmrs_core::cancel::CancelToken;
use zmrs_core::coverage::merge::MergeSink;
use zmrs_core::coverage::planes::Planes as CorePlanes;
use zmrs_core::device;
use zmrs_core::fit::Fitted;
use zmrs_core::layout::Traffic;
use zmrs_core::pass::{Place, Progress};
use zmrs_core::sink::{FitsSink, MemorySink, Sink};
use zmrs_core::sweeps::{self, Scratch};

use crate::device::Device;
use crate::job::Job;
use crate::plan::Plan;
use crate::two_pass::{Marks, Planes};
use crate::{errors, gate};

/// How a job is cut, and what it will hold and move.
#[pyclass(frozen, module = "zmrs._zmrs")]
pub struct Layout {
    fitted: Fitted,
    traffic: Traffic,
}

impl Layout {
    /// The layout itself.
    pub fn fitted(&self) -> &Fitted {
        &self.fitted
    }
}

#[pymethods]
impl Layout {
    #[getter]
    fn band_rows(&self) -> usize {
        self.fitted.layout.band_rows
    }

    #[getter]
    fn bands(&self) -> usize {
        self.traffic.bands
    }

    #[getter]
    fn blocks(&self) -> usize {
        self.traffic.blocks
    }

    #[getter]
    fn read_bytes(&self) -> u64 {
        self.traffic.read_bytes
    }

    #[getter]
    fn write_bytes(&self) -> u64 {
        self.traffic.write_bytes
    }

    #[getter]
    fn samples(&self) -> u64 {
        self.traffic.samples
    }

    #[getter]
    fn sweeps(&self) -> u64 {
        self.traffic.sweeps
    }

    #[getter]
    fn bounds_bytes(&self) -> u64 {
        self.traffic.bounds_bytes
    }

    #[getter]
    fn two_pass_bytes(&self) -> u64 {
        self.traffic.two_pass_bytes
    }

    /// Terms of the projected peak in bytes, by name.
    #[getter]
    fn terms<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let terms = PyDict::new(py);
        for (name, bytes) in &self.fitted.projection.terms {
            terms.set_item(name, bytes)?;
        }
        Ok(terms)
    }

    #[getter]
    fn projected_bytes(&self) -> u64 {
        self.fitted.projection.total()
    }

    /// The plan as it will run.
    #[getter]
    fn plan(&self) -> Plan {
        Plan(self.fitted.plan.clone())
    }
}

/// Cut the output of a job, or of what comes of it in parts, so that it fits the plan, whose workers,
/// rows and bytes are upper bounds, or refuse.
#[pyfunction]
#[pyo3(signature = (job, plan, reserved_bytes, held_bytes, planning_peak_bytes, into_arrays,
                    whole=None))]
pub fn fit(
    py: Python<'_>,
    job: &Job,
    plan: &Plan,
    reserved_bytes: u64,
    held_bytes: u64,
    planning_peak_bytes: u64,
    into_arrays: bool,
    whole: Option<&Job>,
) -> PyResult<Layout> {
    zmrs_core::parallel::reserve_little();
    let mut reserved = Projection::default();
    reserved.add("process", reserved_bytes);
    if into_arrays {
        reserved.add("result arrays", job.0.output_bytes());
    }
    let whole = whole.map_or(&job.0, |whole| &whole.0);
    let fitted = py.detach(|| {
        zmrs_core::fit::fit(&job.0, whole, &plan.0, &reserved, held_bytes, planning_peak_bytes)
    });
    let fitted = fitted.map_err(|e| errors::to_py(py, &e))?;
    let traffic = py.detach(|| fitted.layout.traffic(&job.0));
    Ok(Layout { fitted, traffic })
}

/// What a pass found out.
#[pyclass(frozen, get_all, module = "zmrs._zmrs")]
pub struct PassStats {
    /// How far the pass has come: the sweep, and the first row that is not finished.
    reached: (usize, usize),
    samples: Vec<u64>,
    rejected: Vec<u64>,
    read_bytes: u64,
    files_opened: u64,
    workers: usize,
    ledger_peak: u64,
    chunk_peak: u64,
    replaced: u64,
}

/// Run a pass, from `start` (sweep, row) on, and write its planes into files, each from a byte on;
/// those of None are dropped. When `progress` says True it pauses after the present band.
/// `marks` receives where the inputs lie; `bounds` is a file for a pass of two sweeps to write anew.
/// With `over`, pixels that come out much darker than there stay as they are there, and so do their
/// variances in `over_variance`; `epsilon` is added to its luminance for the comparison.
#[pyfunction]
#[pyo3(signature = (job, layout, targets, *, start=(0, 0), write_back=false, marks=None, bounds=None, over=None,
                    over_variance=None, epsilon=0.0, device=None, progress=None))]
pub fn run_pass_into_files(
    py: Python<'_>,
    job: &Job,
    layout: &Layout,
    targets: Vec<Option<(PathBuf, u64)>>,
    start: (usize, usize),
    write_back: bool,
    marks: Option<&Marks>,
    bounds: Option<PathBuf>,
    over: Option<&Planes>,
    over_variance: Option<&Planes>,
    epsilon: f64,
    device: Option<Py<PyAny>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<PassStats> {
    if !(job.0.channels..=job.0.planes()).contains(&targets.len()) {
        return Err(PyValueError::new_err("one target a plane is needed"));
    }
    let sink = FitsSink::open(targets, job.0.count_planes(), job.0.width, write_back);
    let sink = sink.map_err(|e| errors::to_py(py, &e))?;
    let scratch = bounds.as_deref().map(|path| Scratch { path, write_back });
    let Some(over) = over else {
        return run(py, job, start, layout, &sink, marks, scratch, device, progress);
    };
    let variance = over_variance.map(|planes| &*planes.0);
    if variance.map_or(0, CorePlanes::count) != job.0.variance_planes() {
        return Err(PyValueError::new_err("the variance of each channel is needed"));
    }
    let variance = variance.map(|planes| planes as &dyn CorePlanes);
    let sink = MergeSink::new(&*over.0, variance, epsilon, job.0.width, &sink);
    let stats = run(py, job, start, layout, &sink, marks, scratch, device, progress)?;
    Ok(PassStats { replaced: sink.replaced(), ..stats })
}

/// Run a pass into arrays: the image (channels, height, width), the coverage (height, width), the
/// samples rejected below and above by channel (2 * channels, height, width), if they count, and the
/// variance (channels, height, width), if it is wanted.
#[pyfunction]
#[pyo3(signature = (job, layout, image, coverage, *, counts=None, variance=None, write_back=false,
                    marks=None, bounds=None, device=None, progress=None))]
pub fn run_pass_into_arrays(
    py: Python<'_>,
    job: &Job,
    layout: &Layout,
    mut image: PyReadwriteArray3<'_, f32>,
    mut coverage: PyReadwriteArray2<'_, f32>,
    mut counts: Option<PyReadwriteArray3<'_, i16>>,
    mut variance: Option<PyReadwriteArray3<'_, f32>>,
    write_back: bool,
    marks: Option<&Marks>,
    bounds: Option<PathBuf>,
    device: Option<Py<PyAny>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<PassStats> {
    let area = job.0.height * job.0.width;
    let (image, coverage) = (image.as_slice_mut()?, coverage.as_slice_mut()?);
    let counts = counts.as_mut().map(|counts| counts.as_slice_mut()).transpose()?;
    let variance = variance.as_mut().map(|variance| variance.as_slice_mut()).transpose()?;
    let counted = counts.as_ref().map_or(0, |counts| counts.len());
    let varied = variance.as_ref().map_or(0, |variance| variance.len());
    let planes = [job.0.channels, 1, job.0.count_planes().len(), job.0.variance_planes()];
    if [image.len(), coverage.len(), counted, varied] != planes.map(|count| count * area) {
        return Err(PyValueError::new_err("the arrays are not of the shape of the job"));
    }
    let mut planes: Vec<&mut [f32]> = image.chunks_mut(area).collect();
    planes.push(coverage);
    let counts = counts.into_iter().flat_map(|counts| counts.chunks_mut(area)).collect();
    let variances = variance.into_iter().flat_map(|variance| variance.chunks_mut(area)).collect();
    let sink = MemorySink::new(job.0.width, planes, counts, variances);
    let scratch = bounds.as_deref().map(|path| Scratch { path, write_back });
    run(py, job, (0, 0), layout, &sink, marks, scratch, device, progress)
}

fn run(
    py: Python<'_>,
    job: &Job,
    (sweep, row): (usize, usize),
    layout: &Layout,
    sink: &dyn Sink,
    marks: Option<&Marks>,
    scratch: Option<Scratch>,
    device: Option<Py<PyAny>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<PassStats> {
    let cancel = CancelToken::default();
    let so_far = Progress::default();
    let tick = |py: Python<'_>| {
        if let Some(progress) = &progress {
            let rows = so_far.rows_written.load(Ordering::Relaxed);
            let read = so_far.read_bytes.load(Ordering::Relaxed);
            if progress.call1(py, (read, rows))?.is_truthy(py)? {
                so_far.pause.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    };
    let device = device.map(Device::new);
    let stats = gate::run_with(py, device.as_ref(), &cancel, tick, || {
        let Fitted { layout, plan, outside_bytes, .. } = &layout.fitted;
        let ledger = Ledger::new(plan.memory_bytes.unwrap_or(u64::MAX));
        let _outside = ledger.reserve(*outside_bytes)?;
        let marks = marks.map(|marks| &marks.0);
        let start = Place { sweep, row };
        let driven = device.as_ref().map(|device| device as &dyn device::Device);
        sweeps::run_pass(
            &job.0, start, *layout, plan, &ledger, sink, marks, scratch, driven, &cancel, &so_far,
        )
    });
    // What has stopped it says more than that something has.
    let stats = stats.map_err(|e| device.and_then(Device::raised).unwrap_or(e))?;
    Ok(PassStats {
        reached: (stats.reached.sweep, stats.reached.row),
        samples: stats.samples,
        rejected: stats.rejected,
        read_bytes: stats.read_bytes,
        files_opened: stats.files_opened,
        workers: stats.workers,
        ledger_peak: stats.ledger_peak,
        chunk_peak: stats.chunk_peak,
        replaced: 0,
    })
}
