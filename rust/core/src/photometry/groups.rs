//! Which inputs hang together.

/// Inputs that are connected by pairs.
pub struct Groups {
    /// By input: its group, numbered in the order in which they appear.
    pub number: Vec<usize>,
    /// How many groups there are.
    pub count: usize,
}

impl Groups {
    /// The groups of so many inputs, two of which are connected by each pair.
    pub fn of(inputs: usize, pairs: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut sets = Sets::new(inputs);
        for (i, j) in pairs {
            sets.unite(i, j);
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

    /// The plain mean of each group.
    pub fn means(&self, values: &[f64]) -> Vec<f64> {
        let mut sums = vec![(0.0, 0.0); self.count];
        for (&group, value) in self.number.iter().zip(values) {
            let (sum, n) = &mut sums[group];
            *sum += value;
            *n += 1.0;
        }
        sums.into_iter().map(|(sum, n)| sum / n).collect()
    }

    /// Shift values so that the plain mean of each group is zero.
    pub fn center(&self, values: &mut [f64]) {
        let means = self.means(values);
        for (&group, value) in self.number.iter().zip(values) {
            *value -= means[group];
        }
    }
}

/// Disjoint sets of inputs.
pub struct Sets(Vec<u32>);

impl Sets {
    /// Every input for itself.
    pub fn new(inputs: usize) -> Self {
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
    pub fn unite(&mut self, i: u32, j: u32) -> bool {
        let (i, j) = (self.root(i), self.root(j));
        self.0[i.max(j) as usize] = i.min(j);
        i != j
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_numbered_as_they_appear() {
        let groups = Groups::of(5, [(1, 4), (0, 3)]);
        assert_eq!((&groups.number[..], groups.count), (&[0, 1, 2, 0, 1][..], 3));
        assert_eq!(groups.means(&[1.0, 5.0, 7.0, 2.0, -5.0]), [1.5, 0.0, 7.0]);
    }
}
