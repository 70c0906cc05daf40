//! The mixing in plain Rust: the truth that other instruction sets must reproduce.

use super::super::{Plane, RUN, Run};

/// Mix along the rows, then between them, without fused operations. Whether a value is NaN.
#[inline(always)]
pub fn mix(plane: Plane, run: &Run, out: &mut [f32; RUN]) -> bool {
    for i in 0..RUN {
        let [a, b, c, d] = corners(plane, run.index[i] as usize);
        let top = a + run.fx[i] * (b - a);
        let bottom = c + run.fx[i] * (d - c);
        out[i] = top + run.fy[i] * (bottom - top);
    }
    out.iter().any(|value| value.is_nan())
}

/// The pixel at `index`, those to its right and below, and the one in both directions.
#[inline(always)]
pub fn corners(plane: Plane, index: usize) -> [f32; 4] {
    let (top, bottom) = (&plane.pixels[index..], &plane.pixels[index + plane.stride..]);
    [top[0], top[1], bottom[0], bottom[1]]
}
