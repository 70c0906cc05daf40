//! What makes some samples count more than others, and some not at all.
//!
//! Four things are decided per pixel while it is loaded: what its weight map means ([`MapKind`]),
//! whether it lies in the border that is left out, whether exact zeros are blank, and whether it is
//! saturated ([`Saturation`]). Two are decided per
//! sample: the ramp from the frame's edge ([`feather`]), and that saturated pixels count where no
//! others do ([`Saturation`] again).

mod feather;
mod map;
mod saturation;

use crate::geom::Rect;

pub use feather::feather;
pub use map::MapKind;
pub(crate) use saturation::is_hidden;
pub use saturation::{Patches, Saturation};

/// How the pixels of an input are weighed, beside its weight as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weighting {
    /// What the values of its weight map mean.
    pub map: MapKind,
    /// Columns and rows at every edge of the frame that are left out.
    pub border_px: [usize; 2],
    /// Width of the ramp from the edge of what is left, in pixels of the input; 0 = none.
    pub feather_px: f64,
    /// Pixels that are exactly 0 in every channel are invalid.
    pub zero_is_blank: bool,
    /// Level from which on pixels are saturated.
    pub saturation: Option<Saturation>,
}

impl Weighting {
    /// What the border leaves of a frame of `width` by `height` pixels.
    pub fn within_border(&self, [width, height]: [usize; 2]) -> Rect {
        let [columns, rows] = self.border_px.map(|px| px as i64);
        Rect::new(columns..width as i64 - columns, rows..height as i64 - rows)
    }
}

/// Make the pixels of planes that show `rect` invalid where they lie outside of `kept`.
pub fn blank_outside(kept: &Rect, rect: &Rect, planes: &mut [&mut [f32]]) {
    let inside = rect.intersect(kept);
    if inside == *rect {
        return;
    }
    let columns = if inside.is_empty() {
        0..0
    } else {
        (inside.x0 - rect.x0) as usize..(inside.x1 - rect.x0) as usize
    };
    for plane in planes {
        for (row, y) in plane.chunks_mut(rect.width()).zip(rect.y0..rect.y1) {
            if (inside.y0..inside.y1).contains(&y) {
                row[..columns.start].fill(f32::NAN);
                row[columns.end..].fill(f32::NAN);
            } else {
                row.fill(f32::NAN);
            }
        }
    }
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
    fn borders_are_left_out() {
        let weighting = Weighting { border_px: [2, 1], ..Weighting::default() };
        let kept = weighting.within_border([9, 6]);
        assert_eq!(kept, Rect::new(2..7, 1..5));
        let of = |rect: Rect| {
            let mut plane = vec![1.0; rect.area()];
            blank_outside(&kept, &rect, &mut [&mut plane]);
            let sound = plane.iter().map(|pixel| !pixel.is_nan());
            sound.map(u8::from).collect::<Vec<_>>()
        };
        assert_eq!(of(Rect::new(1..4, 0..2)), [0, 0, 0, 0, 1, 1]);
        assert_eq!(of(Rect::new(5..9, 4..6)), [1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(of(Rect::new(3..5, 2..4)), [1; 4]);
        assert_eq!(of(Rect::new(7..9, 0..6)), [0; 12]);
        // Borders that leave nothing.
        let kept = Weighting { border_px: [2, 3], ..weighting }.within_border([9, 6]);
        let mut plane = [1.0_f32; 9];
        blank_outside(&kept, &Rect::new(0..9, 3..4), &mut [&mut plane]);
        assert!(plane.iter().all(|pixel| pixel.is_nan()));
    }

    #[test]
    fn a_pixel_is_blank_only_where_every_channel_is_zero() {
        let (mut red, mut green) = ([0.0, 0.0, 1.0, -0.0], [0.0, 2.0, 0.0, 0.0]);
        blank_zeros(&mut [&mut red, &mut green]);
        assert_eq!(red.map(f32::is_nan), [true, false, false, true]);
    }
}
