//! Where each input lies on the output: runs of pixels that its mask covers.
//!
//! A pass leaves them in a scratch file, so that the medians of the Two-Pass need neither the
//! inputs nor their coordinates again. They are a few bytes a row and input.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::planes::as_bytes_mut;
use crate::budget::{LeasedVec, Ledger};
use crate::pages::Zero;
use crate::source::read_exact_at;
use crate::{Error, Result};

/// The mask of an input is 1 where a pixel of it is valid and 0 elsewhere, interpolated linearly.
/// Above this it covers an output pixel.
pub const LEAST_MASK: f32 = 1e-3;

/// Marks that are written at once.
pub const AT_ONCE: usize = 4096;

/// A run of output pixels, x0 to x1 of row y, that the mask of an input covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mark {
    /// Which input.
    pub input: u32,
    /// Output row.
    pub y: u32,
    /// First column.
    pub x0: u32,
    /// Past the last column.
    pub x1: u32,
}

// SAFETY: four plain numbers, without padding.
unsafe impl Zero for Mark {}

/// Marks that were written together.
#[derive(Clone, Debug)]
pub struct Group {
    /// Rows that they lie in.
    pub rows: Range<usize>,
    /// Byte of the file at which they begin.
    pub(super) at: u64,
    /// How many they are: at most [`AT_ONCE`].
    pub(super) len: usize,
}

/// The marks of a pass.
pub struct Marks {
    path: PathBuf,
    file: File,
    /// Bytes that are written, and what they are.
    groups: Mutex<(u64, Vec<Group>)>,
}

impl Marks {
    /// A new, empty file at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.map_err(|e| Error::writing(path, &e))?;
        Ok(Self { path: path.to_owned(), file, groups: Mutex::default() })
    }

    /// Bytes that [`save`](Self::save) writes at most, once a pass has made so many marks in so many
    /// tasks: each leaves a group, and one more whenever its buffer is full.
    pub fn saved_bytes(tasks: usize, marks: usize) -> u64 {
        ((tasks + marks / AT_ONCE) * 4 * size_of::<u64>()) as u64
    }

    /// Say in the file `path` what has been written until now, for [`reopen`](Self::reopen).
    pub fn save(&self, path: &Path) -> Result<()> {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers = |group: &Group| {
            [group.rows.start as u64, group.rows.end as u64, group.at, group.len as u64]
        };
        let numbers = groups.1.iter().flat_map(numbers);
        let bytes: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
        std::fs::write(path, bytes).map_err(|e| Error::writing(path, &e))
    }

    /// The marks at `path` as far as the file `saved` knows them; what was written since is dropped.
    pub fn reopen(path: &Path, saved: &Path) -> Result<Self> {
        let bytes = std::fs::read(saved).map_err(|e| Error::reading(saved, &e))?;
        let (words, _) = bytes.as_chunks();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let (groups, _) = words.as_chunks();
        let group = |&[first, past, at, len]: &[u64; 4]| Group {
            rows: first as usize..past as usize,
            at,
            len: len as usize,
        };
        let groups: Vec<_> = groups.iter().map(group).collect();
        let ends = groups.iter().map(|group| group.at + (group.len * size_of::<Mark>()) as u64);
        let end = ends.max().unwrap_or(0);
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(|e| Error::writing(path, &e))?;
        file.set_len(end).map_err(|e| Error::writing(path, &e))?;
        Ok(Self { path: path.to_owned(), file, groups: Mutex::new((end, groups)) })
    }

    /// All groups, from top to bottom.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
        groups.sort_by_key(|group| (group.rows.start, group.rows.end, group.at));
        groups
    }

    /// Read a group of marks into the beginning of `marks`.
    pub(super) fn read(&self, group: &Group, marks: &mut [Mark]) -> Result<()> {
        read_exact_at(&self.file, as_bytes_mut(&mut marks[..group.len]), group.at)
            .map_err(|e| Error::reading(&self.path, &e))
    }

    fn append(&self, rows: Range<usize>, marks: &mut [Mark]) -> Result<()> {
        let len = marks.len();
        let bytes = as_bytes_mut(marks);
        let at = {
            let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
            let at = groups.0;
            groups.0 += bytes.len() as u64;
            groups.1.push(Group { rows, at, len });
            at
        };
        crate::sink::write_all_at(&self.file, bytes, at).map_err(|e| Error::writing(&self.path, &e))
    }
}

/// Where a worker leaves the marks of the rows that it computes.
pub struct Marker<'a> {
    /// Its buffer.
    pub buffer: &'a mut MarkBuffer,
    /// The file behind it.
    pub file: &'a Marks,
    /// The rows.
    pub rows: &'a Range<usize>,
}

impl Marker<'_> {
    /// Mark all `len` pixels of a run that begins at (x, y).
    #[inline(always)]
    pub fn all(&mut self, input: usize, (x, y): (i64, i64), len: usize) {
        let (x0, x1) = (x as u32, (x as usize + len) as u32);
        let mark = Mark { input: input as u32, y: y as u32, x0, x1 };
        self.buffer.push(mark, self.rows, self.file);
    }

    /// Mark the pixels of a run that begins at (x, y), as far as `covers` says.
    #[inline(always)]
    pub fn run(
        &mut self,
        input: usize,
        (x, y): (i64, i64),
        len: usize,
        mut covers: impl FnMut(usize) -> bool,
    ) {
        let mut start = None;
        for k in 0..=len {
            let is_covered = k < len && covers(k);
            match start {
                None if is_covered => start = Some(k),
                Some(first) if !is_covered => {
                    self.all(input, (x + first as i64, y), k - first);
                    start = None;
                }
                _ => {}
            }
        }
    }
}

/// The marks that one worker has not written yet, or has read back.
pub struct MarkBuffer {
    marks: LeasedVec<Mark>,
    len: usize,
    failed: Option<Error>,
}

impl MarkBuffer {
    /// Bytes that [`new`](Self::new) leases.
    pub const BYTES: u64 = (AT_ONCE * size_of::<Mark>()) as u64;

    /// An empty buffer.
    pub fn new(ledger: &Arc<Ledger>) -> Result<Self> {
        Ok(Self { marks: ledger.zeroed(AT_ONCE)?, len: 0, failed: None })
    }

    /// Take in a mark. What goes wrong is said by [`flush`](Self::flush).
    pub fn push(&mut self, mark: Mark, rows: &Range<usize>, file: &Marks) {
        if let Some(last) = self.marks[..self.len].last_mut()
            && (last.input, last.y, last.x1) == (mark.input, mark.y, mark.x0)
        {
            last.x1 = mark.x1;
            return;
        }
        if self.len == AT_ONCE {
            self.write(rows, file);
        }
        self.marks[self.len] = mark;
        self.len += 1;
    }

    /// Write what is here; all of it lies in `rows`.
    pub fn flush(&mut self, rows: &Range<usize>, file: &Marks) -> Result<()> {
        self.write(rows, file);
        self.failed.take().map_or(Ok(()), Err)
    }

    fn write(&mut self, rows: &Range<usize>, file: &Marks) {
        if self.len > 0
            && let Err(error) = file.append(rows.clone(), &mut self.marks[..self.len])
        {
            self.failed.get_or_insert(error);
        }
        self.len = 0;
    }

    /// The marks of a group, read back.
    pub fn read(&mut self, group: &Group, file: &Marks) -> Result<&[Mark]> {
        file.read(group, &mut self.marks)?;
        Ok(&self.marks[..group.len])
    }
}
