//! The exact percentile of pass one's luminance.

use std::sync::Arc;

use super::gains::Means;
use super::luminance::luminances;
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
    /// A row of luminance, and the channels that it comes from.
    rows: LeasedVec<f32>,
    tally: Tally,
}

/// What a worker counts.
struct Tally {
    counts: LeasedVec<u64>,
    least: u32,
}

/// Bytes of one worker.
pub fn worker_bytes(width: usize, channels: usize) -> u64 {
    ((channels + 1) * width * size_of::<f32>() + 2 * BINS * size_of::<u64>()) as u64
}

/// The percentile `percent` of the mean over the channels, all of `planes` but the last, where
/// that is a number: where something covers. Linear between neighbours; nothing where there is
/// none.
pub fn luminance_percentile(
    planes: &dyn Planes,
    (height, width): (usize, usize),
    percent: f64,
    means: &Means,
) -> Result<Option<f64>> {
    let channels = planes.count() - 1;
    let affordable = means.bytes / worker_bytes(width, channels).max(1);
    let workers = means.workers.min(affordable as usize).max(1);
    let space = |_| Space::new(width, channels, means.ledger);
    let mut crew = (0..workers).map(space).collect::<Result<Vec<_>>>()?;
    let total = |crew: &[Space], bin: usize| {
        crew.iter().map(|s| s.tally.counts[bin] + s.tally.counts[BINS + bin]).sum::<u64>()
    };

    let sweep = Sweep { planes, height, width, means };
    sweep.run(&mut crew, |tally, row| {
        // Neighbours are alike, and to count into one place again and again is slow: two tables.
        let (even, odd) = tally.counts.split_at_mut(BINS);
        let mut count = |table: usize, value: f32| {
            let counts = if table == 0 { &mut *even } else { &mut *odd };
            counts[(key(value) >> HALF) as usize] += u64::from(!value.is_nan());
        };
        let (pairs, rest) = row.as_chunks();
        for &[first, second] in pairs {
            count(0, first);
            count(1, second);
        }
        for &value in rest {
            count(0, value);
        }
    })?;
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
    sweep.run(&mut crew, |tally, row| {
        for key in row.iter().filter(|value| !value.is_nan()).map(|&value| key(value)) {
            let bin = (key >> HALF) as usize;
            if bin == first {
                tally.counts[key as usize % BINS] += 1;
            } else if bin == second {
                tally.least = tally.least.min(key);
            }
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

/// A look at the luminance of every row.
struct Sweep<'a> {
    planes: &'a dyn Planes,
    height: usize,
    width: usize,
    means: &'a Means<'a>,
}

impl Sweep<'_> {
    fn run(&self, crew: &mut [Space], look: impl Fn(&mut Tally, &[f32]) + Sync) -> Result<()> {
        let starts = (0..self.height).step_by(TASK_ROWS).collect();
        parallel::run(crew, starts, |start, space| {
            self.means.cancel.check()?;
            for y in start..self.height.min(start + TASK_ROWS) {
                let (row, channels) = space.rows.split_at_mut(self.width);
                let mut images = Vec::with_capacity(self.planes.count() - 1);
                for (plane, image) in channels.chunks_mut(self.width).enumerate() {
                    self.planes.read(plane, y, image)?;
                    images.push(&*image);
                }
                luminances(&images, row);
                look(&mut space.tally, row);
            }
            Ok(())
        })?;
        Ok(())
    }
}

impl Space {
    fn new(width: usize, channels: usize, ledger: &Arc<Ledger>) -> Result<Self> {
        Ok(Self {
            rows: ledger.zeroed((channels + 1) * width)?,
            tally: Tally { counts: ledger.zeroed(2 * BINS)?, least: u32::MAX },
        })
    }
}
