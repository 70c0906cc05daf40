//! The pixel that a position falls into.

use super::{Plane, RUN, Run};

#[inline(always)]
pub fn sample(plane: Plane, run: &Run, out: &mut [f32; RUN]) {
    for i in 0..RUN {
        let right = usize::from(run.fx[i] >= 0.5);
        let below = usize::from(run.fy[i] >= 0.5);
        let pixel = plane.pixels[run.index[i] as usize + right + below * plane.stride];
        out[i] = if run.fx[i].is_nan() { f32::NAN } else { pixel };
    }
}
