//! The winsorized sigma clip of the reference system, pixel by pixel.

use super::Column;

/// How often samples are drawn in, at most.
const ROUNDS: usize = 10;

/// What is left of a spread of nothing.
const LEAST_SIGMA: f64 = 1e-10;

/// Changes up to this, a part of the value or of 1, end it.
const SETTLED: f64 = 5e-4;

/// The median absolute deviation of Gaussian noise is its standard deviation over this.
const MAD_TO_SIGMA: f64 = 1.4826;

/// Bounds to which the samples of a lane are drawn in, in the last round; their weighted mean is
/// then the value. `samples` are their values and weights.
pub fn bounds<S: Iterator<Item = (f64, f64)>>(
    column: &Column,
    lane: usize,
    kappa: f64,
    samples: impl Fn() -> S,
) -> (f64, f64) {
    let n = column.count[lane];
    if n < 2 {
        return (f64::NEG_INFINITY, f64::INFINITY);
    }
    let mut middle = column.median(lane, 0, n);
    let mut sigma = (MAD_TO_SIGMA * deviation(column, lane, middle)).max(LEAST_SIGMA);
    let mut bounds = (f64::NAN, f64::NAN);
    for _ in 0..ROUNDS {
        let next = (middle - kappa * sigma, middle + kappa * sigma);
        if next == bounds {
            break;
        }
        bounds = next;
        let drawn = || samples().map(|(value, weight)| (value.clamp(bounds.0, bounds.1), weight));
        let (sum, total) = drawn().fold((0.0, 0.0), |(s, t), (v, w)| (s + w * v, t + w));
        let mean = sum / total;
        // Huber's weights, with the spread of the round before.
        let huber =
            |off: f64| if off.abs() > kappa * sigma { kappa * sigma / off.abs() } else { 1.0 };
        let (squares, total) = drawn().fold((0.0, 0.0), |(s, t), (value, weight)| {
            let off = value - mean;
            let weight = weight * huber(off);
            (s + weight * off * off, t + weight)
        });
        let spread = (squares / total).sqrt();
        let is_near = |new: f64, old: f64| (new - old).abs() <= SETTLED * old.abs().max(1.0);
        let settled = is_near(mean, middle) && is_near(spread, sigma);
        (middle, sigma) = (mean, spread.max(LEAST_SIGMA));
        if settled {
            break;
        }
    }
    bounds
}

/// Median of a lane's absolute deviations from `centre`, a value between its samples: those next
/// to it on either side are taken one by one.
fn deviation(column: &Column, lane: usize, centre: f64) -> f64 {
    let n = column.count[lane];
    let at = |place: usize| f64::from(column.sorted[place][lane]);
    let mut above = (0..n).find(|&place| at(place) >= centre).unwrap_or(n);
    let mut below = above;
    let mut taken = [0.0; 2];
    for _ in 0..=n / 2 {
        let up = if above < n { at(above) - centre } else { f64::INFINITY };
        let down = if below > 0 { centre - at(below - 1) } else { f64::INFINITY };
        if up <= down {
            above += 1;
        } else {
            below -= 1;
        }
        taken = [taken[1], up.min(down)];
    }
    if n % 2 == 1 { taken[1] } else { f64::midpoint(taken[0], taken[1]) }
}

#[cfg(test)]
mod tests {
    use super::super::{LANES, Lanes, sort};
    use super::*;

    fn column(samples: &[f64]) -> Vec<Lanes> {
        let mut sorted: Vec<Lanes> = samples.iter().map(|&v| [v as f32; LANES]).collect();
        sort(&mut sorted);
        sorted
    }

    #[test]
    fn deviations_are_taken_from_the_middle_outwards() {
        for (samples, want) in [
            (&[1.0, 2.0, 4.0, 8.0, 100.0][..], 3.0),
            (&[1.0, 2.0, 4.0, 8.0], 1.5),
            (&[5.0, 5.0, 5.0], 0.0),
        ] {
            let sorted = column(samples);
            let column = Column { sorted: &sorted, count: [samples.len(); LANES] };
            let middle = column.median(3, 0, samples.len());
            assert_eq!(deviation(&column, 3, middle), want, "{samples:?}");
        }
    }

    #[test]
    fn values_are_those_of_the_reference() {
        // One 50 among a cycle of 10, 11, 12, 11.
        for (n, want) in [(4, 20.75), (6, 17.3333), (10, 11.6928), (20, 11.1540), (30, 11.0535)] {
            let cycle = [10.0, 11.0, 12.0, 11.0].into_iter().cycle();
            let samples: Vec<f64> = cycle.take(n - 1).chain([50.0]).collect();
            let sorted = column(&samples);
            let column = Column { sorted: &sorted, count: [n; LANES] };
            let (low, high) = bounds(&column, 0, 3.0, || samples.iter().map(|v| (*v, 1.0)));
            let mean = samples.iter().map(|v| v.clamp(low, high)).sum::<f64>() / n as f64;
            assert!((mean - want).abs() < 1e-4, "{n}: {mean}");
        }
    }
}
