//! Pass two laid over pass one.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::luminance::luminances;
use super::planes::Planes;
use crate::Result;
use crate::cpu::dispatched;
use crate::sink::Sink;

/// Pass two is used where its luminance is finite and at least this part of pass one's.
pub const LEAST_RATIO: f32 = 0.4;

/// A sink for pass two that keeps pass one where pass two is much darker.
pub struct MergeSink<'a> {
    first: &'a dyn Planes,
    variance: Option<&'a dyn Planes>,
    epsilon: f32,
    width: usize,
    inner: &'a dyn Sink,
    replaced: AtomicU64,
}

impl<'a> MergeSink<'a> {
    /// `first` is pass one, its image and coverage; `variance` that of its channels, if pass two
    /// finds it, too; `epsilon` is added to its luminance before that of pass two is divided by it.
    pub fn new(
        first: &'a dyn Planes,
        variance: Option<&'a dyn Planes>,
        epsilon: f64,
        width: usize,
        inner: &'a dyn Sink,
    ) -> Self {
        let replaced = AtomicU64::new(0);
        Self { first, variance, epsilon: epsilon as f32, width, inner, replaced }
    }

    /// Pixels that are pass two's.
    pub fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Bytes that one worker takes while it merges.
    pub fn worker_bytes(channels: usize, width: usize) -> u64 {
        ((channels + 2) * width * size_of::<f32>()) as u64
    }
}

impl Sink for MergeSink<'_> {
    fn finish(&self, rows: Range<usize>, planes: &mut [&mut [f32]]) -> Result<()> {
        let (images, rest) = planes.split_at_mut(self.first.count() - 1);
        let (coverage, rest) = rest.split_first_mut().expect("there is a coverage plane");
        let first_variance = rest.len() - self.variance.map_or(0, Planes::count);
        let variances = &mut rest[first_variance..];
        let mut before = vec![0.0; images.len() * self.width];
        let (mut first, mut second) = (vec![0.0; self.width], vec![0.0; self.width]);
        let mut replaced = 0;
        for (line, y) in rows.clone().enumerate() {
            let span = line * self.width..(line + 1) * self.width;
            for (channel, row) in before.chunks_mut(self.width).enumerate() {
                self.first.read(channel, y, row)?;
            }
            let of_first: Vec<_> = before.chunks(self.width).collect();
            luminances(&of_first, &mut first);
            let of_second: Vec<_> = images.iter().map(|image| &image[span.clone()]).collect();
            luminances(&of_second, &mut second);
            decide(&first, &mut second, &coverage[span.clone()], self.epsilon);
            replaced += second.iter().filter(|ratio| **ratio >= LEAST_RATIO).count() as u64;
            for (image, row) in images.iter_mut().zip(of_first) {
                merge(&second, row, &mut image[span.clone()]);
            }
            if let Some(before) = self.variance {
                for (channel, variance) in variances.iter_mut().enumerate() {
                    before.read(channel, y, &mut first)?;
                    merge(&second, &first, &mut variance[span.clone()]);
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

dispatched! {
    /// The ratio of the brightness of pass two, which it takes the place of, to that of pass one;
    /// NaN where nothing covers, or pass two is not finite.
    fn decide(first: &[f32], second: &mut [f32], coverage: &[f32], epsilon: f32) = decide_here
}

#[inline(always)]
fn decide_here(first: &[f32], second: &mut [f32], coverage: &[f32], epsilon: f32) {
    for ((second, &first), &coverage) in second.iter_mut().zip(first).zip(coverage) {
        let ratio = *second / (first + epsilon);
        let may_count = (coverage > 0.0) & second.is_finite();
        *second = if may_count { ratio } else { f32::NAN };
    }
}

dispatched! {
    /// Pass one where pass two is much darker.
    fn merge(ratios: &[f32], first: &[f32], image: &mut [f32]) = merge_here
}

#[inline(always)]
fn merge_here(ratios: &[f32], first: &[f32], image: &mut [f32]) {
    for ((value, &first), &ratio) in image.iter_mut().zip(first).zip(ratios) {
        *value = if ratio >= LEAST_RATIO { *value } else { first };
    }
}
