//! Planes in memory, for callers who asked for an array.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::Sink;
use crate::Result;

/// Writes rows into arrays that the caller owns.
pub struct MemorySink<'a> {
    width: usize,
    arrays: Mutex<Arrays<'a>>,
}

struct Arrays<'a> {
    planes: Vec<&'a mut [f32]>,
    counts: Vec<&'a mut [i16]>,
}

impl<'a> MemorySink<'a> {
    /// One array of (height, width) values a plane: the channels, then the coverage; and those of
    /// the counts.
    pub fn new(width: usize, planes: Vec<&'a mut [f32]>, counts: Vec<&'a mut [i16]>) -> Self {
        Self { width, arrays: Mutex::new(Arrays { planes, counts }) }
    }
}

impl Sink for MemorySink<'_> {
    fn finish(&self, _rows: Range<usize>, _planes: &mut [&mut [f32]]) -> Result<()> {
        Ok(())
    }

    fn write(&self, rows: Range<usize>, planes: &[&[f32]]) -> Result<()> {
        let mut arrays = self.arrays.lock().unwrap_or_else(PoisonError::into_inner);
        let Arrays { planes: targets, counts } = &mut *arrays;
        let span = rows.start * self.width..rows.end * self.width;
        let (images, numbers) = planes.split_at(targets.len().min(planes.len()));
        for (target, values) in targets.iter_mut().zip(images) {
            target[span.clone()].copy_from_slice(values);
        }
        for (target, values) in counts.iter_mut().zip(numbers) {
            for (target, &value) in target[span.clone()].iter_mut().zip(*values) {
                *target = value as i16;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_end_at_what_sixteen_bits_hold() {
        let (mut image, mut counts) = ([0.0; 6], [0; 6]);
        let sink = MemorySink::new(3, vec![&mut image], vec![&mut counts]);
        let rows = [0.0, 7.0, 32_767.0];
        sink.write(0..1, &[&rows, &rows]).unwrap();
        let rows = [32_768.0, 40_000.0, 16_777_216.0];
        sink.write(1..2, &[&rows, &rows]).unwrap();
        assert_eq!(counts, [0, 7, 32_767, 32_767, 32_767, 32_767]);
        assert_eq!(image[5], 16_777_216.0);
    }
}
