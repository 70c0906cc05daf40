//! One run of samples added to the running values.

use super::Running;

/// Photometry of a run: `gain · value + offset`, before it is weighted.
#[derive(Clone, Copy)]
pub struct Affine {
    pub gain: f64,
    pub offset: f64,
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
                let scaled = affine.gain * f64::from(value) + affine.offset;
                let next = rule(*state, scaled, weight, seen);
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

/// The finished values of a run: NaN where no weight has come together.
#[inline(always)]
pub fn finish(combine: Running, running: &[f64], weights: &[f64], out: &mut [f32]) {
    for ((target, &state), &weight) in out.iter_mut().zip(running).zip(weights) {
        let value = if combine == Running::Mean { state / weight } else { state };
        *target = if weight > 0.0 { value as f32 } else { f32::NAN };
    }
}
