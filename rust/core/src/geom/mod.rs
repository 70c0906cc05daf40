//! Rectangles of pixels, and where output pixels fall in an input.

mod grid;
mod rect;

pub use grid::{CellKind, CoordGrid, ExactCells, cubic};
pub use rect::Rect;
