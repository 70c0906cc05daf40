//! From all samples of a pixel to those that count.
//!
//! Sixteen pixels are looked at side by side, each in a lane of its own: their samples are sorted,
//! and since every method here leaves out samples at the ends only, what it keeps is a range of
//! the sorted ones. Lanes never look at each other, and a lane that has come to its end stays as
//! it is, so a pixel does not depend on its neighbours.

mod clip;
mod reference;
mod sort;

use sort::sort;

/// Pixels that are looked at together.
pub const LANES: usize = 16;

/// One sample of each pixel.
pub type Lanes = [f32; LANES];

/// How the value of a pixel is found from its samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Estimator {
    /// The middle sample, or the mean of the two middle ones; with weights that differ, the one
    /// where half of the weight is reached.
    Median,
    /// Weighted mean without the samples that are more than so many standard deviations below and
    /// above the median, which are taken anew without them, five times at most.
    KappaSigma((f64, f64)),
    /// The same, with a standard deviation of samples that are drawn in to 1.5 of it about the
    /// median first, again and again until it settles: outliers do not widen it. (The winsorized
    /// sigma clipping that astronomical stacking programs share; Huber's proposal 2.) It is that of
    /// a sample, with n - 1: few samples that lie close together by chance would else reject the
    /// rest.
    Winsorized((f64, f64)),
    /// The winsorized form of `ZeMosaic` 4.5, as observed: a mean of drawn-in samples.
    WinsorizedReference(f64),
    /// Weighted mean of the samples drawn in to these parts of them at the lower and upper end.
    WinsorPercentile((f64, f64)),
}

impl Estimator {
    /// Whether it leaves samples out, or draws them in, and counts them.
    pub fn rejects(self) -> bool {
        !matches!(self, Self::Median)
    }
}

/// Sorted samples of sixteen pixels; those that are not valid are +∞, at the end.
#[derive(Clone, Copy)]
pub struct Column<'a> {
    /// In ascending order, lane by lane.
    pub sorted: &'a [Lanes],
    /// How many are valid in each lane.
    pub count: [usize; LANES],
}

/// Ranges of the sorted samples, lane by lane: first, and past the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    pub first: [usize; LANES],
    pub past: [usize; LANES],
}

impl<'a> Column<'a> {
    /// The samples of all inputs, NaN where invalid, in `sorted`, which has room for them.
    #[inline(always)]
    pub fn of<'s>(sorted: &'a mut [Lanes], samples: impl Iterator<Item = &'s Lanes>) -> Self {
        let (mut used, mut count) = (0, [0_u32; LANES]);
        for sample in samples {
            let mut some = 0;
            for lane in 0..LANES {
                let is_valid = !sample[lane].is_nan();
                sorted[used][lane] = if is_valid { sample[lane] } else { f32::INFINITY };
                count[lane] += u32::from(is_valid);
                some |= u32::from(is_valid);
            }
            used += some as usize;
        }
        sort(&mut sorted[..used]);
        Self { sorted: &sorted[..used], count: count.map(|n| n as usize) }
    }
}

impl Column<'_> {
    /// All valid samples.
    fn all(&self) -> Kept {
        Kept { first: [0; LANES], past: self.count }
    }

    /// The median of a lane's samples from `first` to `past`, of which there is at least one.
    #[inline(always)]
    fn median(&self, lane: usize, first: usize, past: usize) -> f64 {
        let (low, high) = (first + (past - first - 1) / 2, first + (past - first) / 2);
        f64::midpoint(f64::from(self.sorted[low][lane]), f64::from(self.sorted[high][lane]))
    }

    /// The value below which the part `part` of a lane's samples lies, linear between neighbours.
    #[inline(always)]
    fn quantile(&self, lane: usize, part: f64) -> f64 {
        let place = part * (self.count[lane] - 1) as f64;
        let (low, high) = (place.floor() as usize, place.ceil() as usize);
        let [low, high] = [low, high].map(|k| f64::from(self.sorted[k][lane]));
        low + (high - low) * (place - place.floor())
    }
}

/// What an estimator has to say about sixteen pixels of one channel.
#[derive(Clone, Copy, Debug)]
pub enum Verdict {
    /// These are the values.
    Values([f64; LANES]),
    /// Samples between these count, both included.
    Keep(Lanes, Lanes),
    /// Samples are drawn in to between these.
    Draw([f64; LANES], [f64; LANES]),
}

/// What a verdict means for one sample.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Whether it lies below what is kept, or is drawn in from there.
    pub below: bool,
    /// The same above.
    pub above: bool,
    /// Whether it counts in the mean.
    pub counts: bool,
    /// With which value.
    pub drawn: f64,
}

impl Verdict {
    /// Look at a sample of a lane, NaN if it is invalid; `is_kept` is whether all channels keep it.
    #[inline(always)]
    pub fn look(&self, sample: f32, lane: usize, is_kept: bool) -> Look {
        let value = f64::from(sample);
        let is_valid = !value.is_nan();
        let (below, above, counts, drawn) = match self {
            Self::Values(_) => (false, false, is_valid, 0.0),
            Self::Keep(low, high) => {
                let (below, above) = (sample < low[lane], sample > high[lane]);
                (below, above, is_valid & is_kept & !below & !above, value)
            }
            Self::Draw(low, high) => {
                let (below, above) = (value < low[lane], value > high[lane]);
                let drawn = if below { low[lane] } else { value };
                (below, above, is_valid, if above { high[lane] } else { drawn })
            }
        };
        Look { below, above, counts, drawn }
    }
}

impl Estimator {
    /// The verdict on a column; that on lanes without samples means nothing. `samples` are the
    /// values and weights of a lane, in job order.
    #[inline(always)]
    pub fn judge<S: Iterator<Item = (f64, f64)>>(
        self,
        column: &Column,
        samples: impl Fn(usize) -> S,
        weights_differ: bool,
    ) -> Verdict {
        let each = |of: &dyn Fn(usize) -> f64| {
            std::array::from_fn(|lane| if column.count[lane] == 0 { f64::NAN } else { of(lane) })
        };
        match self {
            Self::Median if weights_differ => {
                Verdict::Values(each(&|lane| weighted_median(samples(lane))))
            }
            Self::Median => {
                Verdict::Values(each(&|lane| column.median(lane, 0, column.count[lane])))
            }
            Self::KappaSigma(kappa) => column.keep(&clip::kappa_sigma(column, kappa)),
            Self::Winsorized(kappa) => column.keep(&clip::winsorized(column, kappa)),
            Self::WinsorPercentile((low, high)) => {
                let lower = each(&|lane| column.quantile(lane, low));
                Verdict::Draw(lower, each(&|lane| column.quantile(lane, 1.0 - high)))
            }
            Self::WinsorizedReference(kappa) => {
                let bounds = |lane| reference::bounds(column, lane, kappa, || samples(lane));
                let bounds: [_; LANES] = std::array::from_fn(bounds);
                Verdict::Draw(bounds.map(|b| b.0), bounds.map(|b| b.1))
            }
        }
    }
}

impl Column<'_> {
    #[inline(always)]
    fn keep(&self, kept: &Kept) -> Verdict {
        let at = |lane: usize, place: usize| {
            if self.count[lane] == 0 { f32::NAN } else { self.sorted[place][lane] }
        };
        Verdict::Keep(
            std::array::from_fn(|lane| at(lane, kept.first[lane])),
            std::array::from_fn(|lane| at(lane, kept.past[lane].max(1) - 1)),
        )
    }
}

/// The value where half of the weight is reached; where that is just between two, their mean.
fn weighted_median(samples: impl Iterator<Item = (f64, f64)>) -> f64 {
    let mut samples: Vec<_> = samples.collect();
    samples.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = 0.5 * samples.iter().map(|sample| sample.1).sum::<f64>();
    let mut below = 0.0;
    for pair in samples.windows(2) {
        below += pair[0].1;
        // Rounding must not decide: equal weights give what no weights give.
        if (below - half).abs() <= JUST * half {
            return f64::midpoint(pair[0].0, pair[1].0);
        }
        if below > half {
            return pair[0].0;
        }
    }
    samples.last().map_or(f64::NAN, |last| last.0)
}

/// Sums of weights that differ by no more than this part are the same.
const JUST: f64 = 1e-9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_give_the_plain_median() {
        for n in 1..40_usize {
            for weight in [0.1, 0.3, 1.0, 7.7] {
                let samples = (0..n).map(|k| ((k * 7 % n) as f64, weight));
                let middle = (n - 1) as f64 / 2.0;
                let found = weighted_median(samples);
                if !n.is_multiple_of(7) {
                    assert_eq!(found, middle, "{n} of {weight}");
                }
            }
        }
        assert_eq!(weighted_median([(1.0, 1.0), (2.0, 3.0)].into_iter()), 2.0);
        assert_eq!(weighted_median([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)].into_iter()), 1.5);
        assert!(weighted_median([].into_iter()).is_nan());
    }
}
