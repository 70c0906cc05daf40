//! Combining the samples of all inputs at a pixel.
//!
//! Some methods need a few running values per pixel ([`Tile`]), in double precision, so that
//! thousands of 16-bit frames lose no digit; one of them in two sweeps over the inputs. The others
//! look at all samples of a pixel at once ([`Stack`]). Samples arrive in job order, which is what
//! makes `first`, `last` and the rounding of sums independent of threads and blocks.

mod accumulate;
mod estimate;
mod stack;
mod stream;
mod tile;
mod variance;

pub use estimate::Estimator;
pub use stack::{Stack, StackBuffers};
pub use tile::{Bounds, COLUMNS, Place, ROWS, Tile, TileBuffers};

use crate::job::{Input, Job};
use crate::resample::RUN;

/// A result in single precision. Processors differ in the bits of what is no number; here it has one
/// form.
#[inline(always)]
fn clean(value: f64) -> f32 {
    let single = value as f32;
    if single.is_nan() { f32::NAN } else { single }
}

/// How the samples of a pixel become one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combine {
    /// With a running value.
    Running(Running),
    /// With all samples at once.
    Stacked(Stacked),
    /// With running values, in two sweeps over the inputs.
    Streamed(Streamed),
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

/// Clipping for which no samples are held: their moments come together in a first sweep over the
/// inputs; in a second one, the weighted mean of those that lie within the bounds that follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Streamed {
    /// How many standard deviations below and above the mean samples are kept; at least 1, for
    /// then some are.
    pub kappa: (f64, f64),
    /// See [`Stacked::together`].
    pub together: bool,
}

/// What the running values of a tile are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// The value of each channel, and the weight.
    Value(Running),
    /// Mean and spread of the samples of each channel, and their number: they lead to bounds.
    Moments(Streamed),
    /// Sum, weight and numbers of rejected samples, for the mean of the samples within bounds.
    Within(Streamed),
}

impl Rule {
    /// Running planes of a tile.
    pub fn running_planes(self, job: &Job) -> usize {
        match self {
            Self::Value(_) => job.channels + job.variance_planes() + 1,
            Self::Moments(_) => stream::MOMENTS * job.channels + 1,
            Self::Within(_) => stream::WITHIN * job.channels + job.variance_planes(),
        }
    }
}

/// One sweep over the inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sweep {
    /// With tiles.
    Tiles(Rule),
    /// With stacks.
    Stacks(Stacked),
}

impl Sweep {
    /// Planes that it finishes: those of the output, or the lower and upper bound of each channel.
    pub fn finished_planes(self, job: &Job) -> usize {
        if let Self::Tiles(Rule::Moments(_)) = self { 2 * job.channels } else { job.planes() }
    }

    /// Planes that come together while inputs come one after the other.
    pub fn running_planes(self, job: &Job) -> usize {
        match self {
            Self::Tiles(rule) => rule.running_planes(job),
            Self::Stacks(_) => 0,
        }
    }

    /// Planes of bounds that it looks at.
    pub fn bounds_planes(self, job: &Job) -> usize {
        if matches!(self, Self::Tiles(Rule::Within(_))) { 2 * job.channels } else { 0 }
    }

    /// Bytes that the tile or stack of one worker leases.
    pub fn worker_bytes(self, job: &Job) -> u64 {
        match self {
            Self::Tiles(rule) => TileBuffers::bytes(rule.running_planes(job)),
            Self::Stacks(_) => StackBuffers::bytes(job),
        }
    }
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
            "kappa-sigma-stream" => Self::Streamed(Streamed { kappa, together }),
            "winsorized" => stacked(Estimator::Winsorized(kappa)),
            "winsorized-reference" => stacked(Estimator::WinsorizedReference(kappa.0)),
            "winsor-percentile" => stacked(Estimator::WinsorPercentile(winsor)),
            _ => return None,
        })
    }

    /// Its sweeps over the inputs, in order; the last one makes the image.
    pub fn sweeps(self) -> Vec<Sweep> {
        match self {
            Self::Running(running) => vec![Sweep::Tiles(Rule::Value(running))],
            Self::Stacked(how) => vec![Sweep::Stacks(how)],
            Self::Streamed(how) => [Rule::Moments(how), Rule::Within(how)].map(Sweep::Tiles).into(),
        }
    }

    /// Whether it looks at all samples of a pixel at once.
    pub fn is_stacked(self) -> bool {
        matches!(self, Self::Stacked(_))
    }

    /// Whether it says how many samples it has rejected.
    pub fn rejects(self) -> bool {
        match self {
            Self::Running(_) => false,
            Self::Stacked(how) => how.estimator.rejects(),
            Self::Streamed(_) => true,
        }
    }
}

/// What takes the samples of a rectangle of the output, input by input in job order.
pub trait Gather {
    /// The samples that follow are of this input.
    fn begin(&mut self, number: usize, input: &Input);

    /// Whether it asks for shares of noise.
    fn finds_variance(&self) -> bool;

    /// Let the samples of a run that begins at output pixel (x, y), and what is there already, give
    /// way to each other. Samples of negative weight are saturated: they stand only where all do.
    fn make_way(&mut self, at: (i64, i64), values: &mut [[f32; RUN]], weights: &[f64]);

    /// Bring in a run of samples of `input` that begins at output pixel (x, y): `values` per
    /// channel (NaN = invalid, in all channels alike), their weights, and, if they are asked for,
    /// the shares of noise that each has (see [`crate::noise`]). Returns how many count.
    fn add(
        &mut self,
        input: &Input,
        at: (i64, i64),
        values: &[[f32; RUN]],
        weights: &[f64],
        shares: &[[f32; RUN]],
    ) -> u32;
}
