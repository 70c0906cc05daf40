//! The weighted sums in plain Rust: the truth that other instruction sets must reproduce.

use super::super::{Plane, RUN, Run};
use super::{Taps, first_tap};

/// For each position: rows of pixels weighted with the taps down and added up, then the columns
/// with the taps across, then divided by the total, in this order and without fused operations.
#[inline(always)]
pub fn weigh<const N: usize>(plane: Plane, run: &Run, taps: &Taps<N>, out: &mut [f32; RUN]) {
    for i in 0..run.len {
        let first = first_tap::<N>(plane, run, i);
        let mut columns = [0.0_f32; N];
        for (k, weights) in taps.down.iter().enumerate() {
            let row = &plane.pixels[first + k * plane.stride..][..N];
            for (column, pixel) in columns.iter_mut().zip(row) {
                *column += weights[i] * pixel;
            }
        }
        let mut value = 0.0;
        for (weights, column) in taps.across.iter().zip(columns) {
            value += weights[i] * column;
        }
        out[i] = value / taps.totals[i];
    }
}
