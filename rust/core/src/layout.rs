//! Cutting the output so that it fits the memory limit.
//!
//! A band is a run of output rows at full width, the unit of output. A block is a rectangle of a
//! band, the unit of memory: usually the whole band, or several when the canvas is so wide that
//! not even a few rows fit. A step is what is loaded and computed at once: usually all inputs of a
//! block; when there are so many that bands would be thin, some inputs after the other, while the
//! block's running values wait in memory. Then bands can be tall, and each file is opened and read
//! once or twice instead of once a band.

use std::collections::HashSet;
use std::ops::Range;

use crate::budget::Projection;
use crate::coadd::{COLUMNS, ROWS, Stack};
use crate::coverage::gains::{self, Rules};
use crate::coverage::marks::{Mark, MarkBuffer, Marks};
use crate::coverage::merge::MergeSink;
use crate::coverage::percentile;
use crate::device::memory;
use crate::geom::Rect;
use crate::job::Job;
use crate::load;
use crate::parallel::STACK_BYTES;
use crate::pass::covered_len;
use crate::photometry;
use crate::plan::Plan;
use crate::source::{self, READ_CHUNK_BYTES, Source, Store};
use crate::window::{MOST_PIXELS, Window, most_values, windows_of};
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

/// What is loaded and computed at once.
#[derive(Debug)]
pub struct Step {
    /// The output pixels.
    pub rect: Rect,
    /// Windows of some or all inputs, in job order.
    pub windows: Vec<Window>,
    /// Whether these are the first inputs of the block.
    pub is_first: bool,
    /// Whether these are the last.
    pub is_last: bool,
}

impl Step {
    fn len(&self, job: &Job) -> usize {
        self.windows.iter().map(|w| w.len(job)).sum()
    }

    fn exact_len(&self, job: &Job) -> usize {
        self.windows.iter().map(|w| w.exact_len(job)).sum()
    }
}

/// How the output is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Rows of a band.
    pub band_rows: usize,
    /// Columns of a block.
    pub block_columns: usize,
    /// Values of the windows of a step; `None` = all inputs of a block at once.
    pub step_values: Option<usize>,
    /// Whether a device computes the rows, and decodes what is stored.
    pub on_device: bool,
}

/// What a job will move, foretold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bands.
    pub bands: usize,
    /// Blocks.
    pub blocks: usize,
    /// Steps.
    pub steps: usize,
    /// Bytes read from input files in one pass, in all its sweeps.
    pub read_bytes: u64,
    /// Bytes of pixels written in one pass.
    pub write_bytes: u64,
    /// Samples of one pass at most, in all its sweeps: output pixels in the inputs' boxes, each
    /// channel by itself.
    pub samples: u64,
    /// Sweeps over the inputs in one pass.
    pub sweeps: u64,
    /// Bytes of the scratch file of bounds that a pass of several sweeps needs.
    pub bounds_bytes: u64,
    /// Bytes of scratch files that a second pass needs: one image, its variance if that is wanted,
    /// and the marks of the inputs (as many as there are without gaps in their masks; with stacks,
    /// at most).
    pub two_pass_bytes: u64,
}

/// What the steps of a layout need at their worst. Two are held at once, an even and an odd one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Need {
    /// Values of the largest windows.
    pub values: [usize; 2],
    /// Doubles of the largest set of exact records.
    pub exact: [usize; 2],
    /// Of a device's memory, if one computes the rows.
    device: memory::Need,
    /// Most input files of a step.
    most_files: usize,
}

impl Need {
    fn bytes(&self) -> u64 {
        let windows = (self.values[0] + self.values[1]) * size_of::<f32>()
            + (self.exact[0] + self.exact[1]) * size_of::<f64>();
        windows as u64 + self.device.host_bytes()
    }

    fn fits(&self, job: &Job, room: Room) -> bool {
        let fits_device = |bytes| self.device.bytes(job) <= bytes;
        self.bytes() <= room.host && room.device.is_none_or(fits_device)
    }
}

/// Bytes that may be taken: of the process's memory, and of a device's, if one computes the rows.
#[derive(Clone, Copy)]
struct Room {
    host: u64,
    device: Option<u64>,
}

impl Room {
    /// What is left beside the output pixels of a layout.
    fn less(self, job: &Job, layout: Layout) -> Option<Self> {
        let host = self.host.checked_sub(layout.pixel_bytes(job))?;
        let taken = || memory::tables_bytes(job) + memory::pixel_bytes(job, layout);
        match self.device {
            Some(bytes) => Some(Self { host, device: Some(bytes.checked_sub(taken())?) }),
            None => Some(Self { host, device: None }),
        }
    }

    /// The less of both.
    fn least(self) -> u64 {
        self.host.min(self.device.unwrap_or(u64::MAX))
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

    /// The steps, in order. Every block has at least one.
    pub fn steps(self, job: &Job) -> impl Iterator<Item = Step> + '_ {
        self.rects(job.height, job.width).flat_map(move |rect| self.steps_of(job, rect))
    }

    fn steps_of(self, job: &Job, rect: Rect) -> Vec<Step> {
        let whole_rows = self.step_values.is_none() && rect.width() == job.width;
        let inputs = 0..job.inputs.len();
        let windows =
            inputs.flat_map(|input| windows_of(job, input, &rect, whole_rows, self.on_device));
        let most = self.step_values.unwrap_or(usize::MAX);
        let step = |is_first| Step { rect, windows: Vec::new(), is_first, is_last: false };
        let (mut steps, mut values) = (vec![step(true)], 0);
        for window in windows {
            let more = window.values(job) + 2 * window.exact_len(job);
            if values > 0 && values + more > most {
                steps.push(step(false));
                values = 0;
            }
            values += more;
            steps.last_mut().expect("there is one").windows.push(window);
        }
        steps.last_mut().expect("there is one").is_last = true;
        steps
    }

    /// What the steps need at their worst.
    pub(crate) fn need(self, job: &Job) -> Need {
        let endless = Room { host: u64::MAX, device: None };
        self.need_within(job, endless).expect("the layout was chosen within a limit")
    }

    /// What the steps need at their worst, or nothing as soon as that is more than there is room for.
    fn need_within(self, job: &Job, room: Room) -> Option<Need> {
        let mut need = Need::default();
        for (k, step) in self.steps(job).enumerate() {
            need.values[k % 2] = need.values[k % 2].max(step.len(job));
            need.exact[k % 2] = need.exact[k % 2].max(step.exact_len(job));
            if room.device.is_some() {
                need.device.extend(job, &step, k);
            }
            if !need.fits(job, room) || step.windows.iter().any(|w| w.rect.area() > MOST_PIXELS) {
                return None;
            }
            let is_file =
                |w: &&Window| matches!(job.inputs[w.input].image.store, Store::File { .. });
            let files: HashSet<_> = step.windows.iter().filter(is_file).map(|w| w.input).collect();
            let files = files.into_iter().map(|input| job.inputs[input].n_files()).sum();
            need.most_files = need.most_files.max(files);
        }
        Some(need)
    }

    /// Pixels of a block.
    pub(crate) fn block_area(self, job: &Job) -> usize {
        self.band_rows.min(job.height) * self.block_columns.min(job.width)
    }

    /// Values of a block's running planes, which exist when inputs come one after the other.
    pub(crate) fn running_len(self, job: &Job) -> usize {
        if self.step_values.is_some() { self.block_area(job) } else { 0 }
    }

    fn running_bytes(self, job: &Job) -> u64 {
        (job.running_planes() * self.running_len(job) * size_of::<f64>()) as u64
    }

    /// Bytes of a block's bounds.
    fn bounds_bytes(self, job: &Job) -> u64 {
        (job.bounds_planes() * self.block_area(job) * size_of::<f32>()) as u64
    }

    /// Bytes of the output rows: one band that is being computed, one that is being written.
    fn output_bytes(self, job: &Job) -> u64 {
        let rows = self.band_rows.min(job.height);
        (2 * job.planes() * rows * job.width * size_of::<f32>()) as u64
    }

    /// Bytes of all that holds values of output pixels between two steps.
    fn pixel_bytes(self, job: &Job) -> u64 {
        self.output_bytes(job) + self.running_bytes(job) + self.bounds_bytes(job)
    }

    /// What one pass will read and write.
    pub fn traffic(self, job: &Job) -> Traffic {
        let mut traffic = Traffic {
            bands: job.height.div_ceil(self.band_rows),
            write_bytes: job.output_bytes(),
            ..Traffic::default()
        };
        let mut before: Option<Step> = None;
        let (mut marks, mut tasks) = (0, 0);
        for step in self.steps(job) {
            tasks += step.rect.height().div_ceil(ROWS);
            traffic.steps += 1;
            traffic.blocks += usize::from(step.is_first);
            for window in &step.windows {
                let kept = before.as_ref().and_then(|b| window.kept(&b.windows));
                let kept = kept.map_or(0..0, |(_, rows)| rows);
                let input = &job.inputs[window.input];
                let served = Rect::new(window.out_x.clone(), step.rect.y0..step.rect.y1);
                let served = served.intersect(&input.grid.rect());
                traffic.samples += (served.area() * job.channels) as u64;
                let columns = if job.combine.is_stacked() { Stack::LEAST_COLUMNS } else { COLUMNS };
                marks += served.height() * tiles_across(&served, &step.rect, columns);
                for source in input.sources() {
                    traffic.read_bytes += read_bytes(source, &window.rect, &kept);
                }
            }
            before = Some(step);
        }
        traffic.sweeps = job.combine.sweeps().len() as u64;
        traffic.read_bytes *= traffic.sweeps;
        traffic.samples *= traffic.sweeps;
        let plane = (job.height * job.width * size_of::<f32>()) as u64;
        traffic.bounds_bytes = job.bounds_planes() as u64 * plane;
        if job.two_pass.is_some() {
            let planes = (job.channels + job.variance_planes()) as u64;
            traffic.two_pass_bytes = planes * plane + (marks * size_of::<Mark>()) as u64;
            // What is saved of the marks stays until what follows it is on the disk.
            traffic.two_pass_bytes += 2 * Marks::saved_bytes(tasks, marks);
        }
        traffic
    }
}

/// Tiles of the block `block`, side by side and so wide, that `served` touches: a row is marked in
/// each anew.
fn tiles_across(served: &Rect, block: &Rect, columns: usize) -> usize {
    let tile = |x: i64| (x - block.x0) as usize / columns;
    if served.is_empty() { 0 } else { tile(served.x1 - 1) - tile(served.x0) + 1 }
}

/// Bytes that reading the rows of `rect`, less those `kept`, fetches from a file.
fn read_bytes(source: &Source, rect: &Rect, kept: &Range<i64>) -> u64 {
    let frame = Rect::frame(source.width, source.height);
    let kept = if kept.is_empty() { rect.y0..rect.y0 } else { kept.clone() };
    let unread = [rect.y0..kept.start, kept.end..rect.y1].into_iter().flat_map(load::pieces);
    // Windows stick out of the frame, where nothing is read.
    let inside = unread.map(|rows| Rect::new(rect.x0..rect.x1, rows).intersect(&frame));
    inside.filter(|part| !part.is_empty()).map(|part| source::cost(source, &part)).sum()
}

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
