//! The frozen plan.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyMapping, PyString, PyTuple, PyType};
use zmrs_core::{Error, plan};

use crate::errors;

/// Resources of a job, immutable.
#[pyclass(frozen, eq, module = "zmrs._zmrs")]
#[derive(PartialEq)]
pub struct Plan(pub plan::Plan);

const FIELDS: [&str; 12] = [
    "name",
    "cpu_workers",
    "use_memmap",
    "max_chunk_bytes",
    "rows_per_chunk",
    "tiles_per_chunk",
    "use_gpu",
    "gpu_rows_per_chunk",
    "gpu_max_chunk_bytes",
    "two_pass_coverage_threshold",
    "memory_bytes",
    "reasons",
];

/// What a field that is not of its type is refused with.
fn wrong(py: Python<'_>, field: &'static str, wants: &str, value: &Bound<'_, PyAny>) -> PyErr {
    let found = value.repr().map_or_else(|_| "it".to_owned(), |text| text.to_string());
    let reason = format!("must be {wants}, not {found}");
    errors::to_py(py, &Error::Plan { field, reason })
}

/// What an object that cannot be a plan is refused with.
fn no_plan(py: Python<'_>, source: &Bound<'_, PyAny>) -> PyErr {
    wrong(py, "plan", "an object or a mapping with the fields of a plan", source)
}

fn flag(field: &'static str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    match value.cast::<PyBool>() {
        Ok(flag) => Ok(flag.is_true()),
        Err(_) => Err(wrong(value.py(), field, "True or False", value)),
    }
}

/// A whole number: an int, or anything with `__index__` or an integral float, but no bool, no
/// text.
fn count(field: &'static str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    let refuse = || wrong(value.py(), field, "a whole number, not negative", value);
    if value.is_instance_of::<PyBool>() || value.is_instance_of::<PyString>() {
        return Err(refuse());
    }
    if let Ok(float) = value.cast::<PyFloat>() {
        let number = float.value();
        let whole = number.fract() == 0.0 && (0.0..=9e15).contains(&number);
        return if whole { Ok(number as u64) } else { Err(refuse()) };
    }
    value.extract::<u64>().map_err(|_| refuse())
}

fn number(field: &'static str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    let refuse = || wrong(value.py(), field, "a number", value);
    let real = value.py().import("numbers")?.getattr("Real")?;
    if value.is_instance_of::<PyBool>() || !value.is_instance(&real)? {
        return Err(refuse());
    }
    value.extract::<f64>().map_err(|_| refuse())
}

fn optional(field: &'static str, value: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
    if value.is_none() { Ok(None) } else { count(field, value).map(Some) }
}

/// Texts in a list or tuple; one text alone is no list of its letters.
fn words(field: &'static str, value: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    let refuse = || wrong(value.py(), field, "a list of texts", value);
    if value.is_instance_of::<PyString>() {
        Err(refuse())
    } else {
        value.extract().map_err(|_| refuse())
    }
}

/// Overwrite the field called `name`; false when there is none.
fn set(plan: &mut plan::Plan, name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    match name {
        "name" => {
            let text = value.extract::<String>();
            plan.name = text.map_err(|_| wrong(value.py(), "name", "text", value))?;
        }
        "cpu_workers" => plan.cpu_workers = count("cpu_workers", value)?,
        "use_memmap" => plan.use_memmap = flag("use_memmap", value)?,
        "max_chunk_bytes" => plan.max_chunk_bytes = optional("max_chunk_bytes", value)?,
        "rows_per_chunk" => plan.rows_per_chunk = optional("rows_per_chunk", value)?,
        "tiles_per_chunk" => plan.tiles_per_chunk = optional("tiles_per_chunk", value)?,
        "use_gpu" => plan.use_gpu = flag("use_gpu", value)?,
        "gpu_rows_per_chunk" => plan.gpu_rows_per_chunk = optional("gpu_rows_per_chunk", value)?,
        "gpu_max_chunk_bytes" => {
            plan.gpu_max_chunk_bytes = optional("gpu_max_chunk_bytes", value)?;
        }
        "two_pass_coverage_threshold" | "coverage_threshold" => {
            plan.two_pass_coverage_threshold = number("two_pass_coverage_threshold", value)?;
        }
        "memory_bytes" => plan.memory_bytes = optional("memory_bytes", value)?,
        "reasons" => plan.reasons = words("reasons", value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// An item of a mapping, else an attribute, else nothing.
fn look_up<'py>(from: &Bound<'py, PyAny>, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = from.py();
    let found = match from.cast::<PyMapping>() {
        // A mapping with a default would take in every name that is asked for.
        Ok(mapping) if mapping.contains(name)? => mapping.get_item(name),
        Ok(_) => return Ok(None),
        Err(_) => from.getattr(name),
    };
    match found {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_instance_of::<PyAttributeError>(py) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Plan {
    fn checked(py: Python<'_>, plan: plan::Plan) -> PyResult<Self> {
        plan.validate().map_err(|e| errors::to_py(py, &e))?;
        Ok(Self(plan))
    }

    fn with(
        py: Python<'_>,
        mut plan: plan::Plan,
        fields: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        for (name, value) in fields.into_iter().flatten() {
            let name = name.extract::<String>()?;
            if !set(&mut plan, &name, &value)? {
                let message = format!("a plan has no field '{name}'");
                return Err(pyo3::exceptions::PyTypeError::new_err(message));
            }
        }
        Self::checked(py, plan)
    }
}

#[pymethods]
impl Plan {
    #[new]
    #[pyo3(signature = (**fields))]
    fn new(py: Python<'_>, fields: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::with(py, plan::Plan::default(), fields)
    }

    /// A plan from any object with attributes, any mapping, or another plan. Fields that it lacks
    /// keep their defaults, fields that a plan lacks are ignored. An object without any is none.
    #[classmethod]
    fn from_phase5(_class: &Bound<'_, PyType>, source: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(plan) = source.cast::<Self>() {
            return Ok(Self(plan.get().0.clone()));
        }
        let py = source.py();
        let mut known = 0;
        let mut plan = plan::Plan::default();
        // The alias first, so that the field's own name wins where both are given.
        for name in ["coverage_threshold"].into_iter().chain(FIELDS) {
            let Some(value) = look_up(source, name)? else { continue };
            known += 1;
            let required =
                matches!(name, "name" | "cpu_workers" | "use_memmap" | "use_gpu" | "reasons")
                    || name.ends_with("threshold");
            if !(value.is_none() && required) {
                set(&mut plan, name, &value)?;
            }
        }
        if known == 0 && source.cast::<PyMapping>().is_err() {
            return Err(no_plan(py, source));
        }
        Self::checked(py, plan)
    }

    /// The same plan with some fields changed.
    #[pyo3(signature = (**fields))]
    fn replace(&self, py: Python<'_>, fields: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        Self::with(py, self.0.clone(), fields)
    }

    /// All fields by name.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (plan, fields) = (&self.0, PyDict::new(py));
        fields.set_item("name", &plan.name)?;
        fields.set_item("cpu_workers", plan.cpu_workers)?;
        fields.set_item("use_memmap", plan.use_memmap)?;
        fields.set_item("max_chunk_bytes", plan.max_chunk_bytes)?;
        fields.set_item("rows_per_chunk", plan.rows_per_chunk)?;
        fields.set_item("tiles_per_chunk", plan.tiles_per_chunk)?;
        fields.set_item("use_gpu", plan.use_gpu)?;
        fields.set_item("gpu_rows_per_chunk", plan.gpu_rows_per_chunk)?;
        fields.set_item("gpu_max_chunk_bytes", plan.gpu_max_chunk_bytes)?;
        let threshold = plan.two_pass_coverage_threshold;
        fields.set_item("two_pass_coverage_threshold", threshold)?;
        fields.set_item("memory_bytes", plan.memory_bytes)?;
        fields.set_item("reasons", &plan.reasons)?;
        Ok(fields)
    }

    fn to_json(&self, py: Python<'_>) -> PyResult<String> {
        py.import("json")?.call_method1("dumps", (self.to_dict(py)?,))?.extract()
    }

    #[classmethod]
    fn from_json(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        Python::attach(|py| {
            let json = PyString::new(py, text);
            let Ok(fields) = py.import("json")?.call_method1("loads", (&json,)) else {
                return Err(no_plan(py, &json));
            };
            let Ok(fields) = fields.cast::<PyDict>() else { return Err(no_plan(py, &json)) };
            for name in fields.keys() {
                if !FIELDS.contains(&name.extract::<String>()?.as_str()) {
                    return Err(no_plan(py, &json));
                }
            }
            Self::with(py, plan::Plan::default(), Some(fields))
        })
    }

    /// The figures of the log line.
    fn figures(&self) -> String {
        self.0.figures()
    }

    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn cpu_workers(&self) -> u64 {
        self.0.cpu_workers
    }

    #[getter]
    fn use_memmap(&self) -> bool {
        self.0.use_memmap
    }

    #[getter]
    fn max_chunk_bytes(&self) -> Option<u64> {
        self.0.max_chunk_bytes
    }

    #[getter]
    fn rows_per_chunk(&self) -> Option<u64> {
        self.0.rows_per_chunk
    }

    #[getter]
    fn tiles_per_chunk(&self) -> Option<u64> {
        self.0.tiles_per_chunk
    }

    #[getter]
    fn use_gpu(&self) -> bool {
        self.0.use_gpu
    }

    #[getter]
    fn gpu_rows_per_chunk(&self) -> Option<u64> {
        self.0.gpu_rows_per_chunk
    }

    #[getter]
    fn gpu_max_chunk_bytes(&self) -> Option<u64> {
        self.0.gpu_max_chunk_bytes
    }

    #[getter]
    fn two_pass_coverage_threshold(&self) -> f64 {
        self.0.two_pass_coverage_threshold
    }

    #[getter]
    fn memory_bytes(&self) -> Option<u64> {
        self.0.memory_bytes
    }

    #[getter]
    fn reasons<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.0.reasons)
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.0.hash_into(&mut hasher);
        hasher.finish()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let fields = self.to_dict(py)?;
        let mut parts = Vec::with_capacity(FIELDS.len());
        for (name, value) in fields.iter() {
            parts.push(format!("{}={}", name.str()?, value.repr()?));
        }
        Ok(format!("Plan({})", parts.join(", ")))
    }

    fn __reduce__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let rebuild = py.get_type::<Self>().getattr("from_json")?;
        Ok((rebuild, PyTuple::new(py, [self.to_json(py)?])?))
    }
}
