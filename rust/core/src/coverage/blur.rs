//! The blur of a plane, in bands of rows and in little memory.
//!
//! Each batch of rows is filtered down its columns, which needs only the rows that enter and leave
//! the windows; these are read again from the source instead of being kept. A sliding piece of the
//! result, turned so that its rows lie side by side, is filtered across. Both filters begin afresh
//! at fixed places of the plane, so a pixel's bits do not depend on who computes it with what else.

use std::ops::Range;
use std::sync::Arc;

#[cfg(target_arch = "x86_64")]
use super::gaussian::{Avx2, Avx512};
use super::gaussian::{
    Block, Form, Gaussian, LANES, Lanes, MOST_TAPS, NO_STATES, Plain, State, States, Vector, Waves,
    divide, weigh, widen,
};
use crate::budget::{LeasedVec, Ledger};
use crate::cpu::{Level, dispatched, level};
use crate::{Error, Result};

/// Rows of a segment: the unit of work, and the length of the recurrence down the columns.
pub const SEGMENT_ROWS: usize = 512;

/// Length of the recurrence across the rows.
pub const SEGMENT_COLUMNS: usize = 1024;

/// Rows that are filtered together. More would save traffic of the columns' states, which is what
/// wide planes wait for, and cost memory.
const BATCH: usize = 2 * LANES;

/// Blocks of rows in a batch.
const BLOCKS: usize = BATCH / LANES;

/// Rows that enter, or leave, the windows of a batch: the first one did so just before it.
const EDGE: usize = BATCH + 1;

/// Rows that a block of rows is made of, at most.
const MOST_SOURCES: usize = 2 * MOST_TAPS + LANES;

/// A blurred validity below this is rounding noise. A valid pixel has more by its own weight alone,
/// even under the widest Gaussian.
const EMPTY: f64 = 1e-11;

/// The rows of a plane, read in any order and by several workers at once.
pub trait RowSource: Sync {
    /// Fill `out` with row `y`.
    fn read(&self, y: usize, out: &mut [f32]) -> Result<()>;
}

/// What takes the finished rows: number, coverage (0 where it is not valid), blurred coverage.
pub type Emit<'e> = dyn FnMut(usize, &[f32], &[f64]) -> Result<()> + 'e;

/// The plane G(c) / G(c > 0): the coverage c blurred over its valid pixels, those that are finite
/// and above zero. G is a [`Gaussian`]; beyond its edges the plane goes on as its mirror image,
/// edge pixels included. Where nothing valid is in reach the result is 0.
///
/// The result is good to about 1e-9 of itself where coverages within reach differ by no more than a
/// factor of a hundred. Beyond that, errors go with the greatest coverage in reach or met before in
/// the same segment: the recurrences leave 1e-13 of it behind (1e-12 when σ is in the hundreds of
/// pixels), next to which a lone pixel has only the weight 0.16 / σ².
pub struct Blur<'a> {
    gaussian: &'a Gaussian,
    height: usize,
    width: usize,
    source: &'a dyn RowSource,
    level: Level,
}

impl<'a> Blur<'a> {
    /// The blur of a plane of `height` rows by `width` columns.
    pub fn new(
        gaussian: &'a Gaussian,
        height: usize,
        width: usize,
        source: &'a dyn RowSource,
    ) -> Self {
        Self { gaussian, height, width, source, level: level() }
    }

    /// Number of segments of [`SEGMENT_ROWS`] rows, of which the last may have fewer.
    pub fn segments(&self) -> usize {
        if self.width == 0 { 0 } else { self.height.div_ceil(SEGMENT_ROWS) }
    }

    /// Compute one segment and hand over its rows in their order.
    pub fn segment(&self, segment: usize, space: &mut BlurSpace, emit: &mut Emit) -> Result<()> {
        if space.shape != Shape::new(self.width, self.gaussian) {
            return Err(Error::Argument("this space was made for another blur".to_owned()));
        }
        if segment >= self.segments() {
            return Err(Error::Argument(format!("the plane has no segment {segment}")));
        }
        let first = segment * SEGMENT_ROWS;
        let rows = first..(first + SEGMENT_ROWS).min(self.height);
        self.begin(first as i64, space)?;
        for top in rows.clone().step_by(BATCH) {
            self.filter(top as i64, space)?;
            for y in top..rows.end.min(top + BATCH) {
                self.read(y as i64, &mut space.centre)?;
                let smooth = &mut space.smooth[(y - top) * space.shape.stride..][..self.width];
                let centre = &space.centre[..self.width];
                if matches!(self.gaussian.form, Form::Nothing) {
                    for (target, &value) in smooth.iter_mut().zip(centre) {
                        *target = f64::from(value);
                    }
                }
                emit(y, centre, smooth)?;
            }
        }
        Ok(())
    }

    /// Bring columns into the condition in which the batch above row `top` leaves them.
    fn begin(&self, top: i64, space: &mut BlurSpace) -> Result<()> {
        let Shape { stride, .. } = space.shape;
        let radius = self.gaussian.radius() as i64;
        match &self.gaussian.form {
            Form::Nothing => {}
            Form::Taps(_) => {
                let kept = space.rows[BATCH * stride..].chunks_mut(stride);
                for (y, row) in (top - radius..).zip(kept) {
                    self.read(y, row)?;
                }
            }
            Form::Waves(waves) => {
                space.states.fill(NO_STATES);
                for first in (0..waves.around.len()).step_by(BATCH) {
                    let (lead, trail) = space.rows.split_at_mut(EDGE * stride);
                    let pairs = lead.chunks_mut(stride).zip(trail.chunks_mut(stride)).take(BATCH);
                    for (m, (lead, trail)) in (first as i64..).zip(pairs) {
                        self.read_if(m <= radius, top - 1 + m, lead)?;
                        self.read_if(m <= radius && m > 0, top - 1 - m, trail)?;
                    }
                    gather(self.level, waves, first, &space.rows, stride, &mut space.states);
                }
                let (lead, trail) = space.rows.split_at_mut(EDGE * stride);
                self.read(top - 1 + radius, &mut lead[BATCH * stride..])?;
                self.read(top - 2 - radius, &mut trail[BATCH * stride..])?;
                settle(self.level, waves, &space.rows, stride, &mut space.states);
            }
        }
        Ok(())
    }

    /// Blur the batch at row `top`; the batch before it, or [`begin`](Self::begin), came last.
    fn filter(&self, top: i64, space: &mut BlurSpace) -> Result<()> {
        let Shape { stride, .. } = space.shape;
        let radius = self.gaussian.radius();
        let below = top + radius as i64;
        match &self.gaussian.form {
            Form::Nothing => return Ok(()),
            Form::Taps(_) => {
                space.rows.copy_within(BATCH * stride.., 0);
                let fresh = space.rows[2 * radius * stride..].chunks_mut(stride);
                for (y, row) in (below..).zip(fresh) {
                    self.read(y, row)?;
                }
            }
            Form::Waves(_) => {
                let above = top - 1 - radius as i64;
                for (y, rows) in
                    [below, above].into_iter().zip(space.rows.chunks_mut(EDGE * stride))
                {
                    rows.copy_within(BATCH * stride.., 0);
                    for (y, row) in (y..).zip(rows[stride..].chunks_mut(stride)) {
                        self.read(y, row)?;
                    }
                }
            }
        }
        blur(self.level, self.gaussian, self.width, space);
        Ok(())
    }

    /// A row of the endless plane, with zeros for what is not valid.
    pub(super) fn read(&self, y: i64, row: &mut [f32]) -> Result<()> {
        let row = &mut row[..self.width];
        self.source.read(mirrored(y, self.height), row)?;
        clean(row);
        Ok(())
    }

    fn read_if(&self, wanted: bool, y: i64, row: &mut [f32]) -> Result<()> {
        if wanted {
            return self.read(y, row);
        }
        row.fill(0.0);
        Ok(())
    }
}

/// The place in `0..n` that is repeated at `i`: d c b a | a b c d | d c b a.
fn mirrored(i: i64, n: usize) -> usize {
    let i = i.rem_euclid(2 * n as i64) as usize;
    if i < n { i } else { 2 * n - 1 - i }
}

/// The memory of one worker.
pub struct BlurSpace {
    shape: Shape,
    /// Source rows: those within reach of the taps, or those that enter the windows of the cosines
    /// and then those that leave.
    rows: LeasedVec<f32>,
    /// The source row that is handed over.
    centre: LeasedVec<f32>,
    /// Sums under the cosines down [`LANES`] columns each.
    states: LeasedVec<States>,
    /// Pieces of the rows of a batch, blurred down the columns: for each block the values and the
    /// validity, by column.
    windows: LeasedVec<Lanes>,
    /// The finished rows of a batch.
    smooth: LeasedVec<f64>,
}

impl BlurSpace {
    /// Bytes that [`new`](Self::new) leases.
    pub fn bytes(width: usize, gaussian: &Gaussian) -> u64 {
        let shape = Shape::new(width, gaussian);
        let singles = (shape.rows + 1) * shape.stride * size_of::<f32>();
        let doubles = BATCH * shape.stride * size_of::<f64>();
        let states = shape.groups * size_of::<States>();
        let windows = 2 * BLOCKS * shape.span * size_of::<Lanes>();
        (singles + doubles + states + windows) as u64
    }

    /// Buffers for planes of `width` columns.
    pub fn new(width: usize, gaussian: &Gaussian, ledger: &Arc<Ledger>) -> Result<Self> {
        let shape = Shape::new(width, gaussian);
        Ok(Self {
            shape,
            rows: ledger.zeroed(shape.rows * shape.stride)?,
            centre: ledger.zeroed(shape.stride)?,
            states: ledger.zeroed(shape.groups)?,
            windows: ledger.zeroed(2 * BLOCKS * shape.span)?,
            smooth: ledger.zeroed(BATCH * shape.stride)?,
        })
    }
}

/// The shapes of the buffers.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    /// Source rows.
    rows: usize,
    /// Values from one row to the next.
    stride: usize,
    /// Groups of columns that have a state.
    groups: usize,
    /// Columns in a window.
    span: usize,
    /// Columns in a window before those that it is there for.
    halo: usize,
}

impl Shape {
    fn new(width: usize, gaussian: &Gaussian) -> Self {
        let (radius, stride) = (gaussian.radius(), width.next_multiple_of(LANES));
        // Sums are gathered by whole blocks, around the column before the first one.
        let reach = (radius + 1).next_multiple_of(LANES);
        let halo = reach + LANES;
        let span = halo + stride.min(SEGMENT_COLUMNS) + reach;
        let (rows, groups, span) = match gaussian.form {
            Form::Nothing => (0, 0, 0),
            Form::Taps(_) => (2 * radius + BATCH, 0, span),
            Form::Waves(_) => (2 * EDGE, stride / LANES, span),
        };
        Self { rows, stride, groups, span, halo }
    }
}

dispatched! {
    /// Zero for what is not valid.
    fn clean(row: &mut [f32]) = clean_body
}

#[inline(always)]
fn clean_body(row: &mut [f32]) {
    for value in row {
        *value = if *value > 0.0 && *value < f32::INFINITY { *value } else { 0.0 };
    }
}

/// Define a function that runs `$body` with the registers of a level.
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $t:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        fn $name(level: Level, $($arg: $t),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $t),*) {
                    $body::<Avx512>($($arg),*);
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $t),*) {
                    $body::<Avx2>($($arg),*);
                }
                match level {
                    // SAFETY: the processor has what its level, or one above this one, names.
                    Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Baseline => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = level;
            $body::<Plain>($($arg),*);
        }
    };
}

vectorised! {
    /// Add the rows at distances `first`, `first` + 1, … on both sides of a centre to the states.
    fn gather(
        waves: &Waves,
        first: usize,
        rows: &[f32],
        stride: usize,
        states: &mut [States],
    ) = gather_with
}

#[inline(always)]
fn gather_with<V: Vector>(
    waves: &Waves,
    first: usize,
    rows: &[f32],
    stride: usize,
    states: &mut [States],
) {
    for (group, [values, valid]) in states.iter_mut().enumerate() {
        for block in (0..BATCH).step_by(LANES).take_while(|b| first + b < waves.around.len()) {
            let (mut lead, mut lead_valid) = ([Lanes::ZERO; LANES], [Lanes::ZERO; LANES]);
            let (mut trail, mut trail_valid) = (lead, lead);
            for i in 0..LANES {
                let at = (block + i) * stride + group * LANES;
                widen::<V>(&rows[at..], &mut lead[i], &mut lead_valid[i]);
                widen::<V>(&rows[at + EDGE * stride..], &mut trail[i], &mut trail_valid[i]);
            }
            waves.gather::<V>(values, first + block, &lead, &trail);
            waves.gather::<V>(valid, first + block, &lead_valid, &trail_valid);
        }
    }
}

vectorised! {
    /// Make the sums into states that lead on, with the last rows that enter and leave.
    fn settle(waves: &Waves, rows: &[f32], stride: usize, states: &mut [States]) = settle_with
}

#[inline(always)]
fn settle_with<V: Vector>(waves: &Waves, rows: &[f32], stride: usize, states: &mut [States]) {
    for (group, [values, valid]) in states.iter_mut().enumerate() {
        let at = BATCH * stride + group * LANES;
        let (mut last, mut next) = ([Lanes::ZERO; 2], [Lanes::ZERO; 2]);
        let ([last, last_valid], [next, next_valid]) = (&mut last, &mut next);
        widen::<V>(&rows[at..], last, last_valid);
        widen::<V>(&rows[at + EDGE * stride..], next, next_valid);
        waves.settle::<V>(values, last, next);
        waves.settle::<V>(valid, last_valid, next_valid);
    }
}

vectorised! {
    /// Blur the batch whose source rows are in `space`.
    fn blur(gaussian: &Gaussian, width: usize, space: &mut BlurSpace) = blur_with
}

#[inline(always)]
fn blur_with<V: Vector>(gaussian: &Gaussian, width: usize, space: &mut BlurSpace) {
    let Shape { stride, span, halo, .. } = space.shape;
    let radius = gaussian.radius();
    let mut sources = [[Lanes::ZERO; MOST_SOURCES]; 2];
    let mut filtered = [[Lanes::ZERO; LANES]; 2];
    let mut done = 0; // columns that are filtered down
    for first in (0..width).step_by(SEGMENT_COLUMNS) {
        let columns = first..width.min(first + SEGMENT_COLUMNS);
        let place = |x: usize| x + halo - first;
        if first > 0 {
            for window in space.windows.chunks_mut(span) {
                window.copy_within(SEGMENT_COLUMNS.., 0);
            }
        }
        let needed = width.min(columns.end + radius).next_multiple_of(LANES);
        for (block, windows) in space.windows.chunks_mut(2 * span).enumerate() {
            let rows = &space.rows[block * LANES * stride..];
            for column in (done..needed).step_by(LANES) {
                let states = space.states.get_mut(column / LANES);
                down::<V>(gaussian, &rows[column..], stride, states, &mut sources, &mut filtered);
                for (window, filtered) in windows.chunks_mut(span).zip(&filtered) {
                    V::turn(filtered, &mut window[place(column)..]);
                }
            }
        }
        done = done.max(needed);
        for window in space.windows.chunks_mut(span) {
            if first == 0 {
                for x in 1..=radius + 2 {
                    window[halo - x] = window[halo + mirrored(-(x as i64), width)];
                }
            }
            for x in width..columns.end + radius {
                window[place(x)] = window[place(mirrored(x as i64, width))];
            }
        }
        let smooth = space.smooth.chunks_mut(LANES * stride);
        for (windows, smooth) in space.windows.chunks(2 * span).zip(smooth) {
            across::<V>(gaussian, windows.split_at(span), halo, columns.clone(), smooth, stride);
        }
    }
}

/// Filter a block of rows down [`LANES`] columns, at whose source `rows` begin: the values and
/// their validity.
#[inline(always)]
fn down<V: Vector>(
    gaussian: &Gaussian,
    rows: &[f32],
    stride: usize,
    states: Option<&mut States>,
    [sources, sources_valid]: &mut [[Lanes; MOST_SOURCES]; 2],
    [values, valid]: &mut [Block; 2],
) {
    match (&gaussian.form, states) {
        (Form::Waves(waves), Some([values_state, valid_state])) => {
            for (place, i) in (0..=LANES).chain(EDGE..=EDGE + LANES).enumerate() {
                widen::<V>(&rows[i * stride..], &mut sources[place], &mut sources_valid[place]);
            }
            waves.advance::<V>(values_state, sources, &sources[LANES + 1..], values);
            waves.advance::<V>(valid_state, sources_valid, &sources_valid[LANES + 1..], valid);
        }
        (Form::Taps(taps), _) => {
            for i in 0..2 * gaussian.radius() + LANES {
                widen::<V>(&rows[i * stride..], &mut sources[i], &mut sources_valid[i]);
            }
            weigh::<V>(taps, sources, values);
            weigh::<V>(taps, sources_valid, valid);
        }
        _ => unreachable!("a blur without neighbours has nothing to filter"),
    }
}

/// Filter a block of rows across `columns`, the first of which is at `first` in the windows of the
/// values and their validity, and divide.
#[inline(always)]
fn across<V: Vector>(
    gaussian: &Gaussian,
    (values, valid): (&[Lanes], &[Lanes]),
    first: usize,
    columns: Range<usize>,
    smooth: &mut [f64],
    stride: usize,
) {
    let mut states = NO_STATES;
    let [values_state, valid_state] = &mut states;
    begin_across::<V>(gaussian, values, first, values_state);
    begin_across::<V>(gaussian, valid, first, valid_state);
    let (mut quotients, mut divisors) = ([Lanes::ZERO; LANES], [Lanes::ZERO; LANES]);
    let mut turned = quotients;
    for (place, column) in (first..).step_by(LANES).zip(columns.step_by(LANES)) {
        next::<V>(gaussian, values, place, values_state, &mut quotients);
        next::<V>(gaussian, valid, place, valid_state, &mut divisors);
        divide::<V>(&mut quotients, &divisors, EMPTY);
        V::turn(&quotients, &mut turned);
        for (row, turned) in smooth.chunks_mut(stride).zip(&turned) {
            row[column..column + LANES].copy_from_slice(&turned.0);
        }
    }
}

/// The state that leads on to place `first` of a window.
#[inline(always)]
fn begin_across<V: Vector>(gaussian: &Gaussian, window: &[Lanes], first: usize, state: &mut State) {
    let Form::Waves(waves) = &gaussian.form else { return };
    let (centre, radius) = (first - 1, gaussian.radius());
    let mut trail = [Lanes::ZERO; LANES];
    for m in (0..waves.around.len()).step_by(LANES) {
        let lead = window[centre + m..].first_chunk().expect("a window has a halo");
        for i in 0..LANES {
            trail[i] = if m + i == 0 { Lanes::ZERO } else { window[centre - m - i] };
        }
        waves.gather::<V>(state, m, lead, &trail);
    }
    waves.settle::<V>(state, &window[centre + radius], &window[centre - 1 - radius]);
}

/// The block at `place` of a window, filtered across.
#[inline(always)]
fn next<V: Vector>(
    gaussian: &Gaussian,
    window: &[Lanes],
    place: usize,
    state: &mut State,
    filtered: &mut Block,
) {
    let radius = gaussian.radius();
    match &gaussian.form {
        Form::Nothing => {}
        Form::Taps(taps) => weigh::<V>(taps, &window[place - radius..], filtered),
        Form::Waves(waves) => {
            let (lead, trail) = (&window[place - 1 + radius..], &window[place - 2 - radius..]);
            waves.advance::<V>(state, lead, trail, filtered);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plane {
        width: usize,
        values: Vec<f32>,
    }

    impl RowSource for Plane {
        fn read(&self, y: usize, out: &mut [f32]) -> Result<()> {
            out.copy_from_slice(&self.values[y * self.width..][..self.width]);
            Ok(())
        }
    }

    /// Every pixel of a blur, with its coverage.
    type Blurred = (Vec<f32>, Vec<f64>);

    /// All segments of a blur, in the order given, with one space or with a fresh one for each.
    fn run(
        plane: &Plane,
        sigma: f64,
        order: impl Fn(usize) -> Vec<usize>,
        fresh: bool,
        level: Level,
    ) -> Blurred {
        let (gaussian, width) = (Gaussian::new(sigma).unwrap(), plane.width);
        let height = plane.values.len() / width;
        let blur = Blur { level, ..Blur::new(&gaussian, height, width, plane) };
        let ledger = Ledger::new(BlurSpace::bytes(width, &gaussian));
        let mut space = BlurSpace::new(width, &gaussian, &ledger).unwrap();
        assert_eq!(ledger.peak(), BlurSpace::bytes(width, &gaussian));
        let (mut cleaned, mut blurred) = (plane.values.clone(), vec![f64::NAN; height * width]);
        for segment in order(blur.segments()) {
            let mut rows = segment * SEGMENT_ROWS..height.min((segment + 1) * SEGMENT_ROWS);
            let mut emit = |y: usize, row: &[f32], smooth: &[f64]| {
                assert_eq!(Some(y), rows.next());
                cleaned[y * width..][..width].copy_from_slice(row);
                blurred[y * width..][..width].copy_from_slice(smooth);
                Ok(())
            };
            blur.segment(segment, &mut space, &mut emit).unwrap();
            assert!(rows.is_empty());
            if fresh {
                drop(space);
                space = BlurSpace::new(width, &gaussian, &ledger).unwrap();
            }
        }
        (cleaned, blurred)
    }

    fn blurred(plane: &Plane, sigma: f64) -> Blurred {
        run(plane, sigma, |segments| (0..segments).collect(), false, level())
    }

    /// A coverage with seams, holes, single pixels far from others and things that do not count.
    fn ragged(height: usize, width: usize) -> Plane {
        let mut seed = 5_u32;
        let values = (0..height * width).map(|i| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (y, x) = (i / width, i % width);
            match seed >> 24 {
                0 => f32::NAN,
                1 => f32::INFINITY,
                2 => -3.0,
                3 => f32::NEG_INFINITY,
                4 => 0.0,
                _ if y > height / 2 && x < width / 3 => ((seed >> 8) % 4001 / 4000) as f32,
                _ => ((x / 17 + y / 23) % 4) as f32 * 1.25 + (seed >> 28) as f32 * 0.01,
            }
        });
        Plane { width, values: values.collect() }
    }

    /// The blur by its definition.
    fn direct(plane: &Plane, sigma: f64) -> Blurred {
        let (width, height) = (plane.width, plane.values.len() / plane.width);
        let radius = (4.0 * sigma.max(0.0) + 0.5) as i64;
        let tap = |m: i64| if m == 0 { 1.0 } else { (-0.5 * (m as f64 / sigma).powi(2)).exp() };
        let sum: f64 = (-radius..=radius).map(tap).sum();
        let taps: Vec<f64> = (-radius..=radius).map(|m| tap(m) / sum).collect();
        let filter = |values: &[f64]| {
            let at = |y: usize, x: usize| y * width + x;
            let under = |value: &dyn Fn(i64) -> f64| -> f64 {
                taps.iter().zip(-radius..).map(|(tap, m)| tap * value(m)).sum()
            };
            let mut down = vec![0.0; values.len()];
            let mut both = down.clone();
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                down[at(y, x)] = under(&|m| values[at(mirrored(y as i64 + m, height), x)]);
            }
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                both[at(y, x)] = under(&|m| down[at(y, mirrored(x as i64 + m, width))]);
            }
            both
        };
        let counts = |c: &f32| if *c > 0.0 && c.is_finite() { *c } else { 0.0 };
        let cleaned: Vec<f32> = plane.values.iter().map(counts).collect();
        let values: Vec<f64> = cleaned.iter().map(|&c| c.into()).collect();
        let valid: Vec<f64> = cleaned.iter().map(|&c| f64::from(c > 0.0)).collect();
        let quotients = filter(&values).into_iter().zip(filter(&valid));
        let quotients = quotients.map(|(num, den)| if den < EMPTY { 0.0 } else { num / den });
        (cleaned, quotients.collect())
    }

    /// The greatest relative difference of two blurs where there is coverage.
    fn distance(a: &Blurred, b: &Blurred) -> f64 {
        assert_eq!(a.0, b.0);
        let pairs = a.1.iter().zip(&b.1).zip(&a.0).filter(|(_, c)| **c > 0.0);
        pairs.map(|((a, b), _)| (a / b - 1.0).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn it_is_the_blur_of_the_definition() {
        for (height, width, sigma) in [
            (70, 50, 0.0),
            (70, 50, -1.0),
            (70, 50, 0.1),
            (70, 50, 0.3),
            (70, 50, 1.0),
            (70, 50, 4.1),
            (70, 50, 4.2),
            (61, 83, 5.0),
            (83, 61, 20.0),
            (31, 45, 50.0),
            (3, 2, 333.3),
            (1, 1, 1.0),
            (1, 1, 50.0),
            (1, 90, 1.0),
            (1, 90, 20.0),
            (90, 1, 1.0),
            (90, 1, 20.0),
            (7, 2 * SEGMENT_COLUMNS + 3, 3.0),
            (7, 2 * SEGMENT_COLUMNS + 3, 20.0),
            (2, SEGMENT_COLUMNS - 1, 300.0),
            (2, SEGMENT_COLUMNS + 1, 300.0),
            (2, SEGMENT_COLUMNS + 40, 300.0),
            (2 * SEGMENT_ROWS + 3, 7, 3.0),
            (2 * SEGMENT_ROWS + 3, 7, 50.0),
        ] {
            let plane = ragged(height, width);
            let far = distance(&blurred(&plane, sigma), &direct(&plane, sigma));
            println!("{height} x {width}, sigma {sigma}: {far:.1e}");
            assert!(far < 1e-9, "{height} x {width}, sigma {sigma}: {far:e}");
        }
    }

    #[test]
    fn nothing_in_reach_is_nothing() {
        for sigma in [0.0, 1.0, 5.0] {
            let mut plane = Plane { width: 700, values: vec![0.0; 60 * 700] };
            let nothing = blurred(&plane, sigma);
            assert!(nothing.1.iter().all(|&smooth| smooth == 0.0));
            plane.values[20 * 700 + 300] = 2.5;
            let (_, smooth) = blurred(&plane, sigma);
            let reach = Gaussian::new(sigma).unwrap().radius();
            for (i, &smooth) in smooth.iter().enumerate() {
                let near = (i / 700).abs_diff(20) <= reach && (i % 700).abs_diff(300) <= reach;
                let expected = if near { 2.5 } else { 0.0 };
                assert!((smooth - expected).abs() < 1e-3, "{sigma} at {i}: {smooth}");
            }
            assert!((smooth[20 * 700 + 300] - 2.5).abs() < 1e-9);
        }
        // Nor is what the recurrence under a wide Gaussian leaves behind.
        let values = (0..4000).map(|x| if x < 500 { 1.0 } else { 0.0 }).collect();
        let (_, smooth) = blurred(&Plane { width: 4000, values }, 500.0);
        assert!(smooth[..2400].iter().all(|smooth| (smooth - 1.0).abs() < 1e-9));
        assert!(smooth[2500..].iter().all(|&smooth| smooth == 0.0));
    }

    #[test]
    fn a_flat_coverage_stays_as_it_is() {
        for (value, sigma) in [(1.0, 1.0), (0.1, 5.0), (123.456, 20.0), (7.0, 50.0), (3e-30, 50.0)]
        {
            let plane = Plane { width: 1100, values: vec![value; 600 * 1100] };
            let (_, smooth) = blurred(&plane, sigma);
            assert!(smooth.iter().all(|&smooth| smooth as f32 == value), "{value} by {sigma}");
            // Holes do not matter.
            let mut holed = plane;
            holed.values.iter_mut().step_by(3).for_each(|value| *value = f32::NAN);
            let (_, smooth) = blurred(&holed, sigma);
            assert!(smooth.iter().all(|&smooth| smooth as f32 == value), "{value} by {sigma}");
        }
    }

    #[test]
    fn five_tiles_blur_as_in_scipy() {
        let mut plane = Plane { width: 160, values: vec![0.0; 120 * 160] };
        for (top, left) in [(0, 0), (0, 60), (40, 0), (40, 60), (20, 30)] {
            for y in top..top + 80 {
                plane.values[y * 160 + left..][..100].iter_mut().for_each(|value| *value += 1.0);
            }
        }
        let (_, smooth) = blurred(&plane, 5.0);
        assert_eq!(format!("{:.6} {:.6}", smooth[0], smooth[60 * 160 + 80]), "1.000000 4.999893");
    }

    #[test]
    fn bits_do_not_depend_on_the_way() {
        let levels = [Level::Baseline, Level::Avx2, Level::Avx512];
        let possible = levels.iter().position(|&one| one == level()).unwrap();
        for sigma in [2.0, 20.0] {
            let plane = ragged(2 * SEGMENT_ROWS + 30, SEGMENT_COLUMNS + 130);
            let bits = |(_, smooth): Blurred| -> Vec<u64> {
                smooth.into_iter().map(f64::to_bits).collect()
            };
            let expected = bits(blurred(&plane, sigma));
            let there = |segments: usize| (0..segments).collect::<Vec<_>>();
            let back = |segments: usize| (0..segments).rev().collect::<Vec<_>>();
            let twice = |segments: usize| [back(segments), there(segments)].concat();
            assert!(bits(run(&plane, sigma, back, false, level())) == expected);
            assert!(bits(run(&plane, sigma, twice, false, level())) == expected);
            assert!(bits(run(&plane, sigma, there, true, level())) == expected);
            for &level in &levels[..possible] {
                assert!(bits(run(&plane, sigma, there, false, level)) == expected, "{level:?}");
            }
        }
    }

    #[test]
    fn a_space_forgets_a_failure() {
        struct Failing(Plane, std::sync::atomic::AtomicUsize);
        impl RowSource for Failing {
            fn read(&self, y: usize, out: &mut [f32]) -> Result<()> {
                out.fill(f32::NAN);
                if self.1.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                    return Err(Error::Cancelled);
                }
                self.0.read(y, out)
            }
        }
        let plane = ragged(100, 40);
        for sigma in [0.0, 2.0, 20.0] {
            let gaussian = Gaussian::new(sigma).unwrap();
            let ledger = Ledger::new(1 << 30);
            let mut space = BlurSpace::new(40, &gaussian, &ledger).unwrap();
            for reads in [0, 9, 25, 77] {
                let failing = Failing(ragged(100, 40), reads.into());
                let blur = Blur::new(&gaussian, 100, 40, &failing);
                let result = blur.segment(0, &mut space, &mut |_, _, _| Ok(()));
                assert!(matches!(result, Err(Error::Cancelled)), "{sigma}, {reads}");
                let (_, expected) = blurred(&plane, sigma);
                let blur = Blur::new(&gaussian, 100, 40, &plane);
                let mut emit = |y: usize, _: &[f32], smooth: &[f64]| {
                    assert_eq!(smooth, &expected[y * 40..][..40]);
                    Ok(())
                };
                blur.segment(0, &mut space, &mut emit).unwrap();
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let gaussian = Gaussian::new(5.0).unwrap();
        let ledger = Ledger::new(1 << 30);
        let mut space = BlurSpace::new(40, &gaussian, &ledger).unwrap();
        let plane = ragged(10, 41);
        let mut emit = |_: usize, _: &[f32], _: &[f64]| Ok(());
        assert!(Blur::new(&gaussian, 10, 41, &plane).segment(0, &mut space, &mut emit).is_err());
        let other = Gaussian::new(6.0).unwrap();
        assert!(Blur::new(&other, 10, 40, &plane).segment(0, &mut space, &mut emit).is_err());
        let plane = ragged(10, 40);
        let blur = Blur::new(&gaussian, 10, 40, &plane);
        assert!(blur.segment(1, &mut space, &mut emit).is_err());
        assert!(blur.segment(0, &mut space, &mut emit).is_ok());
        assert_eq!(Blur::new(&gaussian, 10, 0, &plane).segments(), 0);
        assert_eq!(Blur::new(&gaussian, 0, 10, &plane).segments(), 0);
        assert_eq!(Blur::new(&gaussian, SEGMENT_ROWS + 1, 10, &plane).segments(), 2);
        let emit = &mut |_: usize, _: &[f32], _: &[f64]| Err(Error::Cancelled);
        assert!(matches!(blur.segment(0, &mut space, emit), Err(Error::Cancelled)));
    }

    #[test]
    fn a_space_for_a_wide_plane_is_small() {
        let bytes = |sigma| BlurSpace::bytes(44_000, &Gaussian::new(sigma).unwrap());
        assert!(bytes(50.0) < 24 << 20 && bytes(4.0) < 24 << 20 && bytes(1.0) < 24 << 20);
    }

    #[test]
    #[ignore = "a timing"]
    fn coverage_speed() {
        for (height, width) in [(3231, 3237), (9300, 2000), (1024, 44000)] {
            let values = (0..height * width).map(|i| ((i / 700) % 5) as f32).collect();
            let plane = Plane { width, values };
            for sigma in [0.0, 1.0, 4.0, 5.0, 50.0] {
                let gaussian = Gaussian::new(sigma).unwrap();
                let blur = Blur::new(&gaussian, height, width, &plane);
                let ledger = Ledger::new(1 << 30);
                let mut space = BlurSpace::new(width, &gaussian, &ledger).unwrap();
                let mut least = f64::INFINITY;
                for _ in 0..3 {
                    let start = std::time::Instant::now();
                    for segment in 0..blur.segments() {
                        let mut emit = |_, _: &[f32], smooth: &[f64]| {
                            std::hint::black_box(smooth);
                            Ok(())
                        };
                        blur.segment(segment, &mut space, &mut emit).unwrap();
                    }
                    least = least.min(start.elapsed().as_secs_f64());
                }
                let nanoseconds = 1e9 * least / (height * width) as f64;
                let mib = BlurSpace::bytes(width, &gaussian) >> 20;
                println!("{height} x {width}, sigma {sigma}: {nanoseconds:.2} ns/pixel, {mib} MiB");
            }
        }
    }
}
