//! Gains and offsets from straight lines between inputs that somebody else has fitted.

use super::groups::Groups;
use super::solve::{Link, solve};
use crate::cancel::CancelToken;
use crate::{Error, Result};

/// The values of one input as a straight line over those of another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// The input whose values are on the axis.
    pub i: u32,
    /// The input whose values the line gives.
    pub j: u32,
    /// Slope of the line.
    pub gain: f64,
    /// Its value at zero.
    pub offset: f64,
    /// How much it counts.
    pub weight: f64,
}

/// Gain and offset of each of so many inputs: gᵢ = slope · gⱼ and oᵢ − oⱼ = offset · gⱼ as nearly as
/// least squares can, the first of them in logarithms. `anchor`, and the first input of every group
/// without it, keeps its values; without `gains` all gains are 1.
pub fn solve_entries(
    inputs: usize,
    entries: &[Entry],
    anchor: usize,
    gains: bool,
    cancel: &CancelToken,
) -> Result<Vec<(f64, f64)>> {
    let makes_sense = |entry: &Entry| {
        (entry.i.max(entry.j) as usize) < inputs
            && entry.i != entry.j
            && entry.weight > 0.0
            && entry.gain > 0.0
            && (entry.weight + entry.gain + entry.offset).is_finite()
    };
    if anchor >= inputs || !entries.iter().all(makes_sense) {
        return Err(Error::Argument(
            "entries need two of the inputs, a gain and a weight above 0 and a finite offset"
                .to_owned(),
        ));
    }
    let groups = Groups::of(inputs, entries.iter().map(|entry| (entry.i, entry.j)));
    let solved = |of: &dyn Fn(&Entry) -> f64| -> Result<Vec<f64>> {
        let link = |entry: &Entry| {
            let Entry { i, j, weight, .. } = *entry;
            Link { i, j, weight, difference: -of(entry) }
        };
        let links: Vec<_> = entries.iter().map(link).collect();
        let values = solve(&groups, &links, 0.0, cancel)?;
        let mut kept = vec![f64::NAN; groups.count];
        kept[groups.number[anchor]] = values[anchor];
        for (&group, &value) in groups.number.iter().zip(&values) {
            kept[group] = if kept[group].is_nan() { value } else { kept[group] };
        }
        Ok(values.iter().zip(&groups.number).map(|(value, &group)| value - kept[group]).collect())
    };
    let factors = if gains {
        solved(&|entry| libm::log(entry.gain))?.into_iter().map(libm::exp).collect()
    } else {
        vec![1.0; inputs]
    };
    let offsets = solved(&|entry| entry.offset * factors[entry.j as usize])?;
    Ok(factors.into_iter().zip(offsets).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solved(inputs: usize, entries: &[(u32, u32, f64, f64)], anchor: usize) -> Vec<(f64, f64)> {
        let entry = |&(i, j, gain, offset)| Entry { i, j, gain, offset, weight: 2.0 };
        let entries: Vec<_> = entries.iter().map(entry).collect();
        solve_entries(inputs, &entries, anchor, true, &CancelToken::default()).unwrap()
    }

    #[test]
    fn lines_are_followed_from_the_anchor_of_each_group() {
        // Values of 0 are x, of 1 they are 2 x + 6; corrected, both are those of 1.
        let got = solved(5, &[(0, 1, 2.0, 6.0), (2, 3, 0.5, 0.0)], 1);
        let wanted = [(2.0, 6.0), (1.0, 0.0), (1.0, 0.0), (2.0, 0.0), (1.0, 0.0)];
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((got.0 - wanted.0).abs() < 1e-12 && (got.1 - wanted.1).abs() < 1e-12);
        }
    }

    #[test]
    fn a_contradiction_does_not_shrink_the_gains() {
        let got = solved(3, &[(0, 1, 1.02, 0.0), (1, 2, 0.97, 0.0), (0, 2, 1.05, 0.0)], 0);
        assert!(got.iter().all(|(gain, _)| (gain - 1.0).abs() < 0.05), "{got:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        for (i, j, gain) in [(0, 0, 1.0), (0, 7, 1.0), (0, 1, 0.0), (0, 1, f64::NAN)] {
            let entry = Entry { i, j, gain, offset: 0.0, weight: 1.0 };
            assert!(solve_entries(2, &[entry], 0, true, &CancelToken::default()).is_err());
        }
    }
}
