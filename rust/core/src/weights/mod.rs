//! What makes some samples count more than others, and some not at all.
//!
//! Three things are decided per pixel while it is loaded: what its weight map means ([`MapKind`]),
//! whether exact zeros are blank, and whether it is saturated ([`Saturation`]). Two are decided per
//! sample: the ramp from the frame's edge ([`feather`]), and that saturated pixels count where no
//! others do ([`Saturation`] again).

mod feather;
mod map;
mod saturation;

pub use feather::feather;
pub use map::MapKind;
pub(crate) use saturation::is_hidden;
pub use saturation::{Patches, Saturation};

/// How the pixels of an input are weighed, beside its weight as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weighting {
    /// What the values of its weight map mean.
    pub map: MapKind,
    /// Width of the ramp from the frame's edge, in pixels of the input; 0 = none.
    pub feather_px: f64,
    /// Pixels that are exactly 0 in every channel are invalid.
    pub zero_is_blank: bool,
    /// Level from which on pixels are saturated.
    pub saturation: Option<Saturation>,
}

/// Make pixels that are exactly 0 in every plane invalid.
pub fn blank_zeros(planes: &mut [&mut [f32]]) {
    let Some((first, others)) = planes.split_first_mut() else { return };
    for (k, pixel) in first.iter_mut().enumerate() {
        let is_blank = *pixel == 0.0 && others.iter().all(|plane| plane[k] == 0.0);
        *pixel = if is_blank { f32::NAN } else { *pixel };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pixel_is_blank_only_where_every_channel_is_zero() {
        let (mut red, mut green) = ([0.0, 0.0, 1.0, -0.0], [0.0, 2.0, 0.0, 0.0]);
        blank_zeros(&mut [&mut red, &mut green]);
        assert_eq!(red.map(f32::is_nan), [true, false, false, true]);
    }
}
