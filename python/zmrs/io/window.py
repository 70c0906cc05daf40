"""The middle of an image, a window of fixed size, small enough for a look.

What is read, and what it takes to hold it, does not depend on how large the image is.  Gzipped
files are decompressed as far as the window reaches; of tile-compressed images astropy decompresses
the tiles that the window touches.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs.errors import InputError
from zmrs.io.headers import UnusableError, open_source, walk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zmrs.io.headers import Source
    from zmrs.io.storage import Storage

__all__ = ["held_bytes", "middle", "middle_of", "window_bytes"]

Span = tuple[int, int]

_BLOCK_ROWS = 64
"""Rows that are decoded at once: the window stands in memory once, as float32."""

_DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


def middle_of(length: int, most: int) -> Span:
    """First and past-the-last pixel of the middle of an axis; the first is even (for mosaics)."""
    first = max(length - most, 0) // 4 * 2
    return first, min(first + most, length)


def window_bytes(store: Storage, most: int) -> int:
    """Bytes that `middle` reads of a file that is not compressed."""
    rows, columns = (b - a for a, b in (middle_of(n, most) for n in store.shape))
    return store.channels * rows * columns * _dtype(store).itemsize


def held_bytes(store: Storage) -> int:
    """What `middle` holds at most for a moment beside the window itself.

    That is next to nothing, but for a compressed image, whose tiles may be as large as it is: twice
    all of its pixels, compressed or not.
    """
    if not store.compressed:
        return 0
    return 2 * store.channels * store.height * store.width * _dtype(store).itemsize


def middle(store: Storage, most: int) -> NDArray[np.float32]:
    """The mean of the channels in the middle of an image.

    Parameters
    ----------
    store
        Where its pixels stand.
    most
        Rows and columns of the window; an image that has fewer is read to its edges.

    Returns
    -------
    array
        (H, W) float32, C order, physical values; NaN where any channel is NaN or ``BLANK``.

    Raises
    ------
    zmrs.errors.InputError
        It cannot be read or decompressed.
    """
    rows, columns = (middle_of(length, most) for length in store.shape)
    try:
        with open_source(store.path) as source:
            if store.compressed and _is_tiled(source, store):
                return _from_tiles(store, rows, columns)
            return _from_rows(source, store, rows, columns)
    except (OSError, EOFError, zlib.error, UnusableError) as error:
        raise InputError(
            f"{store.path}: its pixels cannot be read ({error}); check it or leave it out."
        ) from error


def _is_tiled(source: Source, store: Storage) -> bool:
    """Whether a compressed image is compressed by tiles; otherwise its whole file is gzipped."""
    return next(hdu for hdu in walk(source) if hdu.index == store.hdu).is_tiled


def _dtype(store: Storage) -> np.dtype[Any]:
    return np.dtype(_DTYPES[store.bitpix])


def _from_rows(source: Source, store: Storage, rows: Span, columns: Span) -> NDArray[np.float32]:
    code = _dtype(store)
    total = np.zeros((rows[1] - rows[0], columns[1] - columns[0]), np.float32)
    count = total.shape[1] * code.itemsize
    for channel in range(store.channels):
        for first in range(0, len(total), _BLOCK_ROWS):
            block = total[first : first + _BLOCK_ROWS]
            lines = []
            for row in range(rows[0] + first, rows[0] + first + len(block)):
                place = (channel * store.height + row) * store.width + columns[0]
                lines.append(source.read_at(store.offset + place * code.itemsize, count))
            raw = b"".join(lines)
            if len(raw) < count * len(block):
                raise EOFError("the file ends before they do")
            block += _physical(np.frombuffer(raw, code).reshape(block.shape), store)
    total /= store.channels
    return total


def _from_tiles(store: Storage, rows: Span, columns: Span) -> NDArray[np.float32]:
    from astropy.io import fits  # noqa: PLC0415  (late: 0.3 s)

    total = np.zeros((rows[1] - rows[0], columns[1] - columns[0]), np.float32)
    try:
        with fits.open(
            store.path, memmap=False, do_not_scale_image_data=True, lazy_load_hdus=True
        ) as hdus:
            hdu = hdus[store.hdu]
            for channel in range(store.channels):
                kept = iter([channel, slice(*rows), slice(*columns)][-_kept_axes(hdu.shape) :])
                where = tuple(0 if length == 1 else next(kept) for length in hdu.shape)
                stored = hdu.section[where]
                for first in range(0, len(total), _BLOCK_ROWS):
                    block = slice(first, first + _BLOCK_ROWS)
                    total[block] += _physical(stored[block], store)
    except MemoryError:
        raise
    # Decompressors raise what they like: zlib.error, OSError, ValueError, IndexError.
    except Exception as error:
        raise InputError(
            f"{store.path}: cannot be decompressed ({error}); the file is damaged, get it anew."
        ) from error
    total /= store.channels
    return total


def _kept_axes(shape: tuple[int, ...]) -> int:
    return sum(length > 1 for length in shape)


def _physical(stored: NDArray[Any], store: Storage) -> NDArray[np.float64]:
    """Values of stored samples; NaN for ``BLANK`` ones."""
    values = store.bzero + store.bscale * stored.astype(np.float64)
    if store.blank is not None:
        values[stored == store.blank] = np.nan
    return values
