//! A truncated Gaussian as a filter of blocks of 8 × 8 values.
//!
//! A wide one is a sum of [`WAVES`] cosines on its support. The sum of a window under a cosine,
//! `C[n] = Σ cos(ω m) · x[n + m]` over |m| ≤ r, follows from its two predecessors,
//!
//! `C[n + 1] = 2 cos(ω) · C[n] − C[n − 1]
//!             + cos(ω r) · (x[n + 1 + r] + x[n − 1 − r]) − cos(ω (r + 1)) · (x[n + r] + x[n − r])`,
//!
//! so its cost does not depend on the radius. Rounding errors build up in that recurrence, like
//! the power 3/2 of its length; whoever uses it begins afresh from direct sums now and then.

use std::f64::consts::PI;

use crate::pages::Zero;
use crate::{Error, Result};

/// Values of one step, one a lane, and steps of one block.
pub const LANES: usize = 8;

/// Values that are filtered side by side.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Lanes(pub [f64; LANES]);

impl Lanes {
    /// All lanes zero.
    pub const ZERO: Self = Self([0.0; LANES]);
}

// SAFETY: these are plain numbers.
unsafe impl Zero for Lanes {}
// SAFETY: as above.
unsafe impl Zero for States {}

/// [`LANES`] steps of as many lanes.
pub type Block = [Lanes; LANES];

/// Cosines in the sum.
pub const WAVES: usize = 8;

/// Frequencies ω of the cosines, as 4 σ ω / π. These leave the least error that eight can, over
/// all radii above [`MOST_TAPS`] (Gauss–Newton over frequencies, with the best amplitudes for
/// each): 3e-11 of the peak. Seven leave 3e-9; multiples of one frequency would have to be ten for
/// 3e-10.
const FREQUENCIES: [f64; WAVES] = [
    0.446_883_480_116_0,
    1.343_870_485_050_9,
    2.250_264_247_945_3,
    3.170_485_384_963_3,
    4.100_070_734_192_3,
    5.002_737_658_695_9,
    5.860_634_472_289_7,
    6.920_983_840_916_3,
];

/// Radius up to which the taps themselves are cheaper than the cosines.
pub const MOST_TAPS: usize = 16;

/// Greatest radius: far above any mosaic, and low enough that the tables stay small.
const MOST_RADIUS: usize = 1 << 16;

/// Steps of a window on each side before it is cut off, in units of σ.
const TRUNCATE: f64 = 4.0;

/// A Gaussian of a standard deviation `sigma`, cut off at 4 σ and normalised: weights
/// exp(−m² / 2 σ²) for |m| ≤ r = ⌊4 σ + ½⌋, their sum 1.
pub struct Gaussian {
    radius: usize,
    pub(super) form: Form,
}

/// How a Gaussian is applied.
pub(super) enum Form {
    /// Not at all: it has no neighbours.
    Nothing,
    /// Its weights for m = 0…r.
    Taps(Vec<f64>),
    /// Its cosines.
    Waves(Box<Waves>),
}

impl Gaussian {
    /// The filter of a standard deviation in pixels; nothing happens at or below zero.
    pub fn new(sigma: f64) -> Result<Self> {
        if !sigma.is_finite() {
            return Err(Error::Argument(format!("a blur over {sigma} pixels makes no sense")));
        }
        let sigma = sigma.max(0.0);
        if sigma > MOST_RADIUS as f64 / TRUNCATE {
            let most = MOST_RADIUS as f64 / TRUNCATE;
            return Err(Error::Argument(format!(
                "a blur over {sigma} pixels is too wide: at most {most} are possible"
            )));
        }
        let radius = (TRUNCATE * sigma + 0.5) as usize;
        let form = if radius == 0 {
            Form::Nothing
        } else if radius <= MOST_TAPS {
            Form::Taps(weights(sigma, radius))
        } else {
            Form::Waves(Box::new(Waves::new(sigma, radius)))
        };
        Ok(Self { radius, form })
    }

    /// Pixels on each side of a pixel that count.
    pub fn radius(&self) -> usize {
        self.radius
    }

    /// What a device needs to filter as the workers do.
    pub fn tables(&self) -> Tables<'_> {
        match &self.form {
            Form::Nothing => Tables::Nothing,
            Form::Taps(taps) => Tables::Taps(taps),
            Form::Waves(waves) => {
                let [cosines, sines] = waves.back;
                Tables::Waves {
                    steps: Box::new([waves.turn, waves.outer, waves.inner, cosines, sines]),
                    around: &waves.around[..=self.radius],
                }
            }
        }
    }
}

/// The numbers behind a Gaussian.
pub enum Tables<'a> {
    /// It has no neighbours.
    Nothing,
    /// Weights for m = 0…r.
    Taps(&'a [f64]),
    /// Of each cosine.
    Waves {
        /// `turn`, `outer` and `inner` of [`Waves`], and the two of `back`.
        steps: Box<[[f64; WAVES]; 5]>,
        /// Its amplitude times cosine and sine, for m = 0…r.
        around: &'a [[[f64; WAVES]; 2]],
    },
}

// The functions below come from `libm`, not from the platform's library, whose last digits differ.

/// The weights for m = 0…`radius`.
fn weights(sigma: f64, radius: usize) -> Vec<f64> {
    let tap = |m: usize| libm::exp(-0.5 * (m as f64 / sigma) * (m as f64 / sigma));
    let taps: Vec<f64> = (0..=radius).map(tap).collect();
    let sum = taps[0] + 2.0 * taps[1..].iter().sum::<f64>();
    taps.into_iter().map(|tap| tap / sum).collect()
}

/// A Gaussian as a sum of cosines. Sums under a cosine carry its amplitude, so that the filtered
/// value is their plain sum.
pub struct Waves {
    /// 2 cos(ω).
    turn: [f64; WAVES],
    /// What the outermost values of the new and of the old window are worth in a step.
    outer: [f64; WAVES],
    inner: [f64; WAVES],
    /// cos(ω) and sin(ω), which lead one step back.
    back: [[f64; WAVES]; 2],
    /// Amplitude times cosine and sine at distance m from the centre of a window, with zeros
    /// beyond the radius up to a whole block.
    pub(super) around: Vec<[[f64; WAVES]; 2]>,
}

/// The sums of [`LANES`] windows under the cosines at two places, one step apart.
pub type State = [[Lanes; WAVES]; 2];

/// Those of the two planes that are filtered alike: values, and where they are valid.
pub type States = [State; 2];

/// States before anything was gathered.
pub const NO_STATES: States = [[[Lanes::ZERO; WAVES]; 2]; 2];

impl Waves {
    fn new(sigma: f64, radius: usize) -> Self {
        let frequencies = FREQUENCIES.map(|f| f * PI / (TRUNCATE * sigma));
        let taps = weights(sigma, radius);
        let amplitudes = amplitudes(&frequencies, &taps);
        let each = |f: &dyn Fn(f64) -> f64| frequencies.map(f);
        let cosines = |m: usize| each(&|w| libm::cos(w * m as f64));
        let sines = |m: usize| each(&|w| libm::sin(w * m as f64));
        let scaled = |values: [f64; WAVES]| std::array::from_fn(|k| amplitudes[k] * values[k]);
        let mut around: Vec<_> =
            (0..=radius).map(|m| [scaled(cosines(m)), scaled(sines(m))]).collect();
        around.resize((radius + 1).next_multiple_of(LANES), [[0.0; WAVES]; 2]);
        Self {
            turn: cosines(1).map(|c| 2.0 * c),
            outer: scaled(cosines(radius)),
            inner: scaled(cosines(radius + 1)),
            back: [cosines(1), sines(1)],
            around,
        }
    }

    /// Add the values at distances m, m + 1, … on both sides of a centre to a state: its first
    /// half becomes the sums under the cosines there, the other those under the sines. The centre
    /// itself is at distance 0 on one side and counts as 0 on the other.
    #[inline(always)]
    pub fn gather<V: Vector>(&self, state: &mut State, m: usize, after: &Block, before: &Block) {
        let around = &self.around[m..m + LANES];
        let [cosines, sines] = state;
        for part in 0..LANES / V::WIDTH {
            let (mut even, mut odd) = ([V::zero(); LANES], [V::zero(); LANES]);
            for i in 0..LANES {
                let (after, before) = (V::load(&after[i], part), V::load(&before[i], part));
                even[i] = after.plus(before);
                odd[i] = after.minus(before);
            }
            for k in 0..WAVES {
                let mut cosine = V::load(&cosines[k], part);
                let mut sine = V::load(&sines[k], part);
                for i in 0..LANES {
                    cosine = cosine.plus(even[i].times(around[i][0][k]));
                    sine = sine.plus(odd[i].times(around[i][1][k]));
                }
                cosine.store(&mut cosines[k], part);
                sine.store(&mut sines[k], part);
            }
        }
    }

    /// Make what was gathered around n into the state that leads on from n: the sums there and at
    /// n − 1. `last` is the value at n + r, `next` that at n − 1 − r.
    #[inline(always)]
    pub fn settle<V: Vector>(&self, state: &mut State, last: &Lanes, next: &Lanes) {
        let [now, before] = state;
        for part in 0..LANES / V::WIDTH {
            let (last, next) = (V::load(last, part), V::load(next, part));
            for k in 0..WAVES {
                let (cosine, sine) = (V::load(&now[k], part), V::load(&before[k], part));
                let turned = cosine.times(self.back[0][k]).minus(sine.times(self.back[1][k]));
                let ends = next.times(self.outer[k]).minus(last.times(self.inner[k]));
                turned.plus(ends).store(&mut before[k], part);
            }
        }
    }

    /// The next [`LANES`] filtered values. From the place n of the state on, `lead` begins at
    /// n + r and `trail` at n − 1 − r.
    #[inline(always)]
    pub fn advance<V: Vector>(
        &self,
        state: &mut State,
        lead: &[Lanes],
        trail: &[Lanes],
        filtered: &mut Block,
    ) {
        let [states, befores] = state;
        let (lead, trail) = (&lead[..=LANES], &trail[..=LANES]);
        for part in 0..LANES / V::WIDTH {
            let (mut outer, mut inner) = ([V::zero(); LANES], [V::zero(); LANES]);
            for i in 0..LANES {
                outer[i] = V::load(&lead[i + 1], part).plus(V::load(&trail[i], part));
                inner[i] = V::load(&lead[i], part).plus(V::load(&trail[i + 1], part));
            }
            let mut sums = [V::zero(); LANES];
            for k in 0..WAVES {
                let mut now = V::load(&states[k], part);
                let mut before = V::load(&befores[k], part);
                for i in 0..LANES {
                    let ends = outer[i].times(self.outer[k]).minus(inner[i].times(self.inner[k]));
                    let next = now.times(self.turn[k]).plus(ends.minus(before));
                    sums[i] = sums[i].plus(next);
                    (now, before) = (next, now);
                }
                now.store(&mut states[k], part);
                before.store(&mut befores[k], part);
            }
            for i in 0..LANES {
                sums[i].store(&mut filtered[i], part);
            }
        }
    }
}

/// The amplitudes with which cosines of these frequencies come closest to the taps, in the least
/// squares, and sum to 1 like them. The frequencies are about evenly spaced over the width of the
/// window, so the normal equations are tame.
fn amplitudes(frequencies: &[f64; WAVES], taps: &[f64]) -> [f64; WAVES] {
    let mut normal = [[0.0; WAVES]; WAVES];
    let mut right = [0.0; WAVES];
    let mut sums = [0.0; WAVES];
    for (m, tap) in taps.iter().enumerate() {
        let weight = if m == 0 { 1.0 } else { 2.0 };
        let cosines = frequencies.map(|w| libm::cos(w * m as f64));
        for j in 0..WAVES {
            for k in 0..WAVES {
                normal[j][k] += weight * cosines[j] * cosines[k];
            }
            right[j] += weight * cosines[j] * tap;
            sums[j] += weight * cosines[j];
        }
    }
    let solution = solve(normal, right);
    let total: f64 = (0..WAVES).map(|k| solution[k] * sums[k]).sum();
    solution.map(|a| a / total)
}

/// The solution of a positive definite system, by Cholesky's factors.
fn solve(mut a: [[f64; WAVES]; WAVES], mut x: [f64; WAVES]) -> [f64; WAVES] {
    for j in 0..WAVES {
        for k in 0..=j {
            let dot: f64 = (0..k).map(|i| a[j][i] * a[k][i]).sum();
            a[j][k] = if j == k { (a[j][j] - dot).sqrt() } else { (a[j][k] - dot) / a[k][k] };
        }
    }
    for j in 0..WAVES {
        let dot: f64 = (0..j).map(|i| a[j][i] * x[i]).sum();
        x[j] = (x[j] - dot) / a[j][j];
    }
    for j in (0..WAVES).rev() {
        let dot: f64 = (j + 1..WAVES).map(|i| a[i][j] * x[i]).sum();
        x[j] = (x[j] - dot) / a[j][j];
    }
    x
}

/// The next [`LANES`] values under the taps; `values` begins one radius before the first of them.
#[inline(always)]
pub fn weigh<V: Vector>(taps: &[f64], values: &[Lanes], filtered: &mut Block) {
    let radius = taps.len() - 1;
    for part in 0..LANES / V::WIDTH {
        let mut sums = [V::zero(); LANES];
        for i in 0..LANES {
            sums[i] = V::load(&values[i + radius], part).times(taps[0]);
        }
        for m in 1..=radius {
            let before = &values[radius - m..][..LANES];
            let after = &values[radius + m..][..LANES];
            for i in 0..LANES {
                let pair = V::load(&before[i], part).plus(V::load(&after[i], part));
                sums[i] = sums[i].plus(pair.times(taps[m]));
            }
        }
        for i in 0..LANES {
            sums[i].store(&mut filtered[i], part);
        }
    }
}

/// Divide values by their validity, and 0 where that is below `least`.
#[inline(always)]
pub fn divide<V: Vector>(values: &mut Block, valid: &Block, least: f64) {
    for part in 0..LANES / V::WIDTH {
        for i in 0..LANES {
            let (value, valid) = (V::load(&values[i], part), V::load(&valid[i], part));
            value.over(valid, least).store(&mut values[i], part);
        }
    }
}

/// Widen single values, and flag those above zero with 1, the others with 0.
#[inline(always)]
pub fn widen<V: Vector>(singles: &[f32], values: &mut Lanes, valid: &mut Lanes) {
    for part in 0..LANES / V::WIDTH {
        let value = V::widen(&singles[part * V::WIDTH..][..V::WIDTH]);
        value.store(values, part);
        value.flags().store(valid, part);
    }
}

/// The part of [`LANES`] that a register holds. LLVM finds no good form for the recurrence by
/// itself. All forms do the same operations in the same order.
///
/// A form is for functions that are compiled for its instructions.
pub trait Vector: Copy {
    /// Lanes in a register.
    const WIDTH: usize;

    /// All lanes zero.
    fn zero() -> Self;
    /// A part of some lanes.
    fn load(lanes: &Lanes, part: usize) -> Self;
    /// Put it back.
    fn store(self, lanes: &mut Lanes, part: usize);
    /// The first single values, widened.
    fn widen(singles: &[f32]) -> Self;
    /// The sum.
    fn plus(self, other: Self) -> Self;
    /// The difference.
    fn minus(self, other: Self) -> Self;
    /// The product with a number.
    fn times(self, factor: f64) -> Self;
    /// 1 for lanes above zero and 0 for others.
    fn flags(self) -> Self;
    /// The quotient, or 0 where the divisor is below `least`.
    fn over(self, divisor: Self, least: f64) -> Self;
    /// Make the steps of a block its lanes.
    fn turn(block: &Block, turned: &mut [Lanes]);
}

/// What every processor has.
#[derive(Clone, Copy)]
pub struct Plain([f64; 2]);

impl Vector for Plain {
    const WIDTH: usize = 2;

    #[inline(always)]
    fn zero() -> Self {
        Self([0.0; 2])
    }

    #[inline(always)]
    fn load(lanes: &Lanes, part: usize) -> Self {
        Self([lanes.0[2 * part], lanes.0[2 * part + 1]])
    }

    #[inline(always)]
    fn store(self, lanes: &mut Lanes, part: usize) {
        lanes.0[2 * part..2 * part + 2].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn widen(singles: &[f32]) -> Self {
        Self([f64::from(singles[0]), f64::from(singles[1])])
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        Self([self.0[0] + other.0[0], self.0[1] + other.0[1]])
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        Self([self.0[0] - other.0[0], self.0[1] - other.0[1]])
    }

    #[inline(always)]
    fn times(self, factor: f64) -> Self {
        Self([self.0[0] * factor, self.0[1] * factor])
    }

    #[inline(always)]
    fn flags(self) -> Self {
        Self(self.0.map(|value| if value > 0.0 { 1.0 } else { 0.0 }))
    }

    #[inline(always)]
    fn over(self, divisor: Self, least: f64) -> Self {
        let over = |i: usize| if divisor.0[i] < least { 0.0 } else { self.0[i] / divisor.0[i] };
        Self([over(0), over(1)])
    }

    #[inline(always)]
    fn turn(block: &Block, turned: &mut [Lanes]) {
        for (i, turned) in turned.iter_mut().take(LANES).enumerate() {
            for lane in 0..LANES {
                turned.0[lane] = block[lane].0[i];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports)]
    use std::arch::x86_64::*;

    use super::{Block, LANES, Lanes, Vector};

    /// Four lanes; needs AVX2.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256d);

    /// Eight lanes; needs AVX-512.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512d);

    // SAFETY, of every block here: the form is used where its instructions are; addresses come
    // from slices of the right length, and those of lanes are aligned.
    macro_rules! vector {
        (
            $name:ident, $width:literal, $zero:ident, $one:ident, $load:ident, $store:ident,
            $add:ident, $sub:ident, $mul:ident,
            $widen:expr, $flags:expr, $over:expr,
        ) => {
            impl Vector for $name {
                const WIDTH: usize = $width;

                #[inline(always)]
                fn zero() -> Self {
                    Self(unsafe { $zero() })
                }

                #[inline(always)]
                fn load(lanes: &Lanes, part: usize) -> Self {
                    let lanes = &lanes.0[part * $width..][..$width];
                    Self(unsafe { $load(lanes.as_ptr()) })
                }

                #[inline(always)]
                fn store(self, lanes: &mut Lanes, part: usize) {
                    let lanes = &mut lanes.0[part * $width..][..$width];
                    unsafe { $store(lanes.as_mut_ptr(), self.0) }
                }

                #[inline(always)]
                fn widen(singles: &[f32]) -> Self {
                    let singles = &singles[..$width];
                    Self(unsafe { $widen(singles.as_ptr()) })
                }

                #[inline(always)]
                fn plus(self, other: Self) -> Self {
                    Self(unsafe { $add(self.0, other.0) })
                }

                #[inline(always)]
                fn minus(self, other: Self) -> Self {
                    Self(unsafe { $sub(self.0, other.0) })
                }

                #[inline(always)]
                fn times(self, factor: f64) -> Self {
                    Self(unsafe { $mul(self.0, $one(factor)) })
                }

                #[inline(always)]
                fn flags(self) -> Self {
                    Self(unsafe { $flags(self.0) })
                }

                #[inline(always)]
                fn over(self, divisor: Self, least: f64) -> Self {
                    Self(unsafe { $over(self.0, divisor.0, $one(least)) })
                }

                #[inline(always)]
                fn turn(block: &Block, turned: &mut [Lanes]) {
                    unsafe { turn(block, turned) }
                }
            }
        };
    }

    vector! {
        Avx2, 4, _mm256_setzero_pd, _mm256_set1_pd, _mm256_load_pd, _mm256_store_pd,
        _mm256_add_pd, _mm256_sub_pd, _mm256_mul_pd,
        |singles| _mm256_cvtps_pd(_mm_loadu_ps(singles)),
        |values| {
            let above = _mm256_cmp_pd::<_CMP_GT_OQ>(values, _mm256_setzero_pd());
            _mm256_and_pd(above, _mm256_set1_pd(1.0))
        },
        |values, divisors, least| {
            let below = _mm256_cmp_pd::<_CMP_LT_OQ>(divisors, least);
            _mm256_andnot_pd(below, _mm256_div_pd(values, divisors))
        },
    }

    vector! {
        Avx512, 8, _mm512_setzero_pd, _mm512_set1_pd, _mm512_load_pd, _mm512_store_pd,
        _mm512_add_pd, _mm512_sub_pd, _mm512_mul_pd,
        |singles| _mm512_cvtps_pd(_mm256_loadu_ps(singles)),
        |values| {
            let above = _mm512_cmp_pd_mask::<_CMP_GT_OQ>(values, _mm512_setzero_pd());
            _mm512_maskz_mov_pd(above, _mm512_set1_pd(1.0))
        },
        |values, divisors, least| {
            let above = _mm512_cmp_pd_mask::<_CMP_NLT_UQ>(divisors, least);
            _mm512_maskz_div_pd(above, values, divisors)
        },
    }

    /// Transpose a block by 4 × 4 values.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn turn(block: &Block, turned: &mut [Lanes]) {
        let turned = &mut turned[..LANES];
        for (top, left) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
            let row = |i: usize| Avx2::load(&block[top + i], left / 4).0;
            let low = [0, 2].map(|i| _mm256_unpacklo_pd(row(i), row(i + 1)));
            let high = [0, 2].map(|i| _mm256_unpackhi_pd(row(i), row(i + 1)));
            let columns = [
                _mm256_permute2f128_pd::<0x20>(low[0], low[1]),
                _mm256_permute2f128_pd::<0x20>(high[0], high[1]),
                _mm256_permute2f128_pd::<0x31>(low[0], low[1]),
                _mm256_permute2f128_pd::<0x31>(high[0], high[1]),
            ];
            for i in 0..4 {
                Avx2(columns[i]).store(&mut turned[left + i], top / 4);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cosines_are_the_gaussian() {
        for sigma in [4.2, 4.3, 5.0, 7.77, 20.0, 50.0, 333.3, 5000.0] {
            let gaussian = Gaussian::new(sigma).unwrap();
            let taps = weights(sigma, gaussian.radius());
            let Form::Waves(waves) = &gaussian.form else { panic!("{sigma} has taps") };
            let worst = taps
                .iter()
                .zip(&waves.around)
                .map(|(tap, around)| (around[0].iter().sum::<f64>() - tap).abs() / taps[0]);
            let worst = worst.fold(0.0, f64::max);
            assert!(worst < 3.5e-11, "{sigma}: {worst:e}");
        }
    }

    #[test]
    fn the_radius_is_that_of_scipy() {
        let radius = |sigma| Gaussian::new(sigma).unwrap().radius();
        assert_eq!([-1.0, 0.0, 0.12, 0.3, 1.0, 50.0].map(radius), [0, 0, 0, 1, 4, 200]);
        for sigma in [f64::NAN, f64::INFINITY, 1e9] {
            assert!(Gaussian::new(sigma).is_err());
        }
    }
}
