//! The work on the coverage, done by a device: rows and marks are read and the map is written here,
//! by the workers; the device blurs and counts.

use std::ops::Range;

use super::gains::{BINS, Counting, Coverage, Means, Middle, NO_SCALES, Rules, ScaleMap, together};
use super::marks::{AT_ONCE, Group, Mark, MarkBuffer, Marks};
use super::planes::Planes;
use super::{Blur, Gaussian, SEGMENT_ROWS};
use crate::budget::LeasedVec;
use crate::coadd::ROWS;
use crate::device::{CoverageDevice, NO_BINS};
use crate::{Result, parallel};

/// Rows of the map that a worker reads or writes at once.
const STRIP: usize = 16;

/// Rows above a band that its blur looks at, beyond the radius: those that left the windows of the
/// two rows before it.
const ABOVE: i64 = 2;

/// Blur the coverage and write the map. Returns its least and greatest value.
pub fn fill(
    map: &ScaleMap,
    planes: &dyn Planes,
    rules: &Rules,
    means: &Means,
    device: &dyn CoverageDevice,
) -> Result<(f32, f32)> {
    let gaussian = Gaussian::new(rules.sigma_px)?;
    let coverage = Coverage(planes);
    let blur = Blur::new(&gaussian, map.height, map.width, &coverage);
    if blur.segments() == 0 {
        return Ok(NO_SCALES);
    }
    let affordable = means.bytes / (map.width * size_of::<f32>()) as u64;
    let at_once = device.room()?.map_rows.min(affordable as usize).clamp(1, SEGMENT_ROWS);
    let mut crew = vec![NO_SCALES; means.workers.max(1)];
    let mut rows = means.ledger.zeroed(at_once * map.width)?;
    // Dropped before the rows are, whatever happens.
    let _release = Release(device);
    let radius = gaussian.radius() as i64;
    let mut next = -(radius + ABOVE);
    for first in (0..map.height).step_by(SEGMENT_ROWS) {
        let past = map.height.min(first + SEGMENT_ROWS);
        for top in (first..past).step_by(at_once) {
            let end = past.min(top + at_once);
            while next < end as i64 + radius {
                means.cancel.check()?;
                let count = (end as i64 + radius - next).min(at_once as i64);
                let rows = &mut rows[..count as usize * map.width];
                let parts = (next..).zip(rows.chunks_mut(map.width)).collect();
                parallel::run(&mut crew, parts, |(y, row), _| blur.read(y, row))?;
                device.put(next, rows)?;
                next += count;
            }
            means.cancel.check()?;
            let rows = &mut rows[..(end - top) * map.width];
            device.scales(top..end, rows)?;
            let strips = rows.chunks_mut(STRIP * map.width);
            let parts = (top..).step_by(STRIP).zip(strips).collect();
            parallel::run(&mut crew, parts, |(y, strip), scales| map.write(y, strip, scales))?;
        }
    }
    Ok(together(crew.into_iter()))
}

/// Tells the device that the buffers that it was given are about to go.
struct Release<'a>(&'a dyn CoverageDevice);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// A device, counting scales.
pub struct OnDevice<'a> {
    map: &'a ScaleMap<'a>,
    marks: &'a Marks,
    batch: Range<usize>,
    means: &'a Means<'a>,
    device: &'a dyn CoverageDevice,
    /// Groups of marks that are looked at together, and the rows that they lie in.
    loads: Vec<(Range<usize>, Vec<Group>)>,
    rows: LeasedVec<f32>,
    found: LeasedVec<Mark>,
    counts: LeasedVec<u32>,
    masked: LeasedVec<u64>,
    least: LeasedVec<u32>,
}

impl<'a> OnDevice<'a> {
    /// With rows and marks for one task of the workers, and for as many more as fit into `spare`
    /// bytes and the device.
    pub fn new(
        map: &'a ScaleMap,
        marks: &'a Marks,
        batch: Range<usize>,
        means: &'a Means,
        spare: u64,
        device: &'a dyn CoverageDevice,
    ) -> Result<Self> {
        let room = device.room()?;
        let task_bytes = (ROWS * map.width * size_of::<f32>()) as u64 + MarkBuffer::BYTES;
        let most = (room.rows / ROWS).min(room.marks / AT_ONCE).max(1);
        let tasks = (1 + spare / task_bytes).min(most as u64) as usize;
        let (rows, found) = (tasks * ROWS, tasks * AT_ONCE);
        let ledger = means.ledger;
        Ok(Self {
            map,
            marks,
            means,
            device,
            loads: loads(marks.groups(), rows, found),
            rows: ledger.zeroed(rows * map.width)?,
            found: ledger.zeroed(found)?,
            counts: ledger.zeroed((BINS + 1) * batch.len())?,
            masked: ledger.zeroed(batch.len())?,
            least: ledger.zeroed(batch.len())?,
            batch,
        })
    }

    /// Have the device look at every mark and the scales under it.
    fn sweep(&mut self, bins: Option<&[[u32; 2]]>) -> Result<()> {
        let Self { map, marks, means, device, rows, found, .. } = self;
        device.begin(self.batch.clone(), bins)?;
        let mut crew = vec![(); means.workers.max(1)];
        for (lines, groups) in &self.loads {
            means.cancel.check()?;
            let rows = &mut rows[..lines.len() * map.width];
            let count = groups.iter().map(|group| group.len).sum();
            let found: &mut [Mark] = &mut found[..count];
            let strips = (lines.start..lines.end).step_by(STRIP);
            let strips = strips.zip(rows.chunks_mut(STRIP * map.width));
            let mut parts: Vec<_> = strips.map(|(y, strip)| Part::Rows(y, strip)).collect();
            let mut rest = &mut *found;
            for group in groups {
                let (mine, others) = rest.split_at_mut(group.len);
                parts.push(Part::Marks(group, mine));
                rest = others;
            }
            parallel::run(&mut crew, parts, |part, ()| match part {
                Part::Rows(y, strip) => map.read(y..y + strip.len() / map.width, strip),
                Part::Marks(group, mine) => marks.read(group, mine),
            })?;
            if bins.is_none() {
                for mark in found.iter().filter(|mark| self.batch.contains(&(mark.input as usize)))
                {
                    let masked = &mut self.masked[mark.input as usize - self.batch.start];
                    *masked += u64::from(mark.x1 - mark.x0);
                }
            }
            device.count(lines.start, rows, found)?;
        }
        device.counted(&mut self.counts, &mut self.least)
    }
}

/// What a worker reads for the device.
enum Part<'a> {
    Rows(usize, &'a mut [f32]),
    Marks(&'a Group, &'a mut [Mark]),
}

impl Drop for OnDevice<'_> {
    fn drop(&mut self) {
        self.device.release();
    }
}

impl Counting for OnDevice<'_> {
    fn inputs(&self) -> usize {
        self.batch.len()
    }

    fn by_leading_bins(&mut self) -> Result<()> {
        self.sweep(None)
    }

    fn within(&mut self, middles: &[Option<Middle>]) -> Result<()> {
        let bins = |middle: &Option<Middle>| {
            middle.map_or(NO_BINS, |middle| middle.bins.map(|bin| bin as u32))
        };
        self.sweep(Some(&middles.iter().map(bins).collect::<Vec<_>>()))
    }

    fn masked(&self, input: usize) -> u64 {
        self.masked[input]
    }

    fn count(&self, input: usize, bin: usize) -> u64 {
        u64::from(self.counts[input * (BINS + 1) + bin])
    }

    fn least(&self, input: usize) -> u32 {
        self.least[input]
    }
}

/// Groups, in their order, in as few lots as may be of so many rows and marks.
fn loads(groups: Vec<Group>, rows: usize, marks: usize) -> Vec<(Range<usize>, Vec<Group>)> {
    let mut loads: Vec<(Range<usize>, Vec<Group>)> = Vec::new();
    let mut count = 0;
    for group in groups {
        count += group.len;
        if let Some((lines, others)) = loads.last_mut() {
            let end = lines.end.max(group.rows.end);
            if end - lines.start <= rows && count <= marks {
                lines.end = end;
                others.push(group);
                continue;
            }
        }
        count = group.len;
        loads.push((group.rows.clone(), vec![group]));
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First and past the last row of each load, and its groups; of these, rows and marks are given.
    fn numbers(
        rows: usize,
        marks: usize,
        given: &[(usize, usize, usize)],
    ) -> Vec<(usize, usize, usize)> {
        let group = |&(first, past, len)| Group { rows: first..past, at: 0, len };
        let loads = loads(given.iter().map(group).collect(), rows, marks);
        loads.into_iter().map(|(rows, groups)| (rows.start, rows.end, groups.len())).collect()
    }

    #[test]
    fn groups_go_together_as_far_as_they_fit() {
        let given = [(0, 32, 9), (0, 32, 9), (10, 20, 1), (32, 64, 9), (90, 99, 5), (99, 100, 5)];
        let alone = given.map(|(first, past, _)| (first, past, 1));
        assert_eq!(numbers(32, 9, &given), alone);
        assert_eq!(numbers(32, 18, &given[..2]), [(0, 32, 2)]);
        assert_eq!(numbers(64, 28, &given), [(0, 64, 4), (90, 100, 2)]);
        assert_eq!(numbers(64, 27, &given), [(0, 32, 3), (32, 64, 1), (90, 100, 2)]);
        assert_eq!(numbers(1000, 1000, &given), [(0, 100, 6)]);
        assert!(numbers(32, 9, &[]).is_empty());
    }
}
