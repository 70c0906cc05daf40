//! Where finished rows go.

mod fits;
mod memory;

use std::ops::Range;

pub use fits::{FitsSink, Target, copy_planes};
pub(crate) use fits::{as_bytes, to_big_endian, write_all_at};
pub use memory::MemorySink;

use crate::Result;

/// Takes the finished bands, from top to bottom and without gaps.
pub trait Sink: Sync {
    /// Bring finished rows of every plane (the channels, the coverage, counts if there are any) into
    /// the form in which they are written. Workers call it, on rows that are still warm.
    fn finish(&self, rows: Range<usize>, planes: &mut [&mut [f32]]) -> Result<()>;

    /// Write the rows `rows` of every plane, each of them finished, with nothing between them. One
    /// thread calls it.
    fn write(&self, rows: Range<usize>, planes: &[&[f32]]) -> Result<()>;
}
