//! By which factor two inputs show the same structure of the sky.
//!
//! With a = (s − oᵢ) / gᵢ and b = (s − oⱼ) / gⱼ, b is a straight line over a, of slope gᵢ / gⱼ. A
//! least-squares line through points with noise on both axes is too flat, on a flat sky by far.
//! Here the slope is a ratio of covariances with an *instrument* z, which follows the sky but not
//! the noise of the point it is used for: Σ z b / Σ z a, where z is what the neighbours of a point,
//! not too near and in its block of the lattice, say of both inputs. Noise of different points is
//! independent, whatever its size in either input, so it has no share in either sum; nor have stars,
//! whose width in each input is that of its seeing: they are smaller than the distance of points.
//!
//! Where stars are everywhere, their neighbours agree by chance, and chance says nothing of gains
//! where stars differ in width. So the sums must be many times what chance makes of them, and what
//! chance may have added counts as an error.
//!
//! A plane is taken from both inputs first: of a slope across an overlap nobody knows whether the
//! sky has it or an exposure.

use super::blocks::Blocks;
use super::line::{Line, Plane, Point, Sums};
use super::sampling::{Sampled, Stretch};

/// Points that are looked at, at most: evenly chosen blocks of more.
const MOST_POINTS: usize = 1 << 16;

/// Edge of the square in which samples of one star lie, in pixels of an input.
const STAR_PX: f64 = 8.0;

/// Numbers that describe a plane.
const OF_A_PLANE: f64 = 3.0;

/// The sums must be so many times what chance makes of them.
const LEAST_SIGNIFICANCE: f64 = 5.0;

/// By how much stars differ between inputs, typically.
const MISMATCH: f64 = 0.1;

/// Fewer blocks tell nothing of the error.
const LEAST_BLOCKS: usize = 8;

/// Parts of an overlap whose contradictions give the error, at most.
const MOST_PARTS: usize = 32;

/// Points further from the median of their block than so many standard deviations are stars, or
/// defects.
const SPIKE_SIGMA: f64 = 4.0;

/// Points further from the line than so many standard deviations are left out.
const CLIP_SIGMA: f64 = 3.0;

/// How often that is done at most.
const CLIP_ROUNDS: usize = 8;

/// A relative change of the slope that no longer matters.
const SETTLED: f64 = 1e-6;

/// No point says more of the sky than one so many standard deviations from its middle.
const MOST_LEVERAGE: f64 = 4.0;

/// Standard deviations of a normal distribution in its median absolute deviation.
const SIGMA_OF_MAD: f64 = 1.482_602_218_505_602;

/// A factor between two inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Logarithm of the second's structure over the first's: of gᵢ / gⱼ.
    pub log: f64,
    /// Its standard error; infinite where nothing was found.
    pub error: f64,
}

impl Ratio {
    /// Nothing was found.
    pub const NONE: Self = Self { log: 0.0, error: f64::INFINITY };
}

/// Points that are each other's neighbours.
#[derive(Clone, Copy)]
struct Block {
    first: u32,
    past: u32,
    /// Median, and scatter about it, of the sums of both inputs.
    middle: f32,
    spread: f32,
}

/// What a worker needs to measure pairs.
pub struct Scratch {
    /// Samples of one star, so many of which say as much as one.
    alike: f64,
    points: Vec<Point>,
    blocks: Vec<Block>,
    values: Vec<f32>,
}

impl Scratch {
    /// For pairs with at most so many common points.
    pub fn new(common: usize) -> Self {
        let most = common.min(MOST_POINTS);
        Self {
            alike: 1.0,
            points: Vec::with_capacity(most),
            blocks: Vec::with_capacity(most / 2),
            values: Vec::with_capacity(most),
        }
    }

    /// Bytes that it takes.
    pub fn bytes(common: usize) -> u64 {
        let each = size_of::<Point>() + size_of::<f32>() + size_of::<Block>() / 2;
        (common.min(MOST_POINTS) * each) as u64
    }

    /// The factor between two inputs with `n` common points, in a channel.
    ///
    /// Only blocks count whose brightness lies between the percentiles `band` of all.
    pub fn measure(
        &mut self,
        a: &Sampled,
        b: &Sampled,
        n: u32,
        channel: usize,
        band: (f64, f64),
    ) -> Ratio {
        self.gather(a, b, n as usize, channel);
        self.find_blocks();
        self.drop_spikes(band);
        self.fit()
    }

    /// Find the common points, and sort them by block.
    fn gather(&mut self, a: &Sampled, b: &Sampled, n: usize, channel: usize) {
        let rule = Blocks::of(a, b, n);
        let step = a.step_px.min(b.step_px);
        self.alike = (STAR_PX / step).powi(2).max(1.0);
        let every = (n + n / 8).div_ceil(MOST_POINTS).max(1) as u32;
        let (of_a, of_b) = (a.plane(channel), b.plane(channel));
        self.points.clear();
        let most = self.points.capacity();
        for Stretch { line: y, column, at, len } in a.common(b) {
            for k in 0..len {
                let x = column + k as u32;
                let (a, b) = (of_a[at[0] + k], of_b[at[1] + k]);
                if (a + b).is_finite() && rule.is_chosen(x, y, every) && self.points.len() < most {
                    self.points.push(Point { block: rule.number(x, y), x, y, a, b });
                }
            }
        }
        self.sort();
    }

    fn sort(&mut self) {
        self.points.sort_unstable_by_key(|point| (point.block, point.y, point.x));
    }

    /// List the blocks that have two points at least, with the middle of each.
    fn find_blocks(&mut self) {
        let Self { points, blocks, values, .. } = self;
        blocks.clear();
        let mut first = 0;
        for block in points.chunk_by(|p, q| p.block == q.block) {
            let past = first + block.len() as u32;
            if block.len() > 1 {
                values.clear();
                values.extend(block.iter().map(|point| point.a + point.b));
                let middle = middle_of(values);
                for value in &mut *values {
                    *value = (*value - middle).abs();
                }
                blocks.push(Block { first, past, middle, spread: middle_of(values) });
            }
            first = past;
        }
    }

    /// Leave out points that stand out of their blocks, and blocks that are not in the band.
    fn drop_spikes(&mut self, band: (f64, f64)) {
        let Self { points, blocks, values, .. } = self;
        if blocks.is_empty() {
            return;
        }
        values.clear();
        values.extend(blocks.iter().map(|block| block.spread));
        let typical = middle_of(values);
        values.clear();
        values.extend(blocks.iter().map(|block| block.middle));
        let band = [band.0, band.1].map(|percent| {
            let rank = (percent / 100.0 * (values.len() - 1) as f64).round() as usize;
            *values.select_nth_unstable_by(rank, f32::total_cmp).1
        });
        let mut kept = 0;
        blocks.retain_mut(|block| {
            let first = kept;
            if block.middle >= band[0] && block.middle <= band[1] {
                let sigma = SIGMA_OF_MAD * f64::from(block.spread.max(typical));
                for k in block.first as usize..block.past as usize {
                    let above = points[k].a + points[k].b - block.middle;
                    if f64::from(above.abs()) <= SPIKE_SIGMA * sigma {
                        points[kept] = points[k];
                        kept += 1;
                    }
                }
            }
            if kept == first + 1 {
                kept = first;
            }
            (block.first, block.past) = (first as u32, kept as u32);
            kept > first
        });
        points.truncate(kept);
    }

    /// The slope of one input over the other, found again without what lies too far from it.
    fn fit(&mut self) -> Ratio {
        if self.blocks.len() < LEAST_BLOCKS {
            return Ratio::NONE;
        }
        let mut line = Line::ANY;
        let mut ratio = Ratio::NONE;
        for _ in 0..CLIP_ROUNDS {
            let before = line.slope;
            let Some((next, error)) = self.refine(&line) else { return Ratio::NONE };
            line = next;
            ratio = Ratio { log: libm::log(line.slope), error };
            if (line.slope - before).abs() <= SETTLED * line.slope {
                break;
            }
        }
        ratio
    }

    /// A line through the points near another one, and the relative error of its slope.
    fn refine(&mut self, old: &Line) -> Option<(Line, f64)> {
        let Self { points, blocks, values, .. } = self;
        let plane = Plane::through(old.near(points))?;
        let sky = |point: &Point| plane.above(point).iter().sum::<f64>().abs() as f32;
        values.clear();
        values.extend(old.near(points).map(sky));
        let most = MOST_LEVERAGE * SIGMA_OF_MAD * f64::from(middle_of(values));
        let parts = (blocks.len() / 4).clamp(LEAST_BLOCKS, MOST_PARTS);
        let mut of_parts = [Sums::default(); MOST_PARTS];
        let mut all = Sums::default();
        for (k, block) in blocks.iter().enumerate() {
            let found = Sums::of(old.near(&points[block.range()]), &plane, most);
            of_parts[k * parts / blocks.len()].add(&found);
            all.add(&found);
        }
        let by_chance = by_chance(&all, self.alike)?;
        let mut line = Line { plane, slope: all.zb / all.za, ..Line::ANY };
        values.clear();
        values.extend(points.iter().map(|point| line.distance(point) as f32));
        let sigma = SIGMA_OF_MAD * f64::from(middle_of(values));
        line.reach = CLIP_SIGMA * sigma;
        // What noise would do, and what parts of the overlap say against each other.
        let by_noise = sigma * sigma * all.zz;
        let apart = of_parts[..parts].iter().map(|part| part.zb - line.slope * part.za);
        let by_parts = apart.map(|u| u * u).sum::<f64>() * parts as f64 / (parts - 1) as f64;
        Some((line, libm::hypot(by_noise.max(by_parts).sqrt() / all.zb, by_chance)))
    }
}

/// The error of a slope that chance may have, if neighbours agree by more than chance. `alike` points
/// say as much as one.
fn by_chance(sums: &Sums, alike: f64) -> Option<f64> {
    if !(sums.za > 0.0 && sums.zb > 0.0) {
        return None;
    }
    // Of the first input's variance, what the instrument does not explain.
    let rest = (1.0 - sums.za * sums.za / (sums.aa * sums.zz)).max(0.0);
    let freedom = 1.0 - OF_A_PLANE * alike / sums.n;
    let chance = sums.chance * alike;
    let is_significant =
        sums.za * sums.za * freedom > LEAST_SIGNIFICANCE * LEAST_SIGNIFICANCE * chance * rest;
    is_significant.then(|| MISMATCH * rest * chance.sqrt() / sums.za)
}

impl Block {
    fn range(&self) -> std::ops::Range<usize> {
        self.first as usize..self.past as usize
    }
}

/// The median, the upper one of two.
fn middle_of(values: &mut [f32]) -> f32 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uniform numbers in [-1, 1).
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self) -> f64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        }

        /// About normal, of standard deviation 1.
        fn noise(&mut self) -> f64 {
            (0..12).map(|_| self.roll()).sum::<f64>() / 2.0
        }
    }

    /// Points of `side` by `side`, four by four in a block.
    fn scratch(side: u32, mut at: impl FnMut(f64, f64) -> [f64; 2]) -> Scratch {
        let mut scratch = Scratch::new((side * side) as usize);
        for (x, y) in (0..side).flat_map(|y| (0..side).map(move |x| (x, y))) {
            let [a, b] = at(f64::from(x), f64::from(y)).map(|v| v as f32);
            scratch.points.push(Point {
                block: Blocks { apart: 1, shift: 2 }.number(x, y),
                x,
                y,
                a,
                b,
            });
        }
        scratch.sort();
        scratch
    }

    fn measure(scratch: &mut Scratch) -> Ratio {
        scratch.find_blocks();
        scratch.drop_spikes((0.0, 100.0));
        scratch.fit()
    }

    fn cloud(x: f64, y: f64) -> f64 {
        libm::sin(x / 9.0) * libm::cos(y / 7.0)
    }

    #[test]
    fn noise_on_both_axes_does_not_flatten_the_line() {
        // A least-squares line would have a slope of 1.2 / 5, or, turned around, of 1.2 * 2.
        let (mut dice, mut off, mut errors) = (Dice(3), 0.0, 0.0);
        for _ in 0..40 {
            let mut scratch = scratch(64, |x, y| {
                let sky = cloud(x, y);
                [100.0 + sky + dice.noise(), 80.0 + 1.2 * sky + 0.7 * dice.noise()]
            });
            let ratio = measure(&mut scratch);
            assert!(ratio.error < 0.1, "{ratio:?}");
            off += (ratio.log - libm::log(1.2)) / ratio.error;
            errors += ((ratio.log - libm::log(1.2)) / ratio.error).powi(2);
        }
        assert!((off / 40.0).abs() < 0.5, "{off}");
        assert!((0.6..1.5).contains(&(errors / 40.0)), "{errors}");
    }

    #[test]
    fn a_flat_sky_and_slopes_tell_nothing() {
        let mut dice = Dice(1);
        let mut flat = scratch(64, |_, _| [100.0 + dice.noise(), 100.0 + dice.noise()]);
        assert_eq!(measure(&mut flat), Ratio::NONE);
        let mut dice = Dice(2);
        let mut slopes =
            scratch(64, |x, y| [x + 0.5 * y + dice.noise(), 2.0 * x + y + dice.noise()]);
        assert_eq!(measure(&mut slopes), Ratio::NONE);
        assert_eq!(measure(&mut scratch(64, |_, _| [5.0; 2])), Ratio::NONE);
        assert_eq!(measure(&mut scratch(8, |x, y| [cloud(x, y); 2])), Ratio::NONE);
    }

    #[test]
    fn slopes_of_each_exposure_are_left_out() {
        let mut dice = Dice(5);
        let mut scratch = scratch(96, |x, y| {
            let sky = 30.0 * cloud(x, y);
            [sky + x + dice.noise(), 0.9 * sky - 2.0 * x + 0.7 * y + dice.noise()]
        });
        let ratio = measure(&mut scratch);
        assert!((ratio.log - libm::log(0.9)).abs() < 4.0 * ratio.error && ratio.error < 2e-3);
    }

    #[test]
    fn stars_and_trails_are_left_out() {
        let (mut dice, mut k) = (Dice(7), 0);
        let mut scratch = scratch(96, |x, y| {
            k += 1;
            let sky = 30.0 * cloud(x, y);
            // Stars of another width in the other input, and trails in one.
            let star = if k % 19 == 0 { 3000.0 * dice.roll().powi(4) } else { 0.0 };
            let trail = if (x - y).abs() < 2.0 { 200.0 } else { 0.0 };
            [sky + star + dice.noise(), 1.1 * sky + 0.7 * star + trail + dice.noise()]
        });
        let ratio = measure(&mut scratch);
        assert!((ratio.log - libm::log(1.1)).abs() < 3e-3 && ratio.error < 3e-3, "{ratio:?}");
    }

    #[test]
    fn exact_inputs_give_the_exact_factor() {
        let ratio = measure(&mut scratch(48, |x, y| [cloud(x, y), 0.75 * cloud(x, y) + 3.0]));
        assert!((ratio.log - libm::log(0.75)).abs() < 1e-5 && ratio.error < 5e-3);
    }

    #[test]
    fn a_band_of_brightness_leaves_out_the_rest() {
        // Another factor in the brighter half.
        let bent = |x: f64, y: f64| {
            let sky = 30.0 * cloud(x, y);
            [sky, if sky > 0.0 { 1.5 * sky } else { sky }]
        };
        for (band, wanted) in [((0.0, 45.0), 1.0), ((55.0, 100.0), 1.5)] {
            let mut scratch = scratch(96, bent);
            scratch.find_blocks();
            scratch.drop_spikes(band);
            assert!((scratch.fit().log - libm::log(wanted)).abs() < 1e-2);
        }
    }
}
