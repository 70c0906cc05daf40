//! Filling the windows of a step: rows are read and decoded, or kept from the step before.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::budget::{LeasedVec, Ledger};
use crate::coverage::planes::{as_bytes, as_bytes_mut};
use crate::geom::Rect;
use crate::job::{Input, Job};
use crate::layout::Step;
use crate::reproject::Loaded;
use crate::source::{FileCache, Source, read_exact_at};
use crate::weights::{Weighting, blank_outside, blank_zeros};
use crate::window::{Window, stored_len};
use crate::{Error, Result};

/// Source rows that one task reads.
const READ_ROWS: i64 = 64;

/// Memory for the windows of one step.
pub struct Arena {
    pixels: LeasedVec<f32>,
    exact: LeasedVec<f64>,
}

impl Arena {
    /// Room for so many pixels and so many doubles of exact records.
    pub fn new(pixels: usize, exact: usize, ledger: &Arc<Ledger>) -> Result<Self> {
        Ok(Self { pixels: ledger.zeroed(pixels)?, exact: ledger.zeroed(exact)? })
    }

    /// The windows of a step that lie here.
    pub fn loaded<'a>(&'a self, job: &Job, step: &'a Step) -> Vec<Loaded<'a>> {
        let (mut pixels, mut exact) = (&self.pixels[..], &self.exact[..]);
        let take = |window: &'a Window| {
            let (mine, rest) = pixels.split_at(window.len(job));
            pixels = rest;
            let (records, rest) = exact.split_at(window.exact_len(job));
            exact = rest;
            Loaded { window, pixels: mine, exact: records }
        };
        step.windows.iter().map(take).collect()
    }
}

/// A piece of a window to be filled.
pub enum LoadTask<'a> {
    /// Source rows, of all planes.
    Rows(Rows<'a>),
    /// Source rows as they are stored, of one plane.
    Stored(StoredRows<'a>),
    /// Coordinates of its exact cells.
    Exact(&'a Window, &'a mut [f64]),
}

/// Some rows of a window.
pub struct Rows<'a> {
    window: &'a Window,
    y: Range<i64>,
    planes: Vec<&'a mut [f32]>,
    /// The window of the step before that has them already.
    from: Option<Loaded<'a>>,
}

impl<'a> Rows<'a> {
    /// Rows `y` of a window, to be read into `planes`.
    pub fn unread(window: &'a Window, y: Range<i64>, planes: Vec<&'a mut [f32]>) -> Self {
        Self { window, y, planes, from: None }
    }
}

/// Some rows of a stored plane.
pub struct StoredRows<'a> {
    source: &'a Source,
    plane: usize,
    /// Names its file in the cache.
    key: usize,
    rect: Rect,
    bytes: &'a mut [u8],
    /// The pixels of it that the step before has, and their samples, if these rows are among them.
    from: Option<(Rect, &'a [u8])>,
}

/// Fills windows.
pub struct Loader<'a> {
    /// The job whose inputs are read.
    pub job: &'a Job,
    /// Their files.
    pub files: &'a FileCache,
    /// Counts the bytes read.
    pub read_bytes: &'a AtomicU64,
}

impl<'l> Loader<'l> {
    /// Tasks that fill `arena` with the windows of `step`, given those of the step before it.
    pub fn tasks<'a>(
        &self,
        step: &'a Step,
        arena: &'a mut Arena,
        before: &[Loaded<'a>],
    ) -> Vec<LoadTask<'a>>
    where
        'l: 'a,
    {
        let mut tasks = Vec::new();
        let (mut pixels, mut exact) = (&mut arena.pixels[..], &mut arena.exact[..]);
        for window in &step.windows {
            let mine = take_front(&mut pixels, window.len(self.job));
            let records = take_front(&mut exact, window.exact_len(self.job));
            if !records.is_empty() {
                tasks.push(LoadTask::Exact(window, records));
            }
            if window.is_stored {
                self.stored_rows_of(window, mine, before, &mut tasks);
            } else {
                self.rows_of(window, mine, before, &mut tasks);
            }
        }
        tasks
    }

    /// Cut the rows of a window into tasks.
    fn rows_of<'a>(
        &self,
        window: &'a Window,
        pixels: &'a mut [f32],
        before: &[Loaded<'a>],
        tasks: &mut Vec<LoadTask<'a>>,
    ) {
        let rect = window.rect;
        let mut planes: Vec<_> = pixels.chunks_mut(rect.area()).collect();
        planes.truncate(self.job.inputs[window.input].planes());
        for (y, from) in parts(window, &rect, before) {
            let values = (y.end - y.start) as usize * rect.width();
            let planes = planes.iter_mut().map(|plane| take_front(plane, values)).collect();
            tasks.push(LoadTask::Rows(Rows { window, y, planes, from }));
        }
    }

    /// The same of a window that holds what is stored, plane after plane.
    fn stored_rows_of<'a>(
        &self,
        window: &'a Window,
        mut mine: &'a mut [f32],
        before: &[Loaded<'a>],
        tasks: &mut Vec<LoadTask<'a>>,
    ) where
        'l: 'a,
    {
        let (input, held) = (&self.job.inputs[window.input], window.held(self.job));
        if held.is_empty() {
            // It serves pixels just beyond the edge of the frame.
            return;
        }
        let mut old_at = 0;
        for (number, (source, plane)) in input.stored_planes().enumerate() {
            let size = source.encoding.sample.bytes();
            let is_beside = number >= input.image.planes && !input.is_one_file();
            let key = 2 * window.input + usize::from(is_beside);
            let words = take_front(&mut mine, stored_len(held.area() * size));
            let mut bytes = as_bytes_mut(words);
            let mut old_len = 0;
            for (y, from) in parts(window, &held, before) {
                let rect = Rect::new(held.x0..held.x1, y);
                let from = from.map(|old| {
                    let there = old.window.held(self.job);
                    old_len = stored_len(there.area() * size);
                    (there, as_bytes(&old.pixels[old_at..old_at + old_len]))
                });
                let bytes = take_front(&mut bytes, rect.area() * size);
                tasks.push(LoadTask::Stored(StoredRows { source, plane, key, rect, bytes, from }));
            }
            old_at += old_len;
        }
    }

    /// Do a task; `chunk` is memory to read into.
    pub fn run(&self, task: LoadTask, chunk: &mut [u8]) -> Result<()> {
        match task {
            LoadTask::Exact(window, records) => self.read_exact(window, records),
            LoadTask::Stored(rows) => self.read_stored(rows, chunk),
            LoadTask::Rows(mut rows) => match rows.from {
                Some(from) => {
                    keep(&mut rows, &from);
                    Ok(())
                }
                None => self.read(rows, chunk),
            },
        }
    }

    fn read(&self, rows: Rows, chunk: &mut [u8]) -> Result<()> {
        let Rows { window, y, mut planes, .. } = rows;
        let (rect, width) = (window.rect, window.rect.width());
        let input = &self.job.inputs[window.input];
        let [frame_width, frame_height] = input.grid.frame();
        let wanted = Rect::new(rect.x0..rect.x1, y.clone());
        let inside = wanted.intersect(&Rect::frame(frame_width, frame_height));
        let margin = (inside.x0 - rect.x0).max(0) as usize;
        let above = (inside.y0 - y.start).max(0) as usize * width;
        if inside != wanted {
            for plane in &mut planes {
                plane.fill(f32::NAN);
            }
        }
        if !inside.is_empty() {
            let mut parts: Vec<_> =
                planes.iter_mut().map(|plane| &mut plane[above + margin..]).collect();
            let (image, weights) = parts.split_at_mut(input.image.channels());
            let key = 2 * window.input;
            let zero_is_blank = input.weighting.zero_is_blank;
            let mut read =
                input.image.read(key, self.files, &inside, image, width, zero_is_blank, chunk)?;
            if let Some(map) = &input.weight_map {
                let key = key + usize::from(!input.is_one_file());
                read += map.read(key, self.files, &inside, weights, width, false, chunk)?;
            }
            self.read_bytes.fetch_add(read, Ordering::Relaxed);
        }
        let kept = input.weighting.within_border([frame_width, frame_height]);
        blank_outside(&kept, &wanted, &mut planes);
        weigh(input, &mut planes);
        Ok(())
    }

    fn read_stored(&self, rows: StoredRows, chunk: &mut [u8]) -> Result<()> {
        let StoredRows { source, plane, key, rect, bytes, from } = rows;
        let Some((there, stored)) = from else {
            let read = source.read_stored(key, self.files, plane, &rect, bytes, chunk)?;
            self.read_bytes.fetch_add(read, Ordering::Relaxed);
            return Ok(());
        };
        let size = source.encoding.sample.bytes();
        let shift = (rect.x0 - there.x0) as usize;
        for (row, y) in bytes.chunks_mut(rect.width() * size).zip(rect.y0..) {
            let first = ((y - there.y0) as usize * there.width() + shift) * size;
            row.copy_from_slice(&stored[first..first + row.len()]);
        }
        Ok(())
    }

    fn read_exact(&self, window: &Window, records: &mut [f64]) -> Result<()> {
        let grid = &self.job.inputs[window.input].grid;
        let exact = grid.exact().expect("only such grids have exact cells");
        let len = grid.spacing() * grid.spacing() * 2;
        let key = usize::MAX - window.input;
        let file = self.files.open(key, &exact.path)?;
        for (record, &index) in records.chunks_mut(len).zip(&window.exact) {
            // SAFETY: any bytes are doubles, and nobody else sees these.
            let bytes = unsafe {
                std::slice::from_raw_parts_mut(record.as_mut_ptr().cast(), size_of_val(record))
            };
            let at = u64::from(index) * bytes.len() as u64;
            read_exact_at(&file, bytes, at)
                .map_err(|e| Error::Argument(format!("scratch cannot be read back ({e})")))?;
        }
        Ok(())
    }
}

/// The rows of a window, of which the pixels `held` are wanted, in pieces; with the window of the step
/// before that has them already, if one has.
fn parts<'a>(
    window: &Window,
    held: &Rect,
    before: &[Loaded<'a>],
) -> impl Iterator<Item = (Range<i64>, Option<Loaded<'a>>)> {
    let (from, kept) = match window.kept(before.iter().map(|loaded| loaded.window)) {
        Some((place, rows)) => (Some(before[place]), rows),
        None => (None, held.y0..held.y0),
    };
    let within = |y: i64| y.clamp(held.y0, held.y1);
    let (first, past) = (within(kept.start), within(kept.end));
    [(held.y0..first, None), (first..past, from), (past..held.y1, None)]
        .into_iter()
        .flat_map(|(rows, from)| pieces(rows).map(move |y| (y, from)))
}

/// The rows that each task reads of a run of rows.
pub fn pieces(rows: Range<i64>) -> impl Iterator<Item = Range<i64>> {
    let end = rows.end;
    rows.step_by(READ_ROWS as usize).map(move |start| start..end.min(start + READ_ROWS))
}

/// Cut `len` values off the front of a slice, which keeps the rest.
#[allow(clippy::mut_mut)]
pub fn take_front<'a, T>(slice: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (front, rest) = mem::take(slice).split_at_mut(len);
    *slice = rest;
    front
}

/// Copy rows that the step before has already decoded.
fn keep(rows: &mut Rows, from: &Loaded) {
    let (rect, old) = (rows.window.rect, from.window.rect);
    let shift = (rect.x0 - old.x0) as usize;
    for (k, plane) in rows.planes.iter_mut().enumerate() {
        let source = &from.pixels[k * old.area()..][..old.area()];
        for (row, y) in plane.chunks_mut(rect.width()).zip(rows.y.clone()) {
            let first = (y - old.y0) as usize * old.width() + shift;
            row.copy_from_slice(&source[first..first + row.len()]);
        }
    }
}

/// Turn what was stored into pixels with weights, and hide what is saturated.
fn weigh(input: &Input, planes: &mut [&mut [f32]]) {
    let Weighting { map, zero_is_blank, saturation, .. } = input.weighting;
    let (image, weights) = planes.split_at_mut(input.image.channels());
    for weights in weights {
        map.convert(weights);
    }
    if zero_is_blank {
        blank_zeros(image);
    }
    share_validity(planes);
    if let Some(saturation) = saturation {
        for plane in planes.iter_mut().take(input.image.channels()) {
            saturation.hide(plane);
        }
    }
}

/// A pixel is valid when it is in every channel and has a weight.
fn share_validity(planes: &mut [&mut [f32]]) {
    let Some((first, others)) = planes.split_first_mut() else { return };
    for other in &*others {
        for (pixel, partner) in first.iter_mut().zip(other.iter()) {
            *pixel = if partner.is_nan() { f32::NAN } else { *pixel };
        }
    }
    for other in others {
        for (pixel, first) in other.iter_mut().zip(first.iter()) {
            *pixel = if first.is_nan() { f32::NAN } else { *pixel };
        }
    }
}
