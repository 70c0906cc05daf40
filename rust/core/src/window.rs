//! The source pixels that a part of the output needs.

use std::ops::Range;

use crate::geom::{CellKind, Rect};
use crate::job::Job;
use crate::resample::SLACK;

/// Pixels of a window at most: kernels count them in 32 bits.
pub const MOST_PIXELS: usize = i32::MAX as usize;

/// The source pixels of one input that some output columns of a block touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Which input.
    pub input: usize,
    /// The output columns that it serves.
    pub out_x: Range<i64>,
    /// The source pixels, taps included; where it sticks out of the frame there are none.
    pub rect: Rect,
    /// Records of the exact cells that it needs, in ascending order.
    pub exact: Vec<u32>,
    /// Whether it holds samples as they are stored, which a device will decode.
    pub is_stored: bool,
}

impl Window {
    /// Values of its planes once they are decoded, with the slack that kernels read past the end.
    pub fn values(&self, job: &Job) -> usize {
        job.inputs[self.input].planes() * self.rect.area() + SLACK
    }

    /// Single-precision values in whose place it lies.
    pub fn len(&self, job: &Job) -> usize {
        if !self.is_stored {
            return self.values(job);
        }
        let area = self.held(job).area();
        let planes = job.inputs[self.input].stored_planes();
        planes.map(|(source, _)| stored_len(area * source.encoding.sample.bytes())).sum()
    }

    /// The pixels that are there: what is stored ends with the frame.
    pub fn held(&self, job: &Job) -> Rect {
        let [width, height] = job.inputs[self.input].grid.frame();
        if self.is_stored { self.rect.intersect(&Rect::frame(width, height)) } else { self.rect }
    }

    /// True when it holds no pixel, which never happens in a block.
    pub fn is_empty(&self) -> bool {
        self.rect.is_empty()
    }

    /// Doubles that the records of its exact cells take.
    pub fn exact_len(&self, job: &Job) -> usize {
        let edge = job.inputs[self.input].grid.spacing();
        self.exact.len() * edge * edge * 2
    }

    /// The window of `before` that holds most of this one's rows at full width, and those rows.
    pub fn kept<'w>(
        &self,
        before: impl IntoIterator<Item = &'w Window>,
    ) -> Option<(usize, Range<i64>)> {
        let candidates = before.into_iter().enumerate().filter_map(|(place, old)| {
            let wide = old.rect.x0 <= self.rect.x0 && old.rect.x1 >= self.rect.x1;
            let rows = self.rect.intersect(&old.rect);
            (old.input == self.input && wide && !rows.is_empty()).then_some((place, rows))
        });
        let best = candidates.max_by_key(|(_, rows)| rows.height());
        best.map(|(place, rows)| (place, rows.y0..rows.y1))
    }
}

/// Single-precision values in whose place so many bytes lie.
pub fn stored_len(bytes: usize) -> usize {
    bytes.div_ceil(size_of::<f32>())
}

/// A rotated input is cut into several windows when one would hold more than this share of its
/// rows, and several less than half of the pixels: a mild rotation is served better by one window
/// of whole rows, because the next block keeps those that both need.
const STRONGLY_ROTATED: f64 = 0.25;

/// The windows of one input for one block. Usually one; several, each for some of the columns,
/// when the input is rotated so strongly that a single one would hold mostly unused pixels.
///
/// With `whole_rows` a single window has the full width of the frame, so that the next band finds
/// in it all the rows that it shares with this one. With `as_stored` they hold what is stored, where
/// a device can decode that.
pub fn windows_of(
    job: &Job,
    input: usize,
    out: &Rect,
    whole_rows: bool,
    as_stored: bool,
) -> Vec<Window> {
    let grid = &job.inputs[input].grid;
    if grid.rect().intersect(out).is_empty() {
        return Vec::new();
    }
    let spans = grid.source_spans(out, job.kernel.radius());
    let join = |part: &[(Range<i64>, Rect)]| Window {
        input,
        out_x: part[0].0.start..part[part.len() - 1].0.end,
        rect: part.iter().fold(Rect::default(), |all, (_, rect)| all.union(rect)),
        exact: Vec::new(),
        is_stored: as_stored && job.inputs[input].can_stay_stored(),
    };
    let cut = |pieces: usize| -> Vec<Window> {
        spans.chunks(spans.len().div_ceil(pieces).max(1)).map(join).collect()
    };
    let area = |windows: &[Window]| windows.iter().map(|w| w.rect.area()).sum::<usize>();
    let mut best = cut(1);
    let [width, height] = grid.frame().map(|n| n as i64);
    if best.iter().any(|one| one.rect.height() as f64 > STRONGLY_ROTATED * height as f64) {
        let finest = (0..).map(|k| 2 << k).take_while(|&pieces| pieces <= spans.len());
        let finer = finest.map(cut).min_by_key(|windows| area(windows));
        best = finer.filter(|finer| 2 * area(finer) < area(&best)).unwrap_or(best);
    }
    if let [one] = &mut best[..]
        && whole_rows
    {
        let reach = job.kernel.radius() as i64;
        one.rect.x0 = 1 - reach;
        one.rect.x1 = width + reach;
    }
    for window in &mut best {
        window.exact = exact_records(job, window, out);
    }
    best
}

fn exact_records(job: &Job, window: &Window, out: &Rect) -> Vec<u32> {
    let grid = &job.inputs[window.input].grid;
    if grid.exact().is_none() {
        return Vec::new();
    }
    let mut records = Vec::new();
    for row in grid.rows(out.y0..out.y1) {
        for column in grid.columns(window.out_x.clone()) {
            if let CellKind::Exact { index } = grid.cell(column, row) {
                records.push(index);
            }
        }
    }
    records.sort_unstable();
    records
}

/// No window of `input` for an output rectangle of `columns` by `rows` pixels takes more values
/// than this, the records of exact cells included (two values a double).
pub fn most_values(job: &Job, input: usize, columns: usize, rows: usize) -> usize {
    let input = &job.inputs[input];
    let [width, height] = input.grid.frame();
    let taps = 2 * job.kernel.radius() + 2;
    let (mut across, mut down) = (width + taps, height + taps);
    let mut exact = 0;
    if input.grid.exact().is_some() {
        let edge = input.grid.spacing();
        let cells = (columns / edge + 2) * (rows / edge + 2);
        exact = 4 * cells * edge * edge;
    } else {
        let [[xx, xy], [yx, yy]] = input.grid.steepest();
        let span = |x: f64, y: f64| {
            ((x * columns as f64 + y * rows as f64) as usize).saturating_add(taps + 2)
        };
        across = across.min(span(xx, xy));
        down = down.min(span(yx, yy));
    }
    let pixels = across.saturating_mul(down).saturating_mul(input.planes());
    pixels.saturating_add(SLACK + exact)
}
