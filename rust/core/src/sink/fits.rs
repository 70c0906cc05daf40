//! Planes of big-endian samples at given places of a file: single precision, and counts of 16 bits.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Sink;
use crate::{Error, Result};

/// Where a plane lies: in which file, and from which byte on.
pub type Target = (PathBuf, u64);

/// Writes rows into files whose headers, if any, somebody else has written.
pub struct FitsSink {
    planes: Vec<Option<Plane>>,
    width: usize,
    write_back: bool,
}

/// A plane of a file.
struct Plane {
    target: Target,
    file: Arc<File>,
    is_count: bool,
}

/// Counts that are brought into their form at once.
const COUNTS_AT_ONCE: usize = 8192;

impl FitsSink {
    /// Each plane has its target, in a file that exists; planes without one are dropped. Those in
    /// `counts` are stored as whole numbers of 16 bits. With `write_back` each band is sent to the
    /// disk at once and the one before it is waited for, so that no more than two bands of dirty
    /// pages exist: under a memory limit of the system those would kill.
    pub fn open(
        targets: Vec<Option<Target>>,
        counts: Range<usize>,
        width: usize,
        write_back: bool,
    ) -> Result<Self> {
        let mut planes: Vec<Option<Plane>> = Vec::with_capacity(targets.len());
        for (k, target) in targets.into_iter().enumerate() {
            let Some(target) = target else {
                planes.push(None);
                continue;
            };
            let known = planes.iter().flatten().find(|plane| plane.target.0 == target.0);
            let file = if let Some(plane) = known {
                Arc::clone(&plane.file)
            } else {
                let file = File::options().write(true).open(&target.0);
                Arc::new(file.map_err(|e| Error::writing(&target.0, &e))?)
            };
            planes.push(Some(Plane { target, file, is_count: counts.contains(&k) }));
        }
        Ok(Self { planes, width, write_back })
    }
}

impl Sink for FitsSink {
    fn finish(&self, _rows: Range<usize>, planes: &mut [&mut [f32]]) -> Result<()> {
        for (plane, values) in self.planes.iter().zip(planes) {
            if plane.as_ref().is_some_and(|plane| !plane.is_count) {
                crate::cpu::encode(values);
            }
        }
        Ok(())
    }

    fn write(&self, rows: Range<usize>, planes: &[&[f32]]) -> Result<()> {
        for (plane, values) in self.planes.iter().zip(planes) {
            let Some(plane) = plane else { continue };
            let Plane { target: (path, offset), file, is_count } = plane;
            let size = if *is_count { size_of::<i16>() } else { size_of::<f32>() };
            let at = offset + (rows.start * self.width * size) as u64;
            let written = if *is_count {
                write_counts(file, values, at)
            } else {
                write_all_at(file, as_bytes(values), at)
            };
            written.map_err(|e| Error::writing(path, &e))?;
            if self.write_back {
                send_to_disk(file, at, (values.len() * size) as u64);
            }
        }
        Ok(())
    }
}

/// Write whole numbers as 16 bits each; greater ones as the greatest.
fn write_counts(file: &File, values: &[f32], mut at: u64) -> std::io::Result<()> {
    let mut bytes = [0; COUNTS_AT_ONCE * size_of::<i16>()];
    for values in values.chunks(COUNTS_AT_ONCE) {
        let (pairs, _) = bytes.as_chunks_mut();
        for (pair, &value) in pairs.iter_mut().zip(values) {
            *pair = (value as i16).to_be_bytes();
        }
        let part = &bytes[..size_of_val(values) / 2];
        write_all_at(file, part, at)?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Values as FITS stores them: most significant byte first.
#[inline(always)]
pub(crate) fn to_big_endian(values: &mut [f32]) {
    for value in values {
        *value = f32::from_bits(value.to_bits().to_be());
    }
}

/// Copy all of a file of finished planes into another file, from byte `at` on. `write_back` is as
/// for [`FitsSink::open`].
pub fn copy_planes(from: &Path, to: &Path, at: u64, write_back: bool) -> Result<()> {
    let mut source = File::open(from).map_err(|e| Error::reading(from, &e))?;
    let mut target = File::options().write(true).open(to).map_err(|e| Error::writing(to, &e))?;
    let failed = |e: std::io::Error| Error::writing(to, &e);
    target.seek(SeekFrom::Start(at)).map_err(failed)?;
    let mut done = at;
    loop {
        let copied = std::io::copy(&mut (&mut source).take(COPY_BYTES), &mut target);
        let copied = copied.map_err(failed)?;
        if copied == 0 {
            return Ok(());
        }
        if write_back {
            send_to_disk(&target, done, copied);
        }
        done += copied;
    }
}

/// Bytes that are copied at once.
const COPY_BYTES: u64 = 8 << 20;

/// The memory of values.
pub(crate) fn as_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: any four bytes of a float are four bytes, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

#[cfg(unix)]
pub(crate) fn write_all_at(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
pub(crate) fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        let n = file.seek_write(bytes, at)?;
        bytes = &bytes[n..];
        at += n as u64;
    }
    Ok(())
}

/// Start writing these bytes to the disk and wait for those before them. Advice: failures do not
/// matter, since whoever closes the file learns of real ones.
#[cfg(target_os = "linux")]
fn send_to_disk(file: &File, at: u64, len: u64) {
    use std::os::fd::AsRawFd;
    let fd = file.as_raw_fd();
    let before = at.saturating_sub(len);
    // SAFETY: plain system calls on an open descriptor.
    unsafe {
        libc::sync_file_range(fd, at as i64, len as i64, libc::SYNC_FILE_RANGE_WRITE);
        let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        libc::sync_file_range(fd, before as i64, (at - before) as i64, wait);
    }
}

#[cfg(not(target_os = "linux"))]
fn send_to_disk(_file: &File, _at: u64, _len: u64) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_end_at_what_sixteen_bits_hold() {
        let name = format!("zmrs-counts-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        File::create(&path).unwrap();
        // More than are brought into their form at once, from the second row on.
        let width = COUNTS_AT_ONCE + 3;
        let sink = FitsSink::open(vec![None, Some((path.clone(), 4))], 1..2, width, false).unwrap();
        let values: Vec<f32> = (0..width).map(|k| 4.0 * k as f32).collect();
        sink.write(1..2, &[&values, &values, &values]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let (stored, rest) = bytes[4 + 2 * width..].as_chunks();
        assert!(rest.is_empty());
        let stored: Vec<i16> = stored.iter().map(|pair| i16::from_be_bytes(*pair)).collect();
        let want: Vec<i16> = (0..width).map(|k| (4 * k).min(32_767) as i16).collect();
        assert_eq!(stored, want);
    }
}
