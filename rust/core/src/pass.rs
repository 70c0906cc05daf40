//! The one loop over the output.
//!
//! Step by step, from top to bottom: while the workers compute a step they also load the next one
//! (loading comes first in their list), and a writer of its own puts finished bands on disk. Every
//! output row is computed by one worker, inputs in job order; that is why the pixels do not depend
//! on the number of threads, on the height of the bands or on the memory limit.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::budget::{LeasedVec, Ledger};
use crate::cancel::CancelToken;
use crate::coadd::{self, Sweep};
use crate::coverage::marks::Marks;
use crate::coverage::planes::FilePlanes;
use crate::device::{Device, DeviceStep};
use crate::geom::Rect;
use crate::job::Job;
use crate::layout::{Layout, Step};
use crate::load::{Arena, LoadTask, Loader, take_front};
use crate::parallel::{self, STACK_BYTES};
use crate::plan::Plan;
use crate::reproject::Loaded;
use crate::resample::TapTable;
use crate::rows::{Bench, OutputRows};
use crate::sink::Sink;
use crate::source::{FileCache, READ_CHUNK_BYTES};
use crate::{Error, Result};

/// How far a pass has come, for whoever watches it from another thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes read from input files.
    pub read_bytes: AtomicU64,
    /// Output rows written.
    pub rows_written: AtomicU64,
    /// Set by whoever wants the pass to stop after the present band, to go on from there later.
    pub pause: AtomicBool,
}

/// How far a pass has come: which of its sweeps, and which row comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Counted from 0.
    pub sweep: usize,
    /// First row that is not finished.
    pub row: usize,
}

/// What a pass, or a stretch of one, found out.
#[derive(Clone, Debug, Default)]
pub struct PassStats {
    /// How far it has come.
    pub reached: Place,
    /// Valid samples of each input.
    pub samples: Vec<u64>,
    /// Samples of each input, those of every channel, that were rejected.
    pub rejected: Vec<u64>,
    /// Bytes read from input files.
    pub read_bytes: u64,
    /// How often an input file was opened.
    pub files_opened: u64,
    /// Worker threads that the system has granted.
    pub workers: usize,
    /// Most bytes on loan from the ledger at once.
    pub ledger_peak: u64,
    /// Most bytes of windows, running values and output rows at once.
    pub chunk_peak: u64,
}

/// One sweep over the inputs of `job`, cut as `layout` says, with the resources of `plan`, from row
/// `first_row` on. `marks` receives where each input lies; `bounds` are what the sweep holds samples
/// against, if it does. With a `device` that computes the rows, and not the workers.
pub fn run_sweep(
    job: &Job,
    sweep: Sweep,
    first_row: usize,
    layout: Layout,
    plan: &Plan,
    ledger: &Arc<Ledger>,
    sink: &dyn Sink,
    marks: Option<&Marks>,
    bounds: Option<&FilePlanes>,
    device: Option<&dyn Device>,
    cancel: &CancelToken,
    progress: &Progress,
) -> Result<PassStats> {
    if layout.on_device && device.is_none() {
        return Err(Error::Argument("a job that is cut for a device needs one".to_owned()));
    }
    let files = FileCache::default();
    let loader = Loader { job, files: &files, read_bytes: &progress.read_bytes };
    let pass = Pass {
        job,
        table: TapTable::new(job.kernel),
        loader,
        sink,
        marks,
        bounds,
        device,
        cancel,
        pause: &progress.pause,
        first_row,
        refused: AtomicUsize::new(0),
    };
    let crew = (0..plan.cpu_workers).map(|_| Worker::new(job, sweep, marks.is_some(), ledger));
    let mut crew = crew.collect::<Result<Vec<_>>>()?;
    let need = layout.need(job);
    let chunk = &ledger.part(plan.max_chunk_bytes.unwrap_or(u64::MAX));
    let arena = |parity: usize| Arena::new(need.values[parity], need.exact[parity], chunk);
    let (mut even, mut odd) = (arena(0)?, arena(1)?);
    let spare = Band::new(job, sweep, layout, chunk)?;
    let mut output = Output {
        running: planes(sweep.running_planes(job), layout.running_len(job), chunk)?,
        bounds: planes(sweep.bounds_planes(job), layout.block_area(job), chunk)?,
        band: Band::new(job, sweep, layout, chunk)?,
        covered: ledger.zeroed(covered_len(job, device.is_some() && marks.is_some()))?,
    };

    let row = thread::scope(|scope| {
        let (send, bands) = sync_channel::<Band>(1);
        let (give_back, returned) = sync_channel::<Band>(2);
        give_back.send(spare).expect("the other end is in this function");
        let writer = thread::Builder::new().name("zmrs-writer".to_owned());
        let writer = writer
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || write_bands(job, sink, progress, bands, give_back))
            .map_err(|e| {
                let remedy = "raise its limit on threads (ulimit -u) or on memory";
                Error::Budget(format!("the system grants no thread ({e}); {remedy}"))
            })?;

        let mut hand_over = |band: &mut Band| {
            // Both fail only when the writer has stopped, which says why itself.
            let spare = returned.recv().map_err(|_| Error::Cancelled)?;
            send.send(mem::replace(band, spare)).map_err(|_| Error::Cancelled)
        };
        let done = {
            // Bands that wait in the channels are given back after it, whatever happens.
            let _release = device.map(Release);
            let arenas = (&mut even, &mut odd);
            pass.steps(layout.steps(job), &mut crew, arenas, &mut output, &mut hand_over)
        };
        drop(send);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // When the writer fails the loop only learns that nobody listens: the writer knows why.
        written.and(done)
    })?;

    let total = |of: fn(&Bench) -> &[u64]| {
        let each = |input: usize| crew.iter().map(|worker| of(&worker.bench)[input]).sum();
        (0..job.inputs.len()).map(each).collect()
    };
    let of_crew = || (total(Bench::samples), total(Bench::rejected));
    let (samples, rejected) = device.map_or_else(|| Ok(of_crew()), Device::counts)?;
    Ok(PassStats {
        reached: Place { sweep: 0, row },
        samples,
        rejected,
        read_bytes: progress.read_bytes.load(Ordering::Relaxed),
        files_opened: files.opened(),
        workers: crew.len() - pass.refused.into_inner(),
        ledger_peak: ledger.peak(),
        chunk_peak: chunk.peak(),
    })
}

/// What every task of a pass may look at.
struct Pass<'a> {
    job: &'a Job,
    table: TapTable,
    loader: Loader<'a>,
    sink: &'a dyn Sink,
    marks: Option<&'a Marks>,
    bounds: Option<&'a FilePlanes>,
    device: Option<&'a dyn Device>,
    cancel: &'a CancelToken,
    pause: &'a AtomicBool,
    /// Rows before this one are finished already.
    first_row: usize,
    /// Most threads that the system has not granted at once.
    refused: AtomicUsize,
}

/// What one worker owns.
struct Worker {
    bench: Bench,
    chunk: LeasedVec<u8>,
}

impl Worker {
    fn new(job: &Job, sweep: Sweep, leaves_marks: bool, ledger: &Arc<Ledger>) -> Result<Self> {
        let bench = Bench::new(job, sweep, leaves_marks, ledger)?;
        Ok(Self { bench, chunk: ledger.zeroed(READ_CHUNK_BYTES)? })
    }
}

fn planes<T: crate::pages::Zero>(
    count: usize,
    len: usize,
    ledger: &Arc<Ledger>,
) -> Result<Vec<LeasedVec<T>>> {
    (0..count).map(|_| ledger.zeroed(len)).collect()
}

/// Finished rows on their way to the sink.
struct Band {
    planes: Vec<LeasedVec<f32>>,
    rows: Range<usize>,
}

impl Band {
    fn new(job: &Job, sweep: Sweep, layout: Layout, ledger: &Arc<Ledger>) -> Result<Self> {
        let len = layout.band_rows.min(job.height) * job.width;
        Ok(Self { planes: planes(sweep.finished_planes(job), len, ledger)?, rows: 0..0 })
    }
}

/// What the steps of a block write.
struct Output {
    /// Running values of the present block, while inputs are still to come; empty when all inputs
    /// come at once.
    running: Vec<LeasedVec<f64>>,
    /// Bounds of the present block, if samples are held against some.
    bounds: Vec<LeasedVec<f32>>,
    band: Band,
    /// What a device says of where an input lies.
    covered: LeasedVec<u8>,
}

/// Tells the device that the buffers of a pass are about to go.
struct Release<'a>(&'a dyn Device);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Pixels of which a device says at once whether an input covers them.
pub(crate) fn covered_len(job: &Job, is_wanted: bool) -> usize {
    if is_wanted { coadd::ROWS * job.width } else { 0 }
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
    /// Part of a window of the next step.
    Load(LoadTask<'a>),
    /// Output rows of the present step.
    Rows(OutputRows<'a>),
    /// Output rows that the device has computed.
    Computed(OutputRows<'a>),
}

impl Pass<'_> {
    /// All steps, in order, less those that are finished already. Returns the row that is reached.
    fn steps(
        &self,
        steps: impl Iterator<Item = Step>,
        crew: &mut [Worker],
        (even, odd): (&mut Arena, &mut Arena),
        output: &mut Output,
        hand_over: &mut dyn FnMut(&mut Band) -> Result<()>,
    ) -> Result<usize> {
        let mut steps = steps.enumerate().skip_while(|(_, step)| self.is_finished(step)).peekable();
        // A step has the arena that its layout has sized for it, wherever the pass begins.
        let is_odd = steps.peek().is_some_and(|(number, _)| number % 2 == 1);
        let (mut now, mut next) = if is_odd { (odd, even) } else { (even, odd) };
        let mut turn = usize::from(is_odd);
        let mut steps = steps.map(|(_, step)| step);
        let mut present = steps.next();
        let mut reached = self.job.height;
        if let Some(first) = &present {
            let tasks = self.loader.tasks(first, now, &[]).into_iter().map(Task::Load);
            self.run(crew, tasks.collect(), &[])?;
            self.bring(turn, &now.loaded(self.job, first))?;
        }
        while let Some(step) = present {
            let following = steps.next();
            let loaded = now.loaded(self.job, &step);
            let mut tasks = Vec::new();
            if let Some(following) = &following {
                tasks.extend(
                    self.loader.tasks(following, next, &loaded).into_iter().map(Task::Load),
                );
            }
            if let Some(device) = self.device {
                self.start(device, &step, output)?;
                self.run(crew, tasks, &loaded)?;
                if let Some(following) = &following {
                    self.bring(1 - turn, &next.loaded(self.job, following))?;
                }
                self.mark(device, &step, &loaded, &mut crew[0].bench, &mut output.covered)?;
                device.finish()?;
                let rows = if step.is_last { self.row_tasks(&step, output) } else { Vec::new() };
                tasks = rows.into_iter().map(Task::Computed).collect();
            } else {
                tasks.extend(self.row_tasks(&step, output).into_iter().map(Task::Rows));
            }
            self.run(crew, tasks, &loaded)?;
            if step.is_last && step.rect.x1 == self.job.width as i64 {
                output.band.rows = self.rows_of(&step).start as usize..step.rect.y1 as usize;
                hand_over(&mut output.band)?;
                if following.is_some() && self.pause.load(Ordering::Relaxed) {
                    reached = step.rect.y1 as usize;
                    break;
                }
            }
            mem::swap(&mut now, &mut next);
            turn = 1 - turn;
            present = following;
        }
        Ok(reached)
    }

    fn is_finished(&self, step: &Step) -> bool {
        step.rect.y1 <= self.first_row as i64
    }

    /// Output rows of a step that are still to be computed.
    fn rows_of(&self, step: &Step) -> Range<i64> {
        step.rect.y0.max(self.first_row as i64)..step.rect.y1
    }

    /// Let the device, if there is one, copy the windows of its next step.
    fn bring(&self, turn: usize, loaded: &[Loaded]) -> Result<()> {
        self.device.map_or(Ok(()), |device| device.bring(turn, loaded))
    }

    /// Have the device begin with the rows of `step`.
    fn start(&self, device: &dyn Device, step: &Step, output: &mut Output) -> Result<()> {
        self.cancel.check()?;
        let rows = self.rows_of(step);
        let count = (rows.end - rows.start) as usize;
        let rect = Rect::new(step.rect.x0..step.rect.x1, rows);
        let (area, len) = (rect.area(), count * self.job.width);
        let mut bounds: Vec<_> = output.bounds.iter_mut().map(|plane| &mut plane[..area]).collect();
        if let Some(file) = self.bounds
            && step.is_first
        {
            for (k, plane) in bounds.iter_mut().enumerate() {
                file.read_rect(k, &rect, plane)?;
            }
        }
        device.start(DeviceStep {
            rect,
            is_first: step.is_first,
            is_last: step.is_last,
            bounds: bounds.iter().map(|plane| &**plane).collect(),
            planes: output.band.planes.iter_mut().map(|plane| &mut plane[..len]).collect(),
        })
    }

    /// Mark where the device finds the inputs of a step.
    fn mark(
        &self,
        device: &dyn Device,
        step: &Step,
        loaded: &[Loaded],
        bench: &mut Bench,
        covered: &mut [u8],
    ) -> Result<()> {
        let Some(marks) = self.marks else { return Ok(()) };
        let rows = self.rows_of(step);
        let end = rows.end;
        for y in rows.step_by(coadd::ROWS) {
            let together = y..end.min(y + coadd::ROWS as i64);
            let lines = together.start as usize..together.end as usize;
            for (number, Loaded { window, .. }) in loaded.iter().enumerate() {
                let grid = self.job.inputs[window.input].grid.rect();
                let served = Rect::new(window.out_x.clone(), together.clone());
                let part = served.intersect(&step.rect).intersect(&grid);
                if !part.is_empty() {
                    let covered = &mut covered[..part.area()];
                    device.cover(number, &part, covered)?;
                    bench.mark(window.input, &part, covered, &lines, marks);
                }
            }
            bench.flush_marks(&lines, marks)?;
        }
        Ok(())
    }

    /// The rows of `step` in pieces for the workers, with their places in `output`.
    fn row_tasks<'a>(&self, step: &Step, output: &'a mut Output) -> Vec<OutputRows<'a>> {
        let rows = self.rows_of(step);
        let rect = Rect::new(step.rect.x0..step.rect.x1, rows);
        let in_turn = !(step.is_first && step.is_last);
        let mut running: Vec<_> = output.running.iter_mut().map(|plane| &mut plane[..]).collect();
        let mut bounds: Vec<_> = output.bounds.iter_mut().map(|plane| &mut plane[..]).collect();
        let mut planes: Vec<_> =
            output.band.planes.iter_mut().map(|plane| &mut plane[..]).collect();
        let mut tasks = Vec::new();
        for y in (rect.y0..rect.y1).step_by(coadd::ROWS) {
            let rows = y..rect.y1.min(y + coadd::ROWS as i64);
            let count = (rows.end - rows.start) as usize;
            let area = count * rect.width();
            let kept = if in_turn { area } else { 0 };
            tasks.push(OutputRows {
                rect: Rect::new(rect.x0..rect.x1, rows),
                is_first: step.is_first,
                is_last: step.is_last,
                running: running.iter_mut().map(|plane| take_front(plane, kept)).collect(),
                bounds: bounds.iter_mut().map(|plane| take_front(plane, area)).collect(),
                planes: planes
                    .iter_mut()
                    .map(|plane| take_front(plane, count * self.job.width))
                    .collect(),
            });
        }
        tasks
    }

    fn run(&self, crew: &mut [Worker], tasks: Vec<Task>, loaded: &[Loaded]) -> Result<()> {
        let refused = parallel::run(crew, tasks, |task, worker| self.work(task, loaded, worker))?;
        self.refused.fetch_max(refused, Ordering::Relaxed);
        Ok(())
    }

    fn work(&self, task: Task, loaded: &[Loaded], worker: &mut Worker) -> Result<()> {
        self.cancel.check()?;
        match task {
            Task::Load(task) => self.loader.run(task, &mut worker.chunk),
            Task::Rows(mut rows) => {
                let (marks, bounds) = (self.marks, self.bounds);
                worker.bench.compute(self.job, &self.table, loaded, marks, bounds, &mut rows)?;
                self.finish(&mut rows)
            }
            Task::Computed(mut rows) => self.finish(&mut rows),
        }
    }

    /// Hand computed rows on, if the band ends with them.
    fn finish(&self, rows: &mut OutputRows) -> Result<()> {
        // A row is complete with the last block of its band.
        if rows.is_last && rows.rect.x1 == self.job.width as i64 {
            let span = rows.rect.y0 as usize..rows.rect.y1 as usize;
            self.sink.finish(span, &mut rows.planes)?;
        }
        Ok(())
    }
}
