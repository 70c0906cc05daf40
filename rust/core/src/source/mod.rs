//! Pixels of an input, by rows: from a FITS file with positioned reads, or from an array.

mod bayer;
mod decode;
mod files;

use std::path::PathBuf;
use std::sync::OnceLock;

pub use bayer::{Bayer, mix_colours};
pub use decode::{Encoding, SampleType, decode};
pub use files::{FileCache, MOST_OPEN, read_exact_at};

use crate::geom::Rect;
use crate::{Error, Result};

/// Bytes read from a file at once: fits the second-level cache beside the decoded pixels, so that
/// the copy out of the page cache is still warm when it is decoded.
pub const READ_CHUNK_BYTES: usize = 256 << 10;

/// Columns that are left out between two row segments cost less to read than a second request
/// when they are fewer bytes than this: a page.
const GAP_BYTES: usize = 4 << 10;

/// Where stored samples live.
pub enum Store {
    /// In a file, from `offset` on.
    File {
        /// The file.
        path: PathBuf,
        /// Byte of the first sample.
        offset: u64,
        /// Whether they are only decompressed into it before the first pass.
        unpacked: bool,
    },
    /// In memory that somebody else keeps alive and does not change.
    Memory(SharedBytes),
    /// In memory from before the first pass on, but not yet while it is planned.
    Deferred(OnceLock<SharedBytes>),
}

/// Bytes that others may see too, as long as nobody changes them.
pub type SharedBytes = Box<dyn AsRef<[u8]> + Send + Sync>;

/// The planes of one image: (channels, height, width) samples, columns fastest; or one plane of a raw
/// frame, which becomes three.
pub struct Source {
    /// Where they live.
    pub store: Store,
    /// How they are encoded.
    pub encoding: Encoding,
    /// Number of planes that are stored.
    pub planes: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The filters of a raw colour frame.
    pub bayer: Option<Bayer>,
}

impl Source {
    /// Number of planes that it is read as.
    pub fn channels(&self) -> usize {
        if self.bayer.is_some() { bayer::COLOURS } else { self.planes }
    }

    /// Bytes of all samples.
    pub fn bytes(&self) -> u64 {
        [self.height, self.width, self.encoding.sample.bytes()]
            .iter()
            .fold(self.planes as u64, |product, &n| product.saturating_mul(n as u64))
    }

    /// Read the pixels of `rect`, which must lie within the frame, into a plane a channel, whose
    /// rows are `stride` apart. `key` names the file in the cache, `scratch` has
    /// [`READ_CHUNK_BYTES`]. With `zero_is_blank` the zeros of a raw frame are invalid before its
    /// colours are mixed; those of others are not looked at here. Returns the bytes read.
    pub fn read(
        &self,
        key: usize,
        files: &FileCache,
        rect: &Rect,
        planes: &mut [&mut [f32]],
        stride: usize,
        zero_is_blank: bool,
        scratch: &mut [u8],
    ) -> Result<u64> {
        if let Some(filters) = self.bayer {
            let how = (filters, zero_is_blank);
            return bayer::read(how, self, key, files, rect, planes, stride, scratch);
        }
        let planes = planes.iter_mut().enumerate();
        planes.map(|(k, plane)| self.read_plane(key, files, k, rect, plane, stride, scratch)).sum()
    }

    /// The same of one plane that is stored, whichever it is.
    fn read_plane(
        &self,
        key: usize,
        files: &FileCache,
        plane: usize,
        rect: &Rect,
        out: &mut [f32],
        stride: usize,
        scratch: &mut [u8],
    ) -> Result<u64> {
        let size = self.encoding.sample.bytes();
        self.fetch(key, files, plane, rect, scratch, |row, column, stored| {
            let row = &mut out[row * stride + column..][..stored.len() / size];
            crate::cpu::decode(stored, &self.encoding, row);
        })
    }

    /// Read the samples of `rect` of a stored plane as they are, row after row into `out`. Returns the
    /// bytes read.
    pub fn read_stored(
        &self,
        key: usize,
        files: &FileCache,
        plane: usize,
        rect: &Rect,
        out: &mut [u8],
        scratch: &mut [u8],
    ) -> Result<u64> {
        let (size, width) = (self.encoding.sample.bytes(), rect.width());
        self.fetch(key, files, plane, rect, scratch, |row, column, stored| {
            out[(row * width + column) * size..][..stored.len()].copy_from_slice(stored);
        })
    }

    /// Fetch the samples of `rect` of a stored plane, and hand them to `take` by rows or parts of rows:
    /// the row and the column of the first one, counted in `rect`, and their bytes.
    #[inline(always)]
    fn fetch(
        &self,
        key: usize,
        files: &FileCache,
        plane: usize,
        rect: &Rect,
        scratch: &mut [u8],
        mut take: impl FnMut(usize, usize, &[u8]),
    ) -> Result<u64> {
        let size = self.encoding.sample.bytes();
        let first = (plane * self.height + rect.y0 as usize) * self.width;
        let row_bytes = self.width * size;
        let segment = rect.x0 as usize * size..rect.x1 as usize * size;
        let mut from_memory = |bytes: &SharedBytes| {
            let bytes = (**bytes).as_ref();
            for row in 0..rect.height() {
                let start = first * size + row * row_bytes;
                take(row, 0, &bytes[start + segment.start..start + segment.end]);
            }
            Ok(0)
        };
        match &self.store {
            Store::Memory(bytes) => from_memory(bytes),
            Store::Deferred(cell) => match cell.get() {
                Some(bytes) => from_memory(bytes),
                None => Err(Error::Argument("an input was not provided".to_owned())),
            },
            Store::File { path, offset, .. } => {
                let file = files.open(key, path)?;
                let start = offset + (first * size) as u64;
                let read = |at: u64, into: &mut [u8]| {
                    files::read_exact_at(&file, into, at).map_err(|e| match e.kind() {
                        std::io::ErrorKind::UnexpectedEof => Error::Input {
                            path: path.clone(),
                            reason: "ends before its last pixel; it is truncated or was changed \
                                     while it was read"
                                .to_owned(),
                        },
                        _ => Error::reading(path, &e),
                    })
                };
                let whole = whole_rows(row_bytes, segment.len(), scratch.len());
                let request = Request { start, row_bytes, segment, whole, size };
                request.run(rect.height(), scratch, read, take)
            }
        }
    }
}

/// Whether fetching whole rows, some at once, beats fetching a segment of each.
fn whole_rows(row_bytes: usize, segment_bytes: usize, chunk_bytes: usize) -> bool {
    row_bytes - segment_bytes <= GAP_BYTES && row_bytes <= chunk_bytes
}

/// Bytes fetched from a file for the pixels of `rect`, which lies within the frame.
pub(crate) fn cost(source: &Source, rect: &Rect) -> u64 {
    let size = source.encoding.sample.bytes();
    let row_bytes = source.width * size;
    let of = |rect: &Rect, chunk_bytes: usize| {
        let segment = rect.width() * size;
        let each = if whole_rows(row_bytes, segment, chunk_bytes) { row_bytes } else { segment };
        (rect.height() * each) as u64
    };
    match (&source.store, source.bayer) {
        (Store::Memory(_) | Store::Deferred(_), _) => 0,
        (Store::File { .. }, None) => source.planes as u64 * of(rect, READ_CHUNK_BYTES),
        (Store::File { .. }, Some(_)) => {
            bayer::stored(rect, source).map(|part| of(&part, bayer::STORED_BYTES)).sum()
        }
    }
}

/// Rows of a file: where they start, how far apart they are, which bytes of each are wanted,
/// whether whole rows are fetched for them, and bytes of a sample.
struct Request {
    start: u64,
    row_bytes: usize,
    segment: std::ops::Range<usize>,
    whole: bool,
    size: usize,
}

impl Request {
    /// Read so many rows in chunks, and hand them on.
    #[inline(always)]
    fn run(
        &self,
        rows: usize,
        scratch: &mut [u8],
        read: impl Fn(u64, &mut [u8]) -> Result<()>,
        mut take: impl FnMut(usize, usize, &[u8]),
    ) -> Result<u64> {
        let mut bytes_read = 0;
        if self.whole {
            let at_once = scratch.len() / self.row_bytes;
            for first in (0..rows).step_by(at_once) {
                let batch = at_once.min(rows - first);
                let chunk = &mut scratch[..batch * self.row_bytes];
                read(self.start + (first * self.row_bytes) as u64, chunk)?;
                bytes_read += chunk.len() as u64;
                for (k, row) in chunk.chunks(self.row_bytes).enumerate() {
                    take(first + k, 0, &row[self.segment.clone()]);
                }
            }
        } else {
            let at_once = scratch.len() / self.size * self.size;
            for row in 0..rows {
                let begin = self.start + (row * self.row_bytes + self.segment.start) as u64;
                for done in (0..self.segment.len()).step_by(at_once) {
                    let chunk = &mut scratch[..at_once.min(self.segment.len() - done)];
                    read(begin + done as u64, chunk)?;
                    take(row, done / self.size, chunk);
                    bytes_read += chunk.len() as u64;
                }
            }
        }
        Ok(bytes_read)
    }
}
