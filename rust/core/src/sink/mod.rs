//! Where finished rows go.

mod fits;
mod memory;

use std::ops::Range;

pub use fits::FitsSink;
pub(crate) use fits::to_big_endian;
pub use memory::MemorySink;

use crate::Result;

/// Takes the finished bands, from top to bottom and without gaps.
pub trait Sink: Sync {
    /// Bring finished rows into the form in which they are written. Workers call it, on rows that
    /// are still warm.
    fn encode(&self, rows: &mut [f32]);

    /// Write the rows `rows` of every plane (the channels, then the coverage), each of them
    /// encoded, with nothing between them. One thread calls it.
    fn write(&self, rows: Range<usize>, planes: &[&[f32]]) -> Result<()>;
}
