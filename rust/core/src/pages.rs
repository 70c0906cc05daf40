//! Zeroed memory straight from the system. It costs nothing until it is touched, and goes back when it
//! is dropped, where an allocator would keep what the next stage of a job counts on.

use std::alloc::{self, Layout};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Smaller buffers come from the allocator: the system lends whole pages, and only so many times.
const LEAST_MAPPED_BYTES: usize = 128 << 10;

/// Plain numbers whose zero is all zero bits.
///
/// # Safety
///
/// All zero bits must be a valid value of the type.
pub unsafe trait Zero: Copy {}

macro_rules! zero {
    // SAFETY: these are plain numbers.
    ($($t:ty),*) => { $(unsafe impl Zero for $t {})* };
}
zero!(u8, u32, u64, f32, f64);

/// A slice that begins as zeros.
#[derive(Debug)]
pub struct Pages<T> {
    start: NonNull<T>,
    len: usize,
    layout: Layout,
}

// SAFETY: it owns what it points to, as a boxed slice does.
unsafe impl<T: Send> Send for Pages<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Pages<T> {}

impl<T: Zero> Pages<T> {
    /// So many zeros; none if the system has no more memory, which would end the process elsewhere.
    pub fn zeroed(len: usize) -> Option<Self> {
        let layout = Layout::array::<T>(len).ok()?;
        let start = if layout.size() == 0 {
            NonNull::dangling()
        } else if is_mapped(&layout) {
            map(layout.size())?.cast()
        } else {
            // SAFETY: the size is not zero.
            NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?.cast()
        };
        Some(Self { start, len, layout })
    }
}

impl<T> Deref for Pages<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: so many values are there, and all zero bits are valid ones.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and nobody else sees them meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Pages<T> {
    fn drop(&mut self) {
        let start = self.start.as_ptr().cast::<u8>();
        if self.layout.size() == 0 {
            return;
        }
        // SAFETY: it came from there with this size, and the values need no dropping.
        unsafe {
            if is_mapped(&self.layout) {
                unmap(start, self.layout.size());
            } else {
                alloc::dealloc(start, self.layout);
            }
        }
    }
}

fn is_mapped(layout: &Layout) -> bool {
    cfg!(unix) && layout.size() >= LEAST_MAPPED_BYTES
}

#[cfg(unix)]
fn map(bytes: usize) -> Option<NonNull<u8>> {
    let (kind, access) =
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: a fresh mapping of nobody's memory.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
    if start == libc::MAP_FAILED { None } else { NonNull::new(start.cast()) }
}

#[cfg(unix)]
unsafe fn unmap(start: *mut u8, bytes: usize) {
    // SAFETY: the caller owns this mapping.
    unsafe { libc::munmap(start.cast(), bytes) };
}

#[cfg(not(unix))]
fn map(_bytes: usize) -> Option<NonNull<u8>> {
    None
}

#[cfg(not(unix))]
unsafe fn unmap(_start: *mut u8, _bytes: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_that_can_be_written_small_and_large() {
        for len in [0, 1, 1000, LEAST_MAPPED_BYTES / 4, LEAST_MAPPED_BYTES] {
            let mut pages = Pages::<f32>::zeroed(len).unwrap();
            assert_eq!(pages.len(), len);
            assert!(pages.iter().all(|&value| value == 0.0));
            pages.fill(1.5);
            assert!(pages.iter().all(|&value| value == 1.5));
        }
    }

    #[test]
    fn what_the_system_cannot_give_is_refused() {
        assert!(Pages::<f64>::zeroed(usize::MAX / 4).is_none());
        assert!(Pages::<u8>::zeroed(isize::MAX as usize / 2).is_none());
    }
}
