//! Finished planes that are read back, row by row.

use std::fs::File;
use std::sync::Arc;

use crate::geom::Rect;
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
    planes: Vec<(Target, Arc<File>)>,
    width: usize,
}

impl FilePlanes {
    /// Each plane lies at its target.
    pub fn open(targets: Vec<Target>, width: usize) -> Result<Self> {
        let mut planes: Vec<(Target, Arc<File>)> = Vec::with_capacity(targets.len());
        for target in targets {
            let known = planes.iter().find(|(other, _)| other.0 == target.0);
            let file = if let Some((_, file)) = known {
                Arc::clone(file)
            } else {
                Arc::new(File::open(&target.0).map_err(|e| Error::reading(&target.0, &e))?)
            };
            planes.push((target, file));
        }
        Ok(Self { planes, width })
    }

    /// Read a rectangle of a plane, row by row into `values`, which it fills.
    pub fn read_rect(&self, plane: usize, rect: &Rect, values: &mut [f32]) -> Result<()> {
        let rows = if rect.width() == self.width { rect.height() } else { 1 };
        let lines = (rect.y0 as usize..).step_by(rows.max(1));
        for (y, line) in lines.zip(values.chunks_mut(rows * rect.width())) {
            self.read_from(plane, (rect.x0 as usize, y), line)?;
        }
        Ok(())
    }

    /// Read values of a plane, one after the other from pixel (x, y) on.
    fn read_from(&self, plane: usize, (x, y): (usize, usize), values: &mut [f32]) -> Result<()> {
        let ((path, offset), file) = &self.planes[plane];
        let at = offset + ((y * self.width + x) * size_of::<f32>()) as u64;
        let bytes = as_bytes_mut(values);
        read_exact_at(file, bytes, at).map_err(|e| Error::reading(path, &e))?;
        // From big-endian is the same as to big-endian.
        crate::cpu::encode(values);
        Ok(())
    }
}

impl Planes for FilePlanes {
    fn count(&self) -> usize {
        self.planes.len()
    }

    fn read(&self, plane: usize, y: usize, row: &mut [f32]) -> Result<()> {
        self.read_from(plane, (0, y), row)
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

/// The memory of numbers, as bytes.
pub(crate) fn as_bytes<T: crate::pages::Zero>(values: &[T]) -> &[u8] {
    // SAFETY: plain numbers have no bytes that are not set, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The memory of numbers, as bytes to read into.
pub(crate) fn as_bytes_mut<T: crate::pages::Zero>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: any bytes are values of a plain number, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
