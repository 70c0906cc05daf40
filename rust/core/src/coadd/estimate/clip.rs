//! Iterative clipping about the median.

use super::{Column, Kept, LANES};

/// How often the median and the spread are taken anew, at most.
const ROUNDS: usize = 5;

/// A pixel keeps at least so many samples, if it has them.
const LEAST_KEPT: usize = 2;

/// Samples are drawn in to so many standard deviations about the median before their standard
/// deviation is taken, which is then too small for Gaussian noise by the second factor; again and
/// again, until it changes by no more than the third, a part of itself.
const DRAWN_IN: f64 = 1.5;
const CORRECTION: f64 = 1.134;
const SETTLED: f64 = 5e-4;

/// Each time takes off a part of what outliers add, as long as they are less than half of the
/// samples: a fourteenth at least, a fiftieth where one of three is outside. So many times leave a
/// tenth of it, and the outliers are rejected.
const MOST_TIMES: usize = 100;

/// Kappa-sigma clipping: see [`super::Estimator::KappaSigma`].
#[inline(always)]
pub fn kappa_sigma(column: &Column, kappa: (f64, f64)) -> Kept {
    rounds::<false>(column, kappa)
}

/// Winsorized sigma clipping: see [`super::Estimator::Winsorized`].
#[inline(always)]
pub fn winsorized(column: &Column, kappa: (f64, f64)) -> Kept {
    rounds::<true>(column, kappa)
}

/// Clip again and again, with the spread of the samples kept until then. (No closure here or below:
/// those are not compiled for the instruction set that was chosen.)
#[inline(always)]
fn rounds<const WINSORIZED: bool>(column: &Column, kappa: (f64, f64)) -> Kept {
    let mut kept = column.all();
    for _ in 0..ROUNDS {
        let mut centre = [f64::NAN; LANES];
        for lane in 0..LANES {
            let (first, past) = (kept.first[lane], kept.past[lane]);
            if first < past {
                centre[lane] = column.median(lane, first, past);
            }
        }
        let sigma = if WINSORIZED {
            winsorized_spread(column, &kept, &centre)
        } else {
            spread(column, &kept, &centre, &[f64::INFINITY; LANES], 0.0)
        };
        let mut next = kept;
        for lane in 0..LANES {
            let low = centre[lane] - kappa.0 * sigma[lane];
            let high = centre[lane] + kappa.1 * sigma[lane];
            let (mut first, mut past) = (kept.first[lane], kept.past[lane]);
            while first < past && f64::from(column.sorted[first][lane]) < low {
                first += 1;
            }
            while first < past && f64::from(column.sorted[past - 1][lane]) > high {
                past -= 1;
            }
            if past - first >= LEAST_KEPT {
                (next.first[lane], next.past[lane]) = (first, past);
            }
        }
        if next == kept {
            break;
        }
        kept = next;
    }
    kept
}

/// The standard deviation of samples that are drawn in to some of it, when it no longer changes.
#[inline(always)]
fn winsorized_spread(column: &Column, kept: &Kept, centre: &[f64; LANES]) -> [f64; LANES] {
    let mut sigma = spread(column, kept, centre, &[f64::INFINITY; LANES], 1.0);
    let mut settled = [false; LANES];
    for lane in 0..LANES {
        // Lanes without samples have NaN, which never settles.
        settled[lane] = kept.past[lane] == kept.first[lane];
    }
    for _ in 0..MOST_TIMES {
        let mut reach = sigma;
        for lane in 0..LANES {
            reach[lane] *= DRAWN_IN;
        }
        let next = spread(column, kept, centre, &reach, 1.0);
        let mut done = true;
        for lane in 0..LANES {
            let next = CORRECTION * next[lane];
            let settles = (next - sigma[lane]).abs() <= SETTLED * sigma[lane];
            sigma[lane] = if settled[lane] { sigma[lane] } else { next };
            settled[lane] |= settles;
            done &= settled[lane];
        }
        if done {
            break;
        }
    }
    sigma
}

/// Standard deviations of the samples kept, when they are drawn in to `reach` about `centre`: from
/// sums about it, where no digits are lost. `fewer` is taken from the number of samples by which
/// the sum of squares is divided: 0 for the root of the mean square, 1 for an unbiased variance.
#[inline(always)]
fn spread(
    column: &Column,
    kept: &Kept,
    centre: &[f64; LANES],
    reach: &[f64; LANES],
    fewer: f64,
) -> [f64; LANES] {
    // As doubles, so that every array of the loop has lanes of the same width.
    let (mut first, mut past) = ([0.0; LANES], [0.0; LANES]);
    let (mut low, mut high) = (usize::MAX, 0);
    for lane in 0..LANES {
        (first[lane], past[lane]) = (kept.first[lane] as f64, kept.past[lane] as f64);
        (low, high) = (low.min(kept.first[lane]), high.max(kept.past[lane]));
    }
    let (mut sum, mut squares) = ([0.0; LANES], [0.0; LANES]);
    for place in low..high {
        let (row, place) = (&column.sorted[place], place as f64);
        for lane in 0..LANES {
            let off = f64::from(row[lane]) - centre[lane];
            let off = if off < reach[lane] { off } else { reach[lane] };
            let off = if off > -reach[lane] { off } else { -reach[lane] };
            let counts = (place >= first[lane]) & (place < past[lane]);
            let off = if counts { off } else { 0.0 };
            sum[lane] += off;
            squares[lane] += off * off;
        }
    }
    let mut sigma = [0.0; LANES];
    for lane in 0..LANES {
        let n = past[lane] - first[lane];
        let over = if n > fewer { n - fewer } else { n };
        let variance = (squares[lane] - sum[lane] * sum[lane] / n) / over;
        // Rounding may leave a little less than nothing; NaN stays.
        sigma[lane] = if variance < 0.0 { 0.0 } else { variance.sqrt() };
    }
    sigma
}

#[cfg(test)]
mod tests {
    use super::super::{Lanes, sort};
    use super::*;

    /// The samples that are kept, in ascending order; all lanes look at the same ones.
    fn kept(samples: &[f32], way: impl Fn(&Column) -> Kept) -> Vec<f32> {
        let mut sorted: Vec<Lanes> = samples.iter().map(|&v| [v; LANES]).collect();
        sorted.push([f32::INFINITY; LANES]);
        sort(&mut sorted);
        let column = Column { sorted: &sorted, count: [samples.len(); LANES] };
        let kept = way(&column);
        assert!(kept.first.iter().all(|first| *first == kept.first[0]));
        (kept.first[5]..kept.past[5]).map(|place| sorted[place][5]).collect()
    }

    #[test]
    fn an_outlier_among_many_goes() {
        let mut samples: Vec<f32> = (0..20_u8).map(|k| f32::from(k % 5)).collect();
        samples.push(500.0);
        let clean = kept(&samples[..20], |c| kappa_sigma(c, (3.0, 3.0)));
        assert_eq!(clean.len(), 20);
        assert_eq!(kept(&samples, |c| kappa_sigma(c, (3.0, 3.0))), clean);
        assert_eq!(kept(&samples, |c| kappa_sigma(c, (3.0, 30.0))).len(), 21);
        samples[20] = -500.0;
        assert_eq!(kept(&samples, |c| kappa_sigma(c, (3.0, 30.0))), clean);
    }

    #[test]
    fn few_samples_hide_an_outlier_from_sigma_but_not_from_winsorized_sigma() {
        let samples = [10.0, 10.1, 10.2, 10.3, 50.0];
        assert_eq!(kept(&samples, |c| kappa_sigma(c, (3.0, 3.0))).len(), 5);
        assert_eq!(kept(&samples, |c| winsorized(c, (3.0, 3.0))), samples[..4]);
    }

    #[test]
    fn two_samples_are_always_kept() {
        for samples in [&[1.0][..], &[1.0, 9.0], &[1.0, 5.0, 9.0]] {
            let left = kept(samples, |c| kappa_sigma(c, (0.1, 0.1)));
            assert!(left.len() >= samples.len().min(2), "{left:?}");
            assert!(!kept(samples, |c| winsorized(c, (0.1, 0.1))).is_empty());
        }
        assert!(kept(&[], |c| kappa_sigma(c, (3.0, 3.0))).is_empty());
        assert_eq!(kept(&[4.0; 7], |c| winsorized(c, (3.0, 3.0))), [4.0; 7]);
    }
}
