//! From the coverage of pass one to a gain for each input.
//!
//! The scale map s = clamp(c̄ / c, 0.5, 2), with c̄ the blurred coverage, says how much better the
//! neighbourhood of a pixel is covered than the pixel itself. An input's gain is the exact median
//! of s over the well-covered pixels that its mask covers. (Definition: the Two-Pass of `ZeMosaic`
//! 4.5, as observed; its cost is not.)

use std::ops::Range;
use std::sync::Arc;

use super::marks::{Group, Mark, MarkBuffer, Marks};
use super::on_device::{self, OnDevice};
use super::planes::{Planes, as_bytes_mut};
use super::select::locate;
use super::{Blur, BlurSpace, Gaussian, RowSource, SEGMENT_ROWS};
use crate::budget::{LeasedVec, Ledger};
use crate::cancel::CancelToken;
use crate::coadd::ROWS;
use crate::cpu::dispatched;
use crate::device::CoverageDevice;
use crate::parallel;
use crate::sink::Target;
use crate::source::read_exact_at;
use crate::{Error, Result};

/// Bounds of the scale map.
const SCALES: (f32, f32) = (0.5, 2.0);

/// The range of no scales at all.
pub(super) const NO_SCALES: (f32, f32) = (f32::INFINITY, f32::NEG_INFINITY);

/// Coverage below this is taken for it when it divides.
const LEAST_COVERAGE: f32 = 1.19e-7;

/// An input needs so many well-covered pixels, and this part of those that its mask covers.
const LEAST_PIXELS: u64 = 64;
const LEAST_PART: f64 = 0.001;

/// The floats of [`SCALES`] are this many, and one more: twelve leading bits and twelve trailing.
pub const BINS: usize = 1 << 12;

/// How gains follow from coverage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Standard deviation of the blur in pixels; 0 = none.
    pub sigma_px: f64,
    /// Gains are kept between these.
    pub clip: (f64, f64),
    /// Blurred coverage from which a pixel counts as well covered.
    pub threshold: f64,
}

/// The gains, and how they came about.
#[derive(Clone, Debug, Default)]
pub struct Gains {
    /// One for each input.
    pub gains: Vec<f64>,
    /// Least and greatest value of the scale map where it counts; reversed when it counts nowhere.
    pub scales: (f32, f32),
}

/// What the work on coverage may take.
pub struct Means<'a> {
    /// Workers at most.
    pub workers: usize,
    /// Lends all buffers.
    pub ledger: &'a Arc<Ledger>,
    /// Bytes of buffers at most.
    pub bytes: u64,
    /// Stops the work.
    pub cancel: &'a CancelToken,
}

/// Bytes that the work takes at least, with one worker and histograms for one input.
pub fn least_bytes(width: usize, sigma_px: f64) -> Result<u64> {
    let gaussian = Gaussian::new(sigma_px)?;
    let gains = MapSpace::bytes(width, &gaussian).max(SweepSpace::bytes(width, 1));
    Ok(gains.max(super::depth::least_bytes(width)))
}

/// Coverage rows of finished planes, the last of them.
pub(super) struct Coverage<'a>(pub &'a dyn Planes);

impl RowSource for Coverage<'_> {
    fn read(&self, y: usize, row: &mut [f32]) -> Result<()> {
        self.0.read(self.0.count() - 1, y, row)
    }
}

/// Measure the gains of `inputs` inputs whose masks `marks` has, given the finished planes of
/// pass one. `place` is where the scale map may lie: a plane that pass two will write over.
///
/// With a `device` that blurs and counts in the workers' place; the bits are the same.
pub fn measure(
    planes: &dyn Planes,
    shape: (usize, usize),
    marks: &Marks,
    inputs: usize,
    rules: &Rules,
    place: &Target,
    means: &Means,
    device: Option<&dyn CoverageDevice>,
) -> Result<Gains> {
    let map = ScaleMap::open(place, shape)?;
    let scales = match device {
        None => map.fill(planes, rules, means)?,
        Some(device) => on_device::fill(&map, planes, rules, means, device)?,
    };
    let tasks = tasks(marks);
    let mut gains = Gains { scales, ..Gains::default() };
    // As many inputs at once as there is memory for their histograms.
    let none = SweepSpace::bytes(shape.1, 0);
    let each = SweepSpace::bytes(shape.1, 1) - none;
    let room = (means.bytes.saturating_sub(none) / each) as usize;
    let room = device.map_or(Ok(room), |device| Ok(device.room()?.inputs.min(room)))?;
    let at_once = room.clamp(1, inputs.max(1));
    for first in (0..inputs).step_by(at_once) {
        let batch = first..inputs.min(first + at_once);
        let found = match device {
            None => medians(&mut Crew::new(&map, marks, &tasks, batch, means)?, rules)?,
            Some(device) => {
                let room = SweepSpace::bytes(shape.1, batch.len());
                let spare = means.bytes.saturating_sub(room);
                medians(&mut OnDevice::new(&map, marks, batch, means, spare, device)?, rules)?
            }
        };
        gains.gains.extend(found);
    }
    Ok(gains)
}

/// Blur the coverage (the last of `planes`) into `out`, rows of an array.
pub fn blurred(
    planes: &dyn Planes,
    (height, width): (usize, usize),
    sigma_px: f64,
    workers: usize,
    ledger: &Arc<Ledger>,
    cancel: &CancelToken,
    out: &mut [f64],
) -> Result<()> {
    let gaussian = Gaussian::new(sigma_px)?;
    let coverage = Coverage(planes);
    let blur = Blur::new(&gaussian, height, width, &coverage);
    if blur.segments() == 0 {
        return Ok(());
    }
    let space = |_| BlurSpace::new(width, &gaussian, ledger);
    let workers = workers.clamp(1, blur.segments());
    let mut crew = (0..workers).map(space).collect::<Result<Vec<_>>>()?;
    let parts = out.chunks_mut(SEGMENT_ROWS * width).enumerate().collect();
    parallel::run(&mut crew, parts, |(segment, part): (usize, &mut [f64]), space| {
        cancel.check()?;
        blur.segment(segment, space, &mut |y, _, mean| {
            part[(y - segment * SEGMENT_ROWS) * width..][..width].copy_from_slice(mean);
            Ok(())
        })
    })?;
    Ok(())
}

/// Rows and the marks that lie in them.
pub(super) type Task = (Range<usize>, Vec<Group>);

/// All marks, by the rows that were computed together.
pub(super) fn tasks(marks: &Marks) -> Vec<Task> {
    let mut tasks: Vec<Task> = Vec::new();
    for group in marks.groups() {
        match tasks.last_mut() {
            Some((rows, groups)) if *rows == group.rows => groups.push(group),
            _ => tasks.push((group.rows.clone(), vec![group])),
        }
    }
    tasks
}

/// The scale map in a file: NaN where a pixel does not count.
pub(super) struct ScaleMap<'a> {
    place: &'a Target,
    file: std::fs::File,
    pub(super) height: usize,
    pub(super) width: usize,
}

/// What a worker that fills the map owns.
struct MapSpace {
    blur: BlurSpace,
    row: LeasedVec<f32>,
    scales: (f32, f32),
}

impl MapSpace {
    fn bytes(width: usize, gaussian: &Gaussian) -> u64 {
        BlurSpace::bytes(width, gaussian) + (width * size_of::<f32>()) as u64
    }
}

/// What a worker that looks at the map owns.
struct SweepSpace {
    rows: LeasedVec<f32>,
    marks: MarkBuffer,
    tally: Tally,
}

/// What is counted for each input of a batch.
struct Tally {
    counts: LeasedVec<u32>,
    masked: LeasedVec<u64>,
    least: LeasedVec<u32>,
}

impl Tally {
    fn of(&mut self, input: usize) -> &mut [u32] {
        &mut self.counts[input * (BINS + 1)..][..=BINS]
    }
}

impl SweepSpace {
    fn bytes(width: usize, inputs: usize) -> u64 {
        let each = (BINS + 1) * size_of::<u32>() + size_of::<u64>() + size_of::<u32>();
        (ROWS * width * size_of::<f32>() + inputs * each) as u64 + MarkBuffer::BYTES
    }

    fn new(width: usize, inputs: usize, ledger: &Arc<Ledger>) -> Result<Self> {
        let tally = Tally {
            counts: ledger.zeroed((BINS + 1) * inputs)?,
            masked: ledger.zeroed(inputs)?,
            least: ledger.zeroed(inputs)?,
        };
        Ok(Self { rows: ledger.zeroed(ROWS * width)?, marks: MarkBuffer::new(ledger)?, tally })
    }
}

/// Where the two middle values of an input's scales lie.
#[derive(Clone, Copy)]
pub(super) struct Middle {
    ranks: [u64; 2],
    pub(super) bins: [usize; 2],
    before: u64,
}

/// Counts the scales of a batch of inputs, in two sweeps over their marks and the map.
pub(super) trait Counting {
    /// How many inputs there are.
    fn inputs(&self) -> usize;

    /// The first sweep: scales by their leading bins, and the pixels that the masks cover.
    fn by_leading_bins(&mut self) -> Result<()>;

    /// The second one: of inputs that have a median, scales in its first bin by their trailing bins,
    /// and the least key in the second bin, where that is another one.
    fn within(&mut self, middles: &[Option<Middle>]) -> Result<()>;

    /// Pixels that the mask of an input covers.
    fn masked(&self, input: usize) -> u64;

    /// What the last sweep has counted of an input in a bin.
    fn count(&self, input: usize, bin: usize) -> u64;

    /// The least key that the second sweep has found of an input.
    fn least(&self, input: usize) -> u32;
}

/// The gains of a batch of inputs.
fn medians(counting: &mut impl Counting, rules: &Rules) -> Result<Vec<f64>> {
    let bins = 0..=BINS;
    counting.by_leading_bins()?;
    let middle = |k: usize| {
        let used = bins.clone().map(|bin| counting.count(k, bin)).sum();
        enough(counting.masked(k), used).then(|| {
            let ranks = [(used - 1) / 2, used / 2];
            let counts = || bins.clone().map(|bin| counting.count(k, bin));
            let [(first, before), (second, _)] = ranks.map(|rank| locate(counts(), rank));
            Middle { ranks, bins: [first, second], before }
        })
    };
    let middles: Vec<_> = (0..counting.inputs()).map(middle).collect();
    counting.within(&middles)?;
    let gain = |(k, middle): (usize, Option<Middle>)| {
        middle.map_or(1.0, |middle| {
            let [low, high] = [0, 1].map(|i| {
                if middle.bins[i] != middle.bins[0] {
                    return scale_of(counting.least(k) as usize);
                }
                let counts = bins.clone().map(|bin| counting.count(k, bin));
                let (low, _) = locate(counts, middle.ranks[i] - middle.before);
                scale_of(middle.bins[0] * BINS + low)
            });
            let median = f64::midpoint(f64::from(low), f64::from(high));
            median.clamp(rules.clip.0, rules.clip.1)
        })
    };
    Ok(middles.into_iter().enumerate().map(gain).collect())
}

impl<'a> ScaleMap<'a> {
    fn open(place: &'a Target, (height, width): (usize, usize)) -> Result<Self> {
        let file = std::fs::File::options().read(true).write(true).open(&place.0);
        let file = file.map_err(|e| Error::writing(&place.0, &e))?;
        Ok(Self { place, file, height, width })
    }

    /// Byte of the file at which a row begins.
    fn at(&self, y: usize) -> u64 {
        self.place.1 + (y * self.width * size_of::<f32>()) as u64
    }

    /// Blur the coverage and write the map. Returns its least and greatest value.
    fn fill(&self, planes: &dyn Planes, rules: &Rules, means: &Means) -> Result<(f32, f32)> {
        let gaussian = Gaussian::new(rules.sigma_px)?;
        let coverage = Coverage(planes);
        let blur = Blur::new(&gaussian, self.height, self.width, &coverage);
        let affordable = means.bytes / MapSpace::bytes(self.width, &gaussian).max(1);
        let workers = means.workers.min(affordable as usize).max(1);
        let space = || -> Result<MapSpace> {
            Ok(MapSpace {
                blur: BlurSpace::new(self.width, &gaussian, means.ledger)?,
                row: means.ledger.zeroed(self.width)?,
                scales: NO_SCALES,
            })
        };
        let mut crew = (0..workers).map(|_| space()).collect::<Result<Vec<_>>>()?;
        let segments = (0..blur.segments()).collect();
        parallel::run(&mut crew, segments, |segment, space: &mut MapSpace| {
            means.cancel.check()?;
            let MapSpace { blur: buffers, row, scales } = space;
            blur.segment(segment, buffers, &mut |y, coverage, mean| {
                scale_row(coverage, mean, rules.threshold, row);
                self.write(y, row, scales)
            })
        })?;
        Ok(together(crew.iter().map(|space| space.scales)))
    }

    /// Write rows from `y` on, and extend a range of scales over them.
    pub(super) fn write(&self, y: usize, rows: &mut [f32], scales: &mut (f32, f32)) -> Result<()> {
        extremes(rows, scales);
        crate::sink::write_all_at(&self.file, as_bytes_mut(rows), self.at(y))
            .map_err(|e| Error::writing(&self.place.0, &e))
    }

    pub(super) fn read(&self, y: Range<usize>, rows: &mut [f32]) -> Result<()> {
        let rows = &mut rows[..y.len() * self.width];
        read_exact_at(&self.file, as_bytes_mut(rows), self.at(y.start))
            .map_err(|e| Error::reading(&self.place.0, &e))
    }
}

/// The range that holds all of some.
pub(super) fn together(ranges: impl Iterator<Item = (f32, f32)>) -> (f32, f32) {
    ranges.fold(NO_SCALES, |(low, high), range| (low.min(range.0), high.max(range.1)))
}

/// The workers, counting scales.
struct Crew<'a> {
    map: &'a ScaleMap<'a>,
    marks: &'a Marks,
    tasks: &'a [Task],
    batch: Range<usize>,
    means: &'a Means<'a>,
    spaces: Vec<SweepSpace>,
}

impl<'a> Crew<'a> {
    fn new(
        map: &'a ScaleMap,
        marks: &'a Marks,
        tasks: &'a [Task],
        batch: Range<usize>,
        means: &'a Means,
    ) -> Result<Self> {
        let affordable = means.bytes / SweepSpace::bytes(map.width, batch.len());
        let workers = means.workers.min(affordable as usize).max(1);
        let space = |_| SweepSpace::new(map.width, batch.len(), means.ledger);
        let spaces = (0..workers).map(space).collect::<Result<Vec<_>>>()?;
        Ok(Self { map, marks, tasks, batch, means, spaces })
    }

    /// Show every mark of the batch, with the scales under it, to `look`.
    fn sweep(&mut self, look: &(impl Fn(&mut Tally, usize, &Mark, &[f32]) + Sync)) -> Result<()> {
        let Self { map, marks, tasks, batch, means, spaces } = self;
        parallel::run(spaces, tasks.iter().collect(), |(rows, groups), space| {
            means.cancel.check()?;
            let SweepSpace { rows: lines, marks: buffer, tally } = space;
            map.read(rows.clone(), lines)?;
            for group in groups {
                for mark in buffer.read(group, marks)? {
                    let input = mark.input as usize;
                    if batch.contains(&input) {
                        let line = &lines[(mark.y as usize - rows.start) * map.width..];
                        let scales = &line[mark.x0 as usize..mark.x1 as usize];
                        look(tally, input - batch.start, mark, scales);
                    }
                }
            }
            Ok(())
        })?;
        Ok(())
    }
}

impl Counting for Crew<'_> {
    fn inputs(&self) -> usize {
        self.batch.len()
    }

    fn by_leading_bins(&mut self) -> Result<()> {
        self.sweep(&|tally, k, mark, scales| {
            tally.masked[k] += u64::from(mark.x1 - mark.x0);
            count(scales, tally.of(k), |key| Some(key / BINS));
        })
    }

    fn within(&mut self, middles: &[Option<Middle>]) -> Result<()> {
        for space in &mut self.spaces {
            space.tally.counts.fill(0);
            space.tally.least.fill(u32::MAX);
        }
        self.sweep(&|tally, k, _, scales| {
            let Some(Middle { bins: [first, second], .. }) = middles[k] else { return };
            count(scales, tally.of(k), |key| (key / BINS == first).then_some(key % BINS));
            if second != first {
                let keys = scales.iter().filter_map(|&scale| key_of(scale));
                let least = keys.filter(|key| key / BINS == second).min();
                tally.least[k] = tally.least[k].min(least.map_or(u32::MAX, |key| key as u32));
            }
        })
    }

    fn masked(&self, input: usize) -> u64 {
        self.spaces.iter().map(|space| space.tally.masked[input]).sum()
    }

    fn count(&self, input: usize, bin: usize) -> u64 {
        let at = input * (BINS + 1) + bin;
        self.spaces.iter().map(|space| u64::from(space.tally.counts[at])).sum()
    }

    fn least(&self, input: usize) -> u32 {
        self.spaces.iter().map(|space| space.tally.least[input]).min().unwrap_or(0)
    }
}

/// Whether an input has enough well-covered pixels for a median.
fn enough(masked: u64, used: u64) -> bool {
    let part = (LEAST_PART * masked as f64).ceil() as u64;
    masked > 0 && used >= LEAST_PIXELS.max(part)
}

dispatched! {
    /// One row of the scale map. The mean is rounded to single precision first: where coverage is
    /// flat it is the coverage but for its last digits, which must not decide about the threshold.
    fn scale_row(coverage: &[f32], mean: &[f64], threshold: f64, out: &mut [f32]) = scale_row_here
}

#[inline(always)]
fn scale_row_here(coverage: &[f32], mean: &[f64], threshold: f64, out: &mut [f32]) {
    for ((scale, &c), &mean) in out.iter_mut().zip(coverage).zip(mean) {
        let ratio = mean / f64::from(if c > LEAST_COVERAGE { c } else { LEAST_COVERAGE });
        let ratio = ratio as f32;
        let clamped = if ratio > SCALES.0 { ratio } else { SCALES.0 };
        let clamped = if clamped < SCALES.1 { clamped } else { SCALES.1 };
        let is_well_covered = f64::from(mean as f32) >= threshold;
        *scale = if c > 0.0 && is_well_covered { clamped } else { f32::NAN };
    }
}

dispatched! {
    /// Extend the range `scales` over a row; NaN compares false.
    fn extremes(row: &[f32], scales: &mut (f32, f32)) = extremes_here
}

#[inline(always)]
fn extremes_here(row: &[f32], scales: &mut (f32, f32)) {
    const LANES: usize = 16;
    let (mut low, mut high) = ([scales.0; LANES], [scales.1; LANES]);
    let (groups, rest) = row.as_chunks::<LANES>();
    let mut last = [f32::NAN; LANES];
    last[..rest.len()].copy_from_slice(rest);
    for group in groups.iter().chain([&last]) {
        for k in 0..LANES {
            low[k] = if group[k] < low[k] { group[k] } else { low[k] };
            high[k] = if group[k] > high[k] { group[k] } else { high[k] };
        }
    }
    *scales = (
        low.into_iter().fold(f32::INFINITY, f32::min),
        high.into_iter().fold(f32::NEG_INFINITY, f32::max),
    );
}

/// Place of a scale among the floats from the least to the greatest; nothing for NaN.
#[inline(always)]
fn key_of(scale: f32) -> Option<usize> {
    (!scale.is_nan()).then(|| (scale.to_bits() - SCALES.0.to_bits()) as usize)
}

fn scale_of(key: usize) -> f32 {
    f32::from_bits(SCALES.0.to_bits() + key as u32)
}

/// Count scales by bin. Neighbours are alike, so runs of one bin are counted together.
#[inline(always)]
fn count(scales: &[f32], counts: &mut [u32], bin: impl Fn(usize) -> Option<usize>) {
    let (mut last, mut run) = (None, 0);
    for &scale in scales {
        let now = key_of(scale).and_then(&bin);
        if now != last {
            if let Some(bin) = last {
                counts[bin] += run;
            }
            (last, run) = (now, 0);
        }
        run += 1;
    }
    if let Some(bin) = last {
        counts[bin] += run;
    }
}
