//! From coordinates in a frame to positions in a window of it.
//!
//! Coordinates are brought to whole multiples of 2⁻²³ px first. All that follows — snapping to
//! pixel centres, the frame's edge, clamping, pixel and fraction — is then exact integer
//! arithmetic, and a fraction of 23 bits is just what a single-precision number holds. A run of
//! pixels spans few pixels of the frame, so 32 bits relative to its first one suffice: twice as
//! many lanes as double precision has (`cargo bench`, pass/mean/bilinear).

use crate::geom::{CoordGrid, Rect};
use crate::resample::{RUN, Run};

/// Bits after the point of a coordinate.
const BITS: u32 = 23;
const ONE: i64 = 1 << BITS;
const FRACTION: i64 = ONE - 1;

/// Coordinates this close to a pixel centre are the centre: else a tap of weight 1e-12 on an
/// invalid pixel decides. A millionth of a pixel.
const SNAP: i64 = 8;

/// Adding this to a double below 2⁵¹ leaves the nearest integer in its low bits, with the
/// instructions that every processor has.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// Coordinates beyond this are outside of every frame.
const FAR_PX: f64 = (1_u64 << 27) as f64;

/// How far from its first pixel a run may reach for 32 bits to do.
const REACH_PX: f64 = 127.0;
const REACH: i64 = 128 << BITS;

/// A coordinate as a multiple of 2⁻²³ px, snapped; None outside of every frame.
#[inline(always)]
fn fixed(v: f64) -> Option<i64> {
    // NaN is not less.
    (v.abs() < FAR_PX).then(|| {
        let nearest = v * ONE as f64 + ROUND;
        snap((nearest.to_bits() as i64) - (ROUND.to_bits() as i64))
    })
}

#[inline(always)]
fn snap(v: i64) -> i64 {
    let past = v + SNAP;
    if past & FRACTION <= 2 * SNAP { past & !FRACTION } else { v }
}

/// Where the coordinates of one input may lie, in both directions.
pub(crate) struct Clip {
    /// The frame: half a pixel past its outermost centres, and a little more, so that rounding
    /// does not fray an edge that runs through pixel centres.
    inside: [(i64, i64); 2],
    /// Pixels that have all their taps in the window. Every position of a run does, unless a
    /// bound on the coordinates was wrong; those beyond its length need not. The clamp makes
    /// sure that no other memory is read either way.
    within: [(i64, i64); 2],
    /// The window's first pixel.
    first: [i64; 2],
    stride: i64,
}

impl Clip {
    #[inline(always)]
    pub(crate) fn new(grid: &CoordGrid, window: &Rect, radius: usize) -> Self {
        let frame = grid.frame().map(|n| n as i64);
        let reach = radius as i64;
        let least = [window.x0 + reach - 1, window.y0 + reach - 1];
        let past = [window.x1 - reach, window.y1 - reach];
        Self {
            inside: frame.map(|n| (-ONE / 2 - SNAP, n * ONE - ONE / 2 + SNAP)),
            within: [0, 1].map(|k: usize| {
                let last = ((frame[k] - 1) * ONE).min(past[k] * ONE - 1);
                (least[k].max(0) * ONE, last)
            }),
            first: [window.x0, window.y0],
            stride: window.width() as i64,
        }
    }

    /// The run of `len` pixels whose coordinates are the cubics `map` of u = (offset + k) · step.
    #[inline(always)]
    pub(crate) fn along(
        &self,
        map: &[[f64; 4]; 2],
        offset: i32,
        step: f64,
        len: usize,
        run: &mut Run,
    ) {
        // Scaling by a power of two is exact.
        let [a, b] = map.map(|axis| axis.map(|c| c * ONE as f64));
        let at = |c: &[f64; 4], k: usize| {
            let u = f64::from(offset + k as i32) * step;
            ((c[3] * u + c[2]) * u + c[1]) * u + c[0] + ROUND
        };
        run.len = len;
        let base = [at(&a, 0), at(&b, 0)].map(|v| v.to_bits() as i64 - ROUND.to_bits() as i64);
        if !(0..2).all(|k| self.is_near(&map[k], base[k], k, len as f64 * step)) {
            for k in 0..RUN {
                let place = [at(&a, k), at(&b, k)].map(|v| (v - ROUND) / ONE as f64);
                (run.index[k], run.fx[k], run.fy[k]) = self.position(place);
            }
            return;
        }
        // Always a full run: a loop of known length has no remainder, and what lies beyond `len`
        // is clamped like everything else.
        let (mut x, mut y) = ([0; RUN], [0; RUN]);
        let origin = base.map(|v| v & !FRACTION);
        for k in 0..RUN {
            x[k] = (at(&a, k).to_bits() as i32).wrapping_sub(origin[0] as i32);
            y[k] = (at(&b, k).to_bits() as i32).wrapping_sub(origin[1] as i32);
        }
        self.near(&x, &y, origin, run);
    }

    /// Whether 32 bits do for a run that begins at `base` and goes on for `du`, and for the
    /// bounds of the window as seen from there.
    #[inline(always)]
    fn is_near(&self, map: &[f64; 4], base: i64, axis: usize, du: f64) -> bool {
        let [_, a, b, c] = map.map(f64::abs);
        let (low, high) = self.within[axis];
        let is_short = (a + 2.0 * b + 3.0 * c) * du < REACH_PX;
        is_short && low - REACH + ONE < base && base < high + REACH
    }

    /// As [`position`](Self::position) for a run of coordinates relative to `origin`, a whole
    /// number of pixels.
    #[inline(always)]
    fn near(&self, x: &[i32; RUN], y: &[i32; RUN], origin: [i64; 2], run: &mut Run) {
        const SCALE: f32 = 1.0 / ONE as f32;
        let from_origin = |(low, high): (i64, i64), k: usize| {
            [low, high].map(|v| (v - origin[k]).clamp(-REACH, REACH) as i32)
        };
        let frame = [0, 1].map(|k| from_origin(self.inside[k], k));
        let window = [0, 1].map(|k| from_origin(self.within[k], k));
        let pixel = [0, 1].map(|k| (origin[k] >> BITS) - self.first[k]);
        let (stride, first) = (self.stride as i32, (pixel[1] * self.stride + pixel[0]) as i32);
        let snap = |v: i32| {
            let past = v.wrapping_add(SNAP as i32);
            let is_centre = past & (FRACTION as i32) <= 2 * SNAP as i32;
            if is_centre { past & !(FRACTION as i32) } else { v }
        };
        for k in 0..RUN {
            let (x, y) = (snap(x[k]), snap(y[k]));
            let inside =
                (x >= frame[0][0]) & (x <= frame[0][1]) & (y >= frame[1][0]) & (y <= frame[1][1]);
            let x = x.max(window[0][0]).min(window[0][1]);
            let y = y.max(window[1][0]).min(window[1][1]);
            let index = (y >> BITS).wrapping_mul(stride).wrapping_add(x >> BITS);
            run.index[k] = index.wrapping_add(first) as u32;
            let fx = (x & FRACTION as i32) as f32 * SCALE;
            run.fx[k] = if inside { fx } else { f32::NAN };
            run.fy[k] = (y & FRACTION as i32) as f32 * SCALE;
        }
    }

    /// The run whose coordinates are listed, x and y in turn.
    #[inline(always)]
    pub(crate) fn listed(&self, coordinates: &[f64], run: &mut Run) {
        let (pairs, _) = coordinates.as_chunks::<2>();
        run.len = pairs.len();
        for k in 0..RUN {
            let place = pairs.get(k).copied().unwrap_or([f64::NAN; 2]);
            (run.index[k], run.fx[k], run.fy[k]) = self.position(place);
        }
    }

    /// The row of the frame at or before a position, if that lies in the frame.
    #[inline(always)]
    pub(crate) fn row(&self, place: [f64; 2]) -> Option<i64> {
        let [x, y] = place.map(fixed);
        let place = [x?, y?];
        self.is_inside(place).then(|| self.clamped(place)[1] >> BITS)
    }

    #[inline(always)]
    fn is_inside(&self, place: [i64; 2]) -> bool {
        (0..2).all(|k| (self.inside[k].0..=self.inside[k].1).contains(&place[k]))
    }

    #[inline(always)]
    fn clamped(&self, place: [i64; 2]) -> [i64; 2] {
        [0, 1].map(|k: usize| place[k].max(self.within[k].0).min(self.within[k].1))
    }

    /// Index of the pixel at or before a position, and how far past its centre that lies; the
    /// horizontal fraction is NaN outside of the frame.
    #[inline(always)]
    fn position(&self, place: [f64; 2]) -> (u32, f32, f32) {
        let place = place.map(fixed);
        let inside = matches!(place, [Some(x), Some(y)] if self.is_inside([x, y]));
        let [x, y] = self.clamped(place.map(|v| v.unwrap_or(i64::MIN)));
        let index = ((y >> BITS) - self.first[1]) * self.stride + (x >> BITS) - self.first[0];
        let [fx, fy] = [x, y].map(|v| (v & FRACTION) as f32 / ONE as f32);
        (index as u32, if inside { fx } else { f32::NAN }, fy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip() -> Clip {
        Clip {
            inside: [(-ONE / 2 - SNAP, 2000 * ONE - ONE / 2 + SNAP); 2],
            within: [(100 * ONE, 900 * ONE - 1), (50 * ONE, 400 * ONE - 1)],
            first: [99, 49],
            stride: 802,
        }
    }

    fn bits(run: &Run) -> Vec<(u32, u32, u32)> {
        let each = |k: usize| (run.index[k], run.fx[k].to_bits(), run.fy[k].to_bits());
        (0..run.len).map(each).collect()
    }

    #[test]
    fn runs_agree_with_positions_one_by_one() {
        let (clip, mut state) = (clip(), 1_u64);
        let mut random = |low: f64, high: f64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            low + (high - low) * (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        for round in 0..4000 {
            let slope = [0.9, 1.7, 30.0][round % 3] * 64.0;
            let mut axis = |far: f64| {
                [random(-far, far + 900.0), random(-slope, slope), random(-2.0, 2.0), 0.1]
            };
            let map = [axis(60.0), axis(500.0)];
            let (mut run, mut listed) = (Run::default(), Run::default());
            let (offset, step, len) = ((round % 40) as i32, 1.0 / 64.0, 64 - round % 40);
            clip.along(&map, offset, step, len, &mut run);
            let coordinates = (0..len).flat_map(|k| {
                let u = f64::from(offset + k as i32) * step;
                map.map(|c| ((c[3] * u + c[2]) * u + c[1]) * u + c[0])
            });
            clip.listed(&coordinates.collect::<Vec<_>>(), &mut listed);
            assert_eq!(bits(&run), bits(&listed), "{map:?}");
        }
    }

    #[test]
    fn coordinates_next_to_a_centre_are_the_centre() {
        let clip = clip();
        let (index, fx, fy) = clip.position([200.0 - 9e-7, 300.0 + 9e-7]);
        assert_eq!((index, fx, fy), ((300 - 49) * 802 + 200 - 99, 0.0, 0.0));
        let (_, fx, fy) = clip.position([200.0 - 2e-6, 300.0 + 2e-6]);
        assert!(fx > 0.999_99 && fx < 1.0 && fy > 1e-6 && fy < 1e-5);
    }

    #[test]
    fn what_is_nowhere_is_outside() {
        let clip = clip();
        for place in [[f64::NAN, 200.0], [200.0, f64::INFINITY], [1e300, 1.0], [-0.6, 60.0]] {
            let (index, fx, _) = clip.position(place);
            assert!(fx.is_nan() && (index as i64) < 802 * 352, "{place:?}");
            assert_eq!(clip.row(place), None);
        }
        assert_eq!(clip.row([150.0, 60.7]), Some(60));
    }
}
