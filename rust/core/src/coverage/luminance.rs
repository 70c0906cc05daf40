//! The brightness of an image, all channels alike.

use crate::cpu::dispatched;

dispatched! {
    /// Mean over the channels of a row, pixel by pixel; NaN where one of them is.
    pub(crate) fn luminances(channels: &[&[f32]], out: &mut [f32]) = luminances_here
}

#[inline(always)]
fn luminances_here(channels: &[&[f32]], out: &mut [f32]) {
    // The same sums in every arm; those of known length are vectors.
    match channels {
        [only] => out.copy_from_slice(only),
        [red, green, blue] => {
            for (x, out) in out.iter_mut().enumerate() {
                let sum = f64::from(red[x]) + f64::from(green[x]) + f64::from(blue[x]);
                *out = (sum / 3.0) as f32;
            }
        }
        _ => {
            for (x, out) in out.iter_mut().enumerate() {
                let sum: f64 = channels.iter().map(|channel| f64::from(channel[x])).sum();
                *out = (sum / channels.len() as f64) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_count_alike() {
        let rows: Vec<Vec<f32>> =
            (0..4).map(|c| (0..40).map(|x| (x * (c + 1)) as f32).collect()).collect();
        for n in 1..=4 {
            let channels: Vec<&[f32]> = rows[..n].iter().map(|row| &row[..]).collect();
            let mut out = vec![0.0; 40];
            luminances(&channels, &mut out);
            let mean = (1..=n).sum::<usize>() as f32 / n as f32;
            assert!(out.iter().enumerate().all(|(x, v)| (v - x as f32 * mean).abs() < 1e-4));
        }
        let mut out = [0.0];
        luminances(&[&[1.0], &[f32::NAN], &[2.0]], &mut out);
        assert!(out[0].is_nan());
    }
}
