//! From differences of pairs to one offset an input.

use std::cmp::Reverse;

use super::pairs::Pair;
use crate::Result;
use crate::cancel::CancelToken;

/// Part of the first residual at which the solution is good.
const TOLERANCE: f64 = 1e-12;

/// How often the solution is refined by what is left of the true residual, at most.
const REFINEMENTS: usize = 3;

/// Bytes that solving takes besides, for so many inputs and pairs.
pub fn bytes(inputs: usize, pairs: usize, channels: usize) -> u64 {
    // The offsets, those of one channel, five vectors of the solver; roots and numbers of groups.
    let each = (channels + 6) * size_of::<f64>() + 6 * size_of::<usize>();
    // Differences of one channel, the order of the forest and the pairs of the solution. The edges
    // of the forest are two an input.
    let one = 2 * size_of::<f64>() + size_of::<Pair>();
    let each = each + 2 * size_of::<(u32, u32, f64)>();
    (inputs * each + pairs * one) as u64
}

/// Inputs that are connected by pairs.
pub struct Groups {
    /// By input: its group, numbered in the order in which they appear.
    pub number: Vec<usize>,
    /// How many groups there are.
    pub count: usize,
}

impl Groups {
    /// The groups of so many inputs.
    pub fn of(inputs: usize, pairs: &[Pair]) -> Self {
        let mut sets = Sets::new(inputs);
        for pair in pairs {
            sets.unite(pair.i, pair.j);
        }
        let mut of_root = vec![usize::MAX; inputs];
        let mut count = 0;
        let number = (0..inputs as u32).map(|input| {
            let group = &mut of_root[sets.root(input) as usize];
            if *group == usize::MAX {
                *group = count;
                count += 1;
            }
            *group
        });
        let number = number.collect();
        Self { number, count }
    }

    /// Shift values so that the plain mean of each group is zero.
    fn center(&self, values: &mut [f64]) {
        let mut sums = vec![(0.0, 0.0); self.count];
        for (&group, value) in self.number.iter().zip(&*values) {
            let (sum, n) = &mut sums[group];
            *sum += value;
            *n += 1.0;
        }
        for (&group, value) in self.number.iter().zip(values) {
            *value -= sums[group].0 / sums[group].1;
        }
    }
}

/// Disjoint sets of inputs.
struct Sets(Vec<u32>);

impl Sets {
    fn new(inputs: usize) -> Self {
        Self((0..inputs as u32).collect())
    }

    fn root(&mut self, mut input: u32) -> u32 {
        while self.0[input as usize] != input {
            let above = self.0[self.0[input as usize] as usize];
            self.0[input as usize] = above;
            input = above;
        }
        input
    }

    /// True if they were apart.
    fn unite(&mut self, i: u32, j: u32) -> bool {
        let (i, j) = (self.root(i), self.root(j));
        self.0[i.max(j) as usize] = i.min(j);
        i != j
    }
}

/// The offsets, one an input, that minimise Σ n · (oᵢ − oⱼ + dᵢⱼ)² over the pairs, where d are their
/// differences; the mean of each group is zero.
///
/// The start follows the heaviest pairs from input to input, which is all that a chain needs; what
/// loops say against it is settled by conjugate gradients, in a fixed order.
pub fn offsets(
    groups: &Groups,
    pairs: &[Pair],
    differences: &[f64],
    cancel: &CancelToken,
) -> Result<Vec<f64>> {
    let inputs = groups.number.len();
    let mut solver = Solver::new(inputs, pairs);
    let good = TOLERANCE * solver.residual(differences, &vec![0.0; inputs]);
    let mut offsets = along_forest(inputs, pairs, differences);
    for _ in 0..REFINEMENTS {
        if solver.residual(differences, &offsets) <= good {
            break;
        }
        solver.refine(&mut offsets, good, cancel)?;
    }
    groups.center(&mut offsets);
    Ok(offsets)
}

/// Offsets that agree with the heaviest pairs that connect everything.
fn along_forest(inputs: usize, pairs: &[Pair], differences: &[f64]) -> Vec<f64> {
    let mut order: Vec<u32> = (0..pairs.len() as u32).collect();
    order.sort_unstable_by_key(|&k| (Reverse(pairs[k as usize].n), k));
    let mut sets = Sets::new(inputs);
    order.retain(|&k| sets.unite(pairs[k as usize].i, pairs[k as usize].j));
    let mut edges: Vec<(u32, u32, f64)> = Vec::with_capacity(2 * order.len());
    for &k in &order {
        let Pair { i, j, .. } = pairs[k as usize];
        edges.extend([(i, j, differences[k as usize]), (j, i, -differences[k as usize])]);
    }
    edges.sort_unstable_by_key(|&(from, to, _)| (from, to));
    let mut offsets = vec![f64::NAN; inputs];
    let mut pending = Vec::with_capacity(inputs);
    for root in 0..inputs {
        if offsets[root].is_nan() {
            offsets[root] = 0.0;
            pending.push(root as u32);
        }
        while let Some(from) = pending.pop() {
            let first = edges.partition_point(|edge| edge.0 < from);
            for &(_, to, difference) in edges[first..].iter().take_while(|edge| edge.0 == from) {
                if offsets[to as usize].is_nan() {
                    offsets[to as usize] = offsets[from as usize] + difference;
                    pending.push(to);
                }
            }
        }
    }
    offsets
}

/// Conjugate gradients with the diagonal as preconditioner.
struct Solver<'a> {
    pairs: &'a [Pair],
    /// Sum of the weights at each input; 1 without any.
    diagonal: Vec<f64>,
    residual: Vec<f64>,
    direction: Vec<f64>,
    image: Vec<f64>,
}

impl<'a> Solver<'a> {
    fn new(inputs: usize, pairs: &'a [Pair]) -> Self {
        let mut diagonal = vec![0.0; inputs];
        for pair in pairs {
            diagonal[pair.i as usize] += f64::from(pair.n);
            diagonal[pair.j as usize] += f64::from(pair.n);
        }
        for sum in &mut diagonal {
            *sum = if *sum > 0.0 { *sum } else { 1.0 };
        }
        let zeros = || vec![0.0; inputs];
        Self { pairs, diagonal, residual: zeros(), direction: zeros(), image: zeros() }
    }

    /// Find the residual of the normal equations; returns its size.
    fn residual(&mut self, differences: &[f64], offsets: &[f64]) -> f64 {
        self.residual.fill(0.0);
        for (pair, difference) in self.pairs.iter().zip(differences) {
            let (i, j) = (pair.i as usize, pair.j as usize);
            let pull = f64::from(pair.n) * (offsets[i] - offsets[j] + difference);
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
    fn refine(&mut self, offsets: &mut [f64], good: f64, cancel: &CancelToken) -> Result<()> {
        let mut size = self.size();
        for (p, (r, d)) in self.direction.iter_mut().zip(self.residual.iter().zip(&self.diagonal)) {
            *p = r / d;
        }
        // In exact arithmetic there are no more steps than inputs.
        for _ in 0..2 * offsets.len() {
            cancel.check()?;
            self.image.fill(0.0);
            for pair in self.pairs {
                let (i, j) = (pair.i as usize, pair.j as usize);
                let pull = f64::from(pair.n) * (self.direction[i] - self.direction[j]);
                self.image[i] += pull;
                self.image[j] -= pull;
            }
            let bend: f64 = self.direction.iter().zip(&self.image).map(|(p, q)| p * q).sum();
            if bend <= 0.0 {
                break;
            }
            let step = size / bend;
            for k in 0..offsets.len() {
                offsets[k] += step * self.direction[k];
                self.residual[k] -= step * self.image[k];
            }
            let before = std::mem::replace(&mut size, self.size());
            if size.sqrt() <= 0.5 * good {
                break;
            }
            for k in 0..offsets.len() {
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

    fn solve(inputs: usize, pairs: &[(u32, u32, u32)], differences: &[f64]) -> Vec<f64> {
        let pairs: Vec<_> = pairs.iter().map(|&(i, j, n)| Pair { i, j, n }).collect();
        let groups = Groups::of(inputs, &pairs);
        offsets(&groups, &pairs, differences, &CancelToken::default()).unwrap()
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
        let got = solve(3, &[(0, 1, 10), (0, 2, 20), (1, 2, 20)], &[1.0, 1.8, 2.0]);
        // o0 - o1 + 1 = 0.6 and o1 - o2 + 2 = 0.3 with o0 + o1 + o2 = 0.
        let o1 = -(-0.4 + 1.7) / 3.0;
        assert_close(&got, &[o1 - 0.4, o1, o1 + 1.7]);
        assert!((got[0] - got[2] + 1.8 + 0.3).abs() < 1e-11);
    }

    #[test]
    fn a_chain_is_followed_exactly_and_each_group_has_mean_zero() {
        let got = solve(6, &[(0, 1, 9), (1, 3, 500), (4, 5, 80)], &[3.0, -5.0, 2.0]);
        // 0 -> +3 -> 1, 1 -> -5 -> 3; input 2 is alone.
        assert_close(&got, &[-1.0 / 3.0, 8.0 / 3.0, 0.0, -7.0 / 3.0, -1.0, 1.0]);
    }

    #[test]
    fn groups_are_numbered_as_they_appear() {
        let pairs = [Pair { i: 1, j: 4, n: 8 }, Pair { i: 0, j: 3, n: 8 }];
        let groups = Groups::of(5, &pairs);
        assert_eq!((groups.number, groups.count), (vec![0, 1, 2, 0, 1], 3));
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
        let got = solve((side * side) as usize, &pairs, &differences);
        let mut pull = vec![0.0; got.len()];
        for (&(i, j, n), d) in pairs.iter().zip(&differences) {
            let (i, j) = (i as usize, j as usize);
            let force = f64::from(n) * (got[i] - got[j] + d);
            pull[i] += force;
            pull[j] -= force;
        }
        assert!(pull.iter().all(|p| p.abs() < 1e-6));
        assert!(got.iter().sum::<f64>().abs() < 1e-8);
    }

    #[test]
    fn nothing_to_compare_gives_zeros() {
        assert_close(&solve(3, &[], &[]), &[0.0; 3]);
    }
}
