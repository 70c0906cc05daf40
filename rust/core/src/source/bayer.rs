//! Raw colour frames: each pixel has seen one colour, behind a mosaic of filters (Bayer 1976). The
//! other two are means of the nearest pixels that have seen them: two beside, two above and below,
//! four around, or four at the corners.
//!
//! Every row of a frame is worked on by itself, from the rows above and below it; beyond its edges it
//! is mirrored, which keeps the order of the filters.

use std::ops::Range;

use super::{FileCache, READ_CHUNK_BYTES, Source};
use crate::Result;
use crate::geom::Rect;

/// Planes that a raw frame becomes: red, green, blue.
pub const COLOURS: usize = 3;

/// Part of the memory to read into that holds stored bytes; the rest is for decoded lines.
pub const STORED_BYTES: usize = READ_CHUNK_BYTES / 4;

/// Columns that are worked on together, so that the rest has room for `LINES` lines at least.
const STRIP: i64 = 8192;
const LINES: usize = 4;
const _: () =
    assert!((STRIP as usize + 2) * LINES * size_of::<f32>() + 3 <= READ_CHUNK_BYTES - STORED_BYTES);

/// Where the filters lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bayer {
    /// Column and row, 0 or 1, of the first red pixel; the first blue one lies diagonally across.
    red: [i64; 2],
    /// From this value on a pixel is saturated, and so is what it is mixed into.
    saturation: f32,
}

impl Bayer {
    /// The filters of the first two pixels of the first row and then of the second, as `RGGB`; a
    /// pixel is saturated at `saturation`, if at all.
    pub fn from_name(name: &str, saturation: Option<f32>) -> Option<Self> {
        let red = match name {
            "RGGB" => [0, 0],
            "GRBG" => [1, 0],
            "GBRG" => [0, 1],
            "BGGR" => [1, 1],
            _ => return None,
        };
        Some(Self { red, saturation: saturation.unwrap_or(f32::INFINITY) })
    }

    /// The colours of row `y` from column `x` on. `lines` are the stored rows above, at and below
    /// it, each from column x − 1 to one past the last.
    fn row(&self, [x, y]: [i64; 2], lines: [&[f32]; 3], [red, green, blue]: [&mut [f32]; COLOURS]) {
        let has_red = y & 1 == self.red[1];
        // The colour of this row's filters that is not green, and that of the rows beside it.
        let (own, other) = if has_red { (red, blue) } else { (blue, red) };
        let first_own = if has_red { self.red[0] } else { 1 - self.red[0] };
        let is_own = (x & 1) == first_own;
        crate::cpu::mix_colours(lines, is_own, self.saturation, own, green, other);
    }
}

/// Mix the colours of a row. `is_own` is whether the first pixel has seen the row's own colour,
/// which alternates with green.
#[inline(always)]
pub fn mix_colours(
    lines: [&[f32]; 3],
    is_own: bool,
    saturation: f32,
    own: &mut [f32],
    green: &mut [f32],
    other: &mut [f32],
) {
    let len = own.len().min(green.len()).min(other.len());
    let [above, here, below] = lines.map(|line| &line[..len + 2]);
    let (own, green, other) = (&mut own[..len], &mut green[..len], &mut other[..len]);
    for k in 0..len {
        let (left, pixel, right) = (here[k], here[k + 1], here[k + 2]);
        let (up, down) = (above[k + 1], below[k + 1]);
        let corners = [above[k], above[k + 2], below[k], below[k + 2]];
        let beside = mean(left, right, saturation);
        let upright = mean(up, down, saturation);
        let around = mean(beside, upright, saturation);
        let across = mean(
            mean(corners[0], corners[1], saturation),
            mean(corners[2], corners[3], saturation),
            saturation,
        );
        let on_own = (k & 1 == 0) == is_own;
        own[k] = if on_own { pixel } else { beside };
        green[k] = if on_own { around } else { pixel };
        other[k] = if on_own { across } else { upright };
    }
}

/// The mean of two pixels, NaN if one is; if one is saturated, the greater.
#[inline(always)]
fn mean(a: f32, b: f32, saturation: f32) -> f32 {
    let middle = 0.5 * (a + b);
    let greater = if a > b { a } else { b };
    if greater >= saturation { greater + 0.0 * middle } else { middle }
}

/// Where a row or column beyond the edges of a frame is mirrored from.
fn mirrored(k: i64, size: usize) -> i64 {
    let last = size as i64 - 1;
    last - (last - k.abs()).abs()
}

/// Strips of `rect`, side by side, and the stored pixels that each is made of.
fn strips(rect: &Rect, source: &Source) -> impl Iterator<Item = (Range<i64>, Rect)> {
    let frame = Rect::frame(source.width, source.height);
    let Rect { x0, x1, y0, y1 } = *rect;
    (x0..x1).step_by(STRIP as usize).map(move |start| {
        let columns = start..x1.min(start + STRIP);
        let around = Rect::new(columns.start - 1..columns.end + 1, y0 - 1..y1 + 1);
        (columns, around.intersect(&frame))
    })
}

/// Stored pixels that are fetched for those of `rect`.
pub fn stored(rect: &Rect, source: &Source) -> impl Iterator<Item = Rect> {
    strips(rect, source).map(|(_, stored)| stored)
}

/// Read the pixels of `rect` into three planes, as [`Source::read`] does; zeros are blank if so told.
pub fn read(
    (bayer, zero_is_blank): (Bayer, bool),
    source: &Source,
    key: usize,
    files: &FileCache,
    rect: &Rect,
    planes: &mut [&mut [f32]],
    stride: usize,
    scratch: &mut [u8],
) -> Result<u64> {
    let (bytes, rest) = scratch.split_at_mut(STORED_BYTES);
    // SAFETY: any bytes are floats.
    let (_, lines, _) = unsafe { rest.align_to_mut::<f32>() };
    let mut bytes_read = 0;
    for (columns, stored) in strips(rect, source) {
        let len = (columns.end - columns.start) as usize;
        let place = (columns.start - rect.x0) as usize;
        let left = (stored.x0 - (columns.start - 1)) as usize;
        let line = len + 2;
        let mut held = stored.y0..stored.y0;
        let mut y = rect.y0;
        while y < rect.y1 {
            // The row above the next one is needed still; what comes before it is not.
            let from = held.end.min((y - 1).max(held.start));
            let kept = (from - held.start) as usize * line..(held.end - held.start) as usize * line;
            lines.copy_within(kept.clone(), 0);
            let room = (lines.len() - kept.len()) / line;
            let fresh = held.end..stored.y1.min(held.end + room as i64);
            let into = &mut lines[kept.len()..][..fresh.clone().count() * line];
            let wanted = Rect::new(stored.x0..stored.x1, fresh.clone());
            bytes_read +=
                source.read_plane(key, files, 0, &wanted, &mut into[left..], line, bytes)?;
            if zero_is_blank {
                for pixel in &mut *into {
                    *pixel = if *pixel == 0.0 { f32::NAN } else { *pixel };
                }
            }
            for line in into.chunks_mut(line) {
                if columns.start == 0 {
                    line[0] = line[2];
                }
                if columns.end == source.width as i64 {
                    line[len + 1] = line[len - 1];
                }
            }
            held = from..fresh.end;
            let near = |y: i64| [-1, 0, 1].map(|step| mirrored(y + step, source.height));
            while y < rect.y1 && near(y).iter().all(|row| held.contains(row)) {
                let rows = near(y).map(|row| &lines[(row - held.start) as usize * line..][..line]);
                let at = (y - rect.y0) as usize * stride + place;
                let [red, green, blue] = planes else { unreachable!("there are three colours") };
                let out = [red, green, blue].map(|plane| &mut plane[at..at + len]);
                bayer.row([columns.start, y], rows, out);
                y += 1;
            }
        }
    }
    Ok(bytes_read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Encoding, SampleType, Store};

    const NAMES: [&str; 4] = ["RGGB", "GRBG", "GBRG", "BGGR"];

    /// A raw frame of 16-bit samples, each from its column and row.
    fn frame(name: &str, [w, h]: [usize; 2], of: impl Fn(usize, usize) -> i16) -> Source {
        let bytes = (0..h).flat_map(|y| (0..w).map(move |x| [x, y]));
        let bytes: Vec<u8> = bytes.flat_map(|[x, y]| of(x, y).to_be_bytes()).collect();
        let sample = SampleType::I16;
        Source {
            store: Store::Memory(Box::new(bytes)),
            encoding: Encoding { sample, big_endian: true, scale: 1.0, zero: 0.0, blank: Some(-1) },
            planes: 1,
            width: w,
            height: h,
            bayer: Bayer::from_name(name, Some(30000.0)),
        }
    }

    fn colours(source: &Source, rect: &Rect) -> [Vec<f32>; 3] {
        let mut planes = [const { Vec::new() }; 3].map(|_: Vec<f32>| vec![0.5; rect.area()]);
        let mut scratch = vec![0; READ_CHUNK_BYTES];
        let mut all: Vec<_> = planes.iter_mut().map(|plane| &mut plane[..]).collect();
        source
            .read(0, &FileCache::default(), rect, &mut all, rect.width(), false, &mut scratch)
            .unwrap();
        planes
    }

    /// Which plane a pixel belongs to.
    fn colour(name: &str, x: usize, y: usize) -> usize {
        "RGB".find(&name[2 * (y & 1) + (x & 1)..][..1]).unwrap()
    }

    /// The plain truth: the mean of the nearest pixels of a colour, mirrored at the edges.
    fn plain(source: &Source, name: &str, [x, y]: [usize; 2], plane: usize) -> f32 {
        let Store::Memory(bytes) = &source.store else { unreachable!() };
        let bytes = (**bytes).as_ref();
        let mut near: Vec<(i64, f32)> = Vec::new();
        for dy in -1..=1 {
            for dx in -1..=1 {
                let column = mirrored(x as i64 + dx, source.width) as usize;
                let row = mirrored(y as i64 + dy, source.height) as usize;
                if colour(name, column, row) == plane {
                    let at = 2 * (row * source.width + column);
                    let value = i16::from_be_bytes([bytes[at], bytes[at + 1]]);
                    near.push((dx * dx + dy * dy, f32::from(value)));
                }
            }
        }
        let nearest = near.iter().map(|(distance, _)| *distance).min().unwrap();
        let of: Vec<_> = near.iter().filter(|one| one.0 == nearest).map(|one| one.1).collect();
        of.iter().sum::<f32>() / of.len() as f32
    }

    #[test]
    fn colours_are_means_of_their_nearest_pixels() {
        for name in NAMES {
            for shape in [[7, 6], [2, 2], [2, 9], [33, 2], [8, 13]] {
                // Multiples of 8, so that sums are exact in any order.
                let source =
                    frame(name, shape, |x, y| ((x * 7919 + y * 104_729) % 3001) as i16 * 8);
                let [w, h] = shape;
                let rect = Rect::frame(w, h);
                let found = colours(&source, &rect);
                for (plane, values) in found.iter().enumerate() {
                    for (k, &value) in values.iter().enumerate() {
                        let at = [k % w, k / w];
                        assert_eq!(value, plain(&source, name, at, plane), "{name} {at:?} {plane}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_part_of_a_frame_is_the_same_as_of_the_whole() {
        let shape = [STRIP as usize + 300, 40];
        let source = frame("GRBG", shape, |x, y| ((x * 31 + y * 17) % 4099) as i16);
        let whole = colours(&source, &Rect::frame(shape[0], shape[1]));
        for rect in [
            Rect::new(0..1, 0..1),
            Rect::new(5..97, 3..31),
            Rect::new(8190..8492, 39..40),
            Rect::new(100..8400, 11..13),
        ] {
            let part = colours(&source, &rect);
            for (plane, values) in part.iter().enumerate() {
                for (k, &value) in values.iter().enumerate() {
                    let x = rect.x0 as usize + k % rect.width();
                    let y = rect.y0 as usize + k / rect.width();
                    assert_eq!(value.to_bits(), whole[plane][y * shape[0] + x].to_bits());
                }
            }
        }
    }

    #[test]
    fn what_is_mixed_with_blank_is_invalid_and_with_saturated_is_saturated() {
        // Red at odd columns of even rows.
        let source = frame("GRBG", [9, 9], |x, y| match (x, y) {
            (3, 4) => 31000,
            (5, 2) => -1,
            _ => 100,
        });
        let [red, green, blue] = colours(&source, &Rect::frame(9, 9));
        for y in 0..9_i64 {
            for x in 0..9_i64 {
                let k = (9 * y + x) as usize;
                let (to_blank, to_full) = ((x - 5).abs().max((y - 2).abs()), (x - 3, y - 4));
                let expected = if to_blank <= 1 {
                    f32::NAN
                } else if to_full.0.abs().max(to_full.1.abs()) <= 1 {
                    31000.0
                } else {
                    100.0
                };
                assert!(red[k] == expected || red[k].is_nan() && expected.is_nan(), "{x} {y}");
                assert_eq!((green[k], blue[k]), (100.0, 100.0));
            }
        }
    }

    #[test]
    fn names_of_filters() {
        assert!(NAMES.iter().all(|name| Bayer::from_name(name, None).is_some()));
        assert_eq!(Bayer::from_name("RGBG", None), None);
    }
}
