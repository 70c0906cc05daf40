//! The exact percentile of pass one's luminance.

use std::ops::Range;
use std::sync::Arc;

use super::gains::Means;
use super::merge::luminance;
use super::planes::Planes;
use super::select::{key, locate, value};
use crate::Result;
use crate::budget::{LeasedVec, Ledger};
use crate::parallel;

/// Leading and trailing bits of a float are counted in turn.
const HALF: u32 = 16;
const BINS: usize = 1 << HALF;

/// Rows that one task looks at.
const TASK_ROWS: usize = 64;

/// What a worker owns.
struct Space {
    rows: LeasedVec<f32>,
    tally: Tally,
}

/// What a worker counts.
struct Tally {
    counts: LeasedVec<u64>,
    least: u32,
}

/// Bytes of one worker.
pub fn worker_bytes(width: usize, planes: usize) -> u64 {
    (planes * width * size_of::<f32>() + BINS * size_of::<u64>()) as u64
}

/// The percentile `percent` of the mean over the channels, where the coverage (the last of
/// `planes`) is above 0, linear between neighbours. Nothing where nothing is covered.
pub fn luminance_percentile(
    planes: &dyn Planes,
    (height, width): (usize, usize),
    percent: f64,
    means: &Means,
) -> Result<Option<f64>> {
    let affordable = means.bytes / worker_bytes(width, planes.count()).max(1);
    let workers = means.workers.min(affordable as usize).max(1);
    let space = |_| Space::new(width, planes.count(), means.ledger);
    let mut crew = (0..workers).map(space).collect::<Result<Vec<_>>>()?;
    let total = |crew: &[Space], bin: usize| crew.iter().map(|s| s.tally.counts[bin]).sum::<u64>();

    let sweep = Sweep { planes, height, width, means };
    sweep.run(&mut crew, |tally, key| tally.counts[(key >> HALF) as usize] += 1)?;
    let number: u64 = (0..BINS).map(|bin| total(&crew, bin)).sum();
    if number == 0 {
        return Ok(None);
    }
    let place = percent / 100.0 * (number - 1) as f64;
    let ranks = [place.floor() as u64, place.ceil() as u64];
    let find = |rank| locate((0..BINS).map(|bin| total(&crew, bin)), rank);
    let [(first, before), (second, _)] = ranks.map(find);
    for space in &mut crew {
        space.tally.counts.fill(0);
        space.tally.least = u32::MAX;
    }
    sweep.run(&mut crew, |tally, key| {
        let bin = (key >> HALF) as usize;
        if bin == first {
            tally.counts[key as usize % BINS] += 1;
        } else if bin == second {
            tally.least = tally.least.min(key);
        }
    })?;
    let [low, high] = [0, 1].map(|i| {
        if i == 1 && second != first {
            return f64::from(value(crew.iter().map(|s| s.tally.least).min().unwrap_or(0)));
        }
        let (low, _) = locate((0..BINS).map(|bin| total(&crew, bin)), ranks[i] - before);
        f64::from(value((first as u32) << HALF | low as u32))
    });
    Ok(Some(low + (high - low) * (place - place.floor())))
}

/// A look at every covered pixel.
struct Sweep<'a> {
    planes: &'a dyn Planes,
    height: usize,
    width: usize,
    means: &'a Means<'a>,
}

impl Sweep<'_> {
    fn run(&self, crew: &mut [Space], look: impl Fn(&mut Tally, u32) + Sync) -> Result<()> {
        let starts = (0..self.height).step_by(TASK_ROWS).collect();
        parallel::run(crew, starts, |start, space| {
            self.means.cancel.check()?;
            let rows = start..self.height.min(start + TASK_ROWS);
            space.look(self.planes, rows, self.width, &look)
        })?;
        Ok(())
    }
}

impl Space {
    fn new(width: usize, planes: usize, ledger: &Arc<Ledger>) -> Result<Self> {
        Ok(Self {
            rows: ledger.zeroed(planes * width)?,
            tally: Tally { counts: ledger.zeroed(BINS)?, least: u32::MAX },
        })
    }

    /// Show the key of every covered pixel's luminance to `look`.
    fn look(
        &mut self,
        planes: &dyn Planes,
        rows: Range<usize>,
        width: usize,
        look: &impl Fn(&mut Tally, u32),
    ) -> Result<()> {
        for y in rows {
            for plane in 0..planes.count() {
                planes.read(plane, y, &mut self.rows[plane * width..][..width])?;
            }
            let images = (planes.count() - 1) * width;
            for x in 0..width {
                if self.rows[images + x] > 0.0 {
                    let value = luminance(self.rows[..images].chunks(width), x);
                    if !value.is_nan() {
                        look(&mut self.tally, key(value));
                    }
                }
            }
        }
        Ok(())
    }
}
