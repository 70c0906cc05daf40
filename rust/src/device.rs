//! A device that Python drives, as the engine sees it.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use zmrs_core::Error;
use zmrs_core::coadd::{Combine, Estimator, ROWS, Running};
use zmrs_core::coverage::gains::BINS;
use zmrs_core::coverage::marks::{AT_ONCE, Mark};
use zmrs_core::coverage::{Gaussian, SEGMENT_COLUMNS, SEGMENT_ROWS, Tables, WAVES};
use zmrs_core::device::{self, Counts, CoverageRoom, DeviceStep};
use zmrs_core::geom::{CellKind, Rect};
use zmrs_core::job;
use zmrs_core::reproject::Loaded;
use zmrs_core::resample::TapTable;
use zmrs_core::source::{Encoding, Source};
use zmrs_core::weights::MapKind;

use crate::job::Job;

/// Numbers that say what a window is.
const COLUMNS: usize = 10;

/// The object that computes, and what it has raised.
pub struct Device {
    object: Py<PyAny>,
    raised: Mutex<Option<PyErr>>,
}

impl Device {
    /// An object with the methods of `zmrs.backends.base.Device`, or of `CoverageDevice` there.
    pub fn new(object: Py<PyAny>) -> Self {
        Self { object, raised: Mutex::new(None) }
    }

    /// What stopped it, if anything has.
    pub fn raised(self) -> Option<PyErr> {
        self.raised.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Have the object do something, on a thread that [`gate::run_with`](crate::gate::run_with) has
    /// started: it has the stack for that.
    fn call<T>(&self, work: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> zmrs_core::Result<T> {
        Python::attach(|py| work(self.object.bind(py))).map_err(|raised| {
            let what = raised.to_string();
            // What comes after the first failure follows from it.
            let mut first = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(raised);
            Error::Device(what)
        })
    }
}

impl device::Device for Device {
    fn bring(&self, turn: usize, loaded: &[Loaded]) -> zmrs_core::Result<()> {
        self.call(|object| {
            let windows = Windows::new(object.py(), loaded);
            object.call_method1("bring", (turn, windows)).map(drop)
        })
    }

    fn start(&self, step: DeviceStep) -> zmrs_core::Result<()> {
        self.call(|object| object.call_method1("start", (Step::new(step),)).map(drop))
    }

    fn finish(&self) -> zmrs_core::Result<()> {
        self.call(|object| object.call_method0("finish").map(drop))
    }

    fn cover(&self, window: usize, part: &Rect, covered: &mut [u8]) -> zmrs_core::Result<()> {
        let place = covered.as_mut_ptr() as usize;
        let part = (part.x0, part.y0, part.x1, part.y1);
        self.call(|object| object.call_method1("cover", (window, part, place)).map(drop))
    }

    fn release(&self) {
        // Too late to fail: what was computed is there.
        let _ = self.call(|object| object.call_method0("release").map(drop));
    }

    fn counts(&self) -> zmrs_core::Result<Counts> {
        self.call(|object| object.call_method0("counts")?.extract())
    }
}

impl device::CoverageDevice for Device {
    fn room(&self) -> zmrs_core::Result<CoverageRoom> {
        self.call(|object| {
            let (map_rows, inputs, rows, marks) = object.call_method0("room")?.extract()?;
            Ok(CoverageRoom { map_rows, inputs, rows, marks })
        })
    }

    fn put(&self, first: i64, rows: &[f32]) -> zmrs_core::Result<()> {
        let rows = (rows.as_ptr() as usize, rows.len());
        self.call(|object| object.call_method1("put", (first, rows)).map(drop))
    }

    fn scales(&self, rows: Range<usize>, out: &mut [f32]) -> zmrs_core::Result<()> {
        let place = out.as_mut_ptr() as usize;
        self.call(|object| object.call_method1("scales", (rows.start, rows.end, place)).map(drop))
    }

    fn begin(&self, inputs: Range<usize>, bins: Option<&[[u32; 2]]>) -> zmrs_core::Result<()> {
        let bins = bins.map(|bins| bins.as_ptr() as usize);
        self.call(|object| object.call_method1("begin", (inputs.start, inputs.end, bins)).map(drop))
    }

    fn count(&self, first: usize, rows: &[f32], marks: &[Mark]) -> zmrs_core::Result<()> {
        let rows = (rows.as_ptr() as usize, rows.len());
        let marks = (marks.as_ptr() as usize, marks.len());
        self.call(|object| object.call_method1("count", (first, rows, marks)).map(drop))
    }

    fn counted(&self, counts: &mut [u32], least: &mut [u32]) -> zmrs_core::Result<()> {
        let (counts, least) = (counts.as_mut_ptr() as usize, least.as_mut_ptr() as usize);
        self.call(|object| object.call_method1("counted", (counts, least)).map(drop))
    }

    fn release(&self) {
        device::Device::release(self);
    }
}

/// The windows of a step. Places are addresses in the memory of this process, which stay until the
/// step is finished.
#[pyclass(frozen, get_all, module = "zmrs._zmrs")]
pub struct Windows {
    /// A row a window, in job order: input, first and past the last output column that it serves,
    /// x0, y0, x1, y1 of its pixels, where they begin among all, where its exact coordinates do, and
    /// whether it holds its samples as they are stored, as far as the frame goes, plane after plane,
    /// each from a whole single-precision value on.
    table: Py<PyArray2<i64>>,
    /// Cells of exact coordinates, for windows that have some: window, and their numbers in order.
    exact_cells: Vec<(usize, Py<PyArray1<u32>>)>,
    /// Place and number of all single-precision values that the windows take.
    pixels: (usize, usize),
    /// Place and number of all exact coordinates, double precision.
    exact: (usize, usize),
}

impl Windows {
    fn new(py: Python<'_>, loaded: &[Loaded]) -> Self {
        let (mut pixels, mut exact) = (0, 0);
        let mut rows = Vec::with_capacity(COLUMNS * loaded.len());
        let mut exact_cells = Vec::new();
        for (number, Loaded { window, pixels: mine, exact: records }) in loaded.iter().enumerate() {
            let (rect, out_x) = (window.rect, &window.out_x);
            let input = window.input as i64;
            rows.extend([input, out_x.start, out_x.end, rect.x0, rect.y0, rect.x1, rect.y1]);
            rows.extend([pixels as i64, exact as i64, i64::from(window.is_stored)]);
            pixels += mine.len();
            exact += records.len();
            if !window.exact.is_empty() {
                exact_cells.push((number, window.exact.clone().into_pyarray(py).unbind()));
            }
        }
        let place_of = |values: Option<*const f32>| values.map_or(0, |at| at as usize);
        let table = rows.into_pyarray(py).reshape([loaded.len(), COLUMNS]);
        Self {
            table: table.expect("so many numbers a window").unbind(),
            exact_cells,
            pixels: (place_of(loaded.first().map(|one| one.pixels.as_ptr())), pixels),
            exact: (loaded.first().map_or(0, |one| one.exact.as_ptr() as usize), exact),
        }
    }
}

/// What the device gets to compute. Places are addresses, as above.
#[pyclass(frozen, get_all, module = "zmrs._zmrs")]
pub struct Step {
    /// Columns and rows of the output: x0, y0, x1, y1.
    rect: (i64, i64, i64, i64),
    is_first: bool,
    is_last: bool,
    /// Places of the bounds of the samples, single precision, as large as `rect`.
    bounds: Vec<usize>,
    /// Places of the planes of the output, rows as wide as the canvas.
    planes: Vec<usize>,
}

impl Step {
    fn new(step: DeviceStep) -> Self {
        let DeviceStep { rect, is_first, is_last, bounds, mut planes } = step;
        Self {
            rect: (rect.x0, rect.y0, rect.x1, rect.y1),
            is_first,
            is_last,
            bounds: bounds.iter().map(|plane| plane.as_ptr() as usize).collect(),
            planes: planes.iter_mut().map(|plane| plane.as_mut_ptr() as usize).collect(),
        }
    }
}

/// What determines the pixels of a job, as plain values: what a device is told before a pass.
#[pyfunction]
pub fn describe_job<'py>(py: Python<'py>, job: &Job) -> PyResult<Bound<'py, PyDict>> {
    let job = &job.0;
    let told = PyDict::new(py);
    told.set_item("shape", (job.channels, job.height, job.width))?;
    told.set_item("kernel", format!("{:?}", job.kernel).to_lowercase())?;
    let (method, kappa, winsor, together) = match job.combine {
        Combine::Running(running) => (name_of(running), (0.0, 0.0), (0.0, 0.0), false),
        Combine::Streamed(how) => ("kappa-sigma-stream", how.kappa, (0.0, 0.0), how.together),
        Combine::Stacked(how) => {
            let (name, kappa, winsor) = match how.estimator {
                Estimator::Median => ("median", (0.0, 0.0), (0.0, 0.0)),
                Estimator::KappaSigma(kappa) => ("kappa-sigma", kappa, (0.0, 0.0)),
                Estimator::Winsorized(kappa) => ("winsorized", kappa, (0.0, 0.0)),
                Estimator::WinsorizedReference(kappa) => {
                    ("winsorized-reference", (kappa, kappa), (0.0, 0.0))
                }
                Estimator::WinsorPercentile(parts) => ("winsor-percentile", (0.0, 0.0), parts),
            };
            (name, kappa, winsor, how.together)
        }
    };
    told.set_item("method", method)?;
    told.set_item("kappa", kappa)?;
    told.set_item("winsor", winsor)?;
    told.set_item("together", together)?;
    told.set_item("variance", job.variance)?;
    told.set_item("gives_way", job.gives_way())?;
    told.set_item("has_maps", job.inputs.iter().any(has_map))?;
    told.set_item("inputs", job.inputs.len())?;
    told.set_item("least_slice", device::memory::LEAST_SLICE)?;
    told.set_item("strip", device::memory::STRIP)?;
    told.set_item("tap_table", TapTable::new(job.kernel).values())?;
    Ok(told)
}

fn name_of(running: Running) -> &'static str {
    match running {
        Running::Mean => "mean",
        Running::Sum => "sum",
        Running::Min => "min",
        Running::Max => "max",
        Running::First => "first",
        Running::Last => "last",
    }
}

fn has_map(input: &job::Input) -> bool {
    input.weight_map.is_some() || input.weighting.feather_px > 0.0
}

/// What determines the work on the coverage of a job, as plain values: what a device is told before
/// it. Nothing where the job has no second pass, or one whose blur makes no sense: it is refused where
/// it begins.
#[pyfunction]
pub fn describe_blur<'py>(py: Python<'py>, job: &Job) -> PyResult<Option<Bound<'py, PyDict>>> {
    let job = &job.0;
    let Some(rules) = job.two_pass else { return Ok(None) };
    let Ok(gaussian) = Gaussian::new(rules.sigma_px) else { return Ok(None) };
    let (form, table) = match gaussian.tables() {
        Tables::Nothing => ("nothing", Vec::new()),
        Tables::Taps(taps) => ("taps", taps.to_vec()),
        Tables::Waves { steps, around } => {
            let values = steps.as_flattened().iter().chain(around.as_flattened().as_flattened());
            ("waves", values.copied().collect())
        }
    };
    let told = PyDict::new(py);
    told.set_item("shape", (job.height, job.width))?;
    told.set_item("inputs", job.inputs.len())?;
    told.set_item("threshold", rules.threshold)?;
    told.set_item("radius", gaussian.radius())?;
    told.set_item("form", form)?;
    told.set_item("table", table.into_pyarray(py))?;
    told.set_item("waves", WAVES)?;
    told.set_item("segment", (SEGMENT_ROWS, SEGMENT_COLUMNS))?;
    told.set_item("bins", BINS)?;
    told.set_item("task", (ROWS, AT_ONCE))?;
    Ok(Some(told))
}

/// What determines the samples of one input of a job, as plain values.
#[pyfunction]
pub fn describe_input<'py>(
    py: Python<'py>,
    job: &Job,
    number: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let input = &job.0.inputs[number];
    let (grid, weighting) = (&input.grid, &input.weighting);
    let [width, height] = grid.frame();
    let kept = weighting.within_border(grid.frame());
    let rect = grid.rect();
    let told = PyDict::new(py);
    told.set_item("origin", (rect.x0, rect.y0))?;
    told.set_item("spacing", grid.spacing())?;
    let [across, down] = [rect.width() / grid.spacing(), rect.height() / grid.spacing()];
    told.set_item("cells_across_down", (across, down))?;
    told.set_item("frame", (width, height))?;
    told.set_item("border", (kept.x0, kept.y0, kept.x1, kept.y1))?;
    let says_variance = weighting.map.says_variance();
    told.set_item("map", input.weight_map.as_ref().map_or(0, |_| 1 + u8::from(says_variance)))?;
    told.set_item("zero_is_blank", weighting.zero_is_blank)?;
    told.set_item("storage", storage(input))?;
    told.set_item("weight", input.weight)?;
    told.set_item("feather", weighting.feather_px)?;
    told.set_item("saturation", weighting.saturation.map_or(0.0, |s| f64::from(s.level())))?;
    told.set_item("gain", input.gain.clone())?;
    told.set_item("offset", input.offset.clone())?;
    let variances = (0..job.0.channels).map(|channel| input.variance(channel));
    told.set_item("variance", variances.collect::<Vec<_>>())?;
    Ok(told)
}

/// How the samples of an image and those of its weight map become values: FITS BITPIX (0 for no
/// map), whether the first byte counts most, BLANK if there is one, BSCALE and BZERO; and what a
/// weight means: its name, and the value of an opaque pixel.
type Storage = ([(i64, bool, Option<i64>, f64, f64); 2], (&'static str, f64));

fn storage(input: &job::Input) -> Storage {
    let of = |source: &Source| {
        let Encoding { sample, big_endian, scale, zero, blank } = source.encoding;
        (sample.bitpix(), big_endian, blank, scale, zero)
    };
    let no_map = (0, false, None, 1.0, 0.0);
    let map = input.weight_map.as_ref().map_or(no_map, |map| of(map));
    let meaning = match input.weighting.map {
        MapKind::Weight => ("weight", 1.0),
        MapKind::Variance => ("variance", 1.0),
        MapKind::Rms => ("rms", 1.0),
        MapKind::Mask => ("mask", 1.0),
        MapKind::Alpha { full } => ("alpha", f64::from(full)),
    };
    ([of(&input.image), map], meaning)
}

type Grid<'py> =
    (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<u8>>, Option<Bound<'py, PyArray1<u32>>>);

/// Where output pixels fall in one input of a job: nodes (x, y, one after the other), cells (0
/// empty, 1 smooth, 2 exact), and the records of the exact ones, if there are any.
#[pyfunction]
pub fn grid_of_input<'py>(py: Python<'py>, job: &Job, number: usize) -> Grid<'py> {
    let grid = &job.0.inputs[number].grid;
    let nodes = grid.nodes().as_flattened().to_vec().into_pyarray(py);
    let kind = |cell: &CellKind| match cell {
        CellKind::Empty => 0,
        CellKind::Smooth { .. } => 1,
        CellKind::Exact { .. } => 2,
    };
    let cells = grid.cells().iter().map(kind).collect::<Vec<u8>>().into_pyarray(py);
    let record = |cell: &CellKind| match cell {
        CellKind::Exact { index } => *index,
        _ => u32::MAX,
    };
    let records = || grid.cells().iter().map(record).collect::<Vec<u32>>().into_pyarray(py);
    (nodes, cells, grid.exact().map(|_| records()))
}
