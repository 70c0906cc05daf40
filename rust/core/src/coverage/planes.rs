//! Finished planes that are read back, row by row.

use std::fs::File;

use crate::sink::Target;
use crate::source::{SharedBytes, read_exact_at};
use crate::{Error, Result};

/// Planes of one shape: the channels of an image, then its coverage.
pub trait Planes: Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// Read row `y` of a plane, in the values of this machine.
    fn read(&self, plane: usize, y: usize, row: &mut [f32]) -> Result<()>;
}

/// Planes of single-precision big-endian samples at given places of files.
pub struct FilePlanes {
    planes: Vec<(Target, File)>,
    width: usize,
}

impl FilePlanes {
    /// Each plane lies at its target.
    pub fn open(targets: Vec<Target>, width: usize) -> Result<Self> {
        let open = |target: Target| -> Result<(Target, File)> {
            let file = File::open(&target.0).map_err(|e| Error::reading(&target.0, &e))?;
            Ok((target, file))
        };
        Ok(Self { planes: targets.into_iter().map(open).collect::<Result<_>>()?, width })
    }
}

impl Planes for FilePlanes {
    fn count(&self) -> usize {
        self.planes.len()
    }

    fn read(&self, plane: usize, y: usize, row: &mut [f32]) -> Result<()> {
        let ((path, offset), file) = &self.planes[plane];
        let at = offset + (y * self.width * size_of::<f32>()) as u64;
        let bytes = as_bytes_mut(row);
        read_exact_at(file, bytes, at).map_err(|e| Error::reading(path, &e))?;
        // From big-endian is the same as to big-endian.
        crate::cpu::encode(row);
        Ok(())
    }
}

/// Planes in memory that somebody else keeps alive and does not change.
pub struct MemoryPlanes {
    width: usize,
    planes: Vec<SharedBytes>,
}

impl MemoryPlanes {
    /// Planes of rows of `width` values of this machine.
    pub fn new(width: usize, planes: Vec<SharedBytes>) -> Self {
        Self { width, planes }
    }
}

impl Planes for MemoryPlanes {
    fn count(&self) -> usize {
        self.planes.len()
    }

    fn read(&self, plane: usize, y: usize, row: &mut [f32]) -> Result<()> {
        let bytes = (*self.planes[plane]).as_ref();
        let first = y * self.width * size_of::<f32>();
        let row = as_bytes_mut(row);
        row.copy_from_slice(&bytes[first..first + row.len()]);
        Ok(())
    }
}

/// The memory of numbers, as bytes to read into.
pub(crate) fn as_bytes_mut<T: crate::budget::Zero>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: any bytes are values of a plain number, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
