//! The work between the two passes.

use std::path::PathBuf;

use numpy::{PyReadonlyArray1, PyReadwriteArray2, PyReadwriteArray3};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use zmrs_core::budget::Ledger;
use zmrs_core::cancel::CancelToken;
use zmrs_core::coverage::depth;
use zmrs_core::coverage::gains::{self, Means};
use zmrs_core::coverage::keep;
use zmrs_core::coverage::marks;
use zmrs_core::coverage::percentile;
use zmrs_core::coverage::planes::{self, FilePlanes, MemoryPlanes};
use zmrs_core::device::CoverageDevice;
use zmrs_core::sink::Target;
use zmrs_core::source::SharedBytes;

use crate::arrays::SharedArray;
use crate::device::Device;
use crate::job::Job;
use crate::pass::Layout;
use crate::{errors, gate};

/// Where each input lies on the output, as a pass has left it in a scratch file.
#[pyclass(frozen, module = "zmrs._zmrs")]
pub struct Marks(pub marks::Marks);

#[pymethods]
impl Marks {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let marks = marks::Marks::create(&path);
        Ok(Self(marks.map_err(|e| errors::to_py(py, &e))?))
    }

    /// The marks at `path` as far as the file `saved` knows them.
    #[staticmethod]
    fn reopen(py: Python<'_>, path: PathBuf, saved: PathBuf) -> PyResult<Self> {
        let marks = marks::Marks::reopen(&path, &saved);
        Ok(Self(marks.map_err(|e| errors::to_py(py, &e))?))
    }

    /// Say in a file what has been written until now.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        self.0.save(&path).map_err(|e| errors::to_py(py, &e))
    }
}

/// Finished planes: the channels of an image, then its coverage.
#[pyclass(frozen, module = "zmrs._zmrs")]
pub struct Planes(pub Box<dyn planes::Planes + Send + Sync>);

#[pymethods]
impl Planes {
    /// Big-endian single precision, each in a file, from a byte on.
    #[staticmethod]
    fn in_files(py: Python<'_>, width: usize, targets: Vec<(PathBuf, u64)>) -> PyResult<Self> {
        let planes = FilePlanes::open(targets, width);
        Ok(Self(Box::new(planes.map_err(|e| errors::to_py(py, &e))?)))
    }

    /// The bytes of arrays of single precision.
    #[staticmethod]
    fn in_memory(width: usize, arrays: Vec<PyReadonlyArray1<'_, u8>>) -> PyResult<Self> {
        let shared = |array| -> PyResult<SharedBytes> { Ok(Box::new(SharedArray::new(array)?)) };
        let planes = arrays.iter().map(shared).collect::<PyResult<_>>()?;
        Ok(Self(Box::new(MemoryPlanes::new(width, planes))))
    }
}

/// The gains of the inputs, and how they came about.
#[pyclass(frozen, get_all, module = "zmrs._zmrs")]
pub struct InputGains {
    gains: Vec<f64>,
    scales: (f32, f32),
}

/// The gains that the coverage of pass one leads to. `place` is where a plane of the canvas may lie
/// meanwhile, in an existing file. A `device` blurs and counts, if there is one.
#[pyfunction]
#[pyo3(signature = (job, layout, planes, marks, place, *, device=None))]
pub fn measure_gains(
    py: Python<'_>,
    job: &Job,
    layout: &Layout,
    planes: &Planes,
    marks: &Marks,
    place: (PathBuf, u64),
    device: Option<Py<PyAny>>,
) -> PyResult<InputGains> {
    let shape = (job.0.height, job.0.width);
    let Some(rules) = job.0.two_pass else {
        return Err(PyValueError::new_err("the job has no second pass"));
    };
    let device = device.map(Device::new);
    let found = work(py, layout, device.as_ref(), |means| {
        let inputs = job.0.inputs.len();
        let driven = device.as_ref().map(|device| device as &dyn CoverageDevice);
        gains::measure(&*planes.0, shape, &marks.0, inputs, &rules, &place, means, driven)
    });
    // What has stopped it says more than that something has.
    let found = found.map_err(|e| device.and_then(Device::raised).unwrap_or(e))?;
    let gains::Gains { gains, scales } = found;
    Ok(InputGains { gains, scales })
}

/// Write how many inputs cover each pixel of finished planes, as their marks say, into `place`.
#[pyfunction]
pub fn write_depth(
    py: Python<'_>,
    job: &Job,
    layout: &Layout,
    planes: &Planes,
    marks: &Marks,
    place: (PathBuf, u64),
) -> PyResult<()> {
    let shape = (job.0.height, job.0.width);
    work(py, layout, None, |means| depth::write(&*planes.0, shape, &marks.0, &place, means))
}

/// The exact percentile of the luminance where something covers; nothing where nothing does.
#[pyfunction]
pub fn luminance_percentile(
    py: Python<'_>,
    job: &Job,
    layout: &Layout,
    planes: &Planes,
    percent: f64,
) -> PyResult<Option<f64>> {
    let shape = (job.0.height, job.0.width);
    work(py, layout, None, |means| {
        percentile::luminance_percentile(&*planes.0, shape, percent, means)
    })
}

/// Do something between the passes, within the memory that they had.
fn work<T: Send>(
    py: Python<'_>,
    layout: &Layout,
    device: Option<&Device>,
    task: impl FnOnce(&Means) -> zmrs_core::Result<T> + Send,
) -> PyResult<T> {
    let cancel = CancelToken::default();
    gate::run_with(
        py,
        device,
        &cancel,
        |_| Ok(()),
        || {
            let fitted = layout.fitted();
            let ledger = Ledger::new(fitted.plan.memory_bytes.unwrap_or(u64::MAX));
            let _outside = ledger.reserve(fitted.outside_bytes)?;
            task(&Means {
                workers: fitted.plan.cpu_workers as usize,
                ledger: &ledger,
                bytes: fitted.coverage_bytes,
                cancel: &cancel,
            })
        },
    )
}

/// Blur a coverage plane into `out` (height, width): the mean coverage around every pixel.
#[pyfunction]
pub fn blur_coverage(
    py: Python<'_>,
    planes: &Planes,
    sigma_px: f64,
    workers: usize,
    mut out: PyReadwriteArray2<'_, f64>,
) -> PyResult<()> {
    let shape = out.as_array().dim();
    let out = out.as_slice_mut()?;
    let cancel = CancelToken::default();
    gate::run(
        py,
        &cancel,
        |_| Ok(()),
        || {
            gains::blurred(
                &*planes.0,
                shape,
                sigma_px,
                workers,
                &Ledger::new(u64::MAX),
                &cancel,
                out,
            )
        },
    )
}

/// Empty the pixels of a finished pass whose coverage is less than `part` of the greatest.
#[pyfunction]
pub fn blank_low_coverage(
    py: Python<'_>,
    images: Vec<Target>,
    coverage: Target,
    shape: (usize, usize),
    part: f64,
) -> PyResult<()> {
    let blanked = py.detach(|| keep::blank_low_coverage(&images, &coverage, shape, part));
    blanked.map_err(|e| errors::to_py(py, &e))
}

/// The same for arrays: images (planes, height, width) and coverage (height, width).
#[pyfunction]
pub fn blank_low_coverage_of_arrays(
    mut images: PyReadwriteArray3<'_, f32>,
    mut coverage: PyReadwriteArray2<'_, f32>,
    part: f64,
) -> PyResult<()> {
    let (height, width) = coverage.as_array().dim();
    let (planes, ..) = images.as_array().dim();
    let (images, coverage) = (images.as_slice_mut()?, coverage.as_slice_mut()?);
    if images.len() != planes * coverage.len() {
        return Err(PyValueError::new_err("images and coverage differ in shape"));
    }
    let most = coverage.iter().copied().fold(0.0, f32::max);
    let mut rows: Vec<_> = images.chunks_mut(height * width).map(|i| i.chunks_mut(width)).collect();
    for row in coverage.chunks_mut(width) {
        let mut images: Vec<_> = rows.iter_mut().filter_map(Iterator::next).collect();
        keep::blank_row(row, &mut images, most, part);
    }
    Ok(())
}

/// Copy all of a file of finished planes into another file, from byte `at` on.
#[pyfunction]
pub fn copy_planes(
    py: Python<'_>,
    source: PathBuf,
    target: PathBuf,
    at: u64,
    write_back: bool,
) -> PyResult<()> {
    let copied = py.detach(|| zmrs_core::sink::copy_planes(&source, &target, at, write_back));
    copied.map_err(|e| errors::to_py(py, &e))
}
