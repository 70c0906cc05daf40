//! Half-open rectangles of pixels.

use std::ops::Range;

/// Pixels `x0 <= x < x1`, `y0 <= y < y1`. Signed, because the taps of a kernel may reach beyond
/// the border of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub x0: i64,
    /// First row.
    pub y0: i64,
    /// One past the last column.
    pub x1: i64,
    /// One past the last row.
    pub y1: i64,
}

impl Rect {
    /// The rectangle of the given ranges.
    pub fn new(x: Range<i64>, y: Range<i64>) -> Self {
        Self { x0: x.start, y0: y.start, x1: x.end, y1: y.end }
    }

    /// A frame of `width` by `height` pixels with its first pixel at (0, 0).
    pub fn frame(width: usize, height: usize) -> Self {
        Self::new(0..width as i64, 0..height as i64)
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        (self.x1 - self.x0).max(0) as usize
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        (self.y1 - self.y0).max(0) as usize
    }

    /// Number of pixels.
    pub fn area(&self) -> usize {
        self.width() * self.height()
    }

    /// True when it holds no pixel.
    pub fn is_empty(&self) -> bool {
        self.x0 >= self.x1 || self.y0 >= self.y1
    }

    /// The pixels that both hold.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        Self {
            x0: self.x0.max(other.x0),
            y0: self.y0.max(other.y0),
            x1: self.x1.min(other.x1),
            y1: self.y1.min(other.y1),
        }
    }

    /// The smallest rectangle that holds both; an empty one adds nothing.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        if self.is_empty() {
            return *other;
        }
        if other.is_empty() {
            return *self;
        }
        Self {
            x0: self.x0.min(other.x0),
            y0: self.y0.min(other.y0),
            x1: self.x1.max(other.x1),
            y1: self.y1.max(other.y1),
        }
    }
}
