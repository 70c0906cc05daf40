//! Rows computed elsewhere: on a device with a memory of its own.
//!
//! The loop of a pass stays what it is: windows are loaded, bands written, a step at a time. Only what
//! the workers do with the windows of a step is done by the device, all of it at once, while they load
//! the next one.

use crate::Result;
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
    /// Windows of the inputs, in job order; they lie one after the other.
    pub loaded: &'a [Loaded<'a>],
    /// Lower and upper bounds of the samples of each channel, as wide as the block; none in a sweep
    /// that holds samples against nothing.
    pub bounds: Vec<&'a [f32]>,
    /// Rows of the band, as wide as the canvas, by plane; of the planes that the sweep finishes.
    pub planes: Vec<&'a mut [f32]>,
}

/// Valid samples of each input, and rejected ones.
pub type Counts = (Vec<u64>, Vec<u64>);

/// Who computes the steps of a pass in the workers' place, one after the other.
pub trait Device: Sync {
    /// Compute a step into its planes, if it is the last of its block; else keep the running values.
    fn compute(&self, step: DeviceStep) -> Result<()>;

    /// Where the mask of a window of the present step covers the pixels of `part`: not 0, by row.
    fn cover(&self, window: usize, part: &Rect, covered: &mut [u8]) -> Result<()>;

    /// What has been counted since this was last asked.
    fn counts(&self) -> Result<Counts>;

    /// The buffers of the pass are about to go.
    fn release(&self);
}
