//! From the values of a weight map to weights.

/// What the values of a weight map mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum MapKind {
    /// Weights.
    #[default]
    Weight,
    /// Variances: the weight is 1/v.
    Variance,
    /// Standard deviations: the weight is 1/r².
    Rms,
    /// What is not 0 is bad: the weight is 1 or none.
    Mask,
    /// Opacities from 0 to `full`, values beyond which are `full` too: the weight is 0 to 1.
    Alpha {
        /// Value of an opaque pixel.
        full: f32,
    },
}

impl MapKind {
    /// The kind of that name; `full` is for opacities.
    pub fn from_name(name: &str, full: f32) -> Option<Self> {
        Some(match name {
            "weight" => Self::Weight,
            "variance" => Self::Variance,
            "rms" => Self::Rms,
            "mask" => Self::Mask,
            "alpha" => Self::Alpha { full },
            _ => return None,
        })
    }

    /// Whether its weights are the inverse variances of the pixels, and not just in proportion.
    pub fn says_variance(self) -> bool {
        matches!(self, Self::Variance | Self::Rms)
    }

    /// Turn values of the map into weights above 0; NaN where there is none.
    pub fn convert(self, values: &mut [f32]) {
        match self {
            Self::Weight => each(values, |w| w),
            Self::Variance => each(values, |v| 1.0 / v),
            Self::Rms => each(values, |r| {
                let variance = f64::from(r) * f64::from(r);
                if r > 0.0 { (1.0 / variance) as f32 } else { f32::NAN }
            }),
            // NaN is not 0 either.
            Self::Mask => each(values, |bad| if bad == 0.0 { 1.0 } else { f32::NAN }),
            Self::Alpha { full } => each(values, |a| {
                let part = a / full;
                if part > 1.0 { 1.0 } else { part }
            }),
        }
    }
}

#[inline(always)]
fn each(values: &mut [f32], weight: impl Fn(f32) -> f32) {
    for value in values {
        let weight = weight(*value);
        *value = if weight > 0.0 && weight < f32::INFINITY { weight } else { f32::NAN };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(kind: MapKind, values: &[f32]) -> Vec<Option<f32>> {
        let mut values = values.to_vec();
        kind.convert(&mut values);
        values.into_iter().map(|w| (!w.is_nan()).then_some(w)).collect()
    }

    #[test]
    fn each_kind_by_its_formula() {
        let nan = f32::NAN;
        let cases = [2.0, 0.25, 0.0, -0.0, -1.0, nan, f32::INFINITY];
        let none = None;
        let of = |kind| converted(kind, &cases);
        assert_eq!(of(MapKind::Weight), [Some(2.0), Some(0.25), none, none, none, none, none]);
        assert_eq!(of(MapKind::Variance), [Some(0.5), Some(4.0), none, none, none, none, none]);
        assert_eq!(of(MapKind::Rms), [Some(0.25), Some(16.0), none, none, none, none, none]);
        assert_eq!(of(MapKind::Mask), [none, none, Some(1.0), Some(1.0), none, none, none]);
        let alpha = MapKind::Alpha { full: 1.0 };
        assert_eq!(of(alpha), [Some(1.0), Some(0.25), none, none, none, none, Some(1.0)]);
    }

    #[test]
    fn opacities_of_a_byte_reach_from_0_to_1() {
        let alpha = MapKind::Alpha { full: 255.0 };
        assert_eq!(converted(alpha, &[0.0, 51.0, 255.0]), [None, Some(0.2), Some(1.0)]);
    }

    #[test]
    fn what_single_precision_cannot_hold_is_no_weight() {
        assert_eq!(converted(MapKind::Variance, &[1e-40, 1e30]), [None, Some(1e-30)]);
        assert_eq!(converted(MapKind::Rms, &[1e-20, 1e25, 1e15]), [None, None, Some(1e-30)]);
    }
}
