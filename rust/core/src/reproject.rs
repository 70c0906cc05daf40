//! One input onto one tile of the output: coordinates, then samples.

use crate::coadd::Gather;
use crate::coverage::marks::{LEAST_MASK, Marker};
use crate::geom::{CellKind, CoordGrid, Rect, cubic};
use crate::job::{Input, Job};
use crate::noise;
use crate::position::Clip;
use crate::resample::{Kernel, Plane, RUN, Run, TapTable, sample};
use crate::weights::{Patches, feather};
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
    /// Shares of noise, a channel each; empty unless they are asked for.
    shares: Vec<[f32; RUN]>,
    patches: Patches,
    /// Whether samples of the job may give way to others; found out with the first tile.
    gives_way: Option<bool>,
    /// If so, and inputs are marked: which samples of the run are valid, a bit each, before any gives
    /// way.
    valid: Option<u64>,
}

/// Bring the samples of one loaded window into a tile. Returns how many were valid.
#[inline(always)]
pub fn project(
    job: &Job,
    table: &TapTable,
    loaded: &Loaded,
    rect: &Rect,
    tile: &mut impl Gather,
    space: &mut Workspace,
    marker: &mut Option<Marker>,
) -> u64 {
    let input = &job.inputs[loaded.window.input];
    tile.begin(loaded.window.input, input);
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
                let counted = add_run(job, table, input, loaded, tile, at, space, marker.is_some());
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
    tile: &mut impl Gather,
    at: (i64, i64),
    space: &mut Workspace,
    is_marked: bool,
) -> u32 {
    let Workspace { run, values, shares, patches, gives_way, valid } = space;
    let mut has_gaps = false;
    for (channel, values) in values.iter_mut().enumerate() {
        has_gaps |= sample(job.kernel, table, loaded.plane(channel), run, values);
    }
    let mut weights = [input.weight; RUN];
    if input.weight_map.is_some() {
        // Weights are never negative, so they are never sampled with a kernel that overshoots.
        let kernel = match job.kernel {
            Kernel::Nearest => Kernel::Nearest,
            _ => Kernel::Bilinear,
        };
        let mut map = [0.0; RUN];
        sample(kernel, table, loaded.plane(job.channels), run, &mut map);
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight *= f64::from(map[i]);
            for values in &mut *values {
                values[i] = if map[i].is_nan() { f32::NAN } else { values[i] };
            }
        }
    }
    let weighting = &input.weighting;
    if weighting.feather_px > 0.0 {
        let frame = weighting.within_border(input.grid.frame());
        feather(weighting.feather_px, &frame, &loaded.window.rect, run, &mut weights);
    }
    if let Some(saturation) = weighting.saturation {
        let planes = (0..job.channels).map(|channel| loaded.plane(channel));
        patches.recover(saturation, (job.kernel, table), planes, run, values, &mut weights);
    }
    let weights = &weights[..run.len];
    if *gives_way.get_or_insert_with(|| job.gives_way()) {
        *valid = is_marked.then(|| valid_samples(&values[0]));
        tile.make_way(at, values, weights);
    }
    if tile.finds_variance() {
        find_shares(job, table, input, loaded, run, (values, weights, has_gaps), shares);
    }
    tile.add(input, at, values, weights, shares)
}

/// Which samples of a run are valid, a bit each.
fn valid_samples(samples: &[f32; RUN]) -> u64 {
    const _: () = assert!(RUN == u64::BITS as usize);
    samples.iter().enumerate().fold(0, |bits, (k, v)| bits | u64::from(!v.is_nan()) << k)
}

/// Shares of noise of the samples of a run in every channel.
#[inline(never)]
fn find_shares(
    job: &Job,
    table: &TapTable,
    input: &Input,
    loaded: &Loaded,
    run: &Run,
    (values, weights, has_gaps): (&[[f32; RUN]], &[f64], bool),
    shares: &mut Vec<[f32; RUN]>,
) {
    let has_variances = input.weight_map.is_some() && input.weighting.map.says_variance();
    let map = has_variances.then(|| loaded.plane(job.channels));
    let mut of_all = [0.0; RUN];
    noise::shares(job.kernel, table, map, run, &mut of_all);
    shares.resize(job.channels, [0.0; RUN]);
    for (channel, shares) in shares.iter_mut().enumerate() {
        *shares = of_all;
        if has_gaps {
            let planes = (loaded.plane(channel), map);
            let samples = (&values[channel], weights);
            noise::correct_shares(job.kernel, table, planes, run, samples, shares);
        }
    }
}

/// Mark where the mask of the input covers a run, of which `counted` samples are valid. Samples that
/// have given way to those of other inputs are marked like others: a mask is of one input.
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
        marker.all(input, at, run.len);
    } else {
        let is_valid = |k: usize| match space.valid {
            Some(bits) => bits >> k & 1 == 1,
            None => !values[k].is_nan(),
        };
        marker.run(input, at, run.len, |k| {
            is_valid(k) || valid_share(loaded.plane(0), run, k) > LEAST_MASK
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
