//! A cheap look at the inputs before the passes: are there zeros where there should be pixels, is
//! there anything but one value, how noisy is it?
//!
//! Of each input a few rows are read, evenly spread from top to bottom, by one worker; what a worker
//! holds does not depend on the width of an input. Where these rows cannot tell, because all that
//! they show is a single value or a share of zeros close to the limit, all rows are read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::budget::{LeasedVec, Ledger};
use crate::cancel::CancelToken;
use crate::geom::Rect;
use crate::job::{Input, Job};
use crate::source::{FileCache, READ_CHUNK_BYTES, Source, cost};
use crate::weights::{Saturation, blank_zeros};
use crate::{Result, parallel};

/// Rows of an input that are looked at, if it has so many: shares of its height to a thirtieth.
const ROWS: usize = 32;

/// The same where the noise is asked for, which these tell to half a percent.
const ROWS_FOR_NOISE: usize = 128;

/// Pixels that are looked at together. Longer rows are cut.
const SEGMENT: usize = 4096;

/// Zeros that are at least this part of an image may be blank (`ZeMosaic` 4.5 has the same) ...
const LEAST_ZEROS: f64 = 0.05;

/// ... if they lie together: in at most this part of the runs that as many zeros strewn at random
/// would make. Counts of photons are 0 here and there, and mean it.
const MOST_RUNS: f64 = 0.25;

/// A share of zeros in these bounds, found in some rows, is found anew in all of them.
const UNSURE: std::ops::Range<f64> = 0.02..0.1;

/// A median absolute deviation of normally distributed values times this is their σ.
const SIGMA_OF_MAD: f64 = 1.482_602_218_505_602;

/// What was found in an input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// Part of its pixels that is valid in every channel, as far as it was looked at.
    pub valid_share: f64,
    /// Part of them that is exactly 0 in every channel.
    pub zero_share: f64,
    /// Whether these are many, and lie together as borders and gaps do.
    pub has_blank_zeros: bool,
    /// Part of them that is saturated, or at the end of the integers in which they are stored, in
    /// every channel.
    pub full_share: f64,
    /// Whether no channel has two different values.
    pub is_constant: bool,
    /// Standard deviation of the noise by channel; NaN where it cannot be told.
    pub noise: Vec<f64>,
    /// The same without pixels that are exactly 0 in every channel.
    pub noise_without_zeros: Vec<f64>,
    /// Greatest value of the weight map; NaN if it was not looked at.
    pub map_greatest: f32,
}

/// What is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which input.
    pub input: usize,
    /// Its pixels: zeros, constant values.
    pub image: bool,
    /// Their noise too.
    pub noise: bool,
    /// The scale of its weight map.
    pub map: bool,
}

impl Wanted {
    /// Rows of the image to look at.
    fn rows(self) -> usize {
        if self.noise { ROWS_FOR_NOISE } else { ROWS }
    }
}

/// How far it has come, for whoever watches it from another thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes read from input files.
    pub read_bytes: AtomicU64,
    /// Inputs that are done.
    pub inputs: AtomicU64,
}

/// Bytes that looking reads from files, if a few rows tell everything.
pub fn read_bytes(job: &Job, wanted: &[Wanted]) -> u64 {
    let of = |source: &Source, rows: usize| -> u64 {
        let pieces = chosen_rows(source.height, rows).flat_map(|y| pieces(source, y));
        pieces.map(|piece| cost(source, &piece)).sum()
    };
    let each = wanted.iter().map(|wanted| {
        let input = &job.inputs[wanted.input];
        let map = input.weight_map.as_ref().filter(|_| wanted.map).map_or(0, |map| of(map, ROWS));
        map + if wanted.image { of(&input.image, wanted.rows()) } else { 0 }
    });
    each.sum()
}

/// Look at some inputs of a job. What comes of it does not depend on workers.
pub fn survey(
    job: &Job,
    wanted: &[Wanted],
    workers: usize,
    ledger: &Arc<Ledger>,
    cancel: &CancelToken,
    progress: &Progress,
) -> Result<Vec<Findings>> {
    let files = FileCache::default();
    let mut all = vec![Findings::default(); wanted.len()];
    let crew = (0..workers.clamp(1, wanted.len().max(1))).map(|_| Eye::new(job.channels, ledger));
    let mut crew = crew.collect::<Result<Vec<_>>>()?;
    let tasks = wanted.iter().zip(&mut all).collect();
    parallel::run(&mut crew, tasks, |(wanted, findings): (&Wanted, &mut Findings), eye| {
        let look = Look {
            input: &job.inputs[wanted.input],
            number: wanted.input,
            files: &files,
            cancel,
            read_bytes: &progress.read_bytes,
        };
        if wanted.image {
            *findings = look.at_image(*wanted, eye)?;
        }
        findings.map_greatest = if wanted.map { look.at_map(eye)? } else { f32::NAN };
        progress.inputs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(all)
}

/// What one worker owns: less than it will own in the passes.
struct Eye {
    chunk: LeasedVec<u8>,
    planes: Vec<LeasedVec<f32>>,
    space: LeasedVec<f32>,
}

impl Eye {
    fn new(channels: usize, ledger: &Arc<Ledger>) -> Result<Self> {
        Ok(Self {
            chunk: ledger.zeroed(READ_CHUNK_BYTES)?,
            planes: (0..channels).map(|_| ledger.zeroed(SEGMENT)).collect::<Result<_>>()?,
            space: ledger.zeroed(SEGMENT)?,
        })
    }
}

/// What is gathered of an image, row by row.
struct Gathered {
    /// From this value on a pixel is full.
    full_from: f32,
    pixels: u64,
    full: u64,
    zeros: u64,
    zero_runs: u64,
    valid: u64,
    /// Least and greatest value of each channel.
    ranges: Vec<(f32, f32)>,
}

impl Gathered {
    fn new(channels: usize, full_from: f32) -> Self {
        let ranges = vec![(f32::INFINITY, f32::NEG_INFINITY); channels];
        Self { full_from, pixels: 0, full: 0, zeros: 0, zero_runs: 0, valid: 0, ranges }
    }

    fn is_constant(&self) -> bool {
        // Of nothing but NaN the least value is above the greatest.
        self.ranges.iter().all(|(low, high)| low >= high)
    }

    fn share(&self, pixels: u64) -> f64 {
        pixels as f64 / self.pixels.max(1) as f64
    }

    /// Whether zeros are many and lie together.
    fn has_blank_zeros(&self) -> bool {
        let share = self.share(self.zeros);
        let strewn = self.zeros as f64 * (1.0 - share);
        // Nothing but zeros is one run a row.
        share >= LEAST_ZEROS && (share == 1.0 || self.zero_runs as f64 <= MOST_RUNS * strewn)
    }

    /// Take in a piece of a row, a slice a channel; `in_zeros` is whether the piece before it
    /// ended in zeros.
    fn add(&mut self, planes: &[&mut [f32]], in_zeros: &mut bool) {
        let len = planes[0].len();
        self.pixels += len as u64;
        for k in 0..len {
            let is_zero = planes.iter().all(|plane| plane[k] == 0.0);
            self.zeros += u64::from(is_zero);
            self.zero_runs += u64::from(is_zero && !*in_zeros);
            *in_zeros = is_zero;
            self.valid += u64::from(planes.iter().all(|plane| !plane[k].is_nan()));
            self.full += u64::from(planes.iter().all(|plane| plane[k] >= self.full_from));
        }
        for (plane, (low, high)) in planes.iter().zip(&mut self.ranges) {
            for &value in plane.iter() {
                *low = if value < *low { value } else { *low };
                *high = if value > *high { value } else { *high };
            }
        }
    }
}

/// A way to look at one input.
struct Look<'a> {
    input: &'a Input,
    number: usize,
    files: &'a FileCache,
    cancel: &'a CancelToken,
    read_bytes: &'a AtomicU64,
}

impl Look<'_> {
    /// Look at the pixels.
    fn at_image(&self, wanted: Wanted, eye: &mut Eye) -> Result<Findings> {
        let image = &*self.input.image;
        let mut noise = [vec![Vec::new(); image.channels()], vec![Vec::new(); image.channels()]];
        let level = self.input.weighting.saturation.map_or(f32::INFINITY, Saturation::level);
        let full_from = level.min(image.encoding.greatest());
        let mut gathered = Gathered::new(image.channels(), full_from);
        let rows = chosen_rows(image.height, wanted.rows());
        self.rows(image, rows, eye, |planes, in_zeros, space| {
            let zeros = gathered.zeros;
            gathered.add(planes, in_zeros);
            if wanted.noise {
                measure_noise(planes, gathered.zeros > zeros, space, &mut noise);
            }
            true
        })?;
        let mut is_constant = gathered.is_constant();
        if is_constant {
            // One other value in any row is enough to know better.
            let mut whole = Gathered::new(image.channels(), full_from);
            self.rows(image, 0..image.height, eye, |planes, in_zeros, _| {
                whole.add(planes, in_zeros);
                whole.is_constant()
            })?;
            is_constant = whole.is_constant();
            gathered = if is_constant { whole } else { gathered };
        } else if UNSURE.contains(&gathered.share(gathered.zeros)) {
            gathered = Gathered::new(image.channels(), full_from);
            self.rows(image, 0..image.height, eye, |planes, in_zeros, _| {
                gathered.add(planes, in_zeros);
                true
            })?;
        }
        let [noise, noise_without_zeros] =
            noise.map(|channels| channels.into_iter().map(median).collect());
        Ok(Findings {
            valid_share: gathered.share(gathered.valid),
            zero_share: gathered.share(gathered.zeros),
            has_blank_zeros: gathered.has_blank_zeros(),
            full_share: gathered.share(gathered.full),
            is_constant,
            noise,
            noise_without_zeros,
            map_greatest: f32::NAN,
        })
    }

    /// The greatest value of the weight map.
    fn at_map(&self, eye: &mut Eye) -> Result<f32> {
        let mut greatest = f32::NAN;
        if let Some(map) = &self.input.weight_map {
            self.rows(map, chosen_rows(map.height, ROWS), eye, |planes, _, _| {
                greatest = planes[0].iter().copied().fold(greatest, f32::max);
                true
            })?;
        }
        Ok(greatest)
    }

    /// Read rows, piece by piece, and show them to `see` until it has seen enough. It is told
    /// whether the piece before ended in zeros, and lent space for as many values.
    fn rows(
        &self,
        source: &Source,
        rows: impl Iterator<Item = usize>,
        eye: &mut Eye,
        mut see: impl FnMut(&mut [&mut [f32]], &mut bool, &mut [f32]) -> bool,
    ) -> Result<()> {
        let is_map = self
            .input
            .weight_map
            .as_ref()
            .is_some_and(|map| std::ptr::eq(source, &raw const **map));
        let key = 2 * self.number + usize::from(is_map && !self.input.is_one_file());
        let Eye { chunk, planes, space } = eye;
        for y in rows {
            self.cancel.check()?;
            let mut in_zeros = false;
            for rect in pieces(source, y) {
                let len = rect.width();
                let planes = planes.iter_mut().take(source.channels());
                let mut seen: Vec<_> = planes.map(|plane| &mut plane[..len]).collect();
                let read = source.read(key, self.files, &rect, &mut seen, len, false, chunk)?;
                self.read_bytes.fetch_add(read, Ordering::Relaxed);
                if !see(&mut seen, &mut in_zeros, space) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The pieces in which a row is read.
fn pieces(source: &Source, y: usize) -> impl Iterator<Item = Rect> {
    let (width, y) = (source.width, y as i64);
    (0..width).step_by(SEGMENT).map(move |x| {
        let past = width.min(x + SEGMENT);
        Rect::new(x as i64..past as i64, y..y + 1)
    })
}

/// At most `most` rows to look at, evenly spread.
fn chosen_rows(height: usize, most: usize) -> impl Iterator<Item = usize> {
    let count = height.min(most);
    (0..count).map(move |k| (2 * k + 1) * height / (2 * count))
}

/// Add the noise of a piece of a row to that of others, channel by channel, with zeros and without.
fn measure_noise(
    planes: &mut [&mut [f32]],
    has_zeros: bool,
    space: &mut [f32],
    [noise, without_zeros]: &mut [Vec<Vec<f64>>; 2],
) {
    for (channel, plane) in planes.iter().enumerate() {
        let found = noise_of(plane, space);
        noise[channel].extend(found);
        if !has_zeros {
            without_zeros[channel].extend(found);
        }
    }
    if has_zeros {
        blank_zeros(planes);
        let (first, others) = planes.split_at_mut(1);
        for other in others {
            for (pixel, first) in other.iter_mut().zip(&*first[0]) {
                *pixel = if first.is_nan() { f32::NAN } else { *pixel };
            }
        }
        for (channel, plane) in planes.iter().enumerate() {
            without_zeros[channel].extend(noise_of(plane, space));
        }
    }
}

/// The noise of a piece of a row: σ = 1.4826 / √6 times the median of |2x(i) − x(i−2) − x(i+2)|. It
/// hardly depends on structure, stars and slopes, nor on what neighbours have in common
/// (`DER_SNR`, Stoehr et al. 2008).
fn noise_of(plane: &[f32], space: &mut [f32]) -> Option<f64> {
    let mut count = 0;
    for five in plane.windows(5) {
        space[count] = (2.0 * five[2] - five[0] - five[4]).abs();
        count += usize::from(!space[count].is_nan());
    }
    let known = &mut space[..count];
    let middle = (count > 0).then(|| *known.select_nth_unstable_by(count / 2, f32::total_cmp).1);
    middle.map(|middle| SIGMA_OF_MAD / 6.0_f64.sqrt() * f64::from(middle))
}

/// The median; NaN of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    f64::midpoint(values[(values.len() - 1) / 2], values[half])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(rows: &[Vec<f32>]) -> Gathered {
        let mut gathered = Gathered::new(1, 10.0);
        for row in rows {
            gathered.add(&[&mut row.clone()], &mut false);
        }
        gathered
    }

    /// Numbers between 0 and 1 that look random.
    fn random(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    #[test]
    fn borders_are_blank_and_counts_are_not() {
        let mut random = random(7);
        let border: Vec<_> = (0..100)
            .map(|y| (0..300).map(|x| if x < 6 * y / 10 { 0.0 } else { 5.0 }).collect())
            .collect();
        assert!(gathered(&border).has_blank_zeros());
        for share in [0.06, 0.5, 0.97] {
            let counts: Vec<Vec<f32>> = (0..100)
                .map(|_| (0..300).map(|_| f32::from(u8::from(random() > share))).collect())
                .collect();
            let counts = gathered(&counts);
            assert!((counts.share(counts.zeros) - share).abs() < 0.02);
            assert!(!counts.has_blank_zeros(), "{share}");
        }
        let narrow: Vec<Vec<f32>> =
            (0..100).map(|_| (0..300).map(|x| if x < 14 { 0.0 } else { 5.0 }).collect()).collect();
        assert!(!gathered(&narrow).has_blank_zeros());
        assert!(gathered(&[vec![0.0; 9]]).has_blank_zeros());
    }

    #[test]
    fn a_constant_is_one_in_every_channel() {
        let nan = f32::NAN;
        assert!(gathered(&[vec![3.0, nan, 3.0], vec![3.0; 3]]).is_constant());
        assert!(gathered(&[vec![nan; 3]]).is_constant());
        assert!(!gathered(&[vec![3.0; 3], vec![3.0, 3.0, 3.5]]).is_constant());
        let mut two = Gathered::new(2, 10.0);
        two.add(&[&mut [1.0, 1.0], &mut [2.0, 2.0]], &mut false);
        assert!(two.is_constant());
        two.add(&[&mut [1.0], &mut [1.0]], &mut false);
        assert!(!two.is_constant());
    }

    #[test]
    fn full_is_what_is_full_in_every_channel() {
        let mut two = Gathered::new(2, 10.0);
        two.add(&[&mut [9.0, 10.0, 11.0, f32::NAN], &mut [10.0, 10.0, 9.0, 10.0]], &mut false);
        assert_eq!((two.pixels, two.valid, two.full), (4, 3, 1));
    }

    #[test]
    fn noise_is_found_under_slopes_and_stars() {
        let mut random = random(3);
        let mut row: Vec<f32> = (0..4096)
            .map(|x| {
                let normal = (0..12).map(|_| random()).sum::<f64>() - 6.0;
                (1000.0 + 0.7 * f64::from(x) + 4.0 * normal) as f32
            })
            .collect();
        for x in (50..4000).step_by(97) {
            row[x] += 3000.0;
        }
        row[700..800].fill(f32::NAN);
        let found = noise_of(&row, &mut [0.0; SEGMENT]).unwrap();
        assert!((found / 4.0 - 1.0).abs() < 0.06, "{found}");
        assert_eq!(noise_of(&[1.0; 4], &mut [0.0; 4]), None);
    }

    #[test]
    fn rows_are_spread_evenly() {
        assert_eq!(chosen_rows(3, 128).collect::<Vec<_>>(), [0, 1, 2]);
        let rows: Vec<_> = chosen_rows(1000, 128).collect();
        assert_eq!((rows.len(), rows[0], rows[127]), (128, 3, 996));
        assert!(rows.windows(2).all(|two| (7..=8).contains(&(two[1] - two[0]))));
    }
}
