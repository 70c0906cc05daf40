"""A frame as solvers like it: one plain plane of floats, uncompressed, not too large.

Raw colour frames are averaged over 2 x 2 pixels: as they are, the chequered colours look like noise
and lead solvers astray.  Large frames are averaged until their longer side is at most
`MOST_SIDE_PX`: stars are still many, and a solver's time grows with the pixels.

Frames are read and written by parts, so that this takes no memory to speak of.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs.io.headers import UnusableError, padded_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from zmrs.io.storage import Storage
    from zmrs.scan import Cards, Unsolved

__all__ = ["MOST_SIDE_PX", "Picture", "write_picture"]

MOST_SIDE_PX = 3000
_PART_SAMPLES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Picture:
    """A file for a solver.

    Attributes
    ----------
    path
        FITS, one plane of float32.
    height_px
        Of the picture itself.
    times
        Width and height of a pixel of the picture, in pixels of the frame; a power of 2.
    """

    path: Path
    height_px: int
    times: int


def write_picture(frame: Unsolved, folder: Path) -> Picture:
    """Write the picture of a frame into a folder.

    Raises
    ------
    UnusableError
        The pixels of the frame cannot be read.
    OSError
        The folder cannot be written, or has no room for it.
    """
    store = frame.storage
    times = _times(frame)
    path = folder / "picture.fits"
    height, width = (length // times for length in store.shape)
    n_bytes = 0
    with path.open("wb") as file:
        cards = [("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 2)]
        file.write(padded_header([*cards, ("NAXIS1", width), ("NAXIS2", height)]))
        for part in _parts(store, times, folder):
            n_bytes += file.write(part.astype(">f4").tobytes())
        file.write(bytes(-n_bytes % 2880))
    return Picture(path, height, times)


def _times(frame: Unsolved) -> int:
    store = frame.storage
    has_filters = any(_has_colour_filters(cards) for cards in (frame.cards, frame.primary))
    times = 2 if store.channels == 1 and has_filters else 1
    while max(store.shape) > times * MOST_SIDE_PX:
        times *= 2
    # A frame of a few rows stays as it is; it has no stars to lose.
    return times if min(store.shape) >= times else 1


def _has_colour_filters(cards: Cards) -> bool:
    """Whether neighbouring pixels see different colours; some programs say so in FILTER."""
    pattern = r"[RGB]{4}"
    return bool(cards.string("BAYERPAT") or re.fullmatch(pattern, cards.string("FILTER") or ""))


def _parts(store: Storage, times: int, folder: Path) -> Iterator[NDArray[np.float32]]:
    """Rows of the picture, from the first to the last, some at a time."""
    rows = max(_PART_SAMPLES // (store.width * store.channels) // times, 1) * times
    with _open(store, folder) as read:
        for y0 in range(0, store.height // times * times, rows):
            yield _averaged(read(y0, min(y0 + rows, store.height)), times)


def _averaged(planes: NDArray[np.float32], times: int) -> NDArray[np.float32]:
    """Mean over the channels of (C, h, w) and over times x times pixels, without holes."""
    plane = planes.mean(axis=0)
    height, width = (length // times for length in plane.shape)
    cut = plane[: height * times, : width * times]
    small: NDArray[np.float32] = cut.reshape(height, times, width, times).mean(axis=(1, 3))
    holes = ~np.isfinite(small)
    if holes.any():
        # A solver would take the edges of holes for light.
        small[holes] = 0.0 if holes.all() else np.median(small[~holes])
    return small


@contextlib.contextmanager
def _open(store: Storage, folder: Path) -> Iterator[Callable[[int, int], NDArray[np.float32]]]:
    """Read rows y0 to y1 of a frame: (C, y1 - y0, W) physical values; NaN is invalid."""
    from astropy.io import fits  # noqa: PLC0415  (late: 0.3 s)

    path = _unzipped(Path(store.path), folder)
    with _reading():
        hdus = fits.open(path, memmap=False)

    def rows(y0: int, y1: int) -> NDArray[np.float32]:
        with _reading():
            hdu = hdus[store.hdu]
            # Axes of length 1 are no axes; of the others the last but one counts rows.
            kept = [axis for axis, length in enumerate(hdu.shape) if length > 1]
            index: list[Any] = [slice(None) if n in kept else 0 for n in range(len(hdu.shape))]
            index[kept[-2]] = slice(y0, y1)
            part = np.asarray(hdu.section[tuple(index)], dtype=np.float32)
            return part.reshape(store.channels, y1 - y0, store.width)

    try:
        yield rows
    finally:
        hdus.close()


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Whatever astropy and its decompressors raise, `OSError` included, the frame is bad."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:
            raise UnusableError(
                f"its pixels cannot be read ({error})",
                "the file is damaged, get it anew or leave it out",
            ) from error


def _unzipped(path: Path, folder: Path) -> Path:
    """The file, or what it holds if it is gzipped: that could be read by position only slowly."""
    with _reading(), path.open("rb") as file:
        if file.read(2) != _GZIP_MAGIC:
            return path
    plain = folder / "frame.fits"
    with gzip.open(path) as packed, plain.open("wb") as file:
        while True:
            with _reading():
                part = packed.read(_PART_SAMPLES)
            if not part:
                return plain
            file.write(part)
