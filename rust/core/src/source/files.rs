//! Open files, never more than a few dozen.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Result};

/// Files kept open between blocks. With one more for each worker in the act of opening, and the
/// output, a job stays below 64.
pub const MOST_OPEN: usize = 40;

/// Keeps recently used files open; the one that was idle for longest is closed for a new one.
#[derive(Default)]
pub struct FileCache {
    open: Mutex<Slots>,
    opened: AtomicU64,
}

#[derive(Default)]
struct Slots {
    files: HashMap<usize, (Arc<File>, u64)>,
    clock: u64,
}

impl FileCache {
    /// The file of source `key`, opened if need be.
    pub fn open(&self, key: usize, path: &Path) -> Result<Arc<File>> {
        let mut slots = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        slots.clock += 1;
        let now = slots.clock;
        if let Some((file, used)) = slots.files.get_mut(&key) {
            *used = now;
            return Ok(Arc::clone(file));
        }
        if slots.files.len() >= MOST_OPEN {
            let idle = slots.files.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(key) = idle.map(|(&key, _)| key) {
                slots.files.remove(&key);
            }
        }
        let file = File::open(path).map_err(|e| Error::reading(path, &e))?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(file);
        slots.files.insert(key, (Arc::clone(&file), now));
        Ok(file)
    }

    /// How many times a file was opened.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }
}

/// Fill `buffer` from byte `at` of `file`, without moving a shared position.
#[cfg(unix)]
pub fn read_exact_at(file: &File, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, at)
}

/// Fill `buffer` from byte `at` of `file`.
#[cfg(windows)]
pub fn read_exact_at(file: &File, mut buffer: &mut [u8], mut at: u64) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buffer.is_empty() {
        let n = file.seek_read(buffer, at)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[n..];
        at += n as u64;
    }
    Ok(())
}
