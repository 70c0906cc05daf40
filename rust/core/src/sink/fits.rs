//! Planes of single-precision big-endian samples at given places of a file.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

use super::Sink;
use crate::{Error, Result};

/// Writes rows into a FITS file whose headers somebody else has written.
pub struct FitsSink {
    path: PathBuf,
    file: File,
    width: usize,
    offsets: Vec<u64>,
    write_back: bool,
}

impl FitsSink {
    /// The planes begin at the bytes `offsets` of `path`, which exists. With `write_back` each
    /// band is sent to the disk at once and the one before it is waited for, so that no more than
    /// two bands of dirty pages exist: under a memory limit of the system those would kill.
    pub fn open(path: PathBuf, width: usize, offsets: Vec<u64>, write_back: bool) -> Result<Self> {
        let file = File::options().write(true).open(&path);
        let file = file.map_err(|e| Error::writing(&path, &e))?;
        Ok(Self { path, file, width, offsets, write_back })
    }
}

impl Sink for FitsSink {
    fn encode(&self, rows: &mut [f32]) {
        crate::cpu::encode(rows);
    }

    fn write(&self, rows: Range<usize>, planes: &[&[f32]]) -> Result<()> {
        for (offset, plane) in self.offsets.iter().zip(planes) {
            let bytes = as_bytes(plane);
            let at = offset + (rows.start * self.width * size_of::<f32>()) as u64;
            write_all_at(&self.file, bytes, at).map_err(|e| Error::writing(&self.path, &e))?;
            if self.write_back {
                send_to_disk(&self.file, at, bytes.len() as u64);
            }
        }
        Ok(())
    }
}

/// Values as FITS stores them: most significant byte first.
#[inline(always)]
pub(crate) fn to_big_endian(values: &mut [f32]) {
    for value in values {
        *value = f32::from_bits(value.to_bits().to_be());
    }
}

fn as_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: any four bytes of a float are four bytes, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> std::io::Result<()> {
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
