//! The one loop over the output.
//!
//! Block by block, from top to bottom: while the workers compute a block they also read the next
//! one (reading comes first in their list), and a writer of its own puts finished bands on disk.
//! Every output row is computed by one worker, inputs in job order; that is why the pixels do not
//! depend on the number of threads, on the height of the bands or on the memory limit.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::budget::{LeasedVec, Ledger};
use crate::cancel::CancelToken;
use crate::coadd::{self, Tile, TileBuffers};
use crate::cpu::dispatched;
use crate::geom::Rect;
use crate::job::{Input, Job};
use crate::layout::{Block, Layout, Window};
use crate::parallel::{self, STACK_BYTES};
use crate::plan::Plan;
use crate::reproject::{Loaded, Workspace, project};
use crate::resample::TapTable;
use crate::sink::Sink;
use crate::source::{FileCache, READ_CHUNK_BYTES};
use crate::{Error, Result};

/// Source rows that one task reads.
const READ_ROWS: i64 = 64;

/// How far a pass has come, for whoever watches it from another thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes read from input files.
    pub read_bytes: AtomicU64,
    /// Output rows written.
    pub rows_written: AtomicU64,
}

/// What a pass found out.
#[derive(Clone, Debug, Default)]
pub struct PassStats {
    /// Valid samples of each input.
    pub samples: Vec<u64>,
    /// Bytes read from input files.
    pub read_bytes: u64,
    /// How often an input file was opened.
    pub files_opened: u64,
    /// Worker threads.
    pub workers: usize,
    /// Most bytes on loan from the ledger at once.
    pub ledger_peak: u64,
}

/// Make the mosaic of `job`, cut as `layout` says, with the resources of `plan`.
pub fn run_pass(
    job: &Job,
    layout: Layout,
    plan: &Plan,
    ledger: &Arc<Ledger>,
    sink: &dyn Sink,
    cancel: &CancelToken,
    progress: &Progress,
) -> Result<PassStats> {
    let files = FileCache::default();
    let pass =
        Pass { job, table: TapTable::new(job.kernel), files: &files, sink, cancel, progress };
    let workers = plan.cpu_workers as usize;
    let crew = (0..workers).map(|_| Worker::new(job, ledger));
    let mut crew = crew.collect::<Result<Vec<_>>>()?;
    let (windows, exact) = layout.arena_lens(job);
    let mut arenas = Vec::new();
    for parity in 0..2 {
        arenas.push(Arena {
            pixels: ledger.zeroed(windows[parity])?,
            exact: ledger.zeroed(exact[parity])?,
        });
    }
    let spare = Band::new(job, layout, ledger)?;
    let mut band = Band::new(job, layout, ledger)?;

    thread::scope(|scope| {
        let (send, bands) = sync_channel::<Band>(1);
        let (give_back, returned) = sync_channel::<Band>(2);
        give_back.send(spare).expect("the other end is in this function");
        let writer = thread::Builder::new().name("zmrs-writer".to_owned());
        let writer = writer
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || write_bands(job, sink, progress, bands, give_back))
            .map_err(|e| Error::Argument(format!("no thread could be started ({e})")))?;

        let done = pass.blocks(layout, &mut crew, &mut arenas, &mut band, &send, &returned);
        drop(send);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // When the writer fails the loop only learns that nobody listens: the writer knows why.
        written.and(done)
    })?;

    let mut samples = vec![0; job.inputs.len()];
    for worker in &crew {
        for (sum, count) in samples.iter_mut().zip(&worker.samples) {
            *sum += count;
        }
    }
    Ok(PassStats {
        samples,
        read_bytes: progress.read_bytes.load(Ordering::Relaxed),
        files_opened: files.opened(),
        workers,
        ledger_peak: ledger.peak(),
    })
}

/// What every task of a pass may look at.
struct Pass<'a> {
    job: &'a Job,
    table: TapTable,
    files: &'a FileCache,
    sink: &'a dyn Sink,
    cancel: &'a CancelToken,
    progress: &'a Progress,
}

/// What one worker owns.
struct Worker {
    tile: TileBuffers,
    chunk: LeasedVec<u8>,
    space: Workspace,
    samples: Vec<u64>,
}

impl Worker {
    fn new(job: &Job, ledger: &Arc<Ledger>) -> Result<Self> {
        Ok(Self {
            tile: TileBuffers::new(job.channels, ledger)?,
            chunk: ledger.zeroed(READ_CHUNK_BYTES)?,
            space: Workspace::default(),
            samples: vec![0; job.inputs.len()],
        })
    }
}

/// Memory for the windows of one block.
struct Arena {
    pixels: LeasedVec<f32>,
    exact: LeasedVec<f64>,
}

/// Finished rows on their way to the sink.
struct Band {
    planes: Vec<LeasedVec<f32>>,
    rows: Range<usize>,
}

impl Band {
    fn new(job: &Job, layout: Layout, ledger: &Arc<Ledger>) -> Result<Self> {
        let len = layout.band_rows.min(job.height) * job.width;
        let planes = (0..job.planes()).map(|_| ledger.zeroed(len));
        Ok(Self { planes: planes.collect::<Result<_>>()?, rows: 0..0 })
    }
}

/// The writer: takes bands in order, writes them, gives their buffers back.
fn write_bands(
    job: &Job,
    sink: &dyn Sink,
    progress: &Progress,
    bands: Receiver<Band>,
    give_back: SyncSender<Band>,
) -> Result<()> {
    for band in bands {
        let len = band.rows.len() * job.width;
        let planes: Vec<&[f32]> = band.planes.iter().map(|plane| &plane[..len]).collect();
        sink.write(band.rows.clone(), &planes)?;
        progress.rows_written.fetch_add(band.rows.len() as u64, Ordering::Relaxed);
        // Nobody waits for the last one.
        let _ = give_back.send(band);
    }
    Ok(())
}

/// A piece of work for one worker.
enum Task<'a> {
    /// Source rows of a window of the next block: read, or kept from the present block.
    Load(LoadRows<'a>),
    /// Coordinates of the exact cells of a window of the next block.
    LoadExact(&'a Window, &'a mut [f64]),
    /// Output rows of the present block.
    Rows(OutputRows<'a>),
}

struct LoadRows<'a> {
    window: &'a Window,
    rows: Range<i64>,
    planes: Vec<&'a mut [f32]>,
    from: Option<Loaded<'a>>,
}

struct OutputRows<'a> {
    rect: Rect,
    planes: Vec<&'a mut [f32]>,
    last_of_band: bool,
}

impl Pass<'_> {
    /// All blocks, in order.
    fn blocks(
        &self,
        layout: Layout,
        crew: &mut [Worker],
        arenas: &mut [Arena],
        band: &mut Band,
        send: &SyncSender<Band>,
        returned: &Receiver<Band>,
    ) -> Result<()> {
        let [now, next] = arenas else { unreachable!("there are two") };
        let (mut now, mut next) = (now, next);
        let job = self.job;
        let mut blocks = layout.rects(job.height, job.width).map(|rect| Block::new(job, rect));
        let mut present = blocks.next();
        if let Some(first) = &present {
            let tasks = self.load_tasks(first, now, &[]);
            parallel::run(crew, tasks, |task, worker| self.work(task, &[], worker))?;
        }
        while let Some(block) = present {
            let following = blocks.next();
            let loaded = loaded(job, &block, now);
            let mut tasks = match &following {
                Some(following) => self.load_tasks(following, next, &loaded),
                None => Vec::new(),
            };
            let last_of_band = block.rect.x1 == job.width as i64;
            tasks.extend(self.row_tasks(&block, band, last_of_band));
            parallel::run(crew, tasks, |task, worker| self.work(task, &loaded, worker))?;
            if last_of_band {
                band.rows = block.rect.y0 as usize..block.rect.y1 as usize;
                // Both fail only when the writer has stopped, which says why itself.
                let spare = returned.recv().map_err(|_| Error::Cancelled)?;
                let full = mem::replace(band, spare);
                send.send(full).map_err(|_| Error::Cancelled)?;
            }
            mem::swap(&mut now, &mut next);
            present = following;
        }
        Ok(())
    }

    /// Tasks that fill `arena` with the windows of `block`, given the block before it.
    fn load_tasks<'a>(
        &self,
        block: &'a Block,
        arena: &'a mut Arena,
        before: &[Loaded<'a>],
    ) -> Vec<Task<'a>> {
        let job = self.job;
        let mut tasks = Vec::new();
        let (mut pixels, mut exact) = (&mut arena.pixels[..], &mut arena.exact[..]);
        for window in &block.windows {
            let (mine, rest) = mem::take(&mut pixels).split_at_mut(window.len(job));
            pixels = rest;
            let (records, rest) = mem::take(&mut exact).split_at_mut(window.exact_len(job));
            exact = rest;
            if !records.is_empty() {
                tasks.push(Task::LoadExact(window, records));
            }
            let kept = window.kept(before.iter().map(|loaded| loaded.window));
            let (from, kept) = match kept {
                Some((place, rows)) => (Some(before[place]), rows),
                None => (None, window.rect.y0..window.rect.y0),
            };
            let rect = window.rect;
            let mut planes: Vec<_> = mine.chunks_mut(rect.area()).collect();
            planes.truncate(job.inputs[window.input].planes());
            for (rows, from) in
                [(rect.y0..kept.start, None), (kept.clone(), from), (kept.end..rect.y1, None)]
            {
                for start in rows.clone().step_by(READ_ROWS as usize) {
                    let rows = start..rows.end.min(start + READ_ROWS);
                    let values = (rows.end - rows.start) as usize * rect.width();
                    let planes = take_front(&mut planes, values);
                    tasks.push(Task::Load(LoadRows { window, rows, planes, from }));
                }
            }
        }
        tasks
    }

    /// Tasks that compute the rows of `block` into `band`.
    fn row_tasks<'a>(
        &self,
        block: &Block,
        band: &'a mut Band,
        last_of_band: bool,
    ) -> Vec<Task<'a>> {
        let mut planes: Vec<_> = band.planes.iter_mut().map(|plane| &mut plane[..]).collect();
        let rect = block.rect;
        let mut tasks = Vec::new();
        for y in (rect.y0..rect.y1).step_by(coadd::ROWS) {
            let rows = y..rect.y1.min(y + coadd::ROWS as i64);
            let values = (rows.end - rows.start) as usize * self.job.width;
            tasks.push(Task::Rows(OutputRows {
                rect: Rect::new(rect.x0..rect.x1, rows),
                planes: take_front(&mut planes, values),
                last_of_band,
            }));
        }
        tasks
    }

    fn work(&self, task: Task, loaded: &[Loaded], worker: &mut Worker) -> Result<()> {
        self.cancel.check()?;
        match task {
            Task::Load(rows) => self.load(rows, worker),
            Task::LoadExact(window, records) => self.load_exact(window, records),
            Task::Rows(mut rows) => {
                let (job, table) = (self.job, &self.table);
                compute_rows(job, table, loaded, &rows.rect, &mut rows.planes, worker);
                if rows.last_of_band {
                    for plane in rows.planes {
                        self.sink.encode(plane);
                    }
                }
                Ok(())
            }
        }
    }

    fn load(&self, task: LoadRows, worker: &mut Worker) -> Result<()> {
        let LoadRows { window, rows, mut planes, from } = task;
        let (rect, width) = (window.rect, window.rect.width());
        if let Some(from) = from {
            keep_rows(&rect, rows, &mut planes, &from);
            return Ok(());
        }
        let input = &self.job.inputs[window.input];
        let [frame_width, frame_height] = input.grid.frame();
        let wanted = Rect::new(rect.x0..rect.x1, rows.clone());
        let inside = wanted.intersect(&Rect::frame(frame_width, frame_height));
        let margin = (inside.x0 - rect.x0).max(0) as usize;
        let above = (inside.y0 - rows.start).max(0) as usize * width;
        for (k, plane) in planes.iter_mut().enumerate() {
            if inside != wanted {
                plane.fill(f32::NAN);
            }
            if inside.is_empty() {
                continue;
            }
            let (source, key, channel) = match &input.weight_map {
                Some(map) if k == input.image.channels => (map, 2 * window.input + 1, 0),
                _ => (&input.image, 2 * window.input, k),
            };
            let out = &mut plane[above + margin..];
            let chunk = &mut worker.chunk;
            let read = source.read(key, self.files, channel, &inside, out, width, chunk)?;
            self.progress.read_bytes.fetch_add(read, Ordering::Relaxed);
        }
        share_validity(input, &mut planes);
        Ok(())
    }

    fn load_exact(&self, window: &Window, records: &mut [f64]) -> Result<()> {
        let grid = &self.job.inputs[window.input].grid;
        let exact = grid.exact().expect("only such grids have exact cells");
        let len = grid.spacing() * grid.spacing() * 2;
        for (record, &index) in records.chunks_mut(len).zip(&window.exact) {
            // SAFETY: any bytes are doubles, and nobody else sees these.
            let bytes = unsafe {
                std::slice::from_raw_parts_mut(record.as_mut_ptr().cast(), size_of_val(record))
            };
            let at = u64::from(index) * bytes.len() as u64;
            crate::source::read_exact_at(&exact.file, bytes, at)
                .map_err(|e| Error::Argument(format!("scratch cannot be read back ({e})")))?;
        }
        Ok(())
    }
}

/// Cut `len` values off the front of every plane.
fn take_front<'a>(planes: &mut [&'a mut [f32]], len: usize) -> Vec<&'a mut [f32]> {
    let mut fronts = Vec::with_capacity(planes.len());
    for plane in planes {
        let (front, rest) = mem::take(plane).split_at_mut(len);
        *plane = rest;
        fronts.push(front);
    }
    fronts
}

/// The windows of a block with their pixels in `arena`.
fn loaded<'a>(job: &Job, block: &'a Block, arena: &'a Arena) -> Vec<Loaded<'a>> {
    let (mut pixels, mut exact) = (&arena.pixels[..], &arena.exact[..]);
    let take = |window: &'a Window| {
        let (mine, rest) = pixels.split_at(window.len(job));
        pixels = rest;
        let (records, rest) = exact.split_at(window.exact_len(job));
        exact = rest;
        Loaded { window, pixels: mine, exact: records }
    };
    block.windows.iter().map(take).collect()
}

/// Copy rows that the block before has already decoded.
fn keep_rows(rect: &Rect, rows: Range<i64>, planes: &mut [&mut [f32]], from: &Loaded) {
    let old = &from.window.rect;
    let shift = (rect.x0 - old.x0) as usize;
    for (k, plane) in planes.iter_mut().enumerate() {
        let source = &from.pixels[k * old.area()..][..old.area()];
        for (row, y) in plane.chunks_mut(rect.width()).zip(rows.clone()) {
            let first = (y - old.y0) as usize * old.width() + shift;
            row.copy_from_slice(&source[first..first + row.len()]);
        }
    }
}

/// A pixel is valid when it is in every channel and its weight is positive.
fn share_validity(input: &Input, planes: &mut [&mut [f32]]) {
    if input.weight_map.is_some()
        && let Some((weights, _)) = planes.split_last_mut()
    {
        for weight in weights.iter_mut() {
            *weight = if *weight > 0.0 { *weight } else { f32::NAN };
        }
    }
    let Some((first, others)) = planes.split_first_mut() else { return };
    for other in &*others {
        for (pixel, partner) in first.iter_mut().zip(other.iter()) {
            *pixel = if partner.is_nan() { f32::NAN } else { *pixel };
        }
    }
    for other in others {
        for (pixel, first) in other.iter_mut().zip(first.iter()) {
            *pixel = if first.is_nan() { f32::NAN } else { *pixel };
        }
    }
}

dispatched! {
    /// Compute some output rows of a block, tile by tile.
    fn compute_rows(
        job: &Job,
        table: &TapTable,
        loaded: &[Loaded],
        rect: &Rect,
        planes: &mut [&mut [f32]],
        worker: &mut Worker,
    ) = compute_rows_here
}

#[inline(always)]
fn compute_rows_here(
    job: &Job,
    table: &TapTable,
    loaded: &[Loaded],
    rect: &Rect,
    planes: &mut [&mut [f32]],
    worker: &mut Worker,
) {
    for x in (rect.x0..rect.x1).step_by(coadd::COLUMNS) {
        let columns = x..rect.x1.min(x + coadd::COLUMNS as i64);
        let area = Rect::new(columns, rect.y0..rect.y1);
        let mut tile = Tile::begin(job, area, &mut worker.tile);
        for input in loaded {
            let span = &input.window.out_x;
            if span.end <= area.x0 || span.start >= area.x1 {
                continue;
            }
            let valid = project(job, table, input, &area, &mut tile, &mut worker.space);
            worker.samples[input.window.input] += valid;
        }
        tile.finish(planes, job.width, x as usize);
    }
}
