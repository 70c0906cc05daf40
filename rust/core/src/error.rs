//! One error type for the whole engine. Each message is one sentence for the person at the desk.

use std::path::{Path, PathBuf};

/// Result of anything in the engine that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a job, or a part of it, could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A plan field that makes no sense.
    #[error("plan field '{field}': {reason}")]
    Plan {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// Arguments that contradict each other: a defect of the caller, not of the data.
    #[error("{0}")]
    Argument(String),
    /// An input file that could not be read.
    #[error("{}: {reason}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What went wrong and what to do.
        reason: String,
    },
    /// The job needs more memory than it was allowed.
    #[error("{0}")]
    Budget(String),
    /// The same, and this much would do.
    #[error("{reason}")]
    DoesNotFit {
        /// What it needs, and what to do.
        reason: String,
        /// The smallest limit that works.
        least_bytes: u64,
    },
    /// The output could not be written.
    #[error("{}: {reason}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What went wrong and what to do.
        reason: String,
    },
    /// The disk filled up under the output.
    #[error("{}: the disk is full; free some space and run the command again", path.display())]
    DiskFull {
        /// The file that was being written.
        path: PathBuf,
    },
    /// A device could not do its work; whoever drives it may know more.
    #[error("{0}")]
    Device(String),
    /// The job was stopped on request.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// An input file failed with an operating-system error.
    pub fn reading(path: &Path, error: &std::io::Error) -> Self {
        Self::Input {
            path: path.to_owned(),
            reason: format!("cannot be read ({error}); check the file and its permissions"),
        }
    }

    /// The output failed with an operating-system error; a full disk has a variant of its own.
    pub fn writing(path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        if matches!(error.kind(), StorageFull | QuotaExceeded) {
            return Self::DiskFull { path: path.to_owned() };
        }
        Self::Output { path: path.to_owned(), reason: format!("cannot be written ({error})") }
    }
}
