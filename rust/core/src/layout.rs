//! How the output is cut, and what a cut takes and moves. [`fit`](crate::fit) chooses one.
//!
//! A band is a run of output rows at full width, the unit of output. A block is a rectangle of a
//! band, the unit of memory: usually the whole band, or several when the canvas is so wide that
//! not even a few rows fit. A step is what is loaded and computed at once: usually all inputs of a
//! block; when there are so many that bands would be thin, some inputs after the other, while the
//! block's running values wait in memory. Then bands can be tall, and each file is opened and read
//! once or twice instead of once a band.

use std::collections::HashSet;
use std::ops::Range;

use crate::coadd::{COLUMNS, ROWS, Stack};
use crate::coverage::marks::{Mark, Marks};
use crate::device::memory;
use crate::geom::Rect;
use crate::job::Job;
use crate::load;
use crate::source::{self, Source, Store};
use crate::window::{MOST_PIXELS, Window, windows_of};

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
    pub most_files: usize,
}

impl Need {
    /// Bytes of the windows of two steps, and of what leads to them.
    pub fn bytes(&self) -> u64 {
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
pub(crate) struct Room {
    pub host: u64,
    pub device: Option<u64>,
}

impl Room {
    /// What is left beside the output pixels of a layout.
    pub fn less(self, job: &Job, layout: Layout) -> Option<Self> {
        let host = self.host.checked_sub(layout.pixel_bytes(job))?;
        let taken = || memory::tables_bytes(job) + memory::pixel_bytes(job, layout);
        match self.device {
            Some(bytes) => Some(Self { host, device: Some(bytes.checked_sub(taken())?) }),
            None => Some(Self { host, device: None }),
        }
    }

    /// The less of both.
    pub fn least(self) -> u64 {
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
    pub(crate) fn need_within(self, job: &Job, room: Room) -> Option<Need> {
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

    pub(crate) fn running_bytes(self, job: &Job) -> u64 {
        (job.running_planes() * self.running_len(job) * size_of::<f64>()) as u64
    }

    /// Bytes of a block's bounds.
    pub(crate) fn bounds_bytes(self, job: &Job) -> u64 {
        (job.bounds_planes() * self.block_area(job) * size_of::<f32>()) as u64
    }

    /// Bytes of the output rows: one band that is being computed, one that is being written.
    pub(crate) fn output_bytes(self, job: &Job) -> u64 {
        let rows = self.band_rows.min(job.height);
        (2 * job.planes() * rows * job.width * size_of::<f32>()) as u64
    }

    /// Bytes of all that holds values of output pixels between two steps.
    pub(crate) fn pixel_bytes(self, job: &Job) -> u64 {
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
