//! Reading every input once, and keeping its samples at the points of the lattice.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lattice::{Lattice, Run};
use crate::budget::{Lease, LeasedVec, Ledger};
use crate::cancel::CancelToken;
use crate::geom::{CellKind, CoordGrid, Rect, cubic};
use crate::job::{Input, Job};
use crate::load::{LoadTask, Loader, Rows};
use crate::position::Clip;
use crate::resample::{self, Kernel, Plane, RUN, SLACK, TapTable, sample};
use crate::source::{FileCache, READ_CHUNK_BYTES, read_exact_at};
use crate::window::{MOST_PIXELS, Window};
use crate::{Error, Result, parallel};

/// Bytes of decoded source rows that are held at once, if two of them take no more: they stay in
/// the cache between decoding and sampling (36 frames of 2048 × 2048: 256 KiB to 2 MiB take the
/// same time, 8 MiB twice as long).
const ROWS_BYTES: usize = 1 << 20;

/// Lattice points whose coordinates are found together. A turned input has them in many source
/// rows, and finds them again for each chunk of rows that has some.
const SPOT_POINTS: u32 = 16;

/// Taps of the kernel, which is bilinear, on each side.
const RADIUS: usize = 1;

/// How far the reading has come, for whoever watches it from another thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes read from input files.
    pub read_bytes: AtomicU64,
    /// Inputs that are done.
    pub inputs: AtomicU64,
}

/// Lattice points in a row that two inputs have in common.
pub struct Stretch {
    /// Row of the lattice.
    pub line: u32,
    /// Column of the first point.
    pub column: u32,
    /// Where each input keeps its samples of them.
    pub at: [usize; 2],
    /// Number of points.
    pub len: usize,
}

/// The samples of one input.
pub struct Sampled {
    /// Where on the lattice they lie, in ascending order.
    pub runs: Vec<Run>,
    /// How many are valid.
    pub valid: usize,
    /// Distance of neighbouring lattice points in its own pixels, at least; infinite without any.
    pub step_px: f64,
    /// A plane a channel; NaN where invalid, in all channels alike.
    values: LeasedVec<f32>,
    points: usize,
    _runs: Lease,
}

impl Sampled {
    /// No sample yet.
    fn new(job: &Job, lattice: &Lattice, grid: &CoordGrid, ledger: &Arc<Ledger>) -> Result<Self> {
        let tally = lattice.tally(grid);
        let lease = ledger.reserve((tally.runs * size_of::<Run>()) as u64)?;
        let values = ledger.zeroed(job.channels * tally.points)?;
        let runs = lattice.runs(grid);
        let (points, step_px) = (tally.points, f64::INFINITY);
        Ok(Self { runs, valid: 0, step_px, values, points, _runs: lease })
    }

    /// Bytes that it leases.
    fn bytes(job: &Job, lattice: &Lattice, grid: &CoordGrid) -> u64 {
        let tally = lattice.tally(grid);
        let values = job.channels * tally.points;
        (tally.runs * size_of::<Run>() + values * size_of::<f32>()) as u64
    }

    /// The samples of a channel, in the order of the runs.
    pub fn plane(&self, channel: usize) -> &[f32] {
        &self.values[channel * self.points..][..self.points]
    }

    /// Make the samples at some slots invalid in all channels where they are in one: a pixel may be
    /// saturated in a single channel.
    fn share_validity(&mut self, slots: &[u32]) {
        let points = self.points;
        for &slot in slots {
            let mut samples = self.values.chunks_mut(points).map(|plane| plane[slot as usize]);
            if samples.any(f32::is_nan) {
                self.values.chunks_mut(points).for_each(|plane| plane[slot as usize] = f32::NAN);
            }
        }
    }

    /// Stretches of the lattice that both have.
    pub fn common<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = Stretch> + 'a {
        let (mut mine, mut theirs) = (self.runs.iter().peekable(), other.runs.iter().peekable());
        std::iter::from_fn(move || {
            loop {
                let (a, b) = (*mine.peek()?, *theirs.peek()?);
                let (end_a, end_b) = ((a.line, a.column + a.len), (b.line, b.column + b.len));
                let start = (a.line, a.column).max((b.line, b.column));
                let end = end_a.min(end_b);
                if end_a <= end_b {
                    mine.next();
                } else {
                    theirs.next();
                }
                if start < end {
                    let at = |run: &Run| (run.slot + (start.1 - run.column)) as usize;
                    let (at, len) = ([at(a), at(b)], (end.1 - start.1) as usize);
                    return Some(Stretch { line: start.0, column: start.1, at, len });
                }
            }
        })
    }
}

/// Bytes that the samples of all inputs lease.
pub fn held_bytes(job: &Job, lattice: &Lattice) -> u64 {
    job.inputs.iter().map(|input| Sampled::bytes(job, lattice, &input.grid)).sum()
}

/// Bytes that each worker leases besides while it samples.
pub fn worker_bytes(job: &Job, lattice: &Lattice) -> u64 {
    let [pixels, spots] = most(job, lattice);
    (pixels * size_of::<f32>() + spots * size_of::<Spot>() + READ_CHUNK_BYTES) as u64
}

/// Sample every input of a job.
pub fn run(
    job: &Job,
    lattice: &Lattice,
    workers: usize,
    ledger: &Arc<Ledger>,
    cancel: &CancelToken,
    progress: &Progress,
) -> Result<Vec<Sampled>> {
    let files = FileCache::default();
    let loader = Loader { job, files: &files, read_bytes: &progress.read_bytes };
    let sampler = Sampler { job, lattice, loader, table: TapTable::new(Kernel::Bilinear), cancel };
    let all = job.inputs.iter().map(|i| Sampled::new(job, lattice, &i.grid, ledger));
    let mut all = all.collect::<Result<Vec<_>>>()?;
    let sizes = most(job, lattice);
    let crew = (0..workers.min(all.len())).map(|_| Worker::new(sizes, ledger));
    let mut crew = crew.collect::<Result<Vec<_>>>()?;
    let tasks = all.iter_mut().enumerate().collect();
    parallel::run(&mut crew, tasks, |(number, sampled), worker| {
        sampler.input(number, sampled, worker)?;
        progress.inputs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(all)
}

/// A few points of a run, and the source rows that they fall on.
struct Spot {
    rows: Range<u32>,
    points: Run,
}

/// What one worker owns.
struct Worker {
    /// Decoded rows, a plane a channel, and then the weights.
    pixels: LeasedVec<f32>,
    chunk: LeasedVec<u8>,
    spots: Vec<Spot>,
    _spots: Lease,
    batch: Batch,
}

impl Worker {
    fn new([pixels, spots]: [usize; 2], ledger: &Arc<Ledger>) -> Result<Self> {
        Ok(Self {
            pixels: ledger.zeroed(pixels)?,
            chunk: ledger.zeroed(READ_CHUNK_BYTES)?,
            _spots: ledger.reserve((spots * size_of::<Spot>()) as u64)?,
            spots: Vec::with_capacity(spots),
            batch: Batch::default(),
        })
    }
}

/// The most decoded pixels, and the most spots, that any input of the job needs.
fn most(job: &Job, lattice: &Lattice) -> [usize; 2] {
    let each = job.inputs.iter().map(|input| {
        let tally = lattice.tally(&input.grid);
        let pixels = input.planes() * plane_len(input, rows_at_once(input)) + SLACK;
        [pixels, tally.points / SPOT_POINTS as usize + tally.runs]
    });
    each.fold([0; 2], |most, this| [most[0].max(this[0]), most[1].max(this[1])])
}

/// Pixels of so many source rows, of the row after them, and of a column to their right.
fn plane_len(input: &Input, rows: usize) -> usize {
    (rows + RADIUS) * (input.image.width + RADIUS)
}

/// Source rows whose points are sampled at once.
fn rows_at_once(input: &Input) -> usize {
    let row = input.planes() * plane_len(input, 0) * size_of::<f32>();
    (ROWS_BYTES / row).saturating_sub(RADIUS).clamp(1, input.image.height)
}

/// Places that are sampled together.
#[derive(Default)]
struct Batch {
    places: Vec<[f64; 2]>,
    slots: Vec<u32>,
    run: resample::Run,
    record: Vec<u8>,
}

struct Sampler<'a> {
    job: &'a Job,
    lattice: &'a Lattice,
    loader: Loader<'a>,
    table: TapTable,
    cancel: &'a CancelToken,
}

impl Sampler<'_> {
    /// Sample one input: chunk by chunk of its rows, in order, each read once.
    fn input(&self, number: usize, sampled: &mut Sampled, worker: &mut Worker) -> Result<()> {
        sampled.values.fill(f32::NAN);
        let input = &self.job.inputs[number];
        let frame = Rect::frame(input.image.width + RADIUS, input.image.height + RADIUS);
        let frame = Clip::new(&input.grid, &frame, RADIUS);
        sampled.step_px = self.find_spots(number, &frame, sampled, worker)?;
        let spots = &worker.spots[..];
        let Some(first) = spots.first() else { return Ok(()) };
        let past = spots.iter().map(|spot| spot.rows.end).max().unwrap_or(0);
        let tallest = spots.iter().map(|spot| spot.rows.len() as u32).max().unwrap_or(0);
        let at_once = rows_at_once(input);
        let capacity = plane_len(input, at_once);
        if capacity > MOST_PIXELS {
            let why = format!("{}: its rows are too long to be sampled", input.name);
            return Err(Error::Argument(why));
        }
        let width = input.image.width;
        let mut start = first.rows.start;
        let mut passed = 0;
        while start < past {
            self.cancel.check()?;
            let rows = start..past.min(start + at_once as u32);
            let is_first = start == first.rows.start;
            let y = i64::from(rows.start)..i64::from(rows.end) + RADIUS as i64;
            let window = Rect::new(0..(width + RADIUS) as i64, y);
            self.read(number, window, is_first, &mut worker.pixels, &mut worker.chunk)?;
            let chunk = Chunk {
                sampler: self,
                number,
                rows: &rows,
                frame: &frame,
                clip: Clip::new(&input.grid, &window, RADIUS),
                pixels: &worker.pixels,
            };
            while spots[passed].rows.start + tallest <= rows.start {
                passed += 1;
            }
            let near = spots[passed..].iter().take_while(|spot| spot.rows.start < rows.end);
            for spot in near.filter(|spot| spot.rows.end > rows.start) {
                chunk.add(spot, &mut worker.batch, sampled)?;
            }
            chunk.flush(&mut worker.batch, sampled);
            start = rows.end;
        }
        sampled.valid = sampled.plane(0).iter().filter(|value| !value.is_nan()).count();
        Ok(())
    }

    /// List the spots of an input that touch its frame, by their first source row. Returns the least
    /// distance of neighbouring points.
    fn find_spots(
        &self,
        number: usize,
        frame: &Clip,
        sampled: &Sampled,
        worker: &mut Worker,
    ) -> Result<f64> {
        let mut square = f64::INFINITY;
        worker.spots.clear();
        for run in &sampled.runs {
            for skip in (0..run.len).step_by(SPOT_POINTS as usize) {
                let points = Run {
                    column: run.column + skip,
                    slot: run.slot + skip,
                    len: SPOT_POINTS.min(run.len - skip),
                    ..*run
                };
                let (mut first, mut past) = (u32::MAX, 0);
                let mut before = [f64::NAN; 2];
                self.locate(number, &points, &mut worker.batch.record, |_, [x, y]| {
                    let [dx, dy] = [x - before[0], y - before[1]];
                    square = square.min(dx * dx + dy * dy); // never NaN
                    before = [x, y];
                    if let Some(row) = frame.row([x, y]) {
                        first = first.min(row as u32);
                        past = past.max(row as u32 + 1);
                    }
                })?;
                if first < past {
                    worker.spots.push(Spot { rows: first..past, points });
                }
            }
        }
        worker.spots.sort_unstable_by_key(|spot| (spot.rows.start, spot.points.slot));
        Ok(square.sqrt())
    }

    /// Give each point of a short run its place in the input, NaN where it has none.
    fn locate(
        &self,
        number: usize,
        points: &Run,
        record: &mut Vec<u8>,
        mut found: impl FnMut(u32, [f64; 2]),
    ) -> Result<()> {
        let grid = &*self.job.inputs[number].grid;
        let y = (points.line as usize * self.lattice.spacing) as i64;
        let row = grid.rows(y..y + 1).start;
        let step = 1.0 / grid.spacing() as f64;
        let mut k = 0;
        while k < points.len {
            let x_of = |k: u32| ((points.column + k) as usize * self.lattice.spacing) as i64;
            let column = grid.columns(x_of(k)..x_of(k) + 1).start;
            let span = grid.column_span(column);
            let kind = grid.cell(column, row);
            let mut map = [[0.0; 4]; 2];
            match kind {
                CellKind::Empty => {}
                CellKind::Smooth { .. } => {
                    let mut knots = [[0.0; 2]; 4];
                    grid.row_knots(y, column..column + 1, &mut knots);
                    map = [0, 1].map(|axis| cubic(knots.map(|knot: [f64; 2]| knot[axis])));
                }
                CellKind::Exact { index } => {
                    self.read_exact(
                        number,
                        index,
                        (y - grid.row_span(row).start) as usize,
                        record,
                    )?;
                }
            }
            while k < points.len && x_of(k) < span.end {
                let offset = (x_of(k) - span.start) as usize;
                let place = match kind {
                    CellKind::Empty => [f64::NAN; 2],
                    CellKind::Smooth { .. } => {
                        let u = offset as f64 * step;
                        map.map(|c| ((c[3] * u + c[2]) * u + c[1]) * u + c[0])
                    }
                    CellKind::Exact { .. } => {
                        let (doubles, _) = record.as_chunks::<8>();
                        [0, 1].map(|axis| f64::from_ne_bytes(doubles[2 * offset + axis]))
                    }
                };
                found(k, place);
                k += 1;
            }
        }
        Ok(())
    }

    /// Read the coordinates that an exact cell keeps for one of its rows.
    fn read_exact(
        &self,
        number: usize,
        index: u32,
        line: usize,
        record: &mut Vec<u8>,
    ) -> Result<()> {
        let grid = &self.job.inputs[number].grid;
        let exact = grid.exact().expect("only such grids have exact cells");
        let edge = grid.spacing();
        record.resize(edge * size_of::<[f64; 2]>(), 0);
        let at = (index as usize * edge + line) * record.len();
        let file = self.loader.files.open(usize::MAX - number, &exact.path)?;
        read_exact_at(&file, record, at as u64)
            .map_err(|e| Error::Argument(format!("scratch cannot be read back ({e})")))
    }

    /// Have the source rows of `window` in `pixels`. The first of them is there already, as the
    /// last of the chunk before, unless there is none.
    fn read(
        &self,
        number: usize,
        window: Rect,
        is_first: bool,
        pixels: &mut [f32],
        chunk: &mut [u8],
    ) -> Result<()> {
        let input = &self.job.inputs[number];
        let (stride, len) = (window.width(), window.area());
        let capacity = plane_len(input, rows_at_once(input));
        let planes = pixels.chunks_mut(capacity).take(input.planes());
        let planes = planes.map(|plane| {
            if is_first {
                return &mut plane[..len];
            }
            plane.copy_within(capacity - stride.., 0);
            &mut plane[stride..len]
        });
        let rows = window.y0 + i64::from(!is_first)..window.y1;
        let planes = planes.collect();
        let window = Window {
            input: number,
            out_x: 0..0,
            rect: window,
            exact: Vec::new(),
            is_stored: false,
        };
        self.loader.run(LoadTask::Rows(Rows::unread(&window, rows, planes)), chunk)
    }
}

/// Source rows in memory, and what falls on them.
struct Chunk<'a> {
    sampler: &'a Sampler<'a>,
    number: usize,
    rows: &'a Range<u32>,
    frame: &'a Clip,
    clip: Clip,
    pixels: &'a [f32],
}

impl Chunk<'_> {
    /// Sample the points of a spot that fall on these rows, or keep them until there are more.
    fn add(&self, spot: &Spot, batch: &mut Batch, sampled: &mut Sampled) -> Result<()> {
        if batch.places.len() + spot.points.len as usize > RUN {
            self.flush(batch, sampled);
        }
        let Batch { places, slots, record, .. } = batch;
        self.sampler.locate(self.number, &spot.points, record, |k, place| {
            if self.frame.row(place).is_some_and(|row| self.rows.contains(&(row as u32))) {
                places.push(place);
                slots.push(spot.points.slot + k);
            }
        })
    }

    /// Sample the points that were kept.
    fn flush(&self, batch: &mut Batch, sampled: &mut Sampled) {
        let input = &self.sampler.job.inputs[self.number];
        let (stride, capacity) = (plane_len(input, 0), plane_len(input, rows_at_once(input)));
        self.clip.listed(batch.places.as_flattened(), &mut batch.run);
        let mut values = [0.0; RUN];
        for channel in 0..input.image.channels() {
            let plane = Plane { pixels: &self.pixels[channel * capacity..], stride };
            sample(Kernel::Bilinear, &self.sampler.table, plane, &batch.run, &mut values);
            let first = channel * sampled.points;
            for (&slot, &value) in batch.slots.iter().zip(&values) {
                sampled.values[first + slot as usize] = value;
            }
        }
        if input.weighting.saturation.is_some() {
            sampled.share_validity(&batch.slots);
        }
        batch.places.clear();
        batch.slots.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coadd::{Combine, Running};
    use crate::geom::ExactCells;
    use crate::source::{Encoding, SampleType, Source, Store};

    const EDGE: usize = 32;
    const CELLS: [usize; 2] = [40, 30];

    fn source(channels: usize, [width, height]: [usize; 2], of: impl Fn(usize) -> f32) -> Source {
        let values = (0..channels * width * height).flat_map(|k| of(k).to_ne_bytes());
        let plain = Encoding {
            sample: SampleType::F32,
            big_endian: false,
            scale: 1.0,
            zero: 0.0,
            blank: None,
        };
        let bytes: Vec<u8> = values.collect();
        Source {
            store: Store::Memory(Box::new(bytes)),
            encoding: plain,
            planes: channels,
            width,
            height,
            bayer: None,
        }
    }

    /// Where an output pixel falls when the input is turned by `degrees`.
    fn turned(degrees: f64, x: f64, y: f64) -> [f64; 2] {
        let (sin, cos) = degrees.to_radians().sin_cos();
        let (x, y) = (x - 600.0, y - 450.0);
        [900.3 + cos * x - sin * y, 500.7 + sin * x + cos * y]
    }

    fn grid(degrees: f64, frame: [usize; 2]) -> CoordGrid {
        let across = CELLS[0] + 3;
        let nodes = (0..across * (CELLS[1] + 3)).map(|n| {
            let [x, y] = [n % across, n / across].map(|k| (k as f64 - 1.0) * EDGE as f64);
            turned(degrees, x, y)
        });
        CoordGrid::new([0, 0], EDGE, CELLS, frame, nodes.collect()).unwrap()
    }

    /// The same coordinates, but those of every third cell kept pixel by pixel.
    fn partly_exact(degrees: f64, frame: [usize; 2], path: &std::path::Path) -> CoordGrid {
        let numbers: Vec<u32> = (0..(CELLS[0] * CELLS[1]) as u32).step_by(3).collect();
        let mut bytes = Vec::new();
        for &number in &numbers {
            let cell = [number as usize % CELLS[0], number as usize / CELLS[0]];
            for pixel in 0..EDGE * EDGE {
                let [x, y] = [pixel % EDGE, pixel / EDGE];
                let place = [x + cell[0] * EDGE, y + cell[1] * EDGE].map(|v| v as f64);
                let place = turned(degrees, place[0], place[1]);
                bytes.extend(place.iter().flat_map(|v| v.to_ne_bytes()));
            }
        }
        std::fs::write(path, bytes).unwrap();
        let everywhere = [0.0, 0.0, frame[0] as f64 - 1.0, frame[1] as f64 - 1.0];
        let bounds = vec![everywhere; numbers.len()];
        let exact = ExactCells { path: path.to_owned(), bounds };
        grid(degrees, frame).with_exact(&numbers, exact).unwrap()
    }

    /// Check every sample of frames with a slope, a hole and a weight map, in two channels.
    #[test]
    fn samples_are_those_of_the_places_where_the_lattice_falls() {
        let frame = [1500, 800]; // of which a few dozen rows are held at once
        let hole = |x: f64, y: f64| (600.0..=650.0).contains(&x) && (300.0..=420.0).contains(&y);
        let unweighted = |x: f64| (1000.0..=1001.0).contains(&x);
        let plane = frame[0] * frame[1];
        let at = |k: usize| [(k % frame[0]) as f64, (k % plane / frame[0]) as f64];
        let slope = |channel: usize, [x, y]: [f64; 2]| 0.25 * x + 0.5 * y + 1000.0 * channel as f64;
        let image = source(2, frame, |k| {
            let [x, y] = at(k);
            let is_hole = hole(x, y) && k < plane;
            if is_hole { f32::NAN } else { slope(k / plane, [x, y]) as f32 }
        });
        let weights = source(1, frame, |k| if unweighted(at(k)[0]) { 0.0 } else { 2.0 });
        let path = std::env::temp_dir().join(format!("zmrs-exact-{}", std::process::id()));
        let angles = [0.0, 1.5, 33.0, 90.0, 200.0];
        let grids = angles.map(|degrees| grid(degrees, frame));
        let grids = grids.into_iter().chain([partly_exact(33.0, frame, &path)]);
        let (image, weights) = (Arc::new(image), Arc::new(weights));
        let inputs = grids.map(|grid| Input {
            name: String::new(),
            image: Arc::clone(&image),
            weight_map: Some(Arc::clone(&weights)),
            weighting: crate::weights::Weighting::default(),
            grid: Arc::new(grid),
            weight: 1.0,
            gain: vec![1.0; 2],
            offset: vec![0.0; 2],
            noise: vec![1.0; 2],
        });
        let job = Job {
            height: 900,
            width: 1200,
            channels: 2,
            kernel: Kernel::Lanczos3,
            combine: Combine::Running(Running::Mean),
            inputs: inputs.collect(),
            matching: None,
            two_pass: None,
            variance: false,
        };
        let lattice = Lattice::of(&job);
        assert_eq!(lattice, Lattice { spacing: 8, across: 150, down: 113 });
        let ledger = Ledger::new(u64::MAX);
        let (cancel, progress) = (CancelToken::default(), Progress::default());
        let all = run(&job, &lattice, 3, &ledger, &cancel, &progress).unwrap();
        std::fs::remove_file(path).unwrap();
        let all_angles = angles.into_iter().chain([33.0]);
        for (sampled, degrees) in all.iter().zip(all_angles) {
            let mut valid = 0;
            for run in &sampled.runs {
                for k in 0..run.len {
                    let [x, y] = [run.column + k, run.line].map(|v| f64::from(8 * v));
                    let place = turned(degrees, x, y);
                    let near = |v: f64, most: usize| v.clamp(0.0, most as f64 - 1.0);
                    let inner = [near(place[0], frame[0]), near(place[1], frame[1])];
                    let inside = (0..2).all(|axis| (place[axis] - inner[axis]).abs() <= 0.5);
                    let touched = [0.0, 1.0].map(|d| inner.map(|v| v.floor() + d));
                    let spoiled = touched.iter().any(|&[x, _]| unweighted(x))
                        || touched.iter().any(|a| touched.iter().any(|b| hole(a[0], b[1])));
                    for channel in 0..2 {
                        let got = sampled.plane(channel)[(run.slot + k) as usize];
                        assert_eq!(!got.is_nan(), inside && !spoiled, "{degrees} {place:?}");
                        if inside && !spoiled {
                            let wanted = slope(channel, inner);
                            assert!((f64::from(got) - wanted).abs() < 1e-3, "{got} {wanted}");
                        }
                    }
                    valid += usize::from(inside && !spoiled);
                }
            }
            assert_eq!(valid, sampled.valid);
            assert!(valid > 4000, "{valid}");
        }
    }
}
