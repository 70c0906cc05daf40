//! Which output pixels inputs are compared at.

use std::ops::Range;

use crate::geom::{CellKind, CoordGrid, Rect};
use crate::job::Job;

/// No spacing is narrower, unless inputs are small: neighbours would mostly repeat each other, and
/// every eighth pixel leaves thousands for a modest overlap.
const USUAL_SPACING: usize = 8;

/// The same where gains are measured, whose noise is that of all samples together: neighbours share
/// no pixels still.
const USUAL_SPACING_OF_GAINS: usize = 2;

/// Lattice points of all inputs together, unless small overlaps need more.
const PREFERRED_POINTS: usize = 4 << 20;

/// Samples of all inputs and channels together at most: 64 MiB.
const MOST_VALUES: usize = 16 << 20;

/// Lattice points across a typical input: a strip of a tenth of it then still holds a hundred.
const LEAST_STEPS: usize = 32;

/// Every `spacing`-th output pixel in both directions, from the first one on, numbered row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lattice {
    /// Distance of neighbours in output pixels, a power of two.
    pub spacing: usize,
    /// Points in a row.
    pub across: usize,
    /// Rows.
    pub down: usize,
}

/// Points of one row without a gap between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Row of the lattice.
    pub line: u32,
    /// Column of the first point.
    pub column: u32,
    /// Number of points.
    pub len: u32,
    /// Where an input keeps its samples of them.
    pub slot: u32,
}

/// How much of the lattice an input may touch: its cells decide, the edge of its frame does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Points.
    pub points: usize,
    /// Runs of them.
    pub runs: usize,
}

impl Lattice {
    /// The lattice of a job. Nothing but the job decides, so that the samples, and all that follows
    /// from them, do not depend on how it runs.
    pub fn of(job: &Job) -> Self {
        let at = |spacing| Self {
            spacing,
            across: job.width.div_ceil(spacing),
            down: job.height.div_ceil(spacing),
        };
        let most = MOST_VALUES / job.channels;
        let has_gains = job.matching.is_some_and(|rules| rules.gains.is_some());
        let finest = if has_gains { USUAL_SPACING_OF_GAINS } else { USUAL_SPACING };
        let mut spacing = finest;
        while !at(spacing).is_within(job, most.min(PREFERRED_POINTS)) {
            spacing *= 2;
        }
        let side = typical_side(job);
        while spacing > 1 && side < LEAST_STEPS * spacing && at(spacing / 2).is_within(job, most) {
            spacing /= 2;
        }
        at(spacing)
    }

    /// Whether its points can be numbered and the inputs touch at most so many of them. A single
    /// point always is within.
    fn is_within(&self, job: &Job, most: usize) -> bool {
        let area = self.across as u128 * self.down as u128;
        let mut total = 0;
        area == 1
            || area <= u128::from(u32::MAX)
                && job.inputs.iter().all(|input| {
                    total += self.tally(&input.grid).points;
                    total <= most
                })
    }

    /// What an input may touch.
    pub fn tally(&self, grid: &CoordGrid) -> Tally {
        let mut tally = Tally::default();
        for (lines, streaks) in self.streaks(grid) {
            tally.points += lines.len() * streaks.iter().map(Range::len).sum::<usize>();
            tally.runs += lines.len() * streaks.len();
        }
        tally
    }

    /// What an input may touch, row by row from left to right.
    pub fn runs(&self, grid: &CoordGrid) -> Vec<Run> {
        let mut runs = Vec::with_capacity(self.tally(grid).runs);
        let mut slot = 0;
        for (lines, streaks) in self.streaks(grid) {
            for line in lines {
                for streak in &streaks {
                    let (column, len) = (streak.start as u32, streak.len() as u32);
                    runs.push(Run { line: line as u32, column, len, slot });
                    slot += len;
                }
            }
        }
        runs
    }

    /// For each row of an input's cells: its rows of the lattice, and the columns that are not in
    /// empty cells.
    fn streaks(&self, grid: &CoordGrid) -> impl Iterator<Item = (Range<usize>, Vec<Range<usize>>)> {
        let all = |points: usize| 0..((points - 1) * self.spacing + 1) as i64;
        let lines_of = move |row| self.within(&grid.row_span(row), self.down);
        let rows = grid.rows(all(self.down)).map(move |row| (row, lines_of(row)));
        rows.filter(|(_, lines)| !lines.is_empty()).map(move |(row, lines)| {
            let mut streaks: Vec<Range<usize>> = Vec::new();
            for column in grid.columns(all(self.across)) {
                let points = self.within(&grid.column_span(column), self.across);
                if points.is_empty() || grid.cell(column, row) == CellKind::Empty {
                    continue;
                }
                match streaks.last_mut() {
                    Some(last) if last.end == points.start => last.end = points.end,
                    _ => streaks.push(points),
                }
            }
            (lines, streaks)
        })
    }

    /// Points, of so many, that lie in a range of output pixels.
    fn within(&self, span: &Range<i64>, points: usize) -> Range<usize> {
        let first = |v: i64| (v.max(0) as usize).div_ceil(self.spacing).min(points);
        first(span.start)..first(span.end)
    }
}

/// The median of the inputs' shorter sides, in output pixels.
fn typical_side(job: &Job) -> usize {
    let canvas = Rect::frame(job.width, job.height);
    let mut sides: Vec<usize> = job.inputs.iter().map(|i| side(&i.grid, &canvas)).collect();
    let middle = sides.len() / 2;
    *sides.select_nth_unstable(middle).1
}

/// The shorter side of what a canvas shows of an input. Cells are coarser than small frames are, so
/// the scale amid them counts too, where they are smooth.
fn side(grid: &CoordGrid, canvas: &Rect) -> usize {
    let shown = grid.rect().intersect(canvas);
    let [x, y] = [shown.x0 + shown.x1, shown.y0 + shown.y1].map(|sum| (sum / 2) as f64);
    let [here, next] = [x, x + 1.0].map(|x| grid.at(x, y));
    let [dx, dy] = [next[0] - here[0], next[1] - here[1]];
    let [width, height] = grid.frame();
    // NaN where a cell is not smooth.
    let of_frame = (width.min(height) as f64 / (dx * dx + dy * dy).sqrt()).round();
    let of_cells = shown.width().min(shown.height());
    if of_frame < of_cells as f64 { of_frame as usize } else { of_cells }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, OnceLock};

    use super::*;
    use crate::coadd::{Combine, Running};
    use crate::job::Input;
    use crate::resample::Kernel;
    use crate::source::{Encoding, SampleType, Source, Store};

    /// A job of equal inputs.
    fn job(inputs: usize, channels: usize, canvas: usize, grid: CoordGrid) -> Job {
        let [width, height] = grid.frame();
        let encoding = Encoding {
            sample: SampleType::F32,
            big_endian: false,
            scale: 1.0,
            zero: 0.0,
            blank: None,
        };
        let store = Store::Deferred(OnceLock::new());
        let input = Input {
            name: String::new(),
            image: Arc::new(Source {
                store,
                encoding,
                planes: channels,
                width,
                height,
                bayer: None,
            }),
            weight_map: None,
            weighting: crate::weights::Weighting::default(),
            grid: Arc::new(grid),
            weight: 1.0,
            gain: vec![1.0; channels],
            offset: vec![0.0; channels],
            noise: vec![1.0; channels],
        };
        let kernel = Kernel::Bilinear;
        let inputs = vec![input; inputs];
        Job {
            height: canvas,
            width: canvas,
            channels,
            kernel,
            combine: Combine::Running(Running::Mean),
            inputs,
            matching: None,
            two_pass: None,
            variance: false,
        }
    }

    /// A grid of cells of `edge` pixels over a frame that fills them, shifted by `origin`.
    fn grid(edge: usize, origin: [i64; 2], cells: [usize; 2]) -> CoordGrid {
        let across = cells[0] + 3;
        let nodes = (0..across * (cells[1] + 3))
            .map(|n| [n % across, n / across].map(|k| (k as f64 - 1.0) * edge as f64));
        let frame = cells.map(|n| edge * n);
        CoordGrid::new(origin, edge, cells, frame, nodes.collect()).unwrap()
    }

    /// 2048 pixels wide.
    fn large() -> CoordGrid {
        grid(128, [0, 0], [16, 16])
    }

    #[test]
    fn runs_are_what_the_tally_says_and_stay_on_the_canvas() {
        for spacing in [8, 16, 64] {
            let lattice = Lattice { spacing, across: 100 / spacing + 1, down: 80 / spacing + 1 };
            for origin in [[0, 0], [-32, 16], [64, -16], [48, 48]] {
                let grid = grid(16, origin, [5, 4]);
                let (runs, tally) = (lattice.runs(&grid), lattice.tally(&grid));
                assert_eq!(runs.len(), tally.runs);
                assert_eq!(runs.iter().map(|run| run.len as usize).sum::<usize>(), tally.points);
                let rect = grid.rect();
                let mut slot = 0;
                for run in runs {
                    assert_eq!(run.slot, slot);
                    slot += run.len;
                    let past = run.column + run.len;
                    assert!(past as usize <= lattice.across && (run.line as usize) < lattice.down);
                    let x = [run.column, past - 1].map(|k| i64::from(k) * spacing as i64);
                    let y = i64::from(run.line) * spacing as i64;
                    assert!(rect.x0 <= x[0] && x[1] < rect.x1 && rect.y0 <= y && y < rect.y1);
                    assert!(x[0] - (spacing as i64) < rect.x0.max(0));
                }
            }
        }
    }

    #[test]
    fn small_inputs_have_a_finer_lattice() {
        // Frames that fill a part of their only cell, and see the sky at another scale.
        let small = |frame: usize, scale: f64| {
            let nodes = (0..16).map(|n| [n % 4, n / 4].map(|k| (k as f64 - 1.0) * 128.0 * scale));
            CoordGrid::new([0, 0], 128, [1, 1], [frame; 2], nodes.collect()).unwrap()
        };
        let spacing = |inputs, canvas, grid| Lattice::of(&job(inputs, 1, canvas, grid)).spacing;
        assert_eq!([127, 64, 63, 32].map(|frame| spacing(9, 500, small(frame, 1.0))), [2, 2, 1, 1]);
        assert_eq!([0.25, 0.5, 2.0].map(|scale| spacing(9, 500, small(30, scale))), [2, 1, 1]);
        // As far as there is room for their samples: cells are counted whole.
        assert_eq!(spacing(5000, 2000, small(32, 1.0)), 4);
        // A small canvas shows little of a large frame.
        assert_eq!([200, 100, 20].map(|canvas| spacing(3, canvas, large())), [4, 2, 1]);
    }

    #[test]
    fn more_inputs_have_a_coarser_lattice_but_not_too_coarse_a_one() {
        let spacing =
            |inputs, channels, canvas| Lattice::of(&job(inputs, channels, canvas, large())).spacing;
        assert_eq!(spacing(1, 1, 2048), 8);
        assert_eq!(spacing(64, 1, 2048), 8);
        assert_eq!(spacing(65, 1, 2048), 16);
        // Its 16 steps of 128 pixels would be few for an overlap.
        assert_eq!(spacing(5000, 1, 2048), 64);
        // Seven millions of points with three channels are too much, seven with one are not.
        assert_eq!([spacing(7000, 1, 2048), spacing(7000, 3, 2048)], [64, 128]);
        assert_eq!([spacing(40, 1, 2048), spacing(40, 10, 2048)], [8, 16]);
        // Points of a canvas are numbered in 32 bits.
        assert_eq!(spacing(1, 1, 1 << 20), 32);
    }
}
