//! Choosing the cut of the output that fits the memory limit, and refusing what does not fit.

use crate::budget::Projection;
use crate::coadd::{COLUMNS, ROWS};
use crate::coverage::gains::{self, Rules};
use crate::coverage::marks::MarkBuffer;
use crate::coverage::merge::MergeSink;
use crate::coverage::percentile;
use crate::device::memory;
use crate::job::Job;
use crate::layout::{Layout, Need, Room};
use crate::parallel::STACK_BYTES;
use crate::pass::covered_len;
use crate::photometry;
use crate::plan::Plan;
use crate::source::{self, READ_CHUNK_BYTES};
use crate::window::most_values;
use crate::{Error, Result};

/// Rows of a band when memory is plentiful: taller bands leave the last-level cache and gain
/// nothing, since rows that two bands share are kept (36 frames of 2048 × 2048: 128 to 256 rows
/// take the same time, 64 and 512 a tenth more).
const PREFERRED_ROWS: usize = 192;

/// Rows of a band for each worker, so that none waits long for the last: two tasks.
const ROWS_PER_WORKER: usize = 2 * ROWS;

/// Workers take at most this part of the room that the process leaves: threads in excess would
/// only wait for the rows that no longer fit.
const WORKERS_PART: u64 = 4;

/// Bands of fewer rows than this are avoided: by loading inputs one after the other, then by
/// narrower blocks.
const LEAST_ROWS: usize = 8;

/// Blocks are not made narrower than this.
const LEAST_COLUMNS: usize = COLUMNS;

/// Values of the windows of a step, when the inputs of a block are loaded one after the other.
const PREFERRED_STEP_VALUES: usize = 8 << 20;

/// The band loop and the writer, beside the workers.
const SERVICE_THREADS: u64 = 2;

/// What the interpreter and the allocator may take between planning and the end of the pass, for
/// progress, tables and headers (measured: 2–5 MiB).
const SERVICE_BYTES: u64 = 6 << 20;

/// Copies of an image that decompressing it takes for a moment (measured: 1.2–2.6 for images that are
/// tiled by rows, up to 4.8 for HCOMPRESS and for quantised ones in a single tile).
const DECOMPRESSING: u64 = 6;

/// A layout that fits, and what the whole will hold at its worst.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// How the output is cut.
    pub layout: Layout,
    /// The plan as it will run: with the workers, rows and bytes of this layout.
    pub plan: Plan,
    /// The worst moment, term by term.
    pub projection: Projection,
    /// The part of it that the pass does not lease itself.
    pub outside_bytes: u64,
    /// What the work on the coverage, between the passes, may lease.
    pub coverage_bytes: u64,
}

/// Cut the output into the tallest bands and the widest blocks that fit the plan's memory.
///
/// `whole` is the job of all inputs, which are decompressed and matched before; `job` is that, a part
/// of it, or what its parts come to.
/// The plan's workers, rows and chunk bytes are upper bounds. `reserved` are terms that exist
/// beside the engine's: the process itself, arrays of the caller. `held_bytes` are not counted by
/// whoever set the limit; messages leave them out. `planning_peak_bytes` is what the process has
/// held at most until now. Refuses with [`Error::Budget`], naming the smallest limit that works,
/// before anything is allocated.
pub fn fit(
    job: &Job,
    whole: &Job,
    plan: &Plan,
    reserved: &Projection,
    held_bytes: u64,
    planning_peak_bytes: u64,
) -> Result<Fitted> {
    job.validate()?;
    let attempt = |workers: u64| {
        let mut plan = plan.clone();
        if workers < plan.cpu_workers {
            plan.cpu_workers = workers;
            plan.reasons.push("workers_memory".to_owned());
        }
        let fixed = fixed_terms(job, whole, &plan, reserved);
        Fitting { job, whole, plan, fixed, held_bytes, planning_peak_bytes }.fit()
    };
    let mut workers = affordable_workers(job, whole, plan, reserved);
    loop {
        match attempt(workers) {
            Err(Error::Budget(_) | Error::DoesNotFit { .. }) if workers > 1 => workers -= 1,
            done => return done,
        }
    }
}

/// Workers of the plan for whose buffers there is room.
fn affordable_workers(job: &Job, whole: &Job, plan: &Plan, reserved: &Projection) -> u64 {
    let each = worker_bytes(job) + STACK_BYTES as u64;
    let without = fixed_terms(job, whole, &Plan { cpu_workers: 0, ..plan.clone() }, reserved);
    let allowed = plan.memory_bytes.unwrap_or(u64::MAX);
    let room = allowed.saturating_sub(without.total());
    (room / WORKERS_PART / each).clamp(1, plan.cpu_workers)
}

/// One attempt to cut the output, with a given number of workers.
struct Fitting<'a> {
    job: &'a Job,
    whole: &'a Job,
    plan: Plan,
    fixed: Projection,
    held_bytes: u64,
    planning_peak_bytes: u64,
}

impl Fitting<'_> {
    fn fit(self) -> Result<Fitted> {
        let (job, plan) = (self.job, &self.plan);
        let allowed = plan.memory_bytes.unwrap_or(u64::MAX);
        let chunk = plan.max_chunk_bytes.unwrap_or(u64::MAX);
        // Samples that are kept are not available to the passes.
        let kept = if job.two_pass.is_some() { matching_bytes(job, plan) } else { 0 };
        let taken = self.fixed.total().saturating_add(self.workers_bytes()).saturating_add(kept);
        let host = allowed.saturating_sub(taken).min(chunk);
        let room = Room {
            host,
            device: plan.use_gpu.then(|| plan.gpu_max_chunk_bytes.unwrap_or(u64::MAX)),
        };
        let rows_on_gpu = plan.gpu_rows_per_chunk.filter(|_| plan.use_gpu).unwrap_or(u64::MAX);
        let most_rows = plan.rows_per_chunk.unwrap_or(u64::MAX).min(rows_on_gpu);
        let most_rows = (most_rows.min(job.height as u64) as usize).max(1);
        let preferred = match plan.rows_per_chunk {
            Some(_) => most_rows,
            None => PREFERRED_ROWS.max(ROWS_PER_WORKER * plan.cpu_workers as usize).min(most_rows),
        };
        if let Some((layout, need)) = choose(job, most_rows, preferred, room) {
            let (projection, chunk_bytes) = self.project(layout, need.bytes());
            if projection.total() > allowed {
                return Err(projection.refusal(allowed, self.held_bytes));
            }
            let passes = self.workers_bytes() + chunk_bytes;
            let plan = Plan {
                rows_per_chunk: Some(layout.band_rows as u64),
                max_chunk_bytes: Some(chunk_bytes),
                gpu_rows_per_chunk: if self.plan.use_gpu {
                    Some(layout.band_rows as u64)
                } else {
                    self.plan.gpu_rows_per_chunk
                },
                ..self.plan
            };
            return Ok(Fitted {
                layout,
                plan,
                projection,
                outside_bytes: self.fixed.total() + kept,
                coverage_bytes: passes + coverage_bytes(job, passes),
            });
        }
        if let Some(bytes) = room.device
            && choose(job, most_rows, preferred, Room { device: None, ..room }).is_some()
        {
            return Err(Error::Budget(format!(
                "the plan's gpu_max_chunk_bytes of {bytes} bytes is too small: coordinate grids and \
                 the smallest blocks of this job take more"
            )));
        }
        let (least, chunk_bytes) = self.project(least_layout(job), least_window_bytes(job));
        if least.total() <= allowed {
            return Err(Error::Budget(format!(
                "the plan's max_chunk_bytes of {chunk} bytes is too small: the smallest blocks take \
                 {chunk_bytes} bytes"
            )));
        }
        Err(least.refusal(allowed, self.held_bytes))
    }

    fn workers_bytes(&self) -> u64 {
        let is_marked = self.plan.use_gpu && self.job.two_pass.is_some();
        let marking = covered_len(self.job, is_marked) as u64;
        self.plan.cpu_workers * worker_bytes(self.job) + marking
    }

    /// What matching takes beyond what the passes will take after it. Its samples are kept for a
    /// second pass, and dropped before a single one; those of the whole are dropped before its parts.
    fn matching_bytes(&self, passes: u64) -> u64 {
        let (job, plan) = (self.job, &self.plan);
        let kept = if job.two_pass.is_some() { matching_bytes(job, plan) } else { 0 };
        let dropped = matching_bytes(self.whole, plan).max(matching_bytes(job, plan));
        kept.max(dropped.saturating_sub(passes))
    }

    /// The worst moment with this layout, and the part of it that the plan calls a chunk: windows,
    /// running values, bounds and output rows.
    fn project(&self, layout: Layout, windows: u64) -> (Projection, u64) {
        let mut projection = self.fixed.clone();
        projection.add("workers", self.workers_bytes());
        projection.add("windows", windows);
        projection.add("running values", layout.running_bytes(self.job));
        projection.add("bounds", layout.bounds_bytes(self.job));
        projection.add("output rows", layout.output_bytes(self.job));
        let chunk = windows + layout.pixel_bytes(self.job);
        let passes = self.workers_bytes() + chunk;
        projection.add("matching", self.matching_bytes(passes));
        projection.add("coverage", coverage_bytes(self.job, passes));
        // Planning may have taken more for a moment than the pass will.
        let above = self.planning_peak_bytes.saturating_sub(projection.total());
        projection.add("planning", above);
        (projection, chunk)
    }
}

/// The best layout that there is room for, if there is one.
fn choose(job: &Job, most_rows: usize, preferred: usize, room: Room) -> Option<(Layout, Need)> {
    if job.combine.is_stacked() {
        return widest_at_once(job, preferred, room);
    }
    let least_rows = LEAST_ROWS.min(most_rows);
    let at_once = tallest_at_once(job, job.width, preferred, room);
    let in_turn = |columns, least| tallest_in_turn(job, columns, most_rows, least, room);
    if let Some((layout, need)) = at_once
        && layout.band_rows >= least_rows
    {
        // More files than can stay open are opened anew for each band: then rather tall bands.
        let crowded = need.most_files > source::MOST_OPEN && layout.band_rows < job.height;
        let rather = (2 * layout.band_rows).min(most_rows);
        let taller = if crowded { in_turn(job.width, rather) } else { None };
        return taller.or(at_once);
    }
    let mut columns = job.width;
    loop {
        let found = in_turn(columns, least_rows);
        if found.is_some() {
            return found;
        }
        if columns <= LEAST_COLUMNS {
            // Whatever still fits, thin as it may be.
            return at_once.or_else(|| in_turn(columns, 1));
        }
        columns = columns.div_ceil(2).max(LEAST_COLUMNS);
    }
}

/// The widest blocks, in the tallest bands up to `most_rows`, whose inputs are all loaded at once:
/// who looks at all samples of a pixel cannot take inputs in turn.
fn widest_at_once(job: &Job, most_rows: usize, room: Room) -> Option<(Layout, Need)> {
    let least_rows = LEAST_ROWS.min(most_rows);
    let mut columns = job.width;
    loop {
        let found = tallest_at_once(job, columns, most_rows, room);
        let tall = found.filter(|(layout, _)| layout.band_rows >= least_rows);
        if tall.is_some() || columns <= LEAST_COLUMNS {
            return tall;
        }
        columns = columns.div_ceil(2).max(LEAST_COLUMNS);
    }
}

/// The tallest bands, up to `most_rows`, of blocks so wide, whose inputs are all loaded at once.
fn tallest_at_once(
    job: &Job,
    columns: usize,
    most_rows: usize,
    room: Room,
) -> Option<(Layout, Need)> {
    let fits = |band_rows| {
        let layout = Layout {
            band_rows,
            block_columns: columns,
            step_values: None,
            on_device: room.device.is_some(),
        };
        let rest = room.less(job, layout)?;
        layout.need_within(job, rest).map(|need| (layout, need))
    };
    let (mut low, mut high, mut best) = (0, most_rows + 1, None);
    let mut rows = most_rows;
    // To a sixteenth of the height: finer steps gain nothing.
    while high - low > (high / 16).max(1) {
        match fits(rows) {
            Some(found) => (low, best) = (rows, Some(found)),
            None => high = rows,
        }
        rows = usize::midpoint(low, high).max(1);
    }
    best
}

/// The tallest bands from `least_rows` to `most_rows` whose inputs are loaded one after the other.
fn tallest_in_turn(
    job: &Job,
    columns: usize,
    most_rows: usize,
    least_rows: usize,
    room: Room,
) -> Option<(Layout, Need)> {
    let mut rows = most_rows;
    while rows >= least_rows.max(1) {
        let mut layout = Layout {
            band_rows: rows,
            block_columns: columns,
            step_values: Some(0),
            on_device: room.device.is_some(),
        };
        let rest = room.less(job, layout).unwrap_or(Room { host: 0, ..room });
        let affordable = rest.least() as usize / (2 * size_of::<f32>());
        let largest = largest_window(job, columns, rows);
        // Larger steps than these gain nothing.
        let mut values = affordable.min(PREFERRED_STEP_VALUES.max(largest));
        while values >= largest.max(1) {
            layout.step_values = Some(values);
            let found = layout.need_within(job, rest).map(|need| (layout, need));
            if found.is_some() {
                return found;
            }
            // What a device takes beside the values is not known before.
            values = if room.device.is_some() { values / 2 } else { 0 };
        }
        rows = rows * 3 / 4;
    }
    None
}

/// An upper bound on the values of any window of a block.
fn largest_window(job: &Job, columns: usize, rows: usize) -> usize {
    let each = (0..job.inputs.len()).map(|input| most_values(job, input, columns, rows));
    each.max().unwrap_or(0)
}

/// The layout that needs least.
fn least_layout(job: &Job) -> Layout {
    let block_columns = job.width.min(LEAST_COLUMNS);
    if job.combine.is_stacked() {
        // Thinner ones need little less, since every input brings its taps.
        let band_rows = job.height.min(LEAST_ROWS);
        return Layout { band_rows, block_columns, step_values: None, on_device: false };
    }
    Layout { band_rows: 1, block_columns, step_values: Some(0), on_device: false }
}

fn least_window_bytes(job: &Job) -> u64 {
    let least = least_layout(job);
    match least.step_values {
        Some(_) => (2 * size_of::<f32>() * largest_window(job, least.block_columns, 1)) as u64,
        None => least.need(job).bytes(),
    }
}

/// All that is not leased from the ledger of a pass.
fn fixed_terms(job: &Job, whole: &Job, plan: &Plan, reserved: &Projection) -> Projection {
    let mut terms = reserved.clone();
    terms.add("decompressed inputs", whole.deferred_bytes());
    // While one is decompressed its file, and copies in other byte orders, exist beside it.
    terms.add("decompressing", whole.largest_packed_bytes().saturating_mul(DECOMPRESSING));
    terms.add("coordinate grids", job.grid_bytes());
    if plan.use_gpu {
        terms.add("device tables", memory::host_bytes(job));
    }
    let threads = plan.cpu_workers + SERVICE_THREADS;
    terms.add("thread stacks", threads * STACK_BYTES as u64);
    terms.add("interpreter growth", SERVICE_BYTES);
    terms
}

/// What it takes to match the inputs of a job, if they are matched.
fn matching_bytes(job: &Job, plan: &Plan) -> u64 {
    if job.matching.is_some() { photometry::bytes(job, plan.cpu_workers) } else { 0 }
}

/// What a worker leases.
fn worker_bytes(job: &Job) -> u64 {
    let merging = match job.two_pass {
        Some(_) => MarkBuffer::BYTES + MergeSink::worker_bytes(job.channels, job.width),
        None => 0,
    };
    let sweeps = job.combine.sweeps().into_iter();
    let gathering = sweeps.map(|sweep| sweep.worker_bytes(job)).max().unwrap_or(0);
    gathering + READ_CHUNK_BYTES as u64 + merging
}

/// What the work on the coverage, between the passes, takes beyond what the passes have taken.
fn coverage_bytes(job: &Job, passes: u64) -> u64 {
    let least = |rules: Rules| {
        let percentile = percentile::worker_bytes(job.width, job.channels);
        // A blur that makes no sense is refused where it begins.
        gains::least_bytes(job.width, rules.sigma_px).unwrap_or(0).max(percentile)
    };
    job.two_pass.map_or(0, |rules| least(rules).saturating_sub(passes))
}
