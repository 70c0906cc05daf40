//! The resource plan: how a job runs. Immutable.

use crate::{Error, Result};

/// Largest byte count that a plan may carry: 2^53, exact in a double and beyond any machine.
pub const MAX_BYTES: u64 = 1 << 53;

/// Largest number of workers or rows that a plan may carry.
pub const MAX_COUNT: u64 = 1 << 31;

/// Resources of a job. Build it, [`validate`](Plan::validate) it, hand it around by reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What the logs call it.
    pub name: String,
    /// Worker threads.
    pub cpu_workers: u64,
    /// Carried and logged for interoperability, without effect: files are read, never mapped.
    pub use_memmap: bool,
    /// Bytes of block buffers (windows, running values, output rows) that may be leased at once; `None` = as
    /// many as `memory_bytes` leaves.
    pub max_chunk_bytes: Option<u64>,
    /// Output rows of a band; `None` = chosen from the memory limit.
    pub rows_per_chunk: Option<u64>,
    /// Carried and logged for interoperability, without effect.
    pub tiles_per_chunk: Option<u64>,
    /// Whether a GPU may be used.
    pub use_gpu: bool,
    /// Output rows of a band on the GPU.
    pub gpu_rows_per_chunk: Option<u64>,
    /// Bytes of block buffers on the GPU.
    pub gpu_max_chunk_bytes: Option<u64>,
    /// Coverage from which a pixel counts as well covered in the Two-Pass.
    pub two_pass_coverage_threshold: f64,
    /// Limit of the ledger; `None` = unlimited (a job always sets it).
    pub memory_bytes: Option<u64>,
    /// Why the plan is as it is: short words in the order in which they applied.
    pub reasons: Vec<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            name: "phase5".to_owned(),
            cpu_workers: 1,
            use_memmap: false,
            max_chunk_bytes: None,
            rows_per_chunk: None,
            tiles_per_chunk: None,
            use_gpu: false,
            gpu_rows_per_chunk: None,
            gpu_max_chunk_bytes: None,
            two_pass_coverage_threshold: 2.0,
            memory_bytes: None,
            reasons: Vec::new(),
        }
    }
}

impl Plan {
    /// Refuse what makes no sense, naming the field.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field, reason: &str| Err(Error::Plan { field, reason: reason.to_owned() });
        let is_printable = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        // They go into log lines and header cards.
        if self.name.is_empty() || !is_printable(&self.name) {
            return refuse("name", "must be printable ASCII, and not empty");
        }
        let is_word =
            |text: &String| !text.is_empty() && is_printable(text) && !text.contains([' ', ',']);
        if !self.reasons.iter().all(is_word) {
            return refuse("reasons", "must be words of printable ASCII");
        }
        if self.cpu_workers == 0 || self.cpu_workers > MAX_COUNT {
            return refuse("cpu_workers", "must be from 1 to 2147483648");
        }
        let counts = [
            ("rows_per_chunk", self.rows_per_chunk, MAX_COUNT),
            ("tiles_per_chunk", self.tiles_per_chunk, MAX_COUNT),
            ("gpu_rows_per_chunk", self.gpu_rows_per_chunk, MAX_COUNT),
            ("max_chunk_bytes", self.max_chunk_bytes, MAX_BYTES),
            ("gpu_max_chunk_bytes", self.gpu_max_chunk_bytes, MAX_BYTES),
            ("memory_bytes", self.memory_bytes, MAX_BYTES),
        ];
        for (field, value, most) in counts {
            match value {
                Some(0) => return refuse(field, "must be positive (or absent)"),
                Some(v) if v > most => return refuse(field, "is absurdly large"),
                _ => {}
            }
        }
        if !self.two_pass_coverage_threshold.is_finite() || self.two_pass_coverage_threshold < 0.0 {
            return refuse("two_pass_coverage_threshold", "must be finite and at least 0");
        }
        Ok(())
    }

    /// All fields as numbers and texts, equal for equal plans.
    pub fn hash_into(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (&self.name, self.cpu_workers, self.use_memmap, self.use_gpu).hash(hasher);
        (self.max_chunk_bytes, self.rows_per_chunk, self.tiles_per_chunk).hash(hasher);
        (self.gpu_rows_per_chunk, self.gpu_max_chunk_bytes, self.memory_bytes).hash(hasher);
        // 0 and -0 are equal, but not their bits.
        ((self.two_pass_coverage_threshold + 0.0).to_bits(), &self.reasons).hash(hasher);
    }

    /// One line for the log and the header: `cpu_workers=2 use_gpu=False max_chunk_mb=128.00 …`.
    ///
    /// Megabytes are 2^20 bytes with two decimals; a missing figure is `-`.
    pub fn figures(&self) -> String {
        let mib = |bytes: Option<u64>| {
            bytes.map_or_else(|| "-".to_owned(), |b| format!("{:.2}", b as f64 / (1 << 20) as f64))
        };
        let count = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        format!(
            "cpu_workers={} use_gpu={} max_chunk_mb={} gpu_max_chunk_mb={} rows={} gpu_rows={}",
            self.cpu_workers,
            if self.use_gpu { "True" } else { "False" },
            mib(self.max_chunk_bytes),
            mib(self.gpu_max_chunk_bytes),
            count(self.rows_per_chunk),
            count(self.gpu_rows_per_chunk),
        )
    }
}
