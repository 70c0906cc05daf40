//! One run of samples added to the running values.

use super::{Running, clean};

/// Photometry of a run: `gain · value + offset`, before it is weighted.
#[derive(Clone, Copy)]
pub struct Affine {
    pub gain: f64,
    pub offset: f64,
}

impl Affine {
    /// The value that counts.
    #[inline(always)]
    pub fn of(self, value: f32) -> f64 {
        self.gain * f64::from(value) + self.offset
    }
}

/// Bring `values` (NaN = invalid) into the running values. `seen` are the running weights from
/// before this input, `weights` those of its samples, all of the same length.
#[inline(always)]
pub fn add(
    combine: Running,
    affine: Affine,
    values: &[f32],
    weights: &[f64],
    seen: &[f64],
    running: &mut [f64],
) {
    macro_rules! each {
        ($rule:expr) => {{
            let rule = $rule;
            let samples = values.iter().zip(weights).zip(seen);
            for (state, ((&value, &weight), &seen)) in running.iter_mut().zip(samples) {
                let next = rule(*state, affine.of(value), weight, seen);
                *state = if value.is_nan() { *state } else { next };
            }
        }};
    }
    match combine {
        Running::Mean | Running::Sum => each!(|state, v, w, _| state + w * v),
        Running::Min => {
            each!(|state, v, _, seen| if seen == 0.0 || v < state { v } else { state });
        }
        Running::Max => {
            each!(|state, v, _, seen| if seen == 0.0 || v > state { v } else { state });
        }
        Running::First => each!(|state, v, _, seen| if seen == 0.0 { v } else { state }),
        Running::Last => each!(|_, v, _, _| v),
    }
}

/// Add the weights of the valid samples to the running weights; returns how many are valid.
#[inline(always)]
pub fn add_weights(values: &[f32], weights: &[f64], running: &mut [f64]) -> u32 {
    let mut valid = 0;
    for ((state, &weight), &value) in running.iter_mut().zip(weights).zip(values) {
        let counts = !value.is_nan();
        *state += if counts { weight } else { 0.0 };
        valid += u32::from(counts);
    }
    valid
}

/// The finished values of a run: NaN where no weight has come together. It is negative where all
/// samples are saturated.
#[inline(always)]
pub fn finish(combine: Running, running: &[f64], weights: &[f64], out: &mut [f32]) {
    for ((target, &state), &weight) in out.iter_mut().zip(running).zip(weights) {
        let value = match combine {
            Running::Mean => state / weight,
            Running::Sum if weight < 0.0 => -state,
            _ => state,
        };
        *target = if weight == 0.0 { f32::NAN } else { clean(value) };
    }
}
