//! Cutting the output into bands and blocks that fit the memory limit.
//!
//! A band is a run of output rows at full width, the unit of output. A block is a rectangle of a
//! band, the unit of work and of memory: usually the whole band, or several when the canvas is so
//! wide that not even a few rows fit. For each block every input shows [`Window`]s: the source
//! pixels that the block's samples touch, taps included.

use std::collections::HashSet;
use std::ops::Range;

use crate::budget::Projection;
use crate::coadd::TileBuffers;
use crate::geom::Rect;
use crate::job::Job;
use crate::parallel::STACK_BYTES;
use crate::plan::Plan;
use crate::resample::SLACK;
use crate::source::{self, READ_CHUNK_BYTES, Source, Store};
use crate::{Error, Result};

/// Rows of a band when memory is plentiful: taller bands leave the last-level cache and gain
/// nothing, since rows that two bands share are kept (`make bench`, stage "bands").
const PREFERRED_ROWS: usize = 192;

/// Below so many rows per band, blocks are made narrower instead. Few rows do no harm while bands
/// have the full width, because the rows that two bands share are kept; narrow blocks cannot keep
/// theirs.
const LEAST_ROWS: usize = 8;

/// Blocks are not made narrower than this.
const LEAST_COLUMNS: usize = 512;

/// The band loop and the writer, beside the workers.
const SERVICE_THREADS: u64 = 2;

/// What the interpreter and the allocator may take between planning and the end of the pass, for
/// progress, tables and headers (measured: 2–5 MiB).
const SERVICE_BYTES: u64 = 6 << 20;

/// Copies of an image that decompressing it takes for a moment (measured with the compressed sets
/// of the tests: 1.2–2.6).
const DECOMPRESSING: u64 = 3;

/// The source pixels of one input that some output columns of a block touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Which input.
    pub input: usize,
    /// The output columns that it serves.
    pub out_x: Range<i64>,
    /// The source pixels, taps included; where it sticks out of the frame there are none.
    pub rect: Rect,
    /// Records of the exact cells that it needs, in ascending order.
    pub exact: Vec<u32>,
}

impl Window {
    /// Values that its planes take, with the slack that kernels read past the end.
    pub fn len(&self, job: &Job) -> usize {
        job.inputs[self.input].planes() * self.rect.area() + SLACK
    }

    /// True when it holds no pixel, which never happens in a block.
    pub fn is_empty(&self) -> bool {
        self.rect.is_empty()
    }

    /// Doubles that the records of its exact cells take.
    pub fn exact_len(&self, job: &Job) -> usize {
        let edge = job.inputs[self.input].grid.spacing();
        self.exact.len() * edge * edge * 2
    }

    /// The window of `before` that holds most of this one's rows at full width, and those rows.
    pub fn kept<'w>(
        &self,
        before: impl IntoIterator<Item = &'w Window>,
    ) -> Option<(usize, Range<i64>)> {
        let candidates = before.into_iter().enumerate().filter_map(|(place, old)| {
            let wide = old.rect.x0 <= self.rect.x0 && old.rect.x1 >= self.rect.x1;
            let rows = self.rect.intersect(&old.rect);
            (old.input == self.input && wide && !rows.is_empty()).then_some((place, rows))
        });
        let best = candidates.max_by_key(|(_, rows)| rows.height());
        best.map(|(place, rows)| (place, rows.y0..rows.y1))
    }
}

/// A rectangle of the output with all that it takes to compute it.
#[derive(Debug)]
pub struct Block {
    /// The output pixels.
    pub rect: Rect,
    /// Every input's windows, in job order.
    pub windows: Vec<Window>,
}

impl Block {
    /// The block of those output pixels.
    pub fn new(job: &Job, rect: Rect) -> Self {
        let mut windows = Vec::new();
        for input in 0..job.inputs.len() {
            windows.extend(windows_of(job, input, &rect));
        }
        Self { rect, windows }
    }

    /// Values of all windows.
    pub fn len(&self, job: &Job) -> usize {
        self.windows.iter().map(|w| w.len(job)).sum()
    }

    /// True when no input touches it.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// Doubles of all exact records.
    pub fn exact_len(&self, job: &Job) -> usize {
        self.windows.iter().map(|w| w.exact_len(job)).sum()
    }
}

/// A rotated input is cut into several windows when one would hold more than this share of its
/// rows, and several less than half of the pixels: a mild rotation is served better by one window
/// of whole rows, because the next block keeps those that both need.
const STRONGLY_ROTATED: f64 = 0.25;

/// The windows of one input for one block. Usually one; several, each for some of the columns,
/// when the input is rotated so strongly that a single one would hold mostly unused pixels.
fn windows_of(job: &Job, input: usize, out: &Rect) -> Vec<Window> {
    let grid = &job.inputs[input].grid;
    if grid.rect().intersect(out).is_empty() {
        return Vec::new();
    }
    let spans = grid.source_spans(out, job.kernel.radius());
    let join = |part: &[(Range<i64>, Rect)]| Window {
        input,
        out_x: part[0].0.start..part[part.len() - 1].0.end,
        rect: part.iter().fold(Rect::default(), |all, (_, rect)| all.union(rect)),
        exact: Vec::new(),
    };
    let cut = |pieces: usize| -> Vec<Window> {
        spans.chunks(spans.len().div_ceil(pieces).max(1)).map(join).collect()
    };
    let area = |windows: &[Window]| windows.iter().map(|w| w.rect.area()).sum::<usize>();
    let mut best = cut(1);
    let [width, height] = grid.frame().map(|n| n as i64);
    if best.iter().any(|one| one.rect.height() as f64 > STRONGLY_ROTATED * height as f64) {
        let finest = (0..).map(|k| 2 << k).take_while(|&pieces| pieces <= spans.len());
        let finer = finest.map(cut).min_by_key(|windows| area(windows));
        best = finer.filter(|finer| 2 * area(finer) < area(&best)).unwrap_or(best);
    }
    if let [one] = &mut best[..]
        && out.width() == job.width
    {
        // Whole rows, so that the next band finds all of those that it shares with this one.
        let reach = job.kernel.radius() as i64;
        one.rect.x0 = 1 - reach;
        one.rect.x1 = width + reach;
    }
    for window in &mut best {
        window.exact = exact_records(job, window, out);
    }
    best
}

fn exact_records(job: &Job, window: &Window, out: &Rect) -> Vec<u32> {
    use crate::geom::CellKind;
    let grid = &job.inputs[window.input].grid;
    if grid.exact().is_none() {
        return Vec::new();
    }
    let mut records = Vec::new();
    for row in grid.rows(out.y0..out.y1) {
        for column in grid.columns(window.out_x.clone()) {
            if let CellKind::Exact { index } = grid.cell(column, row) {
                records.push(index);
            }
        }
    }
    records.sort_unstable();
    records
}

/// How the output is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Rows of a band.
    pub band_rows: usize,
    /// Columns of a block.
    pub block_columns: usize,
}

/// What a job will move, foretold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bands.
    pub bands: usize,
    /// Blocks.
    pub blocks: usize,
    /// Bytes read from input files in one pass.
    pub read_bytes: u64,
    /// Bytes of pixels written in one pass.
    pub write_bytes: u64,
    /// Most input files that one block touches.
    pub most_files: usize,
}

/// What the blocks of a layout need at their worst.
#[derive(Clone, Copy, Debug, Default)]
struct Need {
    /// Values of the largest even and of the largest odd block's windows: two are held at once.
    windows: [usize; 2],
    /// Doubles of their exact records, likewise.
    exact: [usize; 2],
    most_files: usize,
}

impl Need {
    fn bytes(&self) -> u64 {
        ((self.windows[0] + self.windows[1]) * size_of::<f32>()
            + (self.exact[0] + self.exact[1]) * size_of::<f64>()) as u64
    }
}

impl Layout {
    /// The blocks, band by band from top to bottom, each band from left to right.
    pub fn rects(self, height: usize, width: usize) -> impl Iterator<Item = Rect> + Clone {
        (0..height).step_by(self.band_rows).flat_map(move |y| {
            let rows = y as i64..(y + self.band_rows).min(height) as i64;
            (0..width).step_by(self.block_columns).map(move |x| {
                let columns = x as i64..(x + self.block_columns).min(width) as i64;
                Rect::new(columns, rows.clone())
            })
        })
    }

    /// Values that the windows of even and of odd blocks take at most, and their exact records.
    pub(crate) fn arena_lens(self, job: &Job) -> ([usize; 2], [usize; 2]) {
        let need = self.need(job);
        (need.windows, need.exact)
    }

    fn need(self, job: &Job) -> Need {
        let mut need = Need::default();
        for (k, rect) in self.rects(job.height, job.width).enumerate() {
            let block = Block::new(job, rect);
            need.windows[k % 2] = need.windows[k % 2].max(block.len(job));
            need.exact[k % 2] = need.exact[k % 2].max(block.exact_len(job));
            let in_files =
                |w: &&Window| matches!(job.inputs[w.input].image.store, Store::File { .. });
            let files: HashSet<_> =
                block.windows.iter().filter(in_files).map(|w| w.input).collect();
            need.most_files = need.most_files.max(files.len());
        }
        need
    }

    /// Bytes of the output rows: one band that is being computed, one that is being written.
    fn output_bytes(self, job: &Job) -> u64 {
        let rows = self.band_rows.min(job.height);
        (2 * job.planes() * rows * job.width * size_of::<f32>()) as u64
    }

    /// What one pass will read and write.
    pub fn traffic(self, job: &Job) -> Traffic {
        let mut traffic = Traffic {
            bands: job.height.div_ceil(self.band_rows),
            write_bytes: job.output_bytes(),
            ..Traffic::default()
        };
        let mut before: Option<Block> = None;
        for rect in self.rects(job.height, job.width) {
            let block = Block::new(job, rect);
            traffic.blocks += 1;
            for window in &block.windows {
                let kept = before.as_ref().and_then(|b| window.kept(&b.windows));
                let kept = kept.map_or(0, |(_, rows)| (rows.end - rows.start) as u64);
                let input = &job.inputs[window.input];
                for source in std::iter::once(&input.image).chain(&input.weight_map) {
                    traffic.read_bytes += read_bytes(source, &window.rect, kept);
                }
            }
            before = Some(block);
        }
        traffic.most_files = self.need(job).most_files;
        traffic
    }
}

/// Bytes that reading the rows of `rect`, less `kept` of them, fetches from a file.
fn read_bytes(source: &Source, rect: &Rect, kept: u64) -> u64 {
    if !matches!(source.store, Store::File { .. }) {
        return 0;
    }
    let inside = rect.intersect(&Rect::frame(source.width, source.height));
    let rows = (inside.height() as u64).saturating_sub(kept);
    rows * source.channels as u64 * source::row_cost(source, &inside) as u64
}

/// A layout that fits, and what the whole will hold at its worst.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// How the output is cut.
    pub layout: Layout,
    /// The worst moment, term by term.
    pub projection: Projection,
    /// The part of it that the pass does not lease itself.
    pub outside_bytes: u64,
    /// Windows and output rows: what the plan calls a chunk.
    pub chunk_bytes: u64,
}

/// The tallest bands, and the widest blocks, that fit the plan's memory.
///
/// `reserved` are terms that exist beside the engine's: the process itself, arrays of the caller.
/// `held_bytes` are not counted by whoever set the limit; messages leave them out.
/// Refuses with [`Error::Budget`], naming
/// the smallest limit that works, before anything is allocated.
pub fn fit(job: &Job, plan: &Plan, reserved: &Projection, held_bytes: u64) -> Result<Fitted> {
    job.validate()?;
    let fixed = fixed_terms(job, plan, reserved);
    let allowed = plan.memory_bytes.unwrap_or(u64::MAX);
    let chunk = plan.max_chunk_bytes.unwrap_or(u64::MAX);
    let workers = plan.cpu_workers * worker_bytes(job);
    let available = allowed.saturating_sub(fixed.total() + workers).min(chunk);
    let most_rows = most_rows(job, plan);

    let mut columns = job.width;
    let mut best: Option<(Layout, Need)> = None;
    let mut smallest: Option<(Layout, Need)> = None;
    loop {
        let mut rows = most_rows;
        loop {
            let layout = Layout { band_rows: rows, block_columns: columns };
            let need = layout.need(job);
            let bytes = |(l, n): &(Layout, Need)| n.bytes() + l.output_bytes(job);
            if bytes(&(layout, need)) <= available {
                if best.is_none_or(|(b, _)| rows > b.band_rows) {
                    best = Some((layout, need));
                }
                break;
            }
            if smallest.is_none_or(|s| bytes(&(layout, need)) < bytes(&s)) {
                smallest = Some((layout, need));
            }
            if rows == 1 {
                break;
            }
            rows = (rows * 3 / 4).max(1);
        }
        let enough = best.is_some_and(|(b, _)| b.band_rows >= LEAST_ROWS.min(most_rows));
        if enough || columns <= LEAST_COLUMNS {
            break;
        }
        columns = columns.div_ceil(2).max(LEAST_COLUMNS);
    }

    let outside_bytes = fixed.total();
    let project = |(layout, need): (Layout, Need)| {
        let mut projection = fixed.clone();
        projection.add("workers", plan.cpu_workers * worker_bytes(job));
        projection.add("windows", need.bytes());
        projection.add("output rows", layout.output_bytes(job));
        Fitted {
            layout,
            projection,
            outside_bytes,
            chunk_bytes: need.bytes() + layout.output_bytes(job),
        }
    };
    match (best, smallest) {
        (Some(found), _) => Ok(project(found)),
        (None, Some(least)) => {
            let least = project(least);
            if least.projection.total() <= allowed {
                return Err(Error::Budget(format!(
                    "the plan's max_chunk_bytes of {chunk} bytes is too small: the smallest \
                     blocks take {} bytes",
                    least.chunk_bytes
                )));
            }
            Err(least.projection.refusal(allowed, held_bytes))
        }
        (None, None) => unreachable!("every layout either fits or does not"),
    }
}

fn most_rows(job: &Job, plan: &Plan) -> usize {
    if let Some(rows) = plan.rows_per_chunk {
        return (rows as usize).clamp(1, job.height);
    }
    let rows = PREFERRED_ROWS.min(job.height);
    let preferred = Layout { band_rows: rows, block_columns: job.width };
    // More files than can stay open would be opened anew for each band: then few, tall bands.
    if job.inputs.len() > source::MOST_OPEN && preferred.need(job).most_files > source::MOST_OPEN {
        return job.height;
    }
    rows
}

/// All that is not leased from the ledger of a pass.
fn fixed_terms(job: &Job, plan: &Plan, reserved: &Projection) -> Projection {
    let mut terms = reserved.clone();
    let in_memory = |i: &&crate::job::Input| matches!(i.image.store, Store::Deferred(_));
    let deferred = || job.inputs.iter().filter(in_memory).map(|i| i.image.bytes());
    terms.add("decompressed inputs", deferred().sum());
    // While one is decompressed its file, and copies in other byte orders, exist beside it.
    terms.add("decompressing", DECOMPRESSING * deferred().max().unwrap_or(0));
    terms.add("coordinate grids", job.grid_bytes());
    let threads = plan.cpu_workers + SERVICE_THREADS;
    terms.add("thread stacks", threads * STACK_BYTES as u64);
    terms.add("interpreter growth", SERVICE_BYTES);
    terms
}

/// What a worker leases.
fn worker_bytes(job: &Job) -> u64 {
    TileBuffers::bytes(job.channels) + READ_CHUNK_BYTES as u64
}
