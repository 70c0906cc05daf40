//! Combining the samples of all inputs at a pixel.
//!
//! Some methods need a running value and a running weight per pixel ([`Tile`]), in double
//! precision, so that thousands of 16-bit frames lose no digit. The others look at all samples of
//! a pixel at once ([`Stack`]). Samples arrive in job order, which is what makes `first`, `last`
//! and the rounding of sums independent of threads and blocks.

mod accumulate;
mod estimate;
mod stack;
mod tile;

pub use estimate::Estimator;
pub use stack::{Stack, StackBuffers};
pub use tile::{COLUMNS, Place, ROWS, Tile, TileBuffers};

use crate::job::Input;
use crate::resample::RUN;

/// How the samples of a pixel become one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combine {
    /// With a running value.
    Running(Running),
    /// With all samples at once.
    Stacked(Stacked),
}

/// What comes together sample by sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    /// Weighted mean.
    Mean,
    /// Weighted sum.
    Sum,
    /// Least value.
    Min,
    /// Greatest value.
    Max,
    /// Value of the first input, in job order, that is valid there.
    First,
    /// Value of the last input, in job order, that is valid there.
    Last,
}

/// An estimator, and what becomes of colour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stacked {
    /// The estimator.
    pub estimator: Estimator,
    /// Whether a sample that one channel rejects is left out of all of them.
    pub together: bool,
}

/// Numbers that some methods need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameters {
    /// How many standard deviations below and above the middle samples are kept.
    pub kappa: (f64, f64),
    /// Parts of the samples that are drawn in at the lower and the upper end.
    pub winsor: (f64, f64),
    /// See [`Stacked::together`].
    pub together: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { kappa: (3.0, 3.0), winsor: (0.05, 0.05), together: false }
    }
}

impl Combine {
    /// The method of that name.
    pub fn from_name(name: &str, parameters: &Parameters) -> Option<Self> {
        let Parameters { kappa, winsor, together } = *parameters;
        let stacked = |estimator| Self::Stacked(Stacked { estimator, together });
        Some(match name {
            "mean" => Self::Running(Running::Mean),
            "sum" => Self::Running(Running::Sum),
            "min" => Self::Running(Running::Min),
            "max" => Self::Running(Running::Max),
            "first" => Self::Running(Running::First),
            "last" => Self::Running(Running::Last),
            "median" => stacked(Estimator::Median),
            "kappa-sigma" => stacked(Estimator::KappaSigma(kappa)),
            "winsorized" => stacked(Estimator::Winsorized(kappa)),
            "winsorized-reference" => stacked(Estimator::WinsorizedReference(kappa.0)),
            "winsor-percentile" => stacked(Estimator::WinsorPercentile(winsor)),
            _ => return None,
        })
    }

    /// Whether it looks at all samples of a pixel at once.
    pub fn is_stacked(self) -> bool {
        matches!(self, Self::Stacked(_))
    }

    /// Whether it says how many samples it has rejected.
    pub fn rejects(self) -> bool {
        matches!(self, Self::Stacked(stacked) if stacked.estimator.rejects())
    }
}

/// What takes the samples of a rectangle of the output, input by input in job order.
pub trait Gather {
    /// The samples that follow are of this input.
    fn begin(&mut self, number: usize, input: &Input);

    /// Bring in a run of samples of `input` that begins at output pixel (x, y): `values` per
    /// channel (NaN = invalid, in all channels alike) and their weights. Returns how many count.
    fn add(&mut self, input: &Input, at: (i64, i64), values: &[[f32; RUN]], weights: &[f64])
    -> u32;
}
