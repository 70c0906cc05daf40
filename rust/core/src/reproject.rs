//! One input onto one tile of the output: coordinates, then samples.

use crate::coadd::Tile;
use crate::coverage::marks::{LEAST_MASK, Marker};
use crate::geom::{CellKind, CoordGrid, Rect, SNAP_PX, cubic};
use crate::job::{Input, Job};
use crate::resample::{Kernel, Plane, RUN, Run, TapTable, sample};
use crate::window::Window;

/// A window whose pixels have been read.
#[derive(Clone, Copy)]
pub struct Loaded<'a> {
    /// Which pixels of which input.
    pub window: &'a Window,
    /// Its planes, one after the other, and the slack that kernels need.
    pub pixels: &'a [f32],
    /// Records of its exact cells, in the order of `window.exact`.
    pub exact: &'a [f64],
}

impl<'a> Loaded<'a> {
    /// One of its planes, with everything after it as slack.
    #[inline(always)]
    fn plane(&self, k: usize) -> Plane<'a> {
        Plane {
            pixels: &self.pixels[k * self.window.rect.area()..],
            stride: self.window.rect.width(),
        }
    }
}

/// What a worker keeps between runs.
#[derive(Default)]
pub struct Workspace {
    run: Run,
    values: Vec<[f32; RUN]>,
}

/// Bring the samples of one loaded window into a tile. Returns how many were valid.
#[inline(always)]
pub fn project(
    job: &Job,
    table: &TapTable,
    loaded: &Loaded,
    rect: &Rect,
    tile: &mut Tile,
    space: &mut Workspace,
    marker: &mut Option<Marker>,
) -> u64 {
    let input = &job.inputs[loaded.window.input];
    let grid = &input.grid;
    let out = Rect::new(loaded.window.out_x.clone(), rect.y0..rect.y1).intersect(rect);
    let columns = grid.columns(out.x0..out.x1);
    let within = grid.rect();
    space.values.resize(job.channels, [0.0; RUN]);
    let clip = Clip::new(grid, &loaded.window.rect, job.kernel.radius());
    let mut valid = 0;
    for y in out.y0.max(within.y0)..out.y1.min(within.y1) {
        let row = grid.rows(y..y + 1).start;
        let mut knots = [[0.0; 2]; KNOTS];
        let mut known = 0..0;
        for column in columns.clone() {
            let span = grid.column_span(column);
            let x = span.start.max(out.x0)..span.end.min(out.x1);
            let kind = grid.cell(column, row);
            if kind == CellKind::Empty {
                continue;
            }
            for first in x.clone().step_by(RUN) {
                let part = first..x.end.min(first + RUN as i64);
                match kind {
                    CellKind::Empty => {}
                    CellKind::Smooth { .. } => {
                        if !known.contains(&column) {
                            known = column..columns.end.min(column + KNOTS - 3);
                            grid.row_knots(y, known.clone(), &mut knots);
                        }
                        let four = &knots[column - known.start..][..4];
                        let map = [0, 1].map(|k| cubic([0, 1, 2, 3].map(|i: usize| four[i][k])));
                        let step = 1.0 / grid.spacing() as f64;
                        let offset = (part.start - span.start) as i32;
                        let len = (part.end - part.start) as usize;
                        clip.along(&map, offset, step, len, &mut space.run);
                    }
                    CellKind::Exact { index } => {
                        let record = exact_row(grid, loaded, index, row, y);
                        let skip = 2 * (part.start - span.start) as usize;
                        let len = (part.end - part.start) as usize;
                        clip.listed(&record[skip..skip + 2 * len], &mut space.run);
                    }
                }
                let at = (part.start, y);
                let counted = add_run(job, table, input, loaded, tile, at, space);
                valid += u64::from(counted);
                if let Some(marker) = marker {
                    mark_run(loaded, at, counted as usize, space, marker);
                }
            }
        }
    }
    valid
}

/// Node columns that are combined at once: enough for a tile of 16-pixel cells.
const KNOTS: usize = 40;

/// Sample a run in every channel and hand it to the tile.
#[inline(always)]
fn add_run(
    job: &Job,
    table: &TapTable,
    input: &Input,
    loaded: &Loaded,
    tile: &mut Tile,
    at: (i64, i64),
    space: &mut Workspace,
) -> u32 {
    for (channel, values) in space.values.iter_mut().enumerate() {
        sample(job.kernel, table, loaded.plane(channel), &space.run, values);
    }
    let mut weights = [input.weight; RUN];
    if input.weight_map.is_some() {
        // Weights are never negative, so they are never sampled with a kernel that overshoots.
        let kernel = match job.kernel {
            Kernel::Nearest => Kernel::Nearest,
            _ => Kernel::Bilinear,
        };
        let mut map = [0.0; RUN];
        sample(kernel, table, loaded.plane(job.channels), &space.run, &mut map);
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight *= f64::from(map[i]);
            for values in &mut space.values {
                values[i] = if map[i].is_nan() { f32::NAN } else { values[i] };
            }
        }
    }
    tile.add(input, at, &space.values, &weights[..space.run.len])
}

/// Mark where the mask of the input covers a run, of which `counted` samples are valid.
#[inline(always)]
fn mark_run(
    loaded: &Loaded,
    at: (i64, i64),
    counted: usize,
    space: &Workspace,
    marker: &mut Marker,
) {
    let (run, values) = (&space.run, &space.values[0]);
    let input = loaded.window.input;
    // Samples are valid only when all that a linear interpolation looks at is.
    if counted == run.len {
        marker.run(input, at, run.len, |_| true);
    } else {
        marker.run(input, at, run.len, |k| {
            !values[k].is_nan() || valid_share(loaded.plane(0), run, k) > LEAST_MASK
        });
    }
}

/// The mask of valid pixels, interpolated linearly at a position; 0 outside the frame.
fn valid_share(plane: Plane, run: &Run, k: usize) -> f32 {
    let (fx, fy) = (run.fx[k], run.fy[k]);
    if fx.is_nan() {
        return 0.0;
    }
    let first = run.index[k] as usize;
    let taps = [
        (first, (1.0 - fx) * (1.0 - fy)),
        (first + 1, fx * (1.0 - fy)),
        (first + plane.stride, (1.0 - fx) * fy),
        (first + plane.stride + 1, fx * fy),
    ];
    let valid = taps.iter().filter(|(at, tap)| *tap > 0.0 && !plane.pixels[*at].is_nan());
    valid.map(|(_, tap)| tap).sum()
}

/// The coordinates (x, y pairs) that an exact cell keeps for output row `y`.
#[inline(always)]
fn exact_row<'a>(
    grid: &CoordGrid,
    loaded: &Loaded<'a>,
    index: u32,
    row: usize,
    y: i64,
) -> &'a [f64] {
    let edge = grid.spacing();
    let place = loaded.window.exact.binary_search(&index).expect("a window lists its exact cells");
    let line = (y - grid.row_span(row).start) as usize;
    &loaded.exact[(place * edge + line) * edge * 2..][..2 * edge]
}

/// From coordinates in the frame to positions in a window.
pub(crate) struct Clip {
    /// Positions beyond these are outside the frame: half a pixel past its outermost centres, and
    /// a little more, so that rounding does not fray an edge that runs through pixel centres.
    outside: [f64; 2],
    low: [f64; 2],
    high: [f64; 2],
    first: [f64; 2],
    stride: f64,
}

impl Clip {
    #[inline(always)]
    pub(crate) fn new(grid: &CoordGrid, window: &Rect, radius: usize) -> Self {
        let frame = grid.frame().map(|n| n as f64);
        let reach = radius as i64;
        // Pixels that have all their taps in the window. Every position of a run does, unless a
        // bound on the coordinates was wrong; those beyond its length need not. The clamp makes
        // sure that no other memory is read either way.
        let least = [window.x0 + reach - 1, window.y0 + reach - 1].map(|v| v as f64);
        let past = [window.x1 - reach, window.y1 - reach].map(|v| v as f64);
        Self {
            outside: frame.map(|n| n - 0.5 + SNAP_PX),
            low: [least[0].max(0.0), least[1].max(0.0)],
            high: [0, 1].map(|k: usize| {
                let last = frame[k] - 1.0;
                if past[k] > last { last } else { past[k].next_down() }
            }),
            first: [window.x0 as f64, window.y0 as f64],
            stride: window.width() as f64,
        }
    }

    /// The run of `len` pixels whose coordinates are the cubics `map` of u = (offset + k) · step.
    #[inline(always)]
    fn along(&self, map: &[[f64; 4]; 2], offset: i32, step: f64, len: usize, run: &mut Run) {
        run.len = len;
        let [a, b] = map;
        // Always a full run: a loop of known length has no remainder, and what lies beyond `len`
        // is clamped like everything else.
        for k in 0..RUN {
            let u = f64::from(offset + k as i32) * step;
            let x = ((a[3] * u + a[2]) * u + a[1]) * u + a[0];
            let y = ((b[3] * u + b[2]) * u + b[1]) * u + b[0];
            (run.index[k], run.fx[k], run.fy[k]) = self.position(x, y);
        }
    }

    /// The run whose coordinates are listed, x and y in turn.
    #[inline(always)]
    pub(crate) fn listed(&self, coordinates: &[f64], run: &mut Run) {
        let (pairs, _) = coordinates.as_chunks::<2>();
        run.len = pairs.len();
        for k in 0..RUN {
            let [x, y] = pairs.get(k).copied().unwrap_or([f64::NAN; 2]);
            (run.index[k], run.fx[k], run.fy[k]) = self.position(x, y);
        }
    }

    /// The row of the frame at or before a position, if that lies in the frame.
    #[inline(always)]
    pub(crate) fn row(&self, x: f64, y: f64) -> Option<i64> {
        let (x, y) = (snap(x), snap(y));
        self.is_inside(x, y).then(|| floor(y.clamp(self.low[1], self.high[1])) as i64)
    }

    /// Whether snapped coordinates lie in the frame; NaN does not.
    #[inline(always)]
    fn is_inside(&self, x: f64, y: f64) -> bool {
        (x >= -0.5 - SNAP_PX)
            & (y >= -0.5 - SNAP_PX)
            & (x <= self.outside[0])
            & (y <= self.outside[1])
    }

    #[inline(always)]
    fn position(&self, x: f64, y: f64) -> (u32, f32, f32) {
        let (x, y) = (snap(x), snap(y));
        let inside = self.is_inside(x, y);
        // In this order a NaN becomes the lower bound.
        let clamp = |v: f64, k: usize| {
            let v = if v > self.low[k] { v } else { self.low[k] };
            if v < self.high[k] { v } else { self.high[k] }
        };
        let (x, y) = (clamp(x, 0), clamp(y, 1));
        let (column, row) = (floor(x), floor(y));
        let index = (row - self.first[1]) * self.stride + (column - self.first[0]);
        // SAFETY: the clamp has made it finite and an index into the window, whose area the layout
        // keeps below 2^31.
        let index = unsafe { index.to_int_unchecked::<i32>() } as u32;
        let fx = if inside { (x - column) as f32 } else { f32::NAN };
        (index, fx, (y - row) as f32)
    }
}

/// Adding and taking away this rounds a double below 2^51 to the nearest integer, with the
/// instructions that every processor has.
const ROUND: f64 = 6_755_399_441_055_744.0;

#[inline(always)]
fn snap(v: f64) -> f64 {
    let nearest = (v + ROUND) - ROUND;
    if (v - nearest).abs() < SNAP_PX { nearest } else { v }
}

#[inline(always)]
fn floor(v: f64) -> f64 {
    let nearest = (v + ROUND) - ROUND;
    if nearest > v { nearest - 1.0 } else { nearest }
}
