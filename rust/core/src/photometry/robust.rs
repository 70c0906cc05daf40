//! Least squares in which links that contradict the others count less.

use super::groups::Groups;
use super::solve::{Link, solve};
use crate::Result;
use crate::cancel::CancelToken;

/// How often the weights are found anew, at most.
const ROUNDS: usize = 8;

/// Residuals of so many scales no longer count: Tukey's biweight, as good as least squares but for
/// a twentieth where all errors are normal.
const REACH: f64 = 4.685;

/// Weight of such a link, as a part of its own: it keeps together what nothing else connects.
const LEAST: f64 = 1e-3;

/// A change of the weights that no longer matters.
const SETTLED: f64 = 1e-3;

/// Standard deviations of a normal distribution in its median absolute value.
const SIGMA_OF_MEDIAN: f64 = 1.482_602_218_505_602;

/// Bytes that [`settle`] takes besides, for so many links.
pub fn bytes(links: usize) -> u64 {
    (links * (3 * size_of::<f64>() + size_of::<bool>())) as u64
}

/// Values of inputs, and which links were found to contradict them.
pub struct Settled {
    /// By input.
    pub values: Vec<f64>,
    /// By link.
    pub rejected: Vec<bool>,
}

/// As [`solve`], again and again, each time with weights that follow from the residuals. `errors`
/// are those of the differences: nothing within them is taken for a contradiction.
///
/// The weights of the links are those of the last round afterwards.
pub fn settle(
    groups: &Groups,
    links: &mut [Link],
    errors: &[f64],
    prior: f64,
    cancel: &CancelToken,
) -> Result<Settled> {
    let weights: Vec<f64> = links.iter().map(|link| link.weight).collect();
    let mut trust = vec![1.0; links.len()];
    let mut values = solve(groups, links, prior, cancel)?;
    for _ in 0..ROUNDS {
        let apart = links.iter().zip(errors).map(|(link, error)| {
            let left = values[link.i as usize] - values[link.j as usize] + link.difference;
            left.abs() / error
        });
        let apart: Vec<f64> = apart.collect();
        let reach = REACH * scale(apart.clone());
        let mut change: f64 = 0.0;
        for (trust, apart) in trust.iter_mut().zip(apart) {
            let u = apart / reach;
            let now = if u < 1.0 { ((1.0 - u * u) * (1.0 - u * u)).max(LEAST) } else { LEAST };
            change = change.max((now - *trust).abs());
            *trust = now;
        }
        if change <= SETTLED {
            break;
        }
        for (link, (weight, trust)) in links.iter_mut().zip(weights.iter().zip(&trust)) {
            link.weight = weight * trust;
        }
        values = solve(groups, links, prior, cancel)?;
    }
    let rejected = trust.iter().map(|&trust| trust <= LEAST).collect();
    Ok(Settled { values, rejected })
}

/// The typical size of residuals in units of their errors: 1 where those explain them.
fn scale(mut apart: Vec<f64>) -> f64 {
    if apart.is_empty() {
        return 1.0;
    }
    let middle = apart.len() / 2;
    (SIGMA_OF_MEDIAN * *apart.select_nth_unstable_by(middle, f64::total_cmp).1).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(inputs: usize, pairs: &[(u32, u32, f64)], error: f64) -> Settled {
        let link = |&(i, j, difference)| Link { i, j, weight: 1.0, difference };
        let mut links: Vec<_> = pairs.iter().map(link).collect();
        let groups = Groups::of(inputs, pairs.iter().map(|&(i, j, _)| (i, j)));
        let errors = vec![error; pairs.len()];
        settle(&groups, &mut links, &errors, 0.0, &CancelToken::default()).unwrap()
    }

    #[test]
    fn a_pair_that_contradicts_all_others_is_found() {
        // All pairs of six inputs agree that they are equal, but one says 10.
        let mut pairs: Vec<_> =
            (0..6).flat_map(|j| (0..j).map(move |i| (i, j, 0.01 * f64::from(i * j % 3)))).collect();
        pairs[4].2 = 10.0;
        let Settled { values, rejected } = settled(6, &pairs, 0.01);
        assert_eq!(rejected.iter().filter(|&&is| is).count(), 1);
        assert!(rejected[4]);
        assert!(values.iter().all(|v| v.abs() < 0.02), "{values:?}");
    }

    #[test]
    fn one_contradiction_in_a_loop_is_shared() {
        let Settled { values, rejected } =
            settled(3, &[(0, 1, 0.02), (1, 2, 0.02), (0, 2, -0.02)], 1e-4);
        assert!(values.iter().all(|v| v.abs() < 1e-12));
        assert_eq!(rejected, [false; 3]);
    }

    #[test]
    fn errors_are_no_contradictions() {
        // A chain agrees with itself, so the median residual is nothing; its loop is noisy.
        let mut pairs: Vec<_> = (0..9).map(|i| (i, i + 1, 1.0)).collect();
        pairs.extend([(9, 10, 0.0), (10, 11, 0.1), (9, 11, -0.1)]);
        assert_eq!(settled(12, &pairs, 0.1).rejected, [false; 12]);
        assert_eq!(settled(2, &[(0, 1, 3.0)], 0.1).values, [-1.5, 1.5]);
    }
}
