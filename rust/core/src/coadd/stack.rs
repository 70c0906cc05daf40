//! All samples of a small rectangle of the output, side by side.

use std::sync::Arc;

use super::estimate::{Column, LANES, Lanes, Look, Verdict};
use super::variance::{self, Sampled};
use super::{COLUMNS, Gather, Place, ROWS, Stacked, clean};
use crate::Result;
use crate::budget::{LeasedVec, Ledger};
use crate::cpu::dispatched;
use crate::geom::Rect;
use crate::job::{Input, Job};
use crate::pages::Zero;
use crate::resample::RUN;

/// Samples of a stack, unless its depth needs more: what the second-level cache holds.
const PREFERRED_SAMPLES: usize = 1 << 18;

/// The memory of one worker's stack.
pub struct StackBuffers {
    /// By channel, then by slot.
    values: LeasedVec<f32>,
    /// By slot; empty when every input has one weight.
    weights: LeasedVec<f32>,
    /// Shares of noise, as the values; empty when the variance is not wanted.
    shares: LeasedVec<f32>,
    sorted: LeasedVec<Lanes>,
    /// By plane of the output.
    finished: LeasedVec<f32>,
    /// By pixel, where samples may give way: above 0 with a sample that is not saturated, below 0
    /// with saturated ones only.
    state: LeasedVec<f32>,
    slots: LeasedVec<Slot>,
    verdicts: Vec<Verdict>,
}

/// One input of a stack.
#[derive(Clone, Copy, Default)]
struct Slot {
    input: usize,
    weight: f64,
    rejected: u64,
    /// Whether all channels keep its samples of the present pixels.
    kept: [bool; LANES],
}

// SAFETY: plain numbers and truths, of which all zero bits are one.
unsafe impl Zero for Slot {}
// SAFETY: as above.
unsafe impl Zero for Lanes {}

/// Samples of one channel that a stack of the job may hold.
fn capacity(job: &Job) -> usize {
    PREFERRED_SAMPLES.max(job.inputs.len() * Stack::LEAST_COLUMNS)
}

/// Pixels that a stack of the job may have.
fn most_pixels(job: &Job) -> usize {
    (ROWS * COLUMNS).min(capacity(job))
}

fn has_maps(job: &Job) -> bool {
    job.inputs.iter().any(|input| input.weight_map.is_some() || input.weighting.feather_px > 0.0)
}

impl StackBuffers {
    /// Bytes that [`new`](Self::new) leases.
    pub fn bytes(job: &Job) -> u64 {
        let values = job.channels + job.variance_planes();
        let samples = capacity(job) * (values + usize::from(has_maps(job)));
        let states = usize::from(job.gives_way());
        let finished = (job.planes() + states) * most_pixels(job);
        let each = size_of::<Lanes>() + size_of::<Slot>();
        ((samples + finished) * size_of::<f32>() + job.inputs.len() * each) as u64
    }

    /// Buffers for the stacks of a job.
    pub fn new(job: &Job, ledger: &Arc<Ledger>) -> Result<Self> {
        let (samples, inputs) = (capacity(job), job.inputs.len());
        Ok(Self {
            values: ledger.zeroed(job.channels * samples)?,
            weights: ledger.zeroed(if has_maps(job) { samples } else { 0 })?,
            shares: ledger.zeroed(job.variance_planes() * samples)?,
            sorted: ledger.zeroed(inputs)?,
            finished: ledger.zeroed(job.planes() * most_pixels(job))?,
            state: ledger.zeroed(if job.gives_way() { most_pixels(job) } else { 0 })?,
            slots: ledger.zeroed(inputs)?,
            verdicts: Vec::with_capacity(job.channels),
        })
    }
}

/// A rectangle of the output while the samples of its inputs come together.
pub struct Stack<'a> {
    rect: Rect,
    how: Stacked,
    job: &'a Job,
    channels: usize,
    /// Distance between slots: the pixels, rounded up to full lanes.
    stride: usize,
    depth: usize,
    used: usize,
    buffers: &'a mut StackBuffers,
}

impl Stack<'_> {
    /// A stack is at least so many columns wide, however deep it is: a run of samples.
    pub const LEAST_COLUMNS: usize = RUN;
}

impl<'a> Stack<'a> {
    /// Columns and rows of the largest stack of `depth` inputs, no larger than `rect`.
    pub fn extent(job: &Job, rect: &Rect, depth: usize) -> (usize, usize) {
        let pixels = (capacity(job) / depth.max(1)).clamp(Self::LEAST_COLUMNS, ROWS * COLUMNS);
        let columns =
            (pixels / Self::LEAST_COLUMNS * Self::LEAST_COLUMNS).min(COLUMNS).min(rect.width());
        let rows = (pixels / columns.next_multiple_of(LANES)).clamp(1, rect.height());
        (columns, rows)
    }

    /// An empty stack for `depth` inputs; `rect` is at most as large as
    /// [`extent`](Self::extent) says.
    pub fn begin(
        job: &'a Job,
        how: Stacked,
        rect: Rect,
        depth: usize,
        buffers: &'a mut StackBuffers,
    ) -> Self {
        let stride = rect.area().next_multiple_of(LANES);
        buffers.values[..job.channels * depth * stride].fill(f32::NAN);
        buffers.state.fill(0.0);
        Self { rect, how, job, channels: job.channels, stride, depth, used: 0, buffers }
    }

    /// Write the planes of the output. `rejected` is added to by input.
    pub fn finish(&mut self, planes: &mut [&mut [f32]], place: Place, rejected: &mut [u64]) {
        estimate_all(self);
        let width = self.rect.width();
        for (plane, finished) in planes.iter_mut().zip(self.buffers.finished.chunks(self.stride)) {
            for (row, values) in finished[..self.rect.area()].chunks(width).enumerate() {
                plane[place.row(row)][..width].copy_from_slice(values);
            }
        }
        for slot in &self.buffers.slots[..self.used] {
            rejected[slot.input] += slot.rejected;
        }
    }
}

impl Stack<'_> {
    /// Place of output pixel (x, y) in a slot.
    #[inline(always)]
    fn pixel(&self, (x, y): (i64, i64)) -> usize {
        (y - self.rect.y0) as usize * self.rect.width() + (x - self.rect.x0) as usize
    }
}

impl Gather for Stack<'_> {
    #[inline(always)]
    fn begin(&mut self, number: usize, input: &Input) {
        // An input may come in several windows, one after the other.
        if self.used == 0 || self.buffers.slots[self.used - 1].input != number {
            self.buffers.slots[self.used] =
                Slot { input: number, weight: input.weight, ..Slot::default() };
            self.used += 1;
        }
    }

    #[inline(always)]
    fn finds_variance(&self) -> bool {
        self.job.variance
    }

    fn make_way(&mut self, at: (i64, i64), values: &mut [[f32; RUN]], weights: &[f64]) {
        let first = self.pixel(at);
        let Self { channels, stride, depth, used, buffers, .. } = self;
        for (k, &weight) in weights.iter().enumerate() {
            if values[0][k].is_nan() {
                continue;
            }
            let state = &mut buffers.state[first + k];
            if weight < 0.0 && *state > 0.0 {
                for samples in &mut *values {
                    samples[k] = f32::NAN;
                }
                continue;
            }
            if weight > 0.0 && *state < 0.0 {
                for plane in 0..*channels {
                    for slot in 0..*used {
                        buffers.values[(plane * *depth + slot) * *stride + first + k] = f32::NAN;
                    }
                }
            }
            *state = if weight < 0.0 { -1.0 } else { 1.0 };
        }
    }

    #[inline(always)]
    fn add(
        &mut self,
        input: &Input,
        at: (i64, i64),
        values: &[[f32; RUN]],
        weights: &[f64],
        shares: &[[f32; RUN]],
    ) -> u32 {
        let (len, pixel) = (weights.len(), self.pixel(at));
        let first = (self.used - 1) * self.stride + pixel;
        for (channel, values) in values.iter().enumerate() {
            let (gain, offset) = (input.gain[channel], input.offset[channel]);
            let slot = &mut self.buffers.values[channel * self.depth * self.stride..][first..];
            for (target, &value) in slot[..len].iter_mut().zip(values) {
                let scaled = gain * f64::from(value) + offset;
                // What no float can hold is as far out as one can be; NaN stays.
                *target = scaled.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
            }
        }
        if !self.buffers.weights.is_empty() {
            for (target, &weight) in self.buffers.weights[first..][..len].iter_mut().zip(weights) {
                *target = weight.abs() as f32;
            }
        }
        for (channel, shares) in shares.iter().enumerate() {
            let slot = &mut self.buffers.shares[channel * self.depth * self.stride..][first..];
            slot[..len].copy_from_slice(&shares[..len]);
        }
        values[0][..len].iter().map(|value| u32::from(!value.is_nan())).sum()
    }
}

dispatched! {
    /// Find the values of all pixels of a stack.
    fn estimate_all(stack: &mut Stack) = estimate_all_here
}

#[inline(always)]
fn estimate_all_here(stack: &mut Stack) {
    let (job, channels, stride, how) = (stack.job, stack.channels, stack.stride, stack.how);
    let StackBuffers { values, weights, shares, sorted, finished, slots, verdicts, .. } =
        &mut *stack.buffers;
    let slots = &mut slots[..stack.used];
    let weights_differ =
        !weights.is_empty() || slots.iter().any(|slot| slot.weight != slots[0].weight);
    for first in (0..stride).step_by(LANES) {
        let depth = stack.depth;
        let sixteen = Sixteen { values, weights, shares, depth, stride, first };
        verdicts.clear();
        for channel in 0..channels {
            let lanes = |slot: usize| sixteen.values(channel, slot);
            let column = Column::of(sorted, (0..slots.len()).map(lanes));
            let samples = |lane: usize| {
                let each = slots.iter().enumerate().map(move |(k, slot)| {
                    (f64::from(lanes(k)[lane]), sixteen.weights(k, slot.weight)[lane])
                });
                each.filter(|(value, _)| !value.is_nan())
            };
            verdicts.push(how.estimator.judge(&column, samples, weights_differ));
        }
        for slot in &mut *slots {
            slot.kept = [true; LANES];
        }
        if how.together && channels > 1 {
            agree(slots, verdicts, |channel, slot| sixteen.values(channel, slot));
        }
        let mut coverage = [0.0; LANES];
        let mut put = |plane: usize, values: Lanes| {
            finished[plane * stride + first..][..LANES].copy_from_slice(&values);
        };
        for (channel, verdict) in verdicts.iter().enumerate() {
            let mut sums = Sums::default();
            for (k, slot) in slots.iter_mut().enumerate() {
                let weight = sixteen.weights(k, slot.weight);
                slot.rejected += sums.add(verdict, sixteen.values(channel, k), &weight, &slot.kept);
            }
            put(channel, sums.value(verdict));
            if how.estimator.rejects() {
                put(channels + 1 + channel, sums.below);
                put(2 * channels + 1 + channel, sums.above);
            }
            if job.variance {
                let variance = sixteen.variances(job, channel, verdict, slots);
                put(job.count_planes().end + channel, variance);
            }
            for lane in 0..LANES {
                coverage[lane] += sums.weight[lane] / channels as f64;
            }
        }
        put(channels, coverage.map(|weight| weight as f32));
    }
}

/// Sixteen pixels of a stack.
#[derive(Clone, Copy)]
struct Sixteen<'s> {
    values: &'s [f32],
    weights: &'s [f32],
    shares: &'s [f32],
    depth: usize,
    stride: usize,
    first: usize,
}

impl<'s> Sixteen<'s> {
    #[inline(always)]
    fn of(&self, planes: &'s [f32], channel: usize, slot: usize) -> &'s Lanes {
        let at = (channel * self.depth + slot) * self.stride + self.first;
        planes[at..].first_chunk().expect("slots are of full lanes")
    }

    /// The samples of a slot.
    #[inline(always)]
    fn values(&self, channel: usize, slot: usize) -> &'s Lanes {
        self.of(self.values, channel, slot)
    }

    /// Their weights; `weight` is that of the input as a whole.
    #[inline(always)]
    fn weights(&self, slot: usize, weight: f64) -> [f64; LANES] {
        let map = self.weights.get(slot * self.stride + self.first..);
        map.and_then(|map| map.first_chunk())
            .map_or([weight; LANES], |map: &Lanes| map.map(f64::from))
    }

    /// The variances of a channel.
    #[inline(always)]
    fn variances(&self, job: &Job, channel: usize, verdict: &Verdict, slots: &[Slot]) -> Lanes {
        let samples = slots.iter().enumerate().map(|(k, slot)| Sampled {
            values: self.values(channel, k),
            shares: self.of(self.shares, channel, k),
            weights: self.weights(k, slot.weight),
            variance: job.inputs[slot.input].variance(channel),
            kept: slot.kept,
        });
        variance::of_lanes(verdict, samples)
    }
}

/// Keep only samples that every channel keeps; where there are none, all.
#[inline(always)]
fn agree<'l>(
    slots: &mut [Slot],
    verdicts: &mut [Verdict],
    lanes: impl Fn(usize, usize) -> &'l Lanes,
) {
    let mut some = [false; LANES];
    for (k, slot) in slots.iter_mut().enumerate() {
        for (channel, verdict) in verdicts.iter().enumerate() {
            let Verdict::Keep(low, high) = verdict else { return };
            let sample = lanes(channel, k);
            for lane in 0..LANES {
                slot.kept[lane] &= (sample[lane] >= low[lane]) & (sample[lane] <= high[lane]);
            }
        }
        for lane in 0..LANES {
            some[lane] |= slot.kept[lane];
        }
    }
    for lane in (0..LANES).filter(|&lane| !some[lane]) {
        for slot in &mut *slots {
            slot.kept[lane] = true;
        }
        for verdict in &mut *verdicts {
            if let Verdict::Keep(low, high) = verdict {
                (low[lane], high[lane]) = (f32::NEG_INFINITY, f32::INFINITY);
            }
        }
    }
}

/// The weighted mean of sixteen pixels while it comes together, in job order.
#[derive(Default)]
struct Sums {
    sum: [f64; LANES],
    weight: [f64; LANES],
    below: Lanes,
    above: Lanes,
}

impl Sums {
    /// Add the samples of one input, as the verdict says. Returns how many are left out or drawn
    /// in.
    #[inline(always)]
    fn add(
        &mut self,
        verdict: &Verdict,
        sample: &Lanes,
        weight: &[f64; LANES],
        kept: &[bool; LANES],
    ) -> u64 {
        let mut rejected = [0_u32; LANES];
        for lane in 0..LANES {
            let is_valid = !sample[lane].is_nan();
            let Look { below, above, counts, drawn } = verdict.look(sample[lane], lane, kept[lane]);
            self.sum[lane] += if counts { weight[lane] * drawn } else { 0.0 };
            self.weight[lane] += if counts { weight[lane] } else { 0.0 };
            self.below[lane] += if below { 1.0 } else { 0.0 };
            self.above[lane] += if above { 1.0 } else { 0.0 };
            rejected[lane] = u32::from((is_valid & !counts) | below | above);
        }
        u64::from(rejected.into_iter().sum::<u32>())
    }

    /// The values; NaN where nothing counts.
    #[inline(always)]
    fn value(&self, verdict: &Verdict) -> Lanes {
        std::array::from_fn(|lane| match verdict {
            Verdict::Values(values) => clean(values[lane]),
            _ => clean(self.sum[lane] / self.weight[lane]),
        })
    }
}
