//! The one gate: long work runs without the interpreter lock, while the calling thread listens
//! for signals.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use zmrs_core::Error;
use zmrs_core::cancel::CancelToken;
use zmrs_core::parallel::STACK_BYTES;

use crate::device::Device;
use crate::errors;

/// How often signals are looked for and progress is told.
const TICK: Duration = Duration::from_millis(100);

/// Stack of a thread that calls Python, and drivers from there.
const WIDE_STACK_BYTES: usize = 8 << 20;

/// Run `work` on a thread of its own, without the interpreter lock. Meanwhile this thread looks
/// for signals and calls `tick` ten times a second; when either raises, `cancel` is set and the
/// exception is raised once `work` has ended.
pub fn run<T: Send>(
    py: Python<'_>,
    cancel: &CancelToken,
    tick: impl FnMut(Python<'_>) -> PyResult<()> + Send,
    work: impl FnOnce() -> zmrs_core::Result<T> + Send,
) -> PyResult<T> {
    run_with(py, None, cancel, tick, work)
}

/// The same; with a device the thread has the stack that its driver wants. If the system does not
/// grant that, it is as if the device had failed.
pub fn run_with<T: Send>(
    py: Python<'_>,
    device: Option<&Device>,
    cancel: &CancelToken,
    mut tick: impl FnMut(Python<'_>) -> PyResult<()> + Send,
    work: impl FnOnce() -> zmrs_core::Result<T> + Send,
) -> PyResult<T> {
    let stack = if device.is_some() { WIDE_STACK_BYTES } else { STACK_BYTES };
    let refused = if device.is_some() { Error::Device } else { Error::Budget };
    let outcome = py.detach(|| {
        // What a stage before this one has left may have been freed since.
        zmrs_core::budget::give_back();
        thread::scope(|scope| {
            let (done, wait) = channel::<()>();
            let builder = thread::Builder::new().name("zmrs-pass".to_owned());
            let worker = builder.stack_size(stack).spawn_scoped(scope, move || {
                let _done = done;
                work()
            });
            let worker = match worker {
                Ok(worker) => worker,
                Err(e) => {
                    let why = format!(
                        "the system grants no thread ({e}); raise its limit on threads \
                         (ulimit -u) or on memory"
                    );
                    return Err(Python::attach(|py| errors::to_py(py, &refused(why))));
                }
            };
            let mut raised = None;
            while wait.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if raised.is_some() {
                    continue;
                }
                let asked = Python::attach(|py| py.check_signals().and_then(|()| tick(py)));
                if let Err(exception) = asked {
                    cancel.cancel();
                    raised = Some(exception);
                }
            }
            let result = worker.join();
            zmrs_core::budget::give_back();
            match (raised, result) {
                (Some(exception), _) => Err(exception),
                (None, Ok(result)) => Ok(result),
                (None, Err(_panic)) => Err(errors::panicked()),
            }
        })
    })?;
    outcome.map_err(|e| errors::to_py(py, &e))
}
