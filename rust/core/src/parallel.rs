//! The one place that makes worker threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::{Error, Result};

/// Keep the allocator from reserving address space for each thread, 64 MiB or more with glibc,
/// which under an address-space limit nobody else could use then. The engine's threads hardly
/// allocate.
pub fn reserve_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: plain calls; the second changes a setting of the allocator only.
        unsafe {
            if libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) == 0
                && limit.rlim_cur != libc::RLIM_INFINITY
            {
                libc::mallopt(libc::M_ARENA_MAX, 1);
            }
        }
    }
}

/// Stack of a worker. The deepest call keeps a few runs of samples on it.
pub const STACK_BYTES: usize = 512 << 10;

/// Work through `tasks` in order, one worker per element of `scratch`, which that worker owns
/// meanwhile. The first failure stops the others after their present task and is returned;
/// otherwise, how many workers the system did not grant: those that it did do the same work.
///
/// Workers live as long as the list: it borrows the buffers of one block, and lending those to
/// threads that outlive them would need unsafe code. A thread costs about 15 µs, a block
/// milliseconds.
pub fn run<T: Send, S: Send>(
    scratch: &mut [S],
    tasks: Vec<T>,
    work: impl Fn(T, &mut S) -> Result<()> + Sync,
) -> Result<usize> {
    let workers = scratch.len().min(tasks.len()).max(1);
    let queue = Mutex::new(tasks.into_iter());
    let failed = AtomicBool::new(false);
    let toil = |scratch: &mut S| -> Result<()> {
        while !failed.load(Ordering::Relaxed) {
            let task = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(task) = task else { break };
            work(task, scratch).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    };
    let (mine, others) = scratch.split_first_mut().expect("a job has at least one worker");
    thread::scope(|scope| {
        let mut crew = Vec::with_capacity(workers - 1);
        for (k, scratch) in others.iter_mut().take(workers - 1).enumerate() {
            let builder = thread::Builder::new().name(format!("zmrs-{}", k + 1));
            let spawned = builder.stack_size(STACK_BYTES).spawn_scoped(scope, || toil(scratch));
            match spawned {
                Ok(worker) => crew.push(worker),
                Err(_) => break,
            }
        }
        let refused = workers - 1 - crew.len();
        let mut result = toil(mine);
        for worker in crew {
            let other = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // A cancelled worker has nothing to say when another one has.
            if matches!(result, Ok(()) | Err(Error::Cancelled)) && other.is_err() {
                result = other;
            }
        }
        result.map(|()| refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_by_as_many_workers_as_asked() {
        for workers in [1, 3, 8] {
            let mut scratch = vec![0_u32; workers];
            run(&mut scratch, (0..100).collect(), |_: i32, count| {
                *count += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(scratch.iter().sum::<u32>(), 100);
        }
    }

    #[test]
    fn nothing_is_refused_without_need() {
        assert_eq!(run(&mut [(), ()], vec![1, 2, 3], |_, ()| Ok(())).unwrap(), 0);
    }

    #[test]
    fn a_failure_is_returned() {
        let result = run(&mut [(), ()], (0..10).collect(), |task: i32, ()| {
            if task == 4 { Err(Error::Argument("four".to_owned())) } else { Ok(()) }
        });
        assert!(matches!(result, Err(Error::Argument(why)) if why == "four"));
    }
}
