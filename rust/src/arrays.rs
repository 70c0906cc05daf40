//! `NumPy` arrays as the engine sees them.

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

/// The bytes of an array, kept alive; read only, by any thread.
pub struct SharedArray {
    bytes: *const u8,
    len: usize,
    _owner: Py<PyArray1<u8>>,
}

// SAFETY: the bytes are only read, and the owner keeps them where they are; its reference count
// is touched only when the value is dropped, which PyO3 defers until the lock is held.
unsafe impl Send for SharedArray {}
// SAFETY: as above.
unsafe impl Sync for SharedArray {}

impl SharedArray {
    /// The bytes of a contiguous array. Whoever made it promises not to change it meanwhile.
    pub fn new(array: &PyReadonlyArray1<'_, u8>) -> PyResult<Self> {
        let slice = array.as_slice()?;
        Ok(Self { bytes: slice.as_ptr(), len: slice.len(), _owner: (**array).clone().unbind() })
    }
}

impl AsRef<[u8]> for SharedArray {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: see the type.
        unsafe { std::slice::from_raw_parts(self.bytes, self.len) }
    }
}
