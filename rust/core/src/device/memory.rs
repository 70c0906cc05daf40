//! What a pass takes of a device's memory, as `zmrs.backends.gpu` allocates it.

use crate::coadd::ROWS;
use crate::job::Job;
use crate::layout::{Layout, Step};

/// Pixels whose samples are combined at once, at least: fewer would leave most of a device idle.
pub const LEAST_SLICE: usize = 4096;

/// Output columns for which the windows over them are listed together.
pub const STRIP: usize = 256;

/// Bytes of what is told of an input and of a window, of the coefficients of a row of a cell, and of
/// what every allocation is rounded up by, all together.
const INPUT_BYTES: usize = 256;
const WINDOW_BYTES: usize = 112;
const CUBICS_BYTES: usize = 64;
const ROUNDING_BYTES: u64 = 128 << 10;

/// What is there all the time: coordinate grids, and what is told of the inputs.
pub fn tables_bytes(job: &Job) -> u64 {
    let each = INPUT_BYTES + 3 * job.channels * size_of::<f64>();
    ROUNDING_BYTES + job.grid_bytes() + (job.inputs.len() * each) as u64
}

/// What holds values of output pixels: of a step, and between the steps of a block.
pub fn pixel_bytes(job: &Job, layout: Layout) -> u64 {
    let area = layout.block_area(job);
    let singles = (job.planes() + job.bounds_planes()) * area * size_of::<f32>();
    let running = job.running_planes() * layout.running_len(job) * size_of::<f64>();
    (singles + running + ROWS * job.width) as u64
}

/// What the steps of a pass take at their worst, buffer by buffer: none becomes smaller again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Need {
    /// Values of windows, as they are loaded, and doubles of their exact coordinates: of steps in turn,
    /// since those of the next one come while one is computed.
    loaded: [usize; 2],
    exact: [usize; 2],
    /// Values of the windows, decoded.
    decoded: usize,
    /// Places of cells with exact coordinates.
    records: usize,
    /// Coefficients of the rows of cells.
    cubics: usize,
    /// What is told of windows, and which of them lie over each strip.
    told: usize,
    /// Inputs over a pixel.
    depth: usize,
}

impl Need {
    /// Take in the step of a number.
    pub fn extend(&mut self, job: &Job, step: &Step, number: usize) {
        let (mut found, mut listed, mut cells_across) = (Self::default(), 0, 0);
        let turn = number % 2;
        let is_any_stored = step.windows.iter().any(|window| window.is_stored);
        let mut changes = vec![0_isize; step.rect.width().div_ceil(STRIP) + 1];
        for window in &step.windows {
            let grid = &job.inputs[window.input].grid;
            found.loaded[turn] += window.len(job);
            found.decoded += if is_any_stored { window.values(job) } else { 0 };
            found.exact[turn] += window.exact_len(job);
            found.records += if window.exact.is_empty() { 0 } else { grid.cells().len() };
            let first = (window.out_x.start.max(step.rect.x0) - step.rect.x0) as usize;
            let past = (window.out_x.end.min(step.rect.x1) - step.rect.x0).max(0) as usize;
            if first < past {
                cells_across = cells_across.max((past - first) / grid.spacing() + 2);
                let strips = first / STRIP..(past - 1) / STRIP + 1;
                changes[strips.start] += 1;
                changes[strips.end] -= 1;
                listed += strips.len();
            }
        }
        let depths = changes.iter().scan(0, |depth, change| {
            *depth += change;
            Some(*depth)
        });
        found.depth = depths.max().unwrap_or(0) as usize;
        found.cubics = step.windows.len() * step.rect.height() * cells_across;
        let lists = (listed + changes.len()) * size_of::<i32>();
        found.told = step.windows.len() * WINDOW_BYTES + lists;
        self.unite(&found);
    }

    fn unite(&mut self, other: &Self) {
        for turn in 0..2 {
            self.loaded[turn] = self.loaded[turn].max(other.loaded[turn]);
            self.exact[turn] = self.exact[turn].max(other.exact[turn]);
        }
        self.decoded = self.decoded.max(other.decoded);
        self.records = self.records.max(other.records);
        self.cubics = self.cubics.max(other.cubics);
        self.told = self.told.max(other.told);
        self.depth = self.depth.max(other.depth);
    }

    /// Memory of the process that is taken for places of exact cells: those of the windows, twice, and
    /// on the way to them those of one.
    pub fn host_bytes(&self) -> u64 {
        (self.records * (2 * size_of::<i32>() + 3 * size_of::<i64>())) as u64
    }

    /// Bytes of all that, and of the samples of a slice.
    pub fn bytes(&self, job: &Job) -> u64 {
        let each = if job.combine.is_stacked() { sample_bytes(job) } else { 0 };
        let [loaded, exact] = [self.loaded, self.exact].map(|turns| turns[0] + turns[1]);
        ((loaded + self.decoded) * size_of::<f32>()
            + exact * size_of::<f64>()
            + self.records * size_of::<i32>()
            + self.cubics * CUBICS_BYTES
            + self.told
            + self.depth * each * LEAST_SLICE) as u64
    }
}

/// Memory of the process that a device's driver keeps for a job: records of its exact cells, and, while
/// it is told of an input, the grid of that.
pub fn host_bytes(job: &Job) -> u64 {
    let grids = || job.inputs.iter().map(|input| &input.grid);
    let exact = grids().filter(|grid| grid.exact().is_some());
    let kept: usize = exact.map(|grid| grid.cells().len() * size_of::<u32>()).sum();
    kept as u64 + grids().map(|grid| grid.bytes()).max().unwrap_or(0)
}

/// What combines that look at all samples of a pixel hold of each: its values and their noise, by
/// channel; weight and source; and sorted by value with something beside it.
fn sample_bytes(job: &Job) -> usize {
    (job.channels + job.variance_planes()) * size_of::<f32>() + 24
}
