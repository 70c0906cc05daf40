//! From differences of pairs to one value an input.

use super::groups::{Groups, Sets};
use crate::Result;
use crate::cancel::CancelToken;

/// Part of the first residual at which the solution is good.
const TOLERANCE: f64 = 1e-12;

/// How often the solution is refined by what is left of the true residual, at most.
const REFINEMENTS: usize = 3;

/// By how much one input is above another, and how much that counts.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The first input.
    pub i: u32,
    /// The other.
    pub j: u32,
    /// How much the difference counts.
    pub weight: f64,
    /// The first less the other.
    pub difference: f64,
}

/// Bytes that solving takes besides, for so many inputs and links.
pub fn bytes(inputs: usize, links: usize) -> u64 {
    // The values, five vectors of the solver; roots and numbers of groups. The edges of the forest
    // are two an input.
    let each = 6 * size_of::<f64>() + 6 * size_of::<usize>() + 2 * size_of::<(u32, u32, f64)>();
    // The links, and their order for the forest.
    let one = size_of::<Link>() + size_of::<u32>();
    (inputs * each + links * one) as u64
}

/// The values, one an input, that minimise Σ w · (xᵢ − xⱼ + dᵢⱼ)² + p · Σ x² over links and inputs,
/// where d are the differences, w the weights and p the prior; the mean of each group is zero.
///
/// The start follows the heaviest links from input to input, which is all that a chain needs; what
/// loops and the prior say against it is settled by conjugate gradients, in a fixed order.
pub fn solve(
    groups: &Groups,
    links: &[Link],
    prior: f64,
    cancel: &CancelToken,
) -> Result<Vec<f64>> {
    let inputs = groups.number.len();
    let mut solver = Solver::new(inputs, links, prior);
    let good = TOLERANCE * solver.residual(&vec![0.0; inputs]);
    let mut values = along_forest(inputs, links);
    if prior > 0.0 {
        // Of all levels of a group the prior is for this one, to which the solver comes slowly.
        groups.center(&mut values);
    }
    for _ in 0..REFINEMENTS {
        if solver.residual(&values) <= good {
            break;
        }
        solver.refine(&mut values, good, cancel)?;
    }
    groups.center(&mut values);
    Ok(values)
}

/// Values that agree with the heaviest links that connect everything.
fn along_forest(inputs: usize, links: &[Link]) -> Vec<f64> {
    let mut order: Vec<u32> = (0..links.len() as u32).collect();
    let weight = |k: u32| links[k as usize].weight;
    order.sort_unstable_by(|&k, &l| weight(l).total_cmp(&weight(k)).then(k.cmp(&l)));
    let mut sets = Sets::new(inputs);
    order.retain(|&k| sets.unite(links[k as usize].i, links[k as usize].j));
    let mut edges: Vec<(u32, u32, f64)> = Vec::with_capacity(2 * order.len());
    for &k in &order {
        let Link { i, j, difference, .. } = links[k as usize];
        edges.extend([(i, j, difference), (j, i, -difference)]);
    }
    edges.sort_unstable_by_key(|&(from, to, _)| (from, to));
    let mut values = vec![f64::NAN; inputs];
    let mut pending = Vec::with_capacity(inputs);
    for root in 0..inputs {
        if values[root].is_nan() {
            values[root] = 0.0;
            pending.push(root as u32);
        }
        while let Some(from) = pending.pop() {
            let first = edges.partition_point(|edge| edge.0 < from);
            for &(_, to, difference) in edges[first..].iter().take_while(|edge| edge.0 == from) {
                if values[to as usize].is_nan() {
                    values[to as usize] = values[from as usize] + difference;
                    pending.push(to);
                }
            }
        }
    }
    values
}

/// Conjugate gradients with the diagonal as preconditioner.
struct Solver<'a> {
    links: &'a [Link],
    prior: f64,
    /// Sum of the weights at each input; 1 without any.
    diagonal: Vec<f64>,
    residual: Vec<f64>,
    direction: Vec<f64>,
    image: Vec<f64>,
}

impl<'a> Solver<'a> {
    fn new(inputs: usize, links: &'a [Link], prior: f64) -> Self {
        let mut diagonal = vec![prior; inputs];
        for link in links {
            diagonal[link.i as usize] += link.weight;
            diagonal[link.j as usize] += link.weight;
        }
        for sum in &mut diagonal {
            *sum = if *sum > 0.0 { *sum } else { 1.0 };
        }
        let zeros = || vec![0.0; inputs];
        let [residual, direction, image] = [zeros(), zeros(), zeros()];
        Self { links, prior, diagonal, residual, direction, image }
    }

    /// Find the residual of the normal equations; returns its size.
    fn residual(&mut self, values: &[f64]) -> f64 {
        for (residual, value) in self.residual.iter_mut().zip(values) {
            *residual = -self.prior * value;
        }
        for link in self.links {
            let (i, j) = (link.i as usize, link.j as usize);
            let pull = link.weight * (values[i] - values[j] + link.difference);
            self.residual[i] -= pull;
            self.residual[j] += pull;
        }
        self.size().sqrt()
    }

    /// The residual times itself, preconditioned.
    fn size(&self) -> f64 {
        self.residual.iter().zip(&self.diagonal).map(|(r, d)| r * r / d).sum()
    }

    /// Reduce the residual to `good`, if rounding allows.
    fn refine(&mut self, values: &mut [f64], good: f64, cancel: &CancelToken) -> Result<()> {
        let mut size = self.size();
        for (p, (r, d)) in self.direction.iter_mut().zip(self.residual.iter().zip(&self.diagonal)) {
            *p = r / d;
        }
        // In exact arithmetic there are no more steps than inputs.
        for _ in 0..2 * values.len() {
            cancel.check()?;
            for (image, direction) in self.image.iter_mut().zip(&self.direction) {
                *image = self.prior * direction;
            }
            for link in self.links {
                let (i, j) = (link.i as usize, link.j as usize);
                let pull = link.weight * (self.direction[i] - self.direction[j]);
                self.image[i] += pull;
                self.image[j] -= pull;
            }
            let bend: f64 = self.direction.iter().zip(&self.image).map(|(p, q)| p * q).sum();
            if bend <= 0.0 {
                break;
            }
            let step = size / bend;
            for k in 0..values.len() {
                values[k] += step * self.direction[k];
                self.residual[k] -= step * self.image[k];
            }
            let before = std::mem::replace(&mut size, self.size());
            if size.sqrt() <= 0.5 * good {
                break;
            }
            for k in 0..values.len() {
                self.direction[k] =
                    self.residual[k] / self.diagonal[k] + size / before * self.direction[k];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solve_all(inputs: usize, pairs: &[(u32, u32, u32)], differences: &[f64]) -> Vec<f64> {
        solve_with(0.0, inputs, pairs, differences)
    }

    fn solve_with(
        prior: f64,
        inputs: usize,
        pairs: &[(u32, u32, u32)],
        differences: &[f64],
    ) -> Vec<f64> {
        let links = pairs.iter().zip(differences).map(|(&(i, j, n), &difference)| Link {
            i,
            j,
            weight: f64::from(n),
            difference,
        });
        let links: Vec<_> = links.collect();
        let groups = Groups::of(inputs, pairs.iter().map(|&(i, j, _)| (i, j)));
        solve(&groups, &links, prior, &CancelToken::default()).unwrap()
    }

    fn assert_close(got: &[f64], wanted: &[f64]) {
        assert_eq!(got.len(), wanted.len());
        for (g, w) in got.iter().zip(wanted) {
            assert!((g - w).abs() < 1e-11, "{got:?} {wanted:?}");
        }
    }

    #[test]
    fn a_loop_that_contradicts_itself_is_settled_by_least_squares() {
        // Around the loop the differences add up to 1 + 2 - 1.8 = 1.2. A loop has one
        // contradiction to share: residuals in proportion to 1/n, with the signs of the loop. With
        // n = 10, 20, 20 they are 0.6, 0.3 and, against the loop's sense, -0.3.
        let got = solve_all(3, &[(0, 1, 10), (0, 2, 20), (1, 2, 20)], &[1.0, 1.8, 2.0]);
        // o0 - o1 + 1 = 0.6 and o1 - o2 + 2 = 0.3 with o0 + o1 + o2 = 0.
        let o1 = -(-0.4 + 1.7) / 3.0;
        assert_close(&got, &[o1 - 0.4, o1, o1 + 1.7]);
        assert!((got[0] - got[2] + 1.8 + 0.3).abs() < 1e-11);
    }

    #[test]
    fn a_chain_is_followed_exactly_and_each_group_has_mean_zero() {
        let got = solve_all(6, &[(0, 1, 9), (1, 3, 500), (4, 5, 80)], &[3.0, -5.0, 2.0]);
        // 0 -> +3 -> 1, 1 -> -5 -> 3; input 2 is alone.
        assert_close(&got, &[-1.0 / 3.0, 8.0 / 3.0, 0.0, -7.0 / 3.0, -1.0, 1.0]);
    }

    #[test]
    fn a_prior_draws_towards_zero_and_leaves_the_means() {
        // Two inputs: (w + p/2) x = w d / 2 each way; the other pair weighs so much that the prior
        // is nothing to it.
        let got = solve_with(10.0, 5, &[(0, 1, 20), (2, 3, 1_000_000_000)], &[4.0, 6.0]);
        assert_close(&got[..2], &[-1.6, 1.6]);
        assert!((got[2] + 3.0).abs() < 1e-7 && (got[3] - 3.0).abs() < 1e-7 && got[4] == 0.0);
    }

    #[test]
    fn a_large_net_with_noise_satisfies_the_normal_equations() {
        let (side, mut pairs, mut differences) = (60_u32, Vec::new(), Vec::new());
        for k in 0..side * side {
            for (step, inside) in [(1, k % side + 1 < side), (side, k / side + 1 < side)] {
                if inside {
                    pairs.push((k, k + step, 8 + k * 7919 % 400));
                    differences.push(f64::from(k * 37 % 101) - 50.0);
                }
            }
        }
        for prior in [0.0, 3.0] {
            let got = solve_with(prior, (side * side) as usize, &pairs, &differences);
            let mut pull: Vec<f64> = got.iter().map(|x| prior * x).collect();
            for (&(i, j, n), d) in pairs.iter().zip(&differences) {
                let (i, j) = (i as usize, j as usize);
                let force = f64::from(n) * (got[i] - got[j] + d);
                pull[i] += force;
                pull[j] -= force;
            }
            assert!(pull.iter().all(|p| p.abs() < 1e-6));
            assert!(got.iter().sum::<f64>().abs() < 1e-8);
        }
    }

    #[test]
    fn nothing_to_compare_gives_zeros() {
        assert_close(&solve_all(3, &[], &[]), &[0.0; 3]);
        assert_close(&solve_with(1.0, 3, &[], &[]), &[0.0; 3]);
    }
}
