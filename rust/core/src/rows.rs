//! Computing output rows, tile by tile: small rectangles that stay in the processor's cache while
//! the samples of one input after the other come together in them.

use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::budget::Ledger;
use crate::coadd::{
    Bounds, COLUMNS, Gather, Place, Rule, Stack, StackBuffers, Stacked, Sweep, Tile, TileBuffers,
};
use crate::coverage::marks::{MarkBuffer, Marker, Marks};
use crate::coverage::planes::FilePlanes;
use crate::cpu::dispatched;
use crate::geom::Rect;
use crate::job::Job;
use crate::reproject::{Loaded, Workspace, project};
use crate::resample::TapTable;

/// Rows of a step, to be computed by one worker.
pub struct OutputRows<'a> {
    /// The output pixels.
    pub rect: Rect,
    /// Whether the first inputs of the block are loaded.
    pub is_first: bool,
    /// Whether the last ones are.
    pub is_last: bool,
    /// Rows of the running planes, as wide as the block; no values when all inputs come at once.
    pub running: Vec<&'a mut [f64]>,
    /// Rows of the bounds, as wide as the block, which are read with the first inputs.
    pub bounds: Vec<&'a mut [f32]>,
    /// Rows of the band, as wide as the canvas.
    pub planes: Vec<&'a mut [f32]>,
}

/// What a worker computes with.
pub struct Bench {
    gathering: Gathering,
    space: Workspace,
    marks: Option<MarkBuffer>,
    samples: Vec<u64>,
    rejected: Vec<u64>,
}

enum Gathering {
    Tiles(Rule, TileBuffers),
    Stacks(Stacked, Box<StackBuffers>),
}

impl Bench {
    /// A bench for a sweep of a job, with room for marks if they are wanted.
    pub fn new(job: &Job, sweep: Sweep, leaves_marks: bool, ledger: &Arc<Ledger>) -> Result<Self> {
        let gathering = match sweep {
            Sweep::Tiles(rule) => {
                let planes = rule.running_planes(job);
                Gathering::Tiles(rule, TileBuffers::new(planes, ledger)?)
            }
            Sweep::Stacks(how) => Gathering::Stacks(how, Box::new(StackBuffers::new(job, ledger)?)),
        };
        Ok(Self {
            gathering,
            space: Workspace::default(),
            marks: leaves_marks.then(|| MarkBuffer::new(ledger)).transpose()?,
            samples: vec![0; job.inputs.len()],
            rejected: vec![0; job.inputs.len()],
        })
    }

    /// Valid samples of each input until now.
    pub fn samples(&self) -> &[u64] {
        &self.samples
    }

    /// Rejected samples of each input until now, those of every channel.
    pub fn rejected(&self) -> &[u64] {
        &self.rejected
    }

    /// Mark where an input lies on `part`, within the rows `lines` that are computed together, as
    /// `covered` says for each of its pixels.
    pub fn mark(
        &mut self,
        input: usize,
        part: &Rect,
        covered: &[u8],
        lines: &Range<usize>,
        file: &Marks,
    ) {
        let buffer = self.marks.as_mut().expect("a sweep that marks has room for marks");
        let mut marker = Marker { buffer, file, rows: lines };
        for (row, y) in covered.chunks(part.width().max(1)).zip(part.y0..part.y1) {
            marker.run(input, (part.x0, y), part.width(), |k| row[k] != 0);
        }
    }

    /// Write the marks of the rows `lines`.
    pub fn flush_marks(&mut self, lines: &Range<usize>, file: &Marks) -> Result<()> {
        self.marks.as_mut().map_or(Ok(()), |buffer| buffer.flush(lines, file))
    }

    /// Compute some output rows of a step from its windows; `marks` receives where inputs lie,
    /// `bounds` has what is kept.
    pub fn compute(
        &mut self,
        job: &Job,
        table: &TapTable,
        loaded: &[Loaded],
        marks: Option<&Marks>,
        bounds: Option<&FilePlanes>,
        rows: &mut OutputRows,
    ) -> Result<()> {
        if let Some(file) = bounds
            && rows.is_first
        {
            for (k, plane) in rows.bounds.iter_mut().enumerate() {
                file.read_rect(k, &rows.rect, plane)?;
            }
        }
        let lines = rows.rect.y0 as usize..rows.rect.y1 as usize;
        let scene = Scene { job, table, loaded, marks, lines: &lines };
        compute(self, &scene, rows);
        if let (Some(buffer), Some(file)) = (&mut self.marks, marks) {
            buffer.flush(&lines, file)?;
        }
        Ok(())
    }
}

/// What all tiles of some rows look at.
struct Scene<'a> {
    job: &'a Job,
    table: &'a TapTable,
    loaded: &'a [Loaded<'a>],
    marks: Option<&'a Marks>,
    lines: &'a Range<usize>,
}

impl<'a> Scene<'a> {
    /// The windows that serve some of the output columns.
    fn over(&self, columns: Range<i64>) -> impl Iterator<Item = &'a Loaded<'a>> + use<'a> {
        self.loaded.iter().filter(move |one| {
            one.window.out_x.start < columns.end && one.window.out_x.end > columns.start
        })
    }
}

dispatched! {
    fn compute(bench: &mut Bench, scene: &Scene, rows: &mut OutputRows) = compute_here
}

#[inline(always)]
fn compute_here(bench: &mut Bench, scene: &Scene, rows: &mut OutputRows) {
    let Bench { gathering, space, marks, samples, rejected } = bench;
    match gathering {
        Gathering::Tiles(rule, buffers) => {
            let counts = (&mut samples[..], &mut rejected[..]);
            compute_tiles(*rule, buffers, scene, rows, space, marks, counts);
        }
        Gathering::Stacks(how, buffers) => {
            let counts = (&mut samples[..], &mut rejected[..]);
            compute_stacks(*how, buffers, scene, rows, space, marks, counts);
        }
    }
}

#[inline(always)]
fn compute_tiles(
    rule: Rule,
    buffers: &mut TileBuffers,
    scene: &Scene,
    rows: &mut OutputRows,
    space: &mut Workspace,
    marks: &mut Option<MarkBuffer>,
    (samples, rejected): (&mut [u64], &mut [u64]),
) {
    let rect = rows.rect;
    for x in (rect.x0..rect.x1).step_by(COLUMNS) {
        let area = Rect::new(x..rect.x1.min(x + COLUMNS as i64), rect.y0..rect.y1);
        // Where the tile lies in planes of the block.
        let kept = Place { stride: rect.width(), column: (x - rect.x0) as usize };
        let bounds = Bounds { planes: &rows.bounds, place: kept };
        let mut tile = Tile::new(scene.job, rule, area, buffers, bounds, rejected);
        if rows.is_first {
            tile.clear();
        } else {
            tile.resume(&rows.running, kept);
        }
        gather(scene, &area, &mut tile, space, marks, samples);
        if rows.is_last {
            let place = Place { stride: scene.job.width, column: x as usize };
            tile.finish(&mut rows.planes, place);
        } else {
            tile.set_aside(&mut rows.running, kept);
        }
    }
}

#[inline(always)]
fn compute_stacks(
    how: Stacked,
    buffers: &mut StackBuffers,
    scene: &Scene,
    rows: &mut OutputRows,
    space: &mut Workspace,
    marks: &mut Option<MarkBuffer>,
    (samples, rejected): (&mut [u64], &mut [u64]),
) {
    let rect = rows.rect;
    for x in (rect.x0..rect.x1).step_by(COLUMNS) {
        let wide = Rect::new(x..rect.x1.min(x + COLUMNS as i64), rect.y0..rect.y1);
        let depth = scene.over(wide.x0..wide.x1).count();
        let (across, down) = Stack::extent(scene.job, &wide, depth);
        for y in (wide.y0..wide.y1).step_by(down) {
            let lines = y..wide.y1.min(y + down as i64);
            for x in (wide.x0..wide.x1).step_by(across) {
                let area = Rect::new(x..wide.x1.min(x + across as i64), lines.clone());
                let mut stack = Stack::begin(scene.job, how, area, depth, buffers);
                gather(scene, &area, &mut stack, space, marks, samples);
                // The rows of the planes begin with those of the task.
                let first = (y - rect.y0) as usize * scene.job.width;
                let place = Place { stride: scene.job.width, column: first + x as usize };
                stack.finish(&mut rows.planes, place, rejected);
            }
        }
    }
}

/// Bring the samples of all windows together in a tile.
#[inline(always)]
fn gather(
    scene: &Scene,
    area: &Rect,
    tile: &mut impl Gather,
    space: &mut Workspace,
    marks: &mut Option<MarkBuffer>,
    samples: &mut [u64],
) {
    for one in scene.over(area.x0..area.x1) {
        let mut marker = match (&mut *marks, scene.marks) {
            (Some(buffer), Some(file)) => Some(Marker { buffer, file, rows: scene.lines }),
            _ => None,
        };
        let valid = project(scene.job, scene.table, one, area, tile, space, &mut marker);
        samples[one.window.input] += valid;
    }
}
