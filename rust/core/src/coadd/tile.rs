//! The running values of a small rectangle of the output.

use std::ops::Range;
use std::sync::Arc;

use super::accumulate::{self, Affine};
use super::stream::{self, Outside};
use super::variance::{self, Noise};
use super::{Gather, Rule, Running, Streamed};
use crate::Result;
use crate::budget::{LeasedVec, Ledger};
use crate::geom::Rect;
use crate::job::{Input, Job};
use crate::resample::RUN;

/// Rows of a tile at most. With [`COLUMNS`] it decides how much of the sources is touched again
/// and again while it is warm (`cargo bench`: 16–64 rows by 256–1024 columns are within 5 %).
pub const ROWS: usize = 32;

/// Columns of a tile at most.
pub const COLUMNS: usize = 512;

/// The memory of one worker's tile: its running planes, as doubles.
pub struct TileBuffers {
    planes: Vec<LeasedVec<f64>>,
}

impl TileBuffers {
    /// Bytes that [`new`](Self::new) leases.
    pub fn bytes(planes: usize) -> u64 {
        (planes * ROWS * COLUMNS * size_of::<f64>()) as u64
    }

    /// Buffers for tiles of so many running planes.
    pub fn new(planes: usize, ledger: &Arc<Ledger>) -> Result<Self> {
        let plane = |_| ledger.zeroed(ROWS * COLUMNS);
        Ok(Self { planes: (0..planes).map(plane).collect::<Result<_>>()? })
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

/// Bounds of what is kept, by channel a plane of the lower ones and one of the upper ones; no
/// planes where nothing is rejected.
#[derive(Clone, Copy)]
pub struct Bounds<'a> {
    /// The planes.
    pub planes: &'a [&'a mut [f32]],
    /// Where the tile lies in them.
    pub place: Place,
}

impl<'a> Bounds<'a> {
    /// Those of some pixels of a channel, from row and column of the tile on.
    #[inline(always)]
    fn at(&self, channel: usize, row: usize, column: usize) -> [&'a [f32]; 2] {
        let first = self.place.row(row).start + column;
        [0, 1].map(|k| &self.planes[2 * channel + k][first..])
    }
}

/// A rectangle of the output while samples come together in it.
pub struct Tile<'a> {
    rect: Rect,
    rule: Rule,
    channels: usize,
    finds_variance: bool,
    buffers: &'a mut TileBuffers,
    bounds: Bounds<'a>,
    /// Of the present run; all zero unless channels reject together.
    outside: Outside,
    input: usize,
    /// By input, how many samples were left out.
    rejected: &'a mut [u64],
}

impl<'a> Tile<'a> {
    /// A tile of what is in the buffers; `rect` is at most [`COLUMNS`] by [`ROWS`].
    #[inline(always)]
    pub fn new(
        job: &Job,
        rule: Rule,
        rect: Rect,
        buffers: &'a mut TileBuffers,
        bounds: Bounds<'a>,
        rejected: &'a mut [u64],
    ) -> Self {
        let (channels, outside) = (job.channels, [0.0; RUN]);
        // Bounds do not depend on it.
        let finds_variance = job.variance && !matches!(rule, Rule::Moments(_));
        Self { rect, rule, channels, finds_variance, buffers, bounds, outside, input: 0, rejected }
    }

    /// Begin with nothing.
    #[inline(always)]
    pub fn clear(&mut self) {
        let area = self.rect.area();
        for plane in &mut self.buffers.planes {
            plane[..area].fill(0.0);
        }
    }

    /// Go on with what [`set_aside`](Self::set_aside) kept.
    #[inline(always)]
    pub fn resume(&mut self, kept: &[&mut [f64]], place: Place) {
        let width = self.rect.width();
        for (plane, kept) in self.buffers.planes.iter_mut().zip(kept) {
            for row in 0..self.rect.height() {
                plane[row * width..][..width].copy_from_slice(&kept[place.row(row)][..width]);
            }
        }
    }

    /// Keep the running values, one plane each, for inputs that are still to come.
    #[inline(always)]
    pub fn set_aside(&self, kept: &mut [&mut [f64]], place: Place) {
        let width = self.rect.width();
        for (plane, kept) in self.buffers.planes.iter().zip(kept) {
            for row in 0..self.rect.height() {
                kept[place.row(row)][..width].copy_from_slice(&plane[row * width..][..width]);
            }
        }
    }

    /// Write what the rule finishes, in the order of [`super::Sweep::finished_planes`], into
    /// `planes`.
    #[inline(always)]
    pub fn finish(&self, planes: &mut [&mut [f32]], place: Place) {
        let width = self.rect.width();
        for row in 0..self.rect.height() {
            let tile = row * width..(row + 1) * width;
            let out = place.row(row).start..place.row(row).start + width;
            match self.rule {
                Rule::Value(combine) => self.finish_values(combine, tile, planes, out),
                Rule::Moments(how) => self.finish_moments(&how, tile, planes, out),
                Rule::Within(_) => self.finish_within(tile, planes, out),
            }
        }
    }

    #[inline(always)]
    fn finish_values(
        &self,
        combine: Running,
        tile: Range<usize>,
        planes: &mut [&mut [f32]],
        out: Range<usize>,
    ) {
        let (images, rest) = planes.split_at_mut(self.channels);
        let (coverage, variances) = rest.split_first_mut().expect("there is a coverage plane");
        let (weights, running) = self.buffers.planes.split_last().expect("there are weights");
        let (running, running_variances) = running.split_at(self.channels);
        let weights = &weights[tile.clone()];
        for (image, running) in images.iter_mut().zip(running) {
            let image = &mut image[out.clone()];
            accumulate::finish(combine, &running[tile.clone()], weights, image);
        }
        for (target, running) in variances.iter_mut().zip(running_variances) {
            let target = &mut target[out.clone()];
            variance::finish(combine, &running[tile.clone()], weights, target);
        }
        for (target, &weight) in coverage[out].iter_mut().zip(weights) {
            *target = weight.abs() as f32;
        }
    }

    #[inline(always)]
    fn finish_moments(
        &self,
        how: &Streamed,
        tile: Range<usize>,
        planes: &mut [&mut [f32]],
        out: Range<usize>,
    ) {
        let (numbers, moments) = self.buffers.planes.split_last().expect("there are numbers");
        let (moments, (bounds, _)) = (moments.as_chunks().0, planes.as_chunks_mut());
        for (moments, bounds) in moments.iter().zip(bounds) {
            let moments: &[_; stream::MOMENTS] = moments;
            let moments = moments.each_ref().map(|plane| &plane[tile.clone()]);
            let bounds = bounds.each_mut().map(|plane| &mut plane[out.clone()]);
            stream::finish_moments(how, moments, &numbers[tile.clone()], bounds);
        }
    }

    #[inline(always)]
    fn finish_within(&self, tile: Range<usize>, planes: &mut [&mut [f32]], out: Range<usize>) {
        let (within, running) = self.buffers.planes.split_at(stream::WITHIN * self.channels);
        let within: &[[_; stream::WITHIN]] = within.as_chunks().0;
        let (images, rest) = planes.split_at_mut(within.len());
        let (coverage, rest) = rest.split_first_mut().expect("there is a coverage plane");
        let (below, rest) = rest.split_at_mut(within.len());
        let (above, variances) = rest.split_at_mut(within.len());
        for (channel, planes) in within.iter().enumerate() {
            let planes = planes.each_ref().map(|plane| &plane[tile.clone()]);
            let image = &mut images[channel][out.clone()];
            let counts = [&mut below[channel], &mut above[channel]];
            stream::finish_within(planes, image, counts.map(|plane| &mut plane[out.clone()]));
        }
        for ((target, running), [_, totals, _]) in variances.iter_mut().zip(running).zip(within) {
            let target = &mut target[out.clone()];
            variance::finish(Running::Mean, &running[tile.clone()], &totals[tile.clone()], target);
        }
        for (target, pixel) in coverage[out].iter_mut().zip(tile) {
            let weights = within.iter().map(|[_, totals, _]| totals[pixel].abs());
            *target = (weights.sum::<f64>() / within.len() as f64) as f32;
        }
    }
}

/// A run of samples of one input, and where it lies in a tile.
struct Samples<'r> {
    input: &'r Input,
    values: &'r [[f32; RUN]],
    weights: &'r [f64],
    shares: &'r [[f32; RUN]],
    row: usize,
    column: usize,
    /// In the planes of the buffers.
    span: Range<usize>,
}

impl<'r> Samples<'r> {
    /// Photometry and values of a channel.
    #[inline(always)]
    fn of(&self, channel: usize) -> (Affine, &'r [f32]) {
        let Self { input, values, weights, .. } = self;
        let affine = Affine { gain: input.gain[channel], offset: input.offset[channel] };
        (affine, &values[channel][..weights.len()])
    }

    /// Noise of a channel.
    #[inline(always)]
    fn noise_of(&self, channel: usize) -> Noise<'r> {
        let shares = &self.shares[channel][..self.weights.len()];
        Noise { variance: self.input.variance(channel), shares }
    }
}

impl Tile<'_> {
    /// Add samples to running values; returns how many are valid. So do the two that follow.
    #[inline(always)]
    fn add_values(&mut self, combine: Running, samples: &Samples) -> u32 {
        let Samples { weights, span, .. } = samples;
        let (seen, running) = self.buffers.planes.split_last_mut().expect("there are weights");
        let (running, variances) = running.split_at_mut(self.channels);
        let seen = &mut seen[span.clone()];
        // First, since what is there already says what is chosen.
        for (channel, state) in variances.iter_mut().enumerate() {
            let (affine, values) = samples.of(channel);
            let (running, noise) = (&running[channel][span.clone()], samples.noise_of(channel));
            let (state, samples) = (&mut state[span.clone()], (values, *weights));
            variance::add(combine, affine, samples, noise, seen, running, state);
        }
        for (channel, running) in running.iter_mut().enumerate() {
            let (affine, values) = samples.of(channel);
            let running = &mut running[span.clone()];
            accumulate::add(combine, affine, values, weights, seen, running);
        }
        accumulate::add_weights(samples.of(0).1, weights, seen)
    }

    #[inline(always)]
    fn add_moments(&mut self, samples: &Samples) -> u32 {
        let Samples { weights, span, .. } = samples;
        let (numbers, moments) = self.buffers.planes.split_last_mut().expect("there are numbers");
        let numbers = &mut numbers[span.clone()];
        for (channel, moments) in moments.as_chunks_mut().0.iter_mut().enumerate() {
            let (affine, values) = samples.of(channel);
            let moments = moments.each_mut().map(|plane| &mut plane[span.clone()]);
            stream::add_moments(affine, values, numbers, moments);
        }
        let mut ones = [0.0; RUN];
        for (one, weight) in ones.iter_mut().zip(*weights) {
            *one = weight.signum();
        }
        accumulate::add_weights(samples.of(0).1, &ones[..weights.len()], numbers)
    }

    #[inline(always)]
    fn add_within<const TOGETHER: bool>(&mut self, samples: &Samples) -> u32 {
        let Samples { weights, row, column, span, .. } = samples;
        let (bounds, outside) = (self.bounds, &mut self.outside);
        let planes = &mut self.buffers.planes;
        let (within, variances) = planes.split_at_mut(stream::WITHIN * self.channels);
        let within: &mut [[_; stream::WITHIN]] = within.as_chunks_mut().0;
        if TOGETHER {
            outside.fill(0.0);
            for channel in 0..within.len() {
                let (affine, values) = samples.of(channel);
                let bounds = bounds.at(channel, *row, *column);
                stream::count_outside(affine, values, bounds, outside);
            }
        }
        // First, since what is there already says what stands in.
        for (channel, state) in variances.iter_mut().enumerate() {
            let (affine, values) = samples.of(channel);
            let bounds = bounds.at(channel, *row, *column);
            let totals = &within[channel][1][span.clone()];
            let (state, noise) = (&mut state[span.clone()], samples.noise_of(channel));
            let samples = (values, *weights);
            stream::add_variance::<TOGETHER>(
                affine, samples, noise, bounds, outside, totals, state,
            );
        }
        let mut left_out = 0;
        for (channel, within) in within.iter_mut().enumerate() {
            let (affine, values) = samples.of(channel);
            let within = within.each_mut().map(|plane| &mut plane[span.clone()]);
            let bounds = bounds.at(channel, *row, *column);
            let samples = (values, *weights);
            left_out += stream::add_within::<TOGETHER>(affine, samples, bounds, outside, within);
        }
        self.rejected[self.input] += u64::from(left_out);
        samples.of(0).1.iter().map(|value| u32::from(!value.is_nan())).sum()
    }
}

impl Gather for Tile<'_> {
    #[inline(always)]
    fn begin(&mut self, number: usize, _input: &Input) {
        self.input = number;
    }

    #[inline(always)]
    fn finds_variance(&self) -> bool {
        self.finds_variance
    }

    // The running weight, or number, is negative where all samples are saturated, so that whoever
    // comes next knows. A second sweep is told by the bounds.
    #[inline(always)]
    fn make_way(&mut self, (x, y): (i64, i64), values: &mut [[f32; RUN]], weights: &[f64]) {
        let (row, column) = ((y - self.rect.y0) as usize, (x - self.rect.x0) as usize);
        if let Rule::Within(_) = self.rule {
            let [low, _] = self.bounds.at(0, row, column);
            for (k, &weight) in weights.iter().enumerate() {
                if weight < 0.0 && !stream::has_no_bounds(low[k]) {
                    for samples in &mut *values {
                        samples[k] = f32::NAN;
                    }
                }
            }
            return;
        }
        let first = row * self.rect.width() + column;
        let (seen, running) = self.buffers.planes.split_last_mut().expect("there are weights");
        for (k, &weight) in weights.iter().enumerate() {
            if values[0][k].is_nan() {
                continue;
            }
            let at = first + k;
            if weight < 0.0 && seen[at] > 0.0 {
                for samples in &mut *values {
                    samples[k] = f32::NAN;
                }
            } else if weight > 0.0 && seen[at] < 0.0 {
                for plane in &mut *running {
                    plane[at] = 0.0;
                }
                seen[at] = 0.0;
            }
        }
    }

    #[inline(always)]
    fn add(
        &mut self,
        input: &Input,
        (x, y): (i64, i64),
        values: &[[f32; RUN]],
        weights: &[f64],
        shares: &[[f32; RUN]],
    ) -> u32 {
        let (row, column) = ((y - self.rect.y0) as usize, (x - self.rect.x0) as usize);
        let first = row * self.rect.width() + column;
        let span = first..first + weights.len();
        let mut sizes = [0.0; RUN];
        for (size, weight) in sizes.iter_mut().zip(weights) {
            *size = weight.abs();
        }
        let weights =
            if let Rule::Within(_) = self.rule { &sizes[..weights.len()] } else { weights };
        let samples = Samples { input, values, weights, shares, row, column, span };
        match self.rule {
            Rule::Value(combine) => self.add_values(combine, &samples),
            Rule::Moments(_) => self.add_moments(&samples),
            Rule::Within(how) if how.together => self.add_within::<true>(&samples),
            Rule::Within(_) => self.add_within::<false>(&samples),
        }
    }
}
