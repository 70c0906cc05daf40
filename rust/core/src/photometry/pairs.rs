//! Which inputs are compared with which.

use std::cmp::Reverse;
use std::sync::Arc;

use super::groups::Groups;
use super::lattice::{Lattice, Tally};
use super::sampling::{Sampled, Stretch};
use crate::budget::Ledger;
use crate::cancel::CancelToken;
use crate::{Result, parallel};

/// Inputs with fewer valid points in common are not compared.
const LEAST_COMMON: u32 = 8;

/// Partners that every input chooses, at most.
const MOST_PARTNERS: usize = 12;

/// Partners whose common points are counted for that choice, at most. Of thousands of frames over
/// one field the most promising ones are as good as any.
const MOST_COUNTED: usize = 48;

/// Edge of a bucket in lattice points, as a power of two.
const BUCKET_SHIFT: u32 = 3;

/// Inputs, or pairs, that a worker takes at once.
const AT_ONCE: usize = 16;

/// Two inputs that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// The first in job order.
    pub i: u32,
    /// The other.
    pub j: u32,
    /// Valid points that both have.
    pub n: u32,
}

impl Pair {
    /// Both inputs.
    pub fn ends(&self) -> (u32, u32) {
        (self.i, self.j)
    }
}

/// Bytes that are leased besides while the pairs of so many inputs are found, which have samples
/// in so many buckets, each for itself.
pub fn finding_bytes(inputs: usize, buckets: usize, workers: usize) -> u64 {
    let choices = inputs * (size_of::<Vec<Choice>>() + MOST_PARTNERS * size_of::<Choice>());
    let scores = workers * inputs * size_of::<[u32; 3]>();
    let entries = buckets * (size_of::<Entry>() + size_of::<Place>());
    (entries + choices + scores) as u64
}

/// Buckets in which an input has samples, at most.
pub fn most_buckets(tally: Tally) -> usize {
    (tally.points >> BUCKET_SHIFT) + 2 * tally.runs
}

/// Pairs of so many inputs, at most.
pub fn most_pairs(inputs: usize) -> usize {
    (MOST_PARTNERS + 1) * inputs
}

/// The pairs of inputs that are compared, in ascending order.
///
/// Every input chooses the few partners with which it has most points in common; then the heaviest
/// pairs that join what would fall apart are added, so that two inputs are connected by the pairs
/// if they are by the sky.
pub fn find(
    lattice: &Lattice,
    samples: &[Sampled],
    workers: usize,
    ledger: &Arc<Ledger>,
    cancel: &CancelToken,
) -> Result<Vec<Pair>> {
    let inputs = samples.len();
    let workers = workers.min(inputs.div_ceil(AT_ONCE));
    let buckets = samples.iter().map(|sampled| buckets_of(lattice, sampled, |_, _| ())).sum();
    let _lease = ledger.reserve(finding_bytes(inputs, buckets, workers))?;
    let finder = Finder { samples, buckets: Buckets::new(lattice, samples, buckets), cancel };
    let mut crew: Vec<_> = (0..workers).map(|_| Scores::new(inputs)).collect();
    let mut pairs = Vec::with_capacity(most_pairs(inputs));
    let choices = finder.choices(&mut crew, MOST_PARTNERS, MOST_COUNTED, |_, _| true)?;
    for (i, chosen) in choices.iter().enumerate() {
        pairs.extend(chosen.iter().map(|choice| choice.pair(i)));
    }
    drop(choices);
    pairs.sort_unstable();
    pairs.dedup();
    loop {
        let groups = Groups::of(inputs, pairs.iter().map(Pair::ends));
        if groups.count == 1 {
            return Ok(pairs);
        }
        let apart = |i: usize, j: usize| groups.number[i] != groups.number[j];
        let choices = finder.choices(&mut crew, 1, usize::MAX, apart)?;
        let mut best: Vec<Option<Pair>> = vec![None; groups.count];
        for (i, chosen) in choices.iter().enumerate() {
            let pair = chosen.first().map(|choice| choice.pair(i));
            let rank = |p: Pair| (p.n, Reverse((p.i, p.j)));
            let group = &mut best[groups.number[i]];
            if pair.map(rank) > group.map(rank) {
                *group = pair;
            }
        }
        if best.iter().all(Option::is_none) {
            return Ok(pairs);
        }
        pairs.extend(best.into_iter().flatten());
        pairs.sort_unstable();
        pairs.dedup();
    }
}

/// A partner, and the valid points in common with it.
#[derive(Clone, Copy)]
struct Choice {
    partner: u32,
    n: u32,
}

impl Choice {
    fn pair(self, input: usize) -> Pair {
        let (i, j) = (self.partner.min(input as u32), self.partner.max(input as u32));
        Pair { i, j, n: self.n }
    }
}

/// The samples of an input that lie in one bucket, a square of lattice points.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    bucket: u32,
    input: u32,
    valid: u32,
}

/// The same from the input's side: the entries of its bucket.
#[derive(Clone, Copy)]
struct Place {
    first: u32,
    past: u32,
    valid: u32,
}

/// All samples by buckets, for a bound on the number of points that two inputs have in common.
struct Buckets {
    /// By bucket, and then by input.
    entries: Vec<Entry>,
    /// By input.
    places: Vec<Place>,
    /// Where the places of each input begin, and where they end.
    starts: Vec<usize>,
}

impl Buckets {
    fn new(lattice: &Lattice, samples: &[Sampled], len: usize) -> Self {
        let mut entries = Vec::with_capacity(len);
        let mut starts = vec![0];
        for (input, sampled) in (0..).zip(samples) {
            buckets_of(lattice, sampled, |bucket, valid| {
                entries.push(Entry { bucket, input, valid });
            });
            starts.push(entries.len());
        }
        entries.sort_unstable();
        let mut places = vec![Place { first: 0, past: 0, valid: 0 }; entries.len()];
        let mut next = starts.clone();
        let mut first = 0;
        for group in entries.chunk_by(|a, b| a.bucket == b.bucket) {
            let past = first + group.len() as u32;
            for entry in group {
                let place = &mut next[entry.input as usize];
                places[*place] = Place { first, past, valid: entry.valid };
                *place += 1;
            }
            first = past;
        }
        Self { entries, places, starts }
    }
}

/// Tell the buckets in which an input has valid samples, and how many. Returns how many buckets.
fn buckets_of(lattice: &Lattice, sampled: &Sampled, mut found: impl FnMut(u32, u32)) -> usize {
    let plane = sampled.plane(0);
    let across = (lattice.across as u32).div_ceil(1 << BUCKET_SHIFT);
    let mut count = 0;
    let mut row = vec![0_u32; across as usize];
    for runs in sampled.runs.chunk_by(|a, b| a.line >> BUCKET_SHIFT == b.line >> BUCKET_SHIFT) {
        let (mut low, mut high) = (across, 0);
        for run in runs {
            let values = &plane[run.slot as usize..][..run.len as usize];
            for (column, value) in (run.column..).zip(values) {
                row[(column >> BUCKET_SHIFT) as usize] += u32::from(!value.is_nan());
            }
            low = low.min(run.column >> BUCKET_SHIFT);
            high = high.max(((run.column + run.len - 1) >> BUCKET_SHIFT) + 1);
        }
        let first = (runs[0].line >> BUCKET_SHIFT) * across;
        for bucket in low..high {
            let valid = std::mem::take(&mut row[bucket as usize]);
            if valid > 0 {
                found(first + bucket, valid);
                count += 1;
            }
        }
    }
    count
}

/// What a worker knows of the partners of one input.
struct Scores {
    /// By input: no more points in common than these.
    most: Vec<u32>,
    /// Inputs with any, largest bound first.
    order: Vec<(Reverse<u32>, u32)>,
}

impl Scores {
    fn new(inputs: usize) -> Self {
        Self { most: vec![0; inputs], order: Vec::with_capacity(inputs) }
    }
}

struct Finder<'a> {
    samples: &'a [Sampled],
    buckets: Buckets,
    cancel: &'a CancelToken,
}

impl Finder<'_> {
    /// The best partners of every input, at most `most`, of those that are `allowed`.
    fn choices(
        &self,
        crew: &mut [Scores],
        most: usize,
        counted: usize,
        allowed: impl Fn(usize, usize) -> bool + Sync,
    ) -> Result<Vec<Vec<Choice>>> {
        let mut all = vec![Vec::new(); self.samples.len()];
        let tasks = all.chunks_mut(AT_ONCE).enumerate().collect();
        parallel::run(crew, tasks, |(part, choices), scores| {
            for (k, chosen) in choices.iter_mut().enumerate() {
                self.cancel.check()?;
                let input = part * AT_ONCE + k;
                self.bound(input, |other| allowed(input, other), scores);
                if counted < scores.order.len() {
                    scores.order.select_nth_unstable(counted);
                    scores.order.truncate(counted);
                }
                scores.order.sort_unstable();
                *chosen = self.best(input, most, &scores.order);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Bound the number of points that an input has in common with each of the others.
    fn bound(&self, input: usize, allowed: impl Fn(usize) -> bool, scores: &mut Scores) {
        let Scores { most, order } = scores;
        order.clear();
        let Buckets { entries, places, starts } = &self.buckets;
        for place in &places[starts[input]..starts[input + 1]] {
            for entry in &entries[place.first as usize..place.past as usize] {
                let sum = &mut most[entry.input as usize];
                if *sum == 0 {
                    order.push((Reverse(0), entry.input));
                }
                *sum += place.valid.min(entry.valid);
            }
        }
        for (bound, other) in &mut *order {
            *bound = Reverse(std::mem::take(&mut most[*other as usize]));
        }
        order.retain(|&(Reverse(bound), other)| {
            bound >= LEAST_COMMON && other as usize != input && allowed(other as usize)
        });
    }

    /// The partners with most points in common. They are counted in the order of their bounds,
    /// until no further one can be among the best.
    fn best(&self, input: usize, most: usize, order: &[(Reverse<u32>, u32)]) -> Vec<Choice> {
        let mut best: Vec<Choice> = Vec::with_capacity(most);
        for &(Reverse(bound), partner) in order {
            if best.len() == most && best[most - 1].n >= bound {
                break;
            }
            let n = count_common(&self.samples[input], &self.samples[partner as usize]);
            if n >= LEAST_COMMON {
                let rank = |choice: &Choice| (Reverse(choice.n), choice.partner);
                let choice = Choice { partner, n };
                let place = best.partition_point(|other| rank(other) < rank(&choice));
                if place < most {
                    best.truncate(most - 1);
                    best.insert(place, choice);
                }
            }
        }
        best
    }
}

/// Valid points that two inputs have in common.
fn count_common(a: &Sampled, b: &Sampled) -> u32 {
    let (of_a, of_b) = (a.plane(0), b.plane(0));
    let stretches = a.common(b).map(|Stretch { at: [at_a, at_b], len, .. }| {
        let both = of_a[at_a..at_a + len].iter().zip(&of_b[at_b..at_b + len]);
        both.map(|(a, b)| u32::from(!(a.is_nan() | b.is_nan()))).sum::<u32>()
    });
    stretches.sum()
}
