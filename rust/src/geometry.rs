//! Coordinate grids.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use zmrs_core::geom::{self, CellKind, ExactCells};

use crate::errors;

/// Where output pixels fall in an input; see `zmrs.coordinates`.
#[pyclass(frozen, module = "zmrs._zmrs")]
pub struct CoordGrid(pub Arc<geom::CoordGrid>);

type Coordinates<'py> = (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f64>>);

#[pymethods]
impl CoordGrid {
    #[new]
    fn new(
        py: Python<'_>,
        origin: (i64, i64),
        spacing: usize,
        cells: (usize, usize),
        frame: (usize, usize),
        nodes: PyReadonlyArray3<'_, f64>,
    ) -> PyResult<Self> {
        let (pairs, _) = nodes.as_slice()?.as_chunks::<2>();
        let grid = geom::CoordGrid::new(
            origin.into(),
            spacing,
            cells.into(),
            frame.into(),
            pairs.to_vec(),
        );
        Ok(Self(Arc::new(grid.map_err(|e| errors::to_py(py, &e))?)))
    }

    fn with_exact(
        &self,
        py: Python<'_>,
        numbers: PyReadonlyArray1<'_, u32>,
        path: PathBuf,
        bounds: PyReadonlyArray2<'_, f64>,
    ) -> PyResult<Self> {
        let (boxes, _) = bounds.as_slice()?.as_chunks::<4>();
        let exact = ExactCells { path, bounds: boxes.to_vec() };
        let grid = self.0.with_exact(numbers.as_slice()?, exact);
        Ok(Self(Arc::new(grid.map_err(|e| errors::to_py(py, &e))?)))
    }

    fn at<'py>(
        &self,
        py: Python<'py>,
        x: PyReadonlyArray1<'py, f64>,
        y: PyReadonlyArray1<'py, f64>,
    ) -> PyResult<Coordinates<'py>> {
        let (x, y) = (x.as_slice()?, y.as_slice()?);
        if x.len() != y.len() {
            return Err(PyValueError::new_err("x and y differ in length"));
        }
        let points = x.iter().zip(y).map(|(&x, &y)| self.0.at(x, y));
        let (across, down): (Vec<f64>, Vec<f64>) = points.map(|[x, y]| (x, y)).unzip();
        Ok((across.into_pyarray(py), down.into_pyarray(py)))
    }

    /// 0 empty, 1 smooth, 2 exact; one value a cell, in rows.
    fn cells<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u8>> {
        let number = |cell: &CellKind| match cell {
            CellKind::Empty => 0,
            CellKind::Smooth { .. } => 1,
            CellKind::Exact { .. } => 2,
        };
        self.0.cells().iter().map(number).collect::<Vec<u8>>().into_pyarray(py)
    }

    /// Columns and rows of the output that hold all cells with pixels of the frame; may stick out.
    #[getter]
    fn footprint(&self) -> ((i64, i64), (i64, i64)) {
        let rect = self.0.footprint();
        ((rect.x0, rect.x1), (rect.y0, rect.y1))
    }

    #[getter]
    fn spacing(&self) -> usize {
        self.0.spacing()
    }

    /// Bytes of the file of exact coordinates.
    #[getter]
    fn scratch_bytes(&self) -> u64 {
        self.0.scratch_bytes()
    }
}
