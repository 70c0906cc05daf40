//! Inputs and jobs.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use numpy::PyReadonlyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use zmrs_core::coadd::{Combine, Parameters};
use zmrs_core::coverage::gains::Rules;
use zmrs_core::geom::Rect;
use zmrs_core::job;
use zmrs_core::photometry::{self, GainRules};
use zmrs_core::resample::Kernel;
use zmrs_core::source::{self, Bayer, Encoding, SampleType, SharedBytes, Store};
use zmrs_core::weights::{MapKind, Saturation, Weighting};

use crate::arrays::SharedArray;
use crate::errors;
use crate::geometry::CoordGrid;

/// The filters of a raw colour frame, as `RGGB`, and the value at which its pixels are saturated.
type Filters<'a> = Option<(&'a str, Option<f32>)>;

/// The stored planes of one image.
#[pyclass(frozen, module = "zmrs._zmrs")]
pub struct Source(Arc<source::Source>);

impl Source {
    fn build(
        store: Store,
        bitpix: i64,
        big_endian: bool,
        shape: (usize, usize, usize),
        scale: (f64, f64),
        blank: Option<i64>,
        filters: Filters<'_>,
    ) -> PyResult<Self> {
        let sample = SampleType::from_bitpix(bitpix)
            .ok_or_else(|| PyValueError::new_err(format!("there is no BITPIX {bitpix}")))?;
        let known = |(name, saturation): (&str, _)| {
            Bayer::from_name(name, saturation)
                .ok_or_else(|| PyValueError::new_err(format!("there are no filters '{name}'")))
        };
        Ok(Self(Arc::new(source::Source {
            store,
            encoding: Encoding { sample, big_endian, scale: scale.0, zero: scale.1, blank },
            planes: shape.0,
            height: shape.1,
            width: shape.2,
            bayer: filters.map(known).transpose()?,
        })))
    }

    fn bytes_of(&self, array: &PyReadonlyArray1<'_, u8>) -> PyResult<SharedBytes> {
        if array.as_slice()?.len() as u64 != self.0.bytes() {
            return Err(PyValueError::new_err("the array is not of the size of the image"));
        }
        Ok(Box::new(SharedArray::new(array)?))
    }
}

#[pymethods]
impl Source {
    #[staticmethod]
    #[pyo3(signature = (path, offset, bitpix, shape, scale=(1.0, 0.0), blank=None, filters=None))]
    fn file(
        path: PathBuf,
        offset: u64,
        bitpix: i64,
        shape: (usize, usize, usize),
        scale: (f64, f64),
        blank: Option<i64>,
        filters: Filters<'_>,
    ) -> PyResult<Self> {
        let store = Store::File { path, offset, unpacked: false };
        Self::build(store, bitpix, true, shape, scale, blank, filters)
    }

    #[staticmethod]
    #[pyo3(signature = (path, bitpix, shape, scale=(1.0, 0.0), blank=None, filters=None))]
    fn unpacked(
        path: PathBuf,
        bitpix: i64,
        shape: (usize, usize, usize),
        scale: (f64, f64),
        blank: Option<i64>,
        filters: Filters<'_>,
    ) -> PyResult<Self> {
        let store = Store::File { path, offset: 0, unpacked: true };
        Self::build(store, bitpix, false, shape, scale, blank, filters)
    }

    #[staticmethod]
    #[pyo3(signature = (array, bitpix, shape, scale=(1.0, 0.0), blank=None))]
    fn memory(
        array: PyReadonlyArray1<'_, u8>,
        bitpix: i64,
        shape: (usize, usize, usize),
        scale: (f64, f64),
        blank: Option<i64>,
    ) -> PyResult<Self> {
        let later = Self::deferred(bitpix, shape, scale, blank, None)?;
        let store = Store::Memory(later.bytes_of(&array)?);
        Self::build(store, bitpix, false, shape, scale, blank, None)
    }

    #[staticmethod]
    #[pyo3(signature = (bitpix, shape, scale=(1.0, 0.0), blank=None, filters=None))]
    fn deferred(
        bitpix: i64,
        shape: (usize, usize, usize),
        scale: (f64, f64),
        blank: Option<i64>,
        filters: Filters<'_>,
    ) -> PyResult<Self> {
        let store = Store::Deferred(OnceLock::new());
        Self::build(store, bitpix, false, shape, scale, blank, filters)
    }

    /// Bytes of the samples as they are stored.
    #[getter]
    fn stored_bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn provide(&self, array: PyReadonlyArray1<'_, u8>) -> PyResult<()> {
        let bytes = self.bytes_of(&array)?;
        match &self.0.store {
            Store::Deferred(cell) if cell.set(bytes).is_ok() => Ok(()),
            _ => Err(PyValueError::new_err("this source has its pixels already")),
        }
    }
}

/// One image and what is known of it.
#[pyclass(frozen, module = "zmrs._zmrs")]
pub struct Input(job::Input);

#[pymethods]
impl Input {
    #[new]
    #[pyo3(signature = (name, image, grid, *, weight=1.0, gain=None, offset=None, weight_map=None,
                        map_kind="weight", alpha_full=1.0, border_px=(0, 0), feather_px=0.0,
                        zero_is_blank=false, saturation=None, noise=None))]
    fn new(
        name: String,
        image: &Source,
        grid: &CoordGrid,
        weight: f64,
        gain: Option<Vec<f64>>,
        offset: Option<Vec<f64>>,
        weight_map: Option<&Source>,
        map_kind: &str,
        alpha_full: f32,
        border_px: (usize, usize),
        feather_px: f64,
        zero_is_blank: bool,
        saturation: Option<f32>,
        noise: Option<Vec<f64>>,
    ) -> PyResult<Self> {
        let channels = image.0.channels();
        let unknown = || PyValueError::new_err(format!("there is no kind of weights '{map_kind}'"));
        Ok(Self(job::Input {
            name,
            image: Arc::clone(&image.0),
            weight_map: weight_map.map(|map| Arc::clone(&map.0)),
            weighting: Weighting {
                map: MapKind::from_name(map_kind, alpha_full).ok_or_else(unknown)?,
                border_px: border_px.into(),
                feather_px,
                zero_is_blank,
                saturation: saturation.and_then(Saturation::new),
            },
            grid: Arc::clone(&grid.0),
            weight,
            gain: gain.unwrap_or_else(|| vec![1.0; channels]),
            offset: offset.unwrap_or_else(|| vec![0.0; channels]),
            noise: noise.unwrap_or_else(|| vec![1.0; channels]),
        }))
    }
}

/// Everything that determines the pixels.
#[pyclass(frozen, module = "zmrs._zmrs")]
pub struct Job(pub job::Job);

#[pymethods]
impl Job {
    #[new]
    #[pyo3(signature = (shape, kernel, combine, inputs, *, kappa=(3.0, 3.0), winsor=(0.05, 0.05),
                        together=false, match_offsets=false, match_gains=None,
                        most_offset=f64::INFINITY, two_pass=None, variance=false))]
    fn new(
        py: Python<'_>,
        shape: (usize, usize, usize),
        kernel: &str,
        combine: &str,
        inputs: Vec<Bound<'_, Input>>,
        kappa: (f64, f64),
        winsor: (f64, f64),
        together: bool,
        match_offsets: bool,
        match_gains: Option<(f64, f64, f64, f64)>,
        most_offset: f64,
        two_pass: Option<(f64, f64, f64, f64)>,
        variance: bool,
    ) -> PyResult<Self> {
        let rules =
            |(sigma_px, low, high, threshold)| Rules { sigma_px, clip: (low, high), threshold };
        let of_gains = |(low, high, from, to)| GainRules { limits: (low, high), band: (from, to) };
        let matching = photometry::Rules { gains: match_gains.map(of_gains), most_offset };
        let method = Combine::from_name(combine, &Parameters { kappa, winsor, together });
        let unknown = |what, name| PyValueError::new_err(format!("there is no {what} '{name}'"));
        let job = job::Job {
            channels: shape.0,
            height: shape.1,
            width: shape.2,
            kernel: Kernel::from_name(kernel).ok_or_else(|| unknown("kernel", kernel))?,
            combine: method.ok_or_else(|| unknown("combine", combine))?,
            inputs: inputs.iter().map(|input| input.get().0.clone()).collect(),
            matching: (match_offsets || match_gains.is_some()).then_some(matching),
            two_pass: two_pass.map(rules),
            variance,
        };
        job.validate().map_err(|e| errors::to_py(py, &e))?;
        Ok(Self(job))
    }

    /// The same job with other gains and offsets: by input, and by channel.
    fn with_photometry(
        &self,
        py: Python<'_>,
        gains: Vec<Vec<f64>>,
        offsets: Vec<Vec<f64>>,
    ) -> PyResult<Self> {
        let job = self.0.with_photometry(gains, offsets);
        Ok(Self(job.map_err(|e| errors::to_py(py, &e))?))
    }

    /// The job of some of the inputs on the columns x0 to x1 and rows y0 to y1 of the output.
    fn part(
        &self,
        py: Python<'_>,
        inputs: Vec<usize>,
        columns: (i64, i64),
        rows: (i64, i64),
    ) -> PyResult<Self> {
        let rect = Rect::new(columns.0..columns.1, rows.0..rows.1);
        Ok(Self(self.0.part(&inputs, &rect).map_err(|e| errors::to_py(py, &e))?))
    }

    /// Whether the combine counts the samples that it rejects, in planes of the output.
    #[getter]
    fn counts_rejected(&self) -> bool {
        self.0.combine.rejects()
    }

    /// Whether the variance of each channel is found, in planes of the output.
    #[getter]
    fn has_variance(&self) -> bool {
        self.0.variance
    }

    /// Bytes of a plane of the image.
    #[getter]
    fn plane_bytes(&self) -> usize {
        self.0.height * self.0.width * size_of::<f32>()
    }

    #[getter]
    fn input_bytes(&self) -> u64 {
        self.0.input_bytes()
    }
}
