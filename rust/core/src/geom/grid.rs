//! Output pixel → input pixel, known at the nodes of a coarse grid and interpolated between them.
//!
//! World coordinates are wcslib's business; it is asked only at the nodes. Between them the
//! mapping is a product of two four-point Lagrange cubics, whose error falls with the fourth power
//! of the spacing. Whoever builds a grid measures that error and marks the cells where it is too
//! large as *exact*: their coordinates are then kept pixel by pixel, in a file.
//!
//! Cells are anchored to absolute output pixels, so a coordinate does not depend on how the output
//! is cut into blocks.

use std::ops::Range;
use std::path::PathBuf;

use super::Rect;
use crate::{Error, Result};

/// Added to every bound on source coordinates, for rounding and for the snap.
const BOUND_SLACK_PX: f64 = 1e-3;

/// How the coordinates of a cell are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CellKind {
    /// No pixel of the cell falls into the frame.
    Empty,
    /// By interpolation; no point of the cell is further than `slack` (input pixels, in x or y)
    /// from the bilinear interpolation of its four corners.
    Smooth {
        /// The bound, in input pixels.
        slack: f32,
    },
    /// Pixel by pixel, from record `index` of the grid's [`ExactCells`].
    Exact {
        /// Number of the record.
        index: u32,
    },
}

/// Coordinates of the cells that interpolation cannot serve: a file of records, one a cell, each
/// `spacing` × `spacing` pairs (x, y) of native doubles in row order, NaN where there is none.
#[derive(Clone, Debug)]
pub struct ExactCells {
    /// The file.
    pub path: PathBuf,
    /// Where each record's valid coordinates lie: `[x_min, y_min, x_max, y_max]`, NaN if nowhere.
    pub bounds: Vec<[f64; 4]>,
}

/// A range of input coordinates, empty when `min > max`.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    min: [f64; 2],
    max: [f64; 2],
}

impl Bounds {
    const EMPTY: Self = Self { min: [f64::INFINITY; 2], max: [f64::NEG_INFINITY; 2] };

    fn include(&mut self, point: [f64; 2], slack: f64) {
        for axis in 0..2 {
            self.min[axis] = self.min[axis].min(point[axis] - slack);
            self.max[axis] = self.max[axis].max(point[axis] + slack);
        }
    }

    /// The input pixels that samples within these bounds touch, with `radius` taps on each side;
    /// it may stick out of the frame by the taps, where there is nothing but invalid pixels.
    fn taps(&self, frame: [usize; 2], radius: usize) -> Rect {
        let span = |axis: usize| {
            let last = frame[axis] as f64 - 1.0;
            // Outside these half pixels no sample is valid; within, it is clamped to the frame.
            let (low, high) = (self.min[axis], self.max[axis]);
            if !(low <= last + 0.5 + BOUND_SLACK_PX && high >= -0.5 - BOUND_SLACK_PX) {
                return 0..0;
            }
            let first = low.clamp(0.0, last).floor() as i64;
            let past = high.clamp(0.0, last).floor() as i64 + 1;
            first - (radius as i64 - 1)..past + radius as i64
        };
        let rect = Rect::new(span(0), span(1));
        if rect.is_empty() { Rect::default() } else { rect }
    }
}

/// The mapping from output pixels to the pixels of one input.
#[derive(Clone, Debug)]
pub struct CoordGrid {
    origin: [i64; 2],
    spacing: usize,
    cells_across: usize,
    frame: [usize; 2],
    nodes: Vec<[f64; 2]>,
    cells: Vec<CellKind>,
    steepest: [[f64; 2]; 2],
    exact: Option<ExactCells>,
}

impl CoordGrid {
    /// A grid of `cells` (across, down) cells of `spacing` pixels whose first cell begins at output
    /// pixel `origin` (x, y), over a frame of `frame` (width, height) pixels.
    ///
    /// `nodes` has (down + 3) × (across + 3) input coordinates (x, y), in rows; node (1, 1) lies at
    /// `origin`. Those that have none are NaN. A cell whose sixteen surrounding nodes are not all
    /// finite counts as empty unless [`with_exact`](Self::with_exact) says more.
    pub fn new(
        origin: [i64; 2],
        spacing: usize,
        cells: [usize; 2],
        frame: [usize; 2],
        nodes: Vec<[f64; 2]>,
    ) -> Result<Self> {
        let sizes = [cells[0], cells[1], frame[0], frame[1]];
        if sizes.contains(&0) || frame.iter().any(|&n| n > i32::MAX as usize) {
            return Err(Error::Argument("a coordinate grid needs cells and a frame".to_owned()));
        }
        if !spacing.is_power_of_two() || nodes.len() != (cells[0] + 3) * (cells[1] + 3) {
            return Err(Error::Argument(
                "a coordinate grid needs a power of two as spacing and (ny + 3) × (nx + 3) nodes"
                    .to_owned(),
            ));
        }
        let mut grid = Self {
            origin,
            spacing,
            cells_across: cells[0],
            frame,
            nodes,
            cells: Vec::new(),
            steepest: [[0.0; 2]; 2],
            exact: None,
        };
        let kinds = (0..cells[0] * cells[1]).map(|k| grid.classify(k % cells[0], k / cells[0]));
        grid.cells = kinds.collect();
        grid.steepest = grid.find_steepest();
        Ok(grid)
    }

    /// The same grid, but with the coordinates of the cells `(row · across + column)` in `numbers` kept pixel by
    /// pixel; record `i` of `exact` belongs to `numbers[i]`.
    pub fn with_exact(&self, numbers: &[u32], exact: ExactCells) -> Result<Self> {
        if numbers.len() != exact.bounds.len() {
            return Err(Error::Argument("one record a cell is needed".to_owned()));
        }
        let mut cells = self.cells.clone();
        for (index, &number) in (0u32..).zip(numbers) {
            let Some(cell) = cells.get_mut(number as usize) else {
                return Err(Error::Argument(format!("the grid has no cell {number}")));
            };
            *cell = if exact.bounds[index as usize][0].is_nan() {
                CellKind::Empty
            } else {
                CellKind::Exact { index }
            };
        }
        Ok(Self { nodes: self.nodes.clone(), cells, exact: Some(exact), ..*self })
    }

    /// The same grid on an output whose first pixel is this one's pixel (x, y).
    #[must_use]
    pub fn seen_from(&self, x: i64, y: i64) -> Self {
        Self { origin: [self.origin[0] - x, self.origin[1] - y], ..self.clone() }
    }

    /// Output pixels that the cells cover; it may stick out of the canvas.
    pub fn rect(&self) -> Rect {
        let across = (self.cells_across * self.spacing) as i64;
        let down = (self.cells_down() * self.spacing) as i64;
        let [x, y] = self.origin;
        Rect::new(x..x + across, y..y + down)
    }

    /// Output pixels that the cells cover, less the empty ones at the edges.
    pub fn footprint(&self) -> Rect {
        let cells = self.cells.iter().enumerate().filter(|(_, kind)| **kind != CellKind::Empty);
        cells.fold(Rect::default(), |all, (number, _)| {
            let across = self.column_span(number % self.cells_across);
            let down = self.row_span(number / self.cells_across);
            all.union(&Rect::new(across, down))
        })
    }

    /// Width and height of the input's frame, in pixels.
    pub fn frame(&self) -> [usize; 2] {
        self.frame
    }

    /// Edge of a cell, in output pixels.
    pub fn spacing(&self) -> usize {
        self.spacing
    }

    /// Bytes of the file of exact records.
    pub fn scratch_bytes(&self) -> u64 {
        let record = self.spacing * self.spacing * size_of::<[f64; 2]>();
        self.exact.as_ref().map_or(0, |exact| exact.bounds.len() * record) as u64
    }

    /// Records of the exact cells, if there are any.
    pub fn exact(&self) -> Option<&ExactCells> {
        self.exact.as_ref()
    }

    /// Bytes that the grid holds.
    pub fn bytes(&self) -> u64 {
        let exact = self.exact.as_ref().map_or(0, |e| e.bounds.len() * size_of::<[f64; 4]>());
        (self.nodes.len() * size_of::<[f64; 2]>()
            + self.cells.len() * size_of::<CellKind>()
            + exact) as u64
    }

    /// The steepest ascent of the smooth cells: by how many input pixels x and y change at most
    /// (first index) per output pixel along x and y (second index).
    pub fn steepest(&self) -> [[f64; 2]; 2] {
        self.steepest
    }

    /// The nodes, in rows: one line above and left of the first cell, two below and right of the last.
    pub fn nodes(&self) -> &[[f64; 2]] {
        &self.nodes
    }

    /// Every cell's kind, in rows.
    pub fn cells(&self) -> &[CellKind] {
        &self.cells
    }

    /// Columns of the cells that touch the output columns `x`.
    pub fn columns(&self, x: Range<i64>) -> Range<usize> {
        Self::touched(x, self.origin[0], self.spacing, self.cells_across)
    }

    /// Rows of the cells that touch the output rows `y`.
    pub fn rows(&self, y: Range<i64>) -> Range<usize> {
        Self::touched(y, self.origin[1], self.spacing, self.cells_down())
    }

    /// Output columns of the cells in column `column`.
    pub fn column_span(&self, column: usize) -> Range<i64> {
        let x = self.origin[0] + (column * self.spacing) as i64;
        x..x + self.spacing as i64
    }

    /// Output rows of the cells in row `row`.
    pub fn row_span(&self, row: usize) -> Range<i64> {
        let y = self.origin[1] + (row * self.spacing) as i64;
        y..y + self.spacing as i64
    }

    /// The kind of a cell.
    pub fn cell(&self, column: usize, row: usize) -> CellKind {
        self.cells[row * self.cells_across + column]
    }

    /// For output row `y`: the mapping at the node columns around `columns`, one pair (x, y) each,
    /// `columns.len() + 3` of them, into `knots`.
    #[inline(always)]
    pub fn row_knots(&self, y: i64, columns: Range<usize>, knots: &mut [[f64; 2]]) {
        let offset = (y - self.origin[1]) as usize;
        let (row, within) = (offset / self.spacing, offset % self.spacing);
        let weights = lagrange(within as f64 / self.spacing as f64);
        let across = self.cells_across + 3;
        let first = row * across + columns.start;
        for (k, knot) in knots[..columns.len() + 3].iter_mut().enumerate() {
            let node = |line: usize| self.nodes[first + line * across + k];
            let (a, b, c, d) = (node(0), node(1), node(2), node(3));
            for axis in 0..2 {
                knot[axis] = ((weights[0] * a[axis] + weights[1] * b[axis]) + weights[2] * c[axis])
                    + weights[3] * d[axis];
            }
        }
    }

    /// The interpolated input coordinates of output position (x, y), pixel centres at integers;
    /// NaN where the cell is not smooth.
    pub fn at(&self, x: f64, y: f64) -> [f64; 2] {
        let locate = |v: f64, origin: i64, cells: usize| {
            let cell = ((v - origin as f64) / self.spacing as f64).floor();
            let cell = cell.clamp(0.0, cells as f64 - 1.0);
            (cell as usize, (v - origin as f64) / self.spacing as f64 - cell)
        };
        let (column, u) = locate(x, self.origin[0], self.cells_across);
        let (row, v) = locate(y, self.origin[1], self.cells_down());
        if !matches!(self.cell(column, row), CellKind::Smooth { .. }) {
            return [f64::NAN; 2];
        }
        let (across, down) = (lagrange(u), lagrange(v));
        let mut point = [0.0; 2];
        for (line, wy) in down.iter().enumerate() {
            for (k, wx) in across.iter().enumerate() {
                let node = self.node(column + k, row + line);
                point[0] += wx * wy * node[0];
                point[1] += wx * wy * node[1];
            }
        }
        point
    }

    /// For each column of cells that meets the output rectangle `out`: its output columns within
    /// `out`, and the input pixels that samples there touch with `radius` taps. Columns without
    /// any are left out.
    pub fn source_spans(&self, out: &Rect, radius: usize) -> Vec<(Range<i64>, Rect)> {
        let rows = self.rows(out.y0..out.y1);
        let mut spans = Vec::new();
        for column in self.columns(out.x0..out.x1) {
            let span = self.column_span(column);
            let x = span.start.max(out.x0)..span.end.min(out.x1);
            let mut bounds = Bounds::EMPTY;
            for row in rows.clone() {
                self.bound_cell(column, row, &x, out, &mut bounds);
            }
            let taps = bounds.taps(self.frame, radius);
            if !taps.is_empty() {
                spans.push((x, taps));
            }
        }
        spans
    }

    /// Widen `bounds` by the part of a cell that lies in columns `x` and in the rows of `out`.
    fn bound_cell(
        &self,
        column: usize,
        row: usize,
        x: &Range<i64>,
        out: &Rect,
        bounds: &mut Bounds,
    ) {
        match self.cell(column, row) {
            CellKind::Empty => {}
            CellKind::Exact { index } => {
                let exact = self.exact.as_ref().map(|e| e.bounds[index as usize]);
                if let Some([x0, y0, x1, y1]) = exact {
                    bounds.include([x0, y0], BOUND_SLACK_PX);
                    bounds.include([x1, y1], BOUND_SLACK_PX);
                }
            }
            CellKind::Smooth { slack } => {
                let span = self.row_span(row);
                let y = span.start.max(out.y0)..span.end.min(out.y1);
                let slack = f64::from(slack) + BOUND_SLACK_PX;
                let step = 1.0 / self.spacing as f64;
                let corner_x = self.column_span(column).start;
                for (px, py) in [
                    (x.start, y.start),
                    (x.end - 1, y.start),
                    (x.start, y.end - 1),
                    (x.end - 1, y.end - 1),
                ] {
                    let u = (px - corner_x) as f64 * step;
                    let v = (py - span.start) as f64 * step;
                    bounds.include(self.bilinear(column, row, u, v), slack);
                }
            }
        }
    }

    /// Bilinear interpolation of the corners of a cell.
    fn bilinear(&self, column: usize, row: usize, u: f64, v: f64) -> [f64; 2] {
        let corner = |dx, dy| self.node(column + 1 + dx, row + 1 + dy);
        let (a, b, c, d) = (corner(0, 0), corner(1, 0), corner(0, 1), corner(1, 1));
        let mix = |k: usize| {
            let top = a[k] + u * (b[k] - a[k]);
            let bottom = c[k] + u * (d[k] - c[k]);
            top + v * (bottom - top)
        };
        [mix(0), mix(1)]
    }

    fn cells_down(&self) -> usize {
        self.nodes.len() / (self.cells_across + 3) - 3
    }

    fn node(&self, column: usize, row: usize) -> [f64; 2] {
        self.nodes[row * (self.cells_across + 3) + column]
    }

    fn touched(range: Range<i64>, origin: i64, spacing: usize, cells: usize) -> Range<usize> {
        let limit = (cells * spacing) as i64;
        let first = (range.start - origin).clamp(0, limit) as usize;
        let past = (range.end - origin).clamp(0, limit) as usize;
        if first >= past {
            return 0..0;
        }
        first / spacing..past.div_ceil(spacing)
    }

    fn classify(&self, column: usize, row: usize) -> CellKind {
        let mut finite = true;
        for line in 0..4 {
            for k in 0..4 {
                let node = self.node(column + k, row + line);
                finite &= node[0].is_finite() && node[1].is_finite();
            }
        }
        if !finite {
            return CellKind::Empty;
        }
        let slack = self.curvature(column, row);
        let mut bounds = Bounds::EMPTY;
        for (u, v) in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)] {
            bounds.include(self.bilinear(column, row, u, v), slack + BOUND_SLACK_PX);
        }
        if bounds.taps(self.frame, 1).is_empty() {
            return CellKind::Empty;
        }
        CellKind::Smooth { slack: slack as f32 * 1.000_001 }
    }

    /// See [`steepest`](Self::steepest).
    fn find_steepest(&self) -> [[f64; 2]; 2] {
        let mut steepest = [[0.0_f64; 2]; 2];
        for (number, kind) in self.cells.iter().enumerate() {
            let CellKind::Smooth { slack } = kind else { continue };
            let (column, row) = (number % self.cells_across + 1, number / self.cells_across + 1);
            for along in 0..2 {
                // The two edges of the cell that run in this direction.
                let (dx, dy) = (1 - along, along);
                let near = (self.node(column, row), self.node(column + dx, row + dy));
                let far = (self.node(column + dy, row + dx), self.node(column + 1, row + 1));
                for axis in 0..2 {
                    let rise = |(a, b): ([f64; 2], [f64; 2])| (b[axis] - a[axis]).abs();
                    let most = rise(near).max(rise(far)) + 4.0 * f64::from(*slack);
                    let slope = most / self.spacing as f64;
                    steepest[axis][along] = steepest[axis][along].max(slope);
                }
            }
        }
        steepest
    }

    /// A bound on how far the interpolant of a cell strays from the bilinear interpolation of its
    /// corners. A cubic through four equidistant values has second differences that run linearly
    /// from the first to the second, and strays from its chord by at most an eighth of the larger;
    /// mixing the four lines of nodes multiplies that by at most 1.25, the largest sum of absolute
    /// Lagrange weights between the inner nodes.
    fn curvature(&self, column: usize, row: usize) -> f64 {
        let second = |a: [f64; 2], b: [f64; 2], c: [f64; 2]| {
            let along = |k: usize| (a[k] - 2.0 * b[k] + c[k]).abs();
            along(0).max(along(1))
        };
        let (mut across, mut down) = (0.0_f64, 0.0_f64);
        for k in 0..4 {
            for first in 0..2 {
                let h = |d: usize| self.node(column + first + d, row + k);
                let v = |d: usize| self.node(column + k, row + first + d);
                across = across.max(second(h(0), h(1), h(2)));
                down = down.max(second(v(0), v(1), v(2)));
            }
        }
        1.25 * (across + down) / 8.0
    }
}

/// Weights of the nodes at −1, 0, 1, 2 for a cubic through them, at `u`.
#[inline(always)]
fn lagrange(u: f64) -> [f64; 4] {
    let (a, b, c) = (u + 1.0, u - 1.0, u - 2.0);
    [-u * b * c / 6.0, a * b * c / 2.0, -a * u * c / 2.0, a * u * b / 6.0]
}

/// Coefficients, lowest power first, of the cubic through four knots at −1, 0, 1, 2.
#[inline(always)]
pub fn cubic(knots: [f64; 4]) -> [f64; 4] {
    let [a, b, c, d] = knots;
    [
        b,
        (c - b) - (a - 2.0 * b + c) / 3.0 - (b - 2.0 * c + d) / 6.0,
        0.5 * (a - 2.0 * b + c),
        ((b - 2.0 * c + d) - (a - 2.0 * b + c)) / 6.0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(map: impl Fn(f64, f64) -> [f64; 2], frame: [usize; 2]) -> CoordGrid {
        let (nx, ny, spacing, origin) = (3, 2, 16, [-16_i64, 32_i64]);
        let mut nodes = Vec::new();
        for j in 0..ny + 3 {
            for i in 0..nx + 3 {
                let x = (origin[0] + (i as i64 - 1) * spacing) as f64;
                let y = (origin[1] + (j as i64 - 1) * spacing) as f64;
                nodes.push(map(x, y));
            }
        }
        CoordGrid::new(origin, spacing as usize, [nx, ny], frame, nodes).unwrap()
    }

    fn bent(x: f64, y: f64) -> [f64; 2] {
        [
            40.0 + 0.9 * x - 0.1 * y + 1e-4 * x * x * y,
            5.0 + 0.1 * x + 0.95 * y - 2e-4 * y * y + 1e-5 * x * x * x,
        ]
    }

    #[test]
    fn cubics_are_reproduced_everywhere() {
        let grid = grid(bent, [200, 200]);
        for (x, y) in [(-16.0, 32.0), (-3.3, 40.1), (31.0, 63.0), (15.5, 47.9)] {
            let (got, want) = (grid.at(x, y), bent(x, y));
            assert!((got[0] - want[0]).abs() < 1e-10 && (got[1] - want[1]).abs() < 1e-10);
        }
    }

    #[test]
    fn a_row_of_knots_gives_the_same_cubic() {
        let grid = grid(bent, [200, 200]);
        let mut knots = [[0.0; 2]; 6];
        grid.row_knots(45, 0..3, &mut knots);
        for x in -16_i64..32 {
            let column = ((x + 16) / 16) as usize;
            let u = ((x + 16) % 16) as f64 / 16.0;
            let along = |axis: usize| {
                let c = cubic(std::array::from_fn(|k| knots[column + k][axis]));
                ((c[3] * u + c[2]) * u + c[1]) * u + c[0]
            };
            let want = bent(x as f64, 45.0);
            assert!((along(0) - want[0]).abs() < 1e-10);
            assert!((along(1) - want[1]).abs() < 1e-10);
        }
    }

    #[test]
    fn source_spans_hold_every_tap() {
        let frame = [60, 70];
        let grid = grid(bent, frame);
        let out = Rect::new(-10..25, 37..50);
        let spans = grid.source_spans(&out, 2);
        for y in out.y0..out.y1 {
            for x in out.x0..out.x1 {
                let at = bent(x as f64, y as f64);
                let inside = (0..2).all(|k| at[k] >= -0.5 && at[k] <= frame[k] as f64 - 0.5);
                if !inside {
                    continue;
                }
                let (_, taps) = spans.iter().find(|(span, _)| span.contains(&x)).unwrap();
                let cell = |k: usize| at[k].clamp(0.0, frame[k] as f64 - 1.0).floor() as i64;
                assert!(taps.x0 < cell(0) && cell(0) + 3 <= taps.x1);
                assert!(taps.y0 < cell(1) && cell(1) + 3 <= taps.y1);
            }
        }
    }

    #[test]
    fn cells_off_the_frame_or_without_nodes_are_empty() {
        let off = grid(|x, y| [x + 5000.0, y], [100, 100]);
        assert!(off.cells().iter().all(|&c| c == CellKind::Empty));
        let nan = grid(|_, _| [f64::NAN; 2], [100, 100]);
        assert!(nan.cells().iter().all(|&c| c == CellKind::Empty));
    }
}
