"""Solutions kept beside the frames, so that a frame is solved once.

``NAME.fits.wcs`` is a FITS file of a header only: the cards of the WCS, and which frame they
belong to.  A frame is known by its size and by a digest of its beginning and of a few pieces of its
pixels: it may be copied or moved with its solution, but any other frame, or a changed header, needs
a new one.  Files of that name that are not ours are left alone.
"""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zmrs.io.headers import Cards, UnusableError, open_source, padded_header, walk
from zmrs.solving.solution import Solution, solution_of

if TYPE_CHECKING:
    from zmrs.scan import Unsolved

__all__ = ["cache_of", "load", "store"]

_SOFTNAME = "zmrs"
_HEAD_BYTES = 1 << 16
_PIECE_BYTES = 1 << 14


def cache_of(path: str) -> Path:
    """Where the solution of a frame lies."""
    return Path(f"{path}.wcs")


def load(frame: Unsolved) -> Solution | None:
    """The solution that lies beside a frame; None if there is none, or that of another frame."""
    cards = _header(cache_of(frame.storage.path))
    if cards is None:
        return None
    theirs = [cards.string("SOFTNAME"), cards.string("ZMFRAME"), cards.integer("ZMHDU")]
    if theirs != [_SOFTNAME, stamp(frame.storage.path), frame.storage.hdu]:
        return None
    try:
        return solution_of(cards, 1, frame.storage.shape, cards.string("ZMSOLVER") or "")
    except UnusableError:
        return None


def store(frame: Unsolved, solution: Solution) -> None:
    """Keep the solution of a frame beside it.

    Raises
    ------
    OSError
        It cannot be written, or a file that is not ours has its name (`FileExistsError`).
    """
    path = cache_of(frame.storage.path)
    if path.exists():
        cards = _header(path)
        if cards is None or cards.string("SOFTNAME") != _SOFTNAME:
            raise FileExistsError(errno.EEXIST, "a file of somebody else has that name", str(path))
    height, width = frame.storage.shape
    content = padded_header(
        [
            ("SIMPLE", True),
            ("BITPIX", 8),
            ("NAXIS", 0),
            *solution.values,
            ("IMAGEW", width),
            ("IMAGEH", height),
            ("SOFTNAME", _SOFTNAME),
            ("ZMSOLVER", solution.program),
            ("ZMHDU", frame.storage.hdu),
            ("ZMFRAME", stamp(frame.storage.path)),
        ]
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def stamp(path: str) -> str:
    """What tells a file from any other frame: its size, its beginning, pieces of its pixels."""
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(b"%d" % size + file.read(_HEAD_BYTES))
        for quarter in (1, 2, 3):
            file.seek(size * quarter // 4)
            digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


def _header(path: Path) -> Cards | None:
    """The header of a file; None where there is none."""
    try:
        with open_source(str(path)) as source:
            return next(walk(source)).cards
    except (OSError, UnusableError, StopIteration):
        return None
