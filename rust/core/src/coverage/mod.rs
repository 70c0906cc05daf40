//! The Two-Pass: gains from how well the neighbourhood of every pixel is covered.
//!
//! Pass one leaves its planes and the marks of its inputs; [`gains`] blurs the coverage and takes a
//! median for each input; pass two runs through a [`merge::MergeSink`] that keeps pass one where
//! pass two would be much darker.

mod blur;
pub mod depth;
pub mod gains;
mod gaussian;
pub mod keep;
mod luminance;
pub mod marks;
pub mod merge;
mod on_device;
pub mod percentile;
pub mod planes;
mod select;

pub use blur::{Blur, BlurSpace, Emit, RowSource, SEGMENT_COLUMNS, SEGMENT_ROWS};
pub use gaussian::{Gaussian, Tables, WAVES};
