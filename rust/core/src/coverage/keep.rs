//! Pixels of low coverage, made empty.

use std::fs::File;

use super::planes::{FilePlanes, Planes};
use crate::sink::{Target, as_bytes, to_big_endian, write_all_at};
use crate::{Error, Result};

/// Empty the pixels of a row whose coverage is less than `part` of `most`: NaN in the images, 0 in
/// the coverage. Whether there was one.
pub fn blank_row(coverage: &mut [f32], images: &mut [&mut [f32]], most: f32, part: f64) -> bool {
    let mut any = false;
    for (x, value) in coverage.iter_mut().enumerate() {
        if *value > 0.0 && f64::from(*value) / f64::from(most) < part {
            any = true;
            *value = 0.0;
            for image in images.iter_mut() {
                image[x] = f32::NAN;
            }
        }
    }
    any
}

/// Empty the pixels of finished planes whose coverage is less than `part` of the greatest. Doing it
/// again changes nothing.
pub fn blank_low_coverage(
    images: &[Target],
    coverage: &Target,
    (height, width): (usize, usize),
    part: f64,
) -> Result<()> {
    let targets: Vec<_> = images.iter().chain([coverage]).cloned().collect();
    let planes = FilePlanes::open(targets.clone(), width)?;
    let mut rows = vec![0.0; targets.len() * width];
    let last = images.len();
    let mut most = 0.0_f32;
    for y in 0..height {
        let row = &mut rows[..width];
        planes.read(last, y, row)?;
        most = row.iter().copied().fold(most, f32::max);
    }
    let open = |(path, _): &Target| {
        File::options().write(true).open(path).map_err(|e| Error::writing(path, &e))
    };
    let files = targets.iter().map(open).collect::<Result<Vec<_>>>()?;
    for y in 0..height {
        for (plane, row) in rows.chunks_mut(width).enumerate() {
            planes.read(plane, y, row)?;
        }
        let (of_images, of_coverage) = rows.split_at_mut(last * width);
        let mut of_images: Vec<_> = of_images.chunks_mut(width).collect();
        if !blank_row(of_coverage, &mut of_images, most, part) {
            continue;
        }
        for ((row, (path, offset)), file) in rows.chunks_mut(width).zip(&targets).zip(&files) {
            to_big_endian(row);
            let at = offset + (y * size_of_val(row)) as u64;
            write_all_at(file, as_bytes(row), at).map_err(|e| Error::writing(path, &e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_equals_the_part_is_kept() {
        let mut coverage = [10.0, 4.0, 3.9, 0.0];
        let mut image = [1.0, 2.0, 3.0, f32::NAN];
        assert!(blank_row(&mut coverage, &mut [&mut image], 10.0, 0.4));
        assert_eq!(coverage, [10.0, 4.0, 0.0, 0.0]);
        assert_eq!(image[..2], [1.0, 2.0]);
        assert!(image[2..].iter().all(|value| value.is_nan()));
        assert!(!blank_row(&mut coverage, &mut [&mut image], 10.0, 0.4));
    }
}
