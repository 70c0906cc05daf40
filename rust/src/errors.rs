//! The one table from engine errors to the classes of `zmrs.errors`.

use pyo3::exceptions::{PyFileNotFoundError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use zmrs_core::Error;

/// The Python exception for an engine error.
pub fn to_py(py: Python<'_>, error: &Error) -> PyErr {
    let message = error.to_string();
    let class = match error {
        Error::Argument(_) => return PyValueError::new_err(message),
        Error::Input { path, .. } if !path.exists() => {
            return PyFileNotFoundError::new_err(message);
        }
        Error::Plan { .. } => "PlanError",
        Error::Input { .. } => "InputError",
        Error::Budget(_) | Error::DoesNotFit { .. } => "BudgetError",
        Error::Output { .. } => "OutputError",
        Error::DiskFull { .. } => "DiskFullError",
        Error::Device(_) => "DeviceError",
        Error::Cancelled => "Cancelled",
    };
    let class = py.import("zmrs.errors").and_then(|module| module.getattr(class));
    let built = class.and_then(|class| match error {
        Error::DoesNotFit { least_bytes, .. } => class.call1((message, least_bytes)),
        _ => class.call1((message,)),
    });
    match built {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// What a panic of the engine looks like from Python: a defect, never the user's doing.
pub fn panicked() -> PyErr {
    PyRuntimeError::new_err("the engine stopped because of an internal error; please report it")
}
