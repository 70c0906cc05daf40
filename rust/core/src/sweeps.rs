//! The sweeps of a pass over its inputs: one for most combines; for the one that clips without
//! holding samples two, of which the first leaves bounds in a scratch file for the second.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::budget::Ledger;
use crate::cancel::CancelToken;
use crate::coverage::marks::Marks;
use crate::coverage::planes::FilePlanes;
use crate::device::Device;
use crate::job::Job;
use crate::layout::Layout;
use crate::pass::{PassStats, Place, Progress, run_sweep};
use crate::plan::Plan;
use crate::sink::{FitsSink, Sink};
use crate::{Error, Result};

/// Where the first of two sweeps may leave what it has found.
#[derive(Clone, Copy, Debug)]
pub struct Scratch<'a> {
    /// A file, made anew by a pass that begins at its beginning.
    pub path: &'a Path,
    /// As for [`FitsSink::open`].
    pub write_back: bool,
}

/// Make the mosaic of `job`, cut as `layout` says, with the resources of `plan`, from `start` on.
/// `marks` receives where each input lies; `scratch` is needed by combines in two sweeps. A pass that
/// is paused says how far it has come; samples count in its last sweep. A `device` computes the rows
/// if there is one.
pub fn run_pass(
    job: &Job,
    start: Place,
    layout: Layout,
    plan: &Plan,
    ledger: &Arc<Ledger>,
    sink: &dyn Sink,
    marks: Option<&Marks>,
    scratch: Option<Scratch>,
    device: Option<&dyn Device>,
    cancel: &CancelToken,
    progress: &Progress,
) -> Result<PassStats> {
    let run = |sweep, row, sink: &dyn Sink, marks, bounds: Option<&FilePlanes>| {
        run_sweep(
            job, sweep, row, layout, plan, ledger, sink, marks, bounds, device, cancel, progress,
        )
    };
    let sweeps = job.combine.sweeps();
    let [first, second] = sweeps[..] else { return run(sweeps[0], start.row, sink, marks, None) };
    let missing = || Error::Argument("a combine in two sweeps needs a scratch file".to_owned());
    let Scratch { path, write_back } = scratch.ok_or_else(missing)?;
    if start == Place::default() {
        File::create(path).map_err(|e| Error::writing(path, &e))?;
    }
    let plane = (job.height * job.width * size_of::<f32>()) as u64;
    let planes = first.finished_planes(job) as u64;
    let targets: Vec<_> = (0..planes).map(|k| (path.to_owned(), k * plane)).collect();
    let mut before = PassStats { workers: usize::MAX, ..PassStats::default() };
    let mut row = start.row;
    if start.sweep == 0 {
        let places = targets.iter().cloned().map(Some).collect();
        let bounds = FitsSink::open(places, 0..0, job.width, write_back)?;
        before = run(first, row, &bounds, None, None)?;
        if before.reached.row < job.height {
            let none = vec![0; job.inputs.len()];
            return Ok(PassStats { samples: none.clone(), rejected: none, ..before });
        }
        row = 0;
    }
    let bounds = FilePlanes::open(targets, job.width)?;
    let stats = run(second, row, sink, marks, Some(&bounds))?;
    Ok(PassStats {
        reached: Place { sweep: 1, ..stats.reached },
        files_opened: before.files_opened + stats.files_opened,
        workers: before.workers.min(stats.workers),
        chunk_peak: before.chunk_peak.max(stats.chunk_peak),
        ..stats
    })
}
