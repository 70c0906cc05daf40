//! Pass two laid over pass one.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::planes::Planes;
use crate::Result;
use crate::sink::Sink;

/// Pass two is used where its luminance is finite and at least this part of pass one's.
pub const LEAST_RATIO: f32 = 0.4;

/// Mean over the channels of pixel `x`.
#[inline(always)]
pub(crate) fn luminance<'a>(channels: impl Iterator<Item = &'a [f32]>, x: usize) -> f32 {
    let (mut sum, mut count) = (0.0, 0.0);
    for channel in channels {
        sum += f64::from(channel[x]);
        count += 1.0;
    }
    (sum / count) as f32
}

/// A sink for pass two that keeps pass one where pass two is much darker.
pub struct MergeSink<'a> {
    first: &'a dyn Planes,
    epsilon: f32,
    width: usize,
    inner: &'a dyn Sink,
    replaced: AtomicU64,
}

impl<'a> MergeSink<'a> {
    /// `first` is pass one, its image and coverage; `epsilon` is added to its luminance before
    /// that of pass two is divided by it.
    pub fn new(first: &'a dyn Planes, epsilon: f64, width: usize, inner: &'a dyn Sink) -> Self {
        let replaced = AtomicU64::new(0);
        Self { first, epsilon: epsilon as f32, width, inner, replaced }
    }

    /// Pixels that are pass two's.
    pub fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Bytes that one worker takes while it merges.
    pub fn worker_bytes(channels: usize, width: usize) -> u64 {
        (channels * width * size_of::<f32>()) as u64
    }
}

impl Sink for MergeSink<'_> {
    fn finish(&self, rows: Range<usize>, planes: &mut [&mut [f32]]) -> Result<()> {
        let (coverage, images) = planes.split_last_mut().expect("there is a coverage plane");
        let mut before = vec![0.0_f32; images.len() * self.width];
        let mut replaced = 0;
        for (line, y) in rows.clone().enumerate() {
            let span = line * self.width..(line + 1) * self.width;
            for (channel, row) in before.chunks_mut(self.width).enumerate() {
                self.first.read(channel, y, row)?;
            }
            let coverage = &coverage[span.clone()];
            for x in 0..self.width {
                let second = luminance(images.iter().map(|image| &image[span.clone()]), x);
                let first = luminance(before.chunks(self.width), x);
                let ratio = second / (first + self.epsilon);
                if coverage[x] > 0.0 && ratio >= LEAST_RATIO && second.is_finite() {
                    replaced += 1;
                    continue;
                }
                for (image, row) in images.iter_mut().zip(before.chunks(self.width)) {
                    image[span.start + x] = row[x];
                }
            }
        }
        self.replaced.fetch_add(replaced, Ordering::Relaxed);
        self.inner.finish(rows, planes)
    }

    fn write(&self, rows: Range<usize>, planes: &[&[f32]]) -> Result<()> {
        self.inner.write(rows, planes)
    }
}
