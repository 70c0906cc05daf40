//! Planes in memory, for callers who asked for an array.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::Sink;
use crate::Result;

/// Writes rows into arrays that the caller owns.
pub struct MemorySink<'a> {
    width: usize,
    planes: Mutex<Vec<&'a mut [f32]>>,
}

impl<'a> MemorySink<'a> {
    /// One array of (height, width) values a plane: the channels, then the coverage.
    pub fn new(width: usize, planes: Vec<&'a mut [f32]>) -> Self {
        Self { width, planes: Mutex::new(planes) }
    }
}

impl Sink for MemorySink<'_> {
    fn finish(&self, _rows: Range<usize>, _planes: &mut [&mut [f32]]) -> Result<()> {
        Ok(())
    }

    fn write(&self, rows: Range<usize>, planes: &[&[f32]]) -> Result<()> {
        let mut targets = self.planes.lock().unwrap_or_else(PoisonError::into_inner);
        for (target, plane) in targets.iter_mut().zip(planes) {
            target[rows.start * self.width..rows.end * self.width].copy_from_slice(plane);
        }
        Ok(())
    }
}
