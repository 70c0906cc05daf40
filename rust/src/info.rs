//! What this build is, and what it holds.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Version, instruction set in use and build profile of the engine.
#[pyfunction]
pub fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("simd", format!("{:?}", zmrs_core::cpu::level()).to_lowercase())?;
    info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    info.set_item("target", std::env::consts::ARCH)?;
    Ok(info)
}

/// Give memory that was freed back to the system, as every call of the engine does.
#[pyfunction]
pub fn give_back() {
    zmrs_core::budget::give_back();
}
