//! How many inputs cover each pixel, where the coverage does not say it: sums of inverse variances
//! and the like are no counts. The marks of a pass tell, without a second look at the inputs.

use std::sync::Arc;

use super::gains::{Means, tasks};
use super::marks::{MarkBuffer, Marks};
use super::planes::{Planes, as_bytes_mut};
use crate::budget::{LeasedVec, Ledger};
use crate::coadd::ROWS;
use crate::sink::Target;
use crate::{Error, Result, parallel};

/// What a worker owns.
struct Space {
    rows: LeasedVec<f32>,
    coverage: LeasedVec<f32>,
    marks: MarkBuffer,
}

/// Bytes that the work takes at least, with one worker.
pub fn least_bytes(width: usize) -> u64 {
    ((ROWS + 1) * width * size_of::<f32>()) as u64 + MarkBuffer::BYTES
}

impl Space {
    fn new(width: usize, ledger: &Arc<Ledger>) -> Result<Self> {
        let rows = ledger.zeroed(ROWS * width)?;
        Ok(Self { rows, coverage: ledger.zeroed(width)?, marks: MarkBuffer::new(ledger)? })
    }
}

/// Write a plane (big-endian, single precision) into the existing file of `place`: the number of
/// inputs whose masks cover a pixel, 0 where the finished `planes` say that nothing does.
pub fn write(
    planes: &dyn Planes,
    (height, width): (usize, usize),
    marks: &Marks,
    place: &Target,
    means: &Means,
) -> Result<()> {
    let failed = |e: std::io::Error| Error::writing(&place.0, &e);
    let file = std::fs::File::options().write(true).open(&place.0).map_err(failed)?;
    let row_bytes = (width * size_of::<f32>()) as u64;
    // Rows without marks are all zero.
    let end = place.1 + height as u64 * row_bytes;
    file.set_len(end).map_err(failed)?;
    let affordable = (means.bytes / least_bytes(width)) as usize;
    let workers = means.workers.min(affordable).max(1);
    let crew = (0..workers).map(|_| Space::new(width, means.ledger));
    let mut crew = crew.collect::<Result<Vec<_>>>()?;
    parallel::run(&mut crew, tasks(marks), |(rows, groups), space| {
        means.cancel.check()?;
        let Space { rows: lines, coverage, marks: buffer } = space;
        let lines = &mut lines[..rows.len() * width];
        lines.fill(0.0);
        for group in &groups {
            for mark in buffer.read(group, marks)? {
                let line = &mut lines[(mark.y as usize - rows.start) * width..][..width];
                for depth in &mut line[mark.x0 as usize..mark.x1 as usize] {
                    *depth += 1.0;
                }
            }
        }
        for (line, y) in lines.chunks_mut(width).zip(rows.clone()) {
            planes.read(planes.count() - 1, y, coverage)?;
            for (depth, &coverage) in line.iter_mut().zip(&**coverage) {
                *depth = if coverage > 0.0 { *depth } else { 0.0 };
            }
        }
        crate::cpu::encode(lines);
        let at = place.1 + rows.start as u64 * row_bytes;
        crate::sink::write_all_at(&file, as_bytes_mut(lines), at).map_err(failed)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::marks::Mark;
    use super::super::planes::{FilePlanes, MemoryPlanes};
    use super::*;
    use crate::cancel::CancelToken;

    #[test]
    fn marks_are_counted_where_something_covers() {
        let name = |what: &str| {
            std::env::temp_dir().join(format!("zmrs-depth-{what}-{}", std::process::id()))
        };
        let (marks_at, place) = (name("marks"), (name("plane"), 40));
        let ledger = Ledger::new(u64::MAX);
        let marks = Marks::create(&marks_at).unwrap();
        let mut buffer = MarkBuffer::new(&ledger).unwrap();
        let all = [(0, 1, 2..6), (1, 1, 4..9), (0, 2, 2..3), (2, 5, 0..10)];
        for (input, y, x) in all.clone() {
            buffer.push(Mark { input, y, x0: x.start, x1: x.end }, &(0..6), &marks);
        }
        buffer.flush(&(0..6), &marks).unwrap();
        std::fs::write(&place.0, b"").unwrap();
        let mut coverage = [[0.25_f32; 10]; 8];
        coverage[1][5] = 0.0;
        let bytes = coverage.as_flattened().iter().flat_map(|v| v.to_ne_bytes());
        let planes = MemoryPlanes::new(10, vec![Box::new(bytes.collect::<Vec<u8>>())]);
        let cancel = CancelToken::default();
        let means = Means { workers: 3, ledger: &ledger, bytes: 1 << 20, cancel: &cancel };
        write(&planes, (8, 10), &marks, &place, &means).unwrap();

        let found = FilePlanes::open(vec![place.clone()], 10).unwrap();
        for y in 0..8 {
            let mut row = [f32::NAN; 10];
            found.read(0, y, &mut row).unwrap();
            let want = std::array::from_fn(|x| {
                let here = |(_, of, columns): &(u32, u32, std::ops::Range<u32>)| {
                    *of as usize == y && columns.contains(&(x as u32))
                };
                let count = all.iter().filter(|mark| here(mark)).count() as f32;
                if coverage[y][x] > 0.0 { count } else { 0.0 }
            });
            assert_eq!(row, want, "row {y}");
        }
        std::fs::remove_file(&marks_at).unwrap();
        std::fs::remove_file(&place.0).unwrap();
    }
}
