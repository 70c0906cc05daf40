//! The running values of a small rectangle of the output.

use std::sync::Arc;

use super::accumulate::{self, Affine};
use super::{Gather, Running};
use crate::Result;
use crate::budget::{LeasedVec, Ledger};
use crate::geom::Rect;
use crate::job::Input;
use crate::resample::RUN;

/// Rows of a tile at most. With [`COLUMNS`] it decides how much of the sources is touched again
/// and again while it is warm (`cargo bench`: 16–64 rows by 256–1024 columns are within 5 %).
pub const ROWS: usize = 32;

/// Columns of a tile at most.
pub const COLUMNS: usize = 512;

/// The memory of one worker's tile: running values per channel and running weights, as doubles.
pub struct TileBuffers {
    running: Vec<LeasedVec<f64>>,
    weights: LeasedVec<f64>,
}

impl TileBuffers {
    /// Bytes that [`new`](Self::new) leases.
    pub fn bytes(channels: usize) -> u64 {
        ((channels + 1) * ROWS * COLUMNS * size_of::<f64>()) as u64
    }

    /// Buffers for tiles of `channels` channels.
    pub fn new(channels: usize, ledger: &Arc<Ledger>) -> Result<Self> {
        let plane = || ledger.zeroed(ROWS * COLUMNS);
        Ok(Self {
            running: (0..channels).map(|_| plane()).collect::<Result<_>>()?,
            weights: plane()?,
        })
    }

    fn planes(&mut self) -> impl Iterator<Item = &mut LeasedVec<f64>> {
        self.running.iter_mut().chain(std::iter::once(&mut self.weights))
    }
}

/// Where the rows of a tile lie in planes: `stride` values apart, from `column` on.
#[derive(Clone, Copy)]
pub struct Place {
    /// Distance between rows.
    pub stride: usize,
    /// First column of the tile.
    pub column: usize,
}

impl Place {
    #[inline(always)]
    pub(super) fn row(self, row: usize) -> std::ops::RangeFrom<usize> {
        row * self.stride + self.column..
    }
}

/// A rectangle of the output while samples come together in it.
pub struct Tile<'a> {
    rect: Rect,
    combine: Running,
    buffers: &'a mut TileBuffers,
}

impl<'a> Tile<'a> {
    /// An empty tile; `rect` is at most [`COLUMNS`] by [`ROWS`].
    #[inline(always)]
    pub fn begin(combine: Running, rect: Rect, buffers: &'a mut TileBuffers) -> Self {
        let area = rect.area();
        for plane in buffers.planes() {
            plane[..area].fill(0.0);
        }
        Self { rect, combine, buffers }
    }

    /// A tile that goes on with what [`set_aside`](Self::set_aside) kept.
    #[inline(always)]
    pub fn resume(
        combine: Running,
        rect: Rect,
        buffers: &'a mut TileBuffers,
        kept: &[&mut [f64]],
        place: Place,
    ) -> Self {
        for (plane, kept) in buffers.planes().zip(kept) {
            for row in 0..rect.height() {
                plane[row * rect.width()..][..rect.width()]
                    .copy_from_slice(&kept[place.row(row)][..rect.width()]);
            }
        }
        Self { rect, combine, buffers }
    }

    /// Keep the running values and weights, one plane each, for inputs that are still to come.
    #[inline(always)]
    pub fn set_aside(&mut self, kept: &mut [&mut [f64]], place: Place) {
        let width = self.rect.width();
        for (plane, kept) in self.buffers.planes().zip(kept) {
            for row in 0..self.rect.height() {
                kept[place.row(row)][..width].copy_from_slice(&plane[row * width..][..width]);
            }
        }
    }

    /// Write the finished values, one plane a channel, and then the coverage, into `planes`.
    #[inline(always)]
    pub fn finish(&self, planes: &mut [&mut [f32]], place: Place) {
        let width = self.rect.width();
        let (coverage, images) = planes.split_last_mut().expect("there is a coverage plane");
        for row in 0..self.rect.height() {
            let tile = row * width..(row + 1) * width;
            let out = place.row(row).start..place.row(row).start + width;
            let weights = &self.buffers.weights[tile.clone()];
            for (image, running) in images.iter_mut().zip(&self.buffers.running) {
                let running = &running[tile.clone()];
                accumulate::finish(self.combine, running, weights, &mut image[out.clone()]);
            }
            for (target, &weight) in coverage[out].iter_mut().zip(weights) {
                *target = weight as f32;
            }
        }
    }
}

impl Gather for Tile<'_> {
    #[inline(always)]
    fn begin(&mut self, _number: usize, _input: &Input) {}

    #[inline(always)]
    fn add(
        &mut self,
        input: &Input,
        (x, y): (i64, i64),
        values: &[[f32; RUN]],
        weights: &[f64],
    ) -> u32 {
        let first = (y - self.rect.y0) as usize * self.rect.width() + (x - self.rect.x0) as usize;
        let span = first..first + weights.len();
        let seen = &mut self.buffers.weights[span.clone()];
        for (channel, values) in values.iter().enumerate() {
            let affine = Affine { gain: input.gain[channel], offset: input.offset[channel] };
            let running = &mut self.buffers.running[channel][span.clone()];
            let values = &values[..weights.len()];
            accumulate::add(self.combine, affine, values, weights, seen, running);
        }
        accumulate::add_weights(&values[0][..weights.len()], weights, seen)
    }
}
