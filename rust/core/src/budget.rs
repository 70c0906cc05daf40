//! The memory promise: every large buffer is leased from one [`Ledger`] before it exists, and one
//! closed formula, [`Projection`], foretells the worst moment of a job.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::pages::{Pages, Zero};
use crate::{Error, Result};

const MIB: u64 = 1 << 20;

/// Bytes in use against a limit, with their high-water mark. Shared by all threads of a job.
#[derive(Debug)]
pub struct Ledger {
    above: Option<Arc<Ledger>>,
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
}

impl Ledger {
    /// A ledger that lends at most `limit` bytes at once.
    pub fn new(limit: u64) -> Arc<Self> {
        Self::below(None, limit)
    }

    /// A ledger for a part of what this one lends: at most `limit` bytes, which count here too.
    pub fn part(self: &Arc<Self>, limit: u64) -> Arc<Self> {
        Self::below(Some(Arc::clone(self)), limit)
    }

    fn below(above: Option<Arc<Self>>, limit: u64) -> Arc<Self> {
        Arc::new(Self { above, limit, used: AtomicU64::new(0), peak: AtomicU64::new(0) })
    }

    /// Lend `bytes` until the lease is dropped, or refuse. Never blocks.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Lease> {
        let above = self.above.as_ref().map(|above| above.reserve(bytes)).transpose()?;
        let grant = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grant) {
            Ok(before) => {
                self.peak.fetch_max(before + bytes, Ordering::Relaxed);
                Ok(Lease { ledger: Arc::clone(self), bytes, _above: above.map(Box::new) })
            }
            Err(used) => Err(Error::Budget(format!(
                "a buffer of {bytes} bytes does not fit: {used} of {} bytes are in use",
                self.limit
            ))),
        }
    }

    /// Lend `len` values of `T`, all zero.
    pub fn zeroed<T: Zero>(self: &Arc<Self>, len: usize) -> Result<LeasedVec<T>> {
        let bytes = (len * size_of::<T>()) as u64;
        let lease = self.reserve(bytes)?;
        let refused = || {
            Error::Budget(format!(
                "the system refused {} MiB of memory; set a lower --memory",
                bytes / MIB
            ))
        };
        Ok(LeasedVec { data: Pages::zeroed(len).ok_or_else(refused)?, _lease: lease })
    }

    /// The most that was ever lent at once, in bytes.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

/// Bytes on loan; they go back to the ledger when it is dropped.
#[derive(Debug)]
pub struct Lease {
    ledger: Arc<Ledger>,
    bytes: u64,
    _above: Option<Box<Lease>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.ledger.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Give memory that was freed back to the system: a stage of a job must not keep what the next one
/// counts on. Only glibc keeps much.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it only returns unused pages.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A buffer of fixed length that is on loan from a ledger.
#[derive(Debug)]
pub struct LeasedVec<T> {
    data: Pages<T>,
    _lease: Lease,
}

impl<T> std::ops::Deref for LeasedVec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data
    }
}

impl<T> std::ops::DerefMut for LeasedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data
    }
}

/// What a job will hold at its worst moment, term by term. [`crate::fit::fit`] fills it in with
/// the sizes that each buffer's owner gives, cuts the output by it, and `zmrs plan` prints it: the
/// single memory formula of zmrs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Projection {
    /// Named terms in bytes, in the order in which they arise.
    pub terms: Vec<(&'static str, u64)>,
}

impl Projection {
    /// Add a term.
    pub fn add(&mut self, name: &'static str, bytes: u64) {
        self.terms.push((name, bytes));
    }

    /// Bytes at the worst moment.
    pub fn total(&self) -> u64 {
        self.terms.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// The largest term.
    pub fn worst(&self) -> (&'static str, u64) {
        let largest = self.terms.iter().max_by_key(|(_, bytes)| *bytes);
        largest.copied().unwrap_or(("nothing", 0))
    }

    /// The sentence that refuses a job: what it needs, which term is worst, what would work. The
    /// caller's limit does not count `held` bytes.
    pub fn refusal(&self, allowed: u64, held: u64) -> Error {
        let (name, bytes) = self.worst();
        // A process is not exactly as large when it is run again.
        let least = self.total().saturating_sub(held).div_ceil(MIB) + 1;
        Error::DoesNotFit {
            reason: format!(
                "the job does not fit: it needs {least} MiB even in its smallest blocks but only \
                 {} MiB are allowed (largest term: {name}, {} MiB); the smallest limit that works \
                 is --memory {least}MiB.",
                allowed.saturating_sub(held) / MIB,
                bytes.div_ceil(MIB),
            ),
            least_bytes: least * MIB,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_lends_up_to_its_limit_and_takes_back() {
        let ledger = Ledger::new(100);
        let first = ledger.reserve(60).unwrap();
        assert!(ledger.reserve(41).is_err());
        drop(first);
        let all = ledger.reserve(100).unwrap();
        assert!(ledger.reserve(1).is_err());
        drop(all);
        assert_eq!(ledger.peak(), 100);
        assert!(ledger.reserve(u64::MAX).is_err());
    }

    #[test]
    fn a_part_counts_in_the_whole() {
        let whole = Ledger::new(100);
        let part = whole.part(60);
        assert!(part.reserve(61).is_err());
        let other = whole.reserve(50).unwrap();
        assert!(part.reserve(51).is_err());
        let lease = part.reserve(50).unwrap();
        assert!(whole.reserve(1).is_err());
        drop((lease, other));
        assert!(whole.reserve(100).is_ok());
        assert_eq!((part.peak(), whole.peak()), (50, 100));
    }

    #[test]
    fn a_leased_buffer_counts_its_bytes() {
        let ledger = Ledger::new(80);
        let buffer = ledger.zeroed::<f64>(10).unwrap();
        assert_eq!(buffer.len(), 10);
        assert!(ledger.zeroed::<u8>(1).is_err());
        drop(buffer);
        assert!(ledger.zeroed::<u8>(80).is_ok());
    }
}
