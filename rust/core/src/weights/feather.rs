//! The ramp from the edge of a frame, computed where a sample falls: no mask is made.

use crate::geom::Rect;
use crate::resample::{RUN, Run};

/// Multiply the weights of a run by its ramp.
///
/// With d the distance in pixels to the nearest edge of `frame` (whose outermost pixel centres are
/// half a pixel inside) and u = min(d / `px`, 1) the factor is u² (3 − 2u). In the outer half pixel
/// d stays at one half, as positions there are those of the outermost centres: a sample that is
/// valid has a weight.
#[inline(always)]
pub fn feather(px: f64, frame: &Rect, window: &Rect, run: &Run, weights: &mut [f64; RUN]) {
    let stride = window.width() as f64;
    let (per_stride, per_px) = (1.0 / stride, 1.0 / px);
    let (width, height) = (frame.width() as f64, frame.height() as f64);
    let left = (window.x0 - frame.x0) as f64 + 0.5;
    let top = (window.y0 - frame.y0) as f64 + 0.5;
    for k in 0..RUN {
        // Exact: the half keeps the quotient away from whole numbers, by more than it is wrong.
        let index = f64::from(run.index[k]);
        let row = f64::from(((index + 0.5) * per_stride) as i32);
        let x = left + (index - row * stride) + f64::from(run.fx[k]);
        let y = top + row + f64::from(run.fy[k]);
        let nearest = least(least(x, width - x), least(y, height - y));
        let u = least(nearest * per_px, 1.0);
        weights[k] *= u * u * (3.0 - 2.0 * u);
    }
}

#[inline(always)]
fn least(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ramp_follows_the_distance_to_the_nearest_edge() {
        let window = Rect::new(-1..21, 3..12);
        let places = [(0, 4, 0.0, 0.0), (10, 7, 0.25, 0.5), (19, 5, 0.0, 0.0), (5, 9, 0.5, 0.75)];
        let mut run = Run { len: places.len(), ..Run::default() };
        for (k, (x, y, fx, fy)) in places.into_iter().enumerate() {
            run.index[k] = ((y - window.y0) * 22 + (x - window.x0)) as u32;
            (run.fx[k], run.fy[k]) = (fx, fy);
        }
        let mut weights = [2.0; RUN];
        feather(4.0, &Rect::frame(20, 11), &window, &run, &mut weights);
        // Nearest edges: left 0.5, bottom 11 − 8 = 3, right 0.5, bottom 11 − 10.25 = 0.75.
        let ramp = |d: f64| {
            let u = d / 4.0;
            2.0 * u * u * (3.0 - 2.0 * u)
        };
        assert_eq!(weights[..4], [0.5, 3.0, 0.5, 0.75].map(ramp));
        // Of a frame without its outermost pixels the second is 2 from the bottom.
        weights = [2.0; RUN];
        feather(4.0, &Rect::new(1..19, 1..10), &window, &run, &mut weights);
        assert_eq!(weights[1], ramp(2.0));
    }

    #[test]
    fn far_from_all_edges_there_is_no_ramp() {
        let window = Rect::new(0..1000, 0..1000);
        let mut run = Run { len: RUN, ..Run::default() };
        for k in 0..RUN {
            run.index[k] = (400_400 + 999 * k) as u32;
        }
        let mut weights = [1.5; RUN];
        feather(100.0, &Rect::frame(1000, 1000), &window, &run, &mut weights);
        assert_eq!(weights, [1.5; RUN]);
    }

    #[test]
    fn rows_are_found_in_the_widest_windows() {
        for stride in [1_usize, 3, 4095, 46_341, 1 << 30] {
            let rows = (i32::MAX as usize / stride).min(50_000);
            for row in [0, 1, rows / 2, rows - 1] {
                for column in [0, stride / 2, stride - 1] {
                    let index = (row * stride + column) as f64;
                    let found = ((index + 0.5) * (1.0 / stride as f64)) as i32;
                    assert_eq!(found as usize, row, "{stride} {column}");
                }
            }
        }
    }
}
