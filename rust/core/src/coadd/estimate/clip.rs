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

/// With less than half of the samples outside, each time takes off a fifth at least: from any
/// outlier that a float holds down to its last digit.
const MOST_TIMES: usize = 100;

/// Kappa-sigma clipping: see [`super::Estimator::KappaSigma`].
#[inline(always)]
pub fn kappa_sigma(column: &Column, kappa: (f64, f64)) -> Kept {
    rounds(column, kappa, spread)
}

/// Winsorized sigma clipping: see [`super::Estimator::Winsorized`].
#[inline(always)]
pub fn winsorized(column: &Column, kappa: (f64, f64)) -> Kept {
    rounds(column, kappa, |column, kept, centre| {
        let mut sigma = spread(column, kept, centre);
        let mut settled = [false; LANES];
        for _ in 0..MOST_TIMES {
            let next = spread_within(column, kept, centre, &sigma.map(|s| DRAWN_IN * s));
            for lane in 0..LANES {
                let next = CORRECTION * next[lane];
                if !settled[lane] {
                    settled[lane] = (next - sigma[lane]).abs() <= SETTLED * sigma[lane];
                    sigma[lane] = next;
                }
            }
            // NaN, of lanes without samples, never settles.
            let is_done = |lane: usize| settled[lane] || kept.past[lane] == kept.first[lane];
            if (0..LANES).all(is_done) {
                break;
            }
        }
        sigma
    })
}

/// Clip again and again, with the spread that `spread` finds of the samples kept until then.
#[inline(always)]
fn rounds(
    column: &Column,
    kappa: (f64, f64),
    spread: impl Fn(&Column, &Kept, &[f64; LANES]) -> [f64; LANES],
) -> Kept {
    let mut kept = column.all();
    for _ in 0..ROUNDS {
        let centre = std::array::from_fn(|lane| {
            let (first, past) = (kept.first[lane], kept.past[lane]);
            if first < past { column.median(lane, first, past) } else { f64::NAN }
        });
        let sigma = spread(column, &kept, &centre);
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

/// Standard deviations of the samples kept (the root of their mean squared deviation from their
/// mean), from sums about `centre`, where no digits are lost.
#[inline(always)]
fn spread(column: &Column, kept: &Kept, centre: &[f64; LANES]) -> [f64; LANES] {
    spread_within(column, kept, centre, &[f64::INFINITY; LANES])
}

/// The same of samples drawn in to `reach` about `centre`.
#[inline(always)]
fn spread_within(
    column: &Column,
    kept: &Kept,
    centre: &[f64; LANES],
    reach: &[f64; LANES],
) -> [f64; LANES] {
    // As doubles, so that every array of the loop has lanes of the same width.
    let [first, past] = [kept.first, kept.past].map(|places| places.map(|place| place as f64));
    let (mut sum, mut squares) = ([0.0; LANES], [0.0; LANES]);
    let low = kept.first.into_iter().min().unwrap_or(0);
    let high = kept.past.into_iter().max().unwrap_or(0);
    for (place, row) in (low..high).zip(&column.sorted[low..high]) {
        let place = place as f64;
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
    std::array::from_fn(|lane| {
        let n = past[lane] - first[lane];
        let variance = (squares[lane] - sum[lane] * sum[lane] / n) / n;
        // Rounding may leave a little less than nothing; NaN stays.
        if variance < 0.0 { 0.0 } else { variance.sqrt() }
    })
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
