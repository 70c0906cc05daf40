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
    variances: Vec<&'a mut [f32]>,
}

impl<'a> MemorySink<'a> {
    /// One array of (height, width) values a plane: the channels, then the coverage; those of the
    /// counts; and those of the variances.
    pub fn new(
        width: usize,
        planes: Vec<&'a mut [f32]>,
        counts: Vec<&'a mut [i16]>,
        variances: Vec<&'a mut [f32]>,
    ) -> Self {
        Self { width, arrays: Mutex::new(Arrays { planes, counts, variances }) }
    }
}

impl Sink for MemorySink<'_> {
    fn finish(&self, _rows: Range<usize>, _planes: &mut [&mut [f32]]) -> Result<()> {
        Ok(())
    }

    fn write(&self, rows: Range<usize>, planes: &[&[f32]]) -> Result<()> {
        let mut arrays = self.arrays.lock().unwrap_or_else(PoisonError::into_inner);
        let Arrays { planes: targets, counts, variances } = &mut *arrays;
        let span = rows.start * self.width..rows.end * self.width;
        let (images, rest) = planes.split_at(targets.len().min(planes.len()));
        let (numbers, noise) = rest.split_at(counts.len().min(rest.len()));
        let floats = targets.iter_mut().zip(images).chain(variances.iter_mut().zip(noise));
        for (target, values) in floats {
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
        let (mut image, mut counts, mut variance) = ([0.0; 6], [0; 6], [0.0; 6]);
        let sink = MemorySink::new(3, vec![&mut image], vec![&mut counts], vec![&mut variance]);
        let rows = [0.0, 7.0, 32_767.0];
        sink.write(0..1, &[&rows, &rows, &[1.0; 3]]).unwrap();
        let rows = [32_768.0, 40_000.0, 16_777_216.0];
        sink.write(1..2, &[&rows, &rows, &[40_000.5; 3]]).unwrap();
        assert_eq!(counts, [0, 7, 32_767, 32_767, 32_767, 32_767]);
        assert_eq!((image[5], variance[2], variance[5]), (16_777_216.0, 1.0, 40_000.5));
    }
}
