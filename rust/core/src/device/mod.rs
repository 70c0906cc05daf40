//! Rows computed elsewhere: on a device with a memory of its own.
//!
//! The loop of a pass stays what it is: windows are loaded, bands written, a step at a time. Only what
//! the workers do with the windows of a step is done by the device, all of it at once, while they load
//! the next one, and while that is copied to the device.

pub mod memory;

use std::ops::Range;

use crate::Result;
use crate::coverage::marks::Mark;
use crate::geom::Rect;
use crate::reproject::Loaded;

/// What a device gets to compute.
pub struct DeviceStep<'a> {
    /// The output pixels.
    pub rect: Rect,
    /// Whether the first inputs of the block are loaded.
    pub is_first: bool,
    /// Whether the last ones are.
    pub is_last: bool,
    /// Lower and upper bounds of the samples of each channel, as wide as the block; none in a sweep
    /// that holds samples against nothing.
    pub bounds: Vec<&'a [f32]>,
    /// Rows of the band, as wide as the canvas, by plane; of the planes that the sweep finishes.
    pub planes: Vec<&'a mut [f32]>,
}

/// Valid samples of each input, and rejected ones.
pub type Counts = (Vec<u64>, Vec<u64>);

/// Who computes the steps of a pass in the workers' place, one after the other; it is called from one
/// thread at a time.
///
/// All that it is handed stays where it is until the step is finished to which it belongs.
pub trait Device: Sync {
    /// The windows of the next step are loaded, in job order, one after the other: they may be copied,
    /// while the step before is computed, whose `turn`, 0 or 1, is the other one.
    fn bring(&self, turn: usize, loaded: &[Loaded]) -> Result<()>;

    /// Begin with a step, whose windows were brought last: to compute it into its planes, if it is the
    /// last of its block, else to keep the running values.
    fn start(&self, step: DeviceStep) -> Result<()>;

    /// Wait for what was begun.
    fn finish(&self) -> Result<()>;

    /// Where the mask of a window of the present step covers the pixels of `part`: not 0, by row.
    fn cover(&self, window: usize, part: &Rect, covered: &mut [u8]) -> Result<()>;

    /// What has been counted since this was last asked.
    fn counts(&self) -> Result<Counts>;

    /// The buffers of the pass are about to go.
    fn release(&self);
}

/// How much of the work on the coverage a device does at once, at most.
#[derive(Clone, Copy, Debug)]
pub struct CoverageRoom {
    /// Rows of the scale map that it computes.
    pub map_rows: usize,
    /// Inputs whose scales it counts.
    pub inputs: usize,
    /// Rows of the map in which it does.
    pub rows: usize,
    /// Marks in these.
    pub marks: usize,
}

/// Who does the work on the coverage between the passes in the workers' place: first it computes the
/// scale map, from top to bottom, then it counts scales for the medians of the inputs.
///
/// It is called from one thread at a time.
pub trait CoverageDevice: Sync {
    /// What it does at once.
    fn room(&self) -> Result<CoverageRoom>;

    /// The next rows of the coverage, with zeros for what is not valid. The first of all is as far
    /// above the plane as the blur looks; beyond its edges the plane goes on as its mirror image.
    fn put(&self, first: i64, rows: &[f32]) -> Result<()>;

    /// The next rows of the scale map, all of one segment. What they look at has been put there, and
    /// no more than a band of [`CoverageRoom::map_rows`] rows looks at.
    fn scales(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// Count nothing yet, of a batch of inputs: by the leading bins of scales, or for each input by the
    /// trailing ones of scales in the first of two bins, where it has these; of those in the second,
    /// if it is another one, the least key is sought.
    fn begin(&self, inputs: Range<usize>, bins: Option<&[[u32; 2]]>) -> Result<()>;

    /// Count the scales under marks, which lie in rows of the map from `first` on; those of inputs
    /// outside the batch do not count.
    fn count(&self, first: usize, rows: &[f32], marks: &[Mark]) -> Result<()>;

    /// What has been counted, by input and then by bin, and the least key of each input.
    fn counted(&self, counts: &mut [u32], least: &mut [u32]) -> Result<()>;

    /// The buffers that it was given until now are about to go.
    fn release(&self);
}

/// The bins of an input of which nothing is counted.
pub const NO_BINS: [u32; 2] = [u32::MAX; 2];
