//! Combining the samples of all inputs at a pixel.
//!
//! Those here need a running value and a running weight per pixel, in double precision, so that
//! thousands of 16-bit frames lose no digit. Samples arrive in job order, which is what makes
//! `first`, `last` and the rounding of sums independent of threads and blocks.

mod accumulate;
mod tile;

pub use tile::{COLUMNS, Place, ROWS, Tile, TileBuffers};

/// How the samples of a pixel become one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Weighted mean.
    Mean,
    /// Weighted sum.
    Sum,
    /// Least value.
    Min,
    /// Greatest value.
    Max,
    /// Value of the first input, in job order, that is valid there.
    First,
    /// Value of the last input, in job order, that is valid there.
    Last,
}

impl Combine {
    /// The method of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "mean" => Self::Mean,
            "sum" => Self::Sum,
            "min" => Self::Min,
            "max" => Self::Max,
            "first" => Self::First,
            "last" => Self::Last,
            _ => return None,
        })
    }
}
