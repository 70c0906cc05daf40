"""The headers of a FITS file, plain or gzipped: cards, header blocks, HDUs.

Thousands of headers are on the critical path, so they are read raw and without astropy, and read
leniently: what cannot be understood is as if absent.  Pixels are never read.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "CARD_BYTES",
    "HEADER_MAX_BYTES",
    "Cards",
    "GzipSource",
    "Hdu",
    "NoSkyError",
    "PlainSource",
    "Source",
    "UnusableError",
    "as_number",
    "card",
    "card_text",
    "open_source",
    "padded_header",
    "text_cards",
    "walk",
]

CARD_BYTES = 80
_BLOCK_BYTES = 2880
# One read of ten blocks (360 cards) holds nearly every header met in practice.
_HEADER_READ_BYTES = 10 * _BLOCK_BYTES
# A header without END must not make us read gigabytes of pixels in search of it.
HEADER_MAX_BYTES = 2000 * _BLOCK_BYTES
# What a walk through the HDUs of one file may at most visit (a guard against cyclic nonsense).
_HDU_MAX = 10_000


class UnusableError(Exception):
    """Why an HDU cannot be used; ``final`` when looking at further HDUs would do harm.

    A broken science image must not be replaced by the error plane that follows it, whereas an
    image without any WCS may well be a thumbnail in front of the real one.  ``cause`` is the
    message without its remedy.
    """

    def __init__(self, cause: str, remedy: str, *, final: bool = True) -> None:
        super().__init__(f"{cause}; {remedy}.")
        self.cause = cause
        self.final = final


class NoSkyError(UnusableError):
    """The HDU of this index lacks nothing but a celestial WCS, which a solver may find."""

    def __init__(self, cause: str, remedy: str, hdu: int) -> None:
        super().__init__(cause, remedy, final=False)
        self.hdu = hdu


# -------------------------------------------------------------------------------------- cards

_STRING = re.compile(r"'((?:[^']|'')*)'?")


class Cards:
    """The cards of one header, read leniently: what cannot be understood is as if absent.

    Dirty headers are the rule: cards without ``=``, ``HIERARCH``, ``CONTINUE``, bytes beyond
    ASCII.  Of a repeated keyword the first counts, except for the WCS (see `zmrs.io.wcs`).

    Parameters
    ----------
    raw
        Header bytes without END, a multiple of 80 long.
    """

    __slots__ = ("_first", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        # Filled from behind, so that the first of equal keywords stays.
        last = len(raw) - CARD_BYTES
        self._first = {raw[i : i + 8]: i for i in range(last, -1, -CARD_BYTES)}

    def text(self, keyword: str) -> tuple[str, bool] | None:
        """Value as text and whether it was quoted; None if absent or undefined."""
        if len(keyword) > 8:
            return self._long(keyword.encode())
        start = self._first.get(keyword.ljust(8).encode())
        if start is None:
            return None
        return card_text(self.raw[start : start + CARD_BYTES])

    def _long(self, keyword: bytes) -> tuple[str, bool] | None:
        """As `text`, of a keyword that only a ``HIERARCH`` card can hold."""
        start = self.raw.find(b"HIERARCH")
        while start >= 0:
            name, _, value = self.raw[start : start + CARD_BYTES].partition(b"=")
            if start % CARD_BYTES == 0 and name[8:].strip() == keyword:
                return card_text(b"        =" + value)
            start = self.raw.find(b"HIERARCH", start + 1)
        return None

    def string(self, keyword: str) -> str | None:
        """Value as a string without outer blanks; None if absent or empty."""
        found = self.text(keyword)
        # A long string goes on in CONTINUE cards, marked by "&": its beginning is enough here.
        return (found[0].rstrip("&").strip() or None) if found else None

    def number(self, keyword: str) -> float | None:
        """Value as a finite number, even if quoted; None if absent or not a number."""
        found = self.text(keyword)
        value = as_number(found[0]) if found else None
        return value if value is not None and math.isfinite(value) else None

    def integer(self, keyword: str) -> int | None:
        """Value as an integer (``16`` or ``16.0``); None if absent or not integral."""
        found = self.text(keyword)
        if found is None:
            return None
        with contextlib.suppress(ValueError):
            return int(found[0])
        value = as_number(found[0])
        return int(value) if value is not None and value.is_integer() else None

    def logical(self, keyword: str) -> bool:
        """Whether the value is ``T``."""
        found = self.text(keyword)
        return found is not None and found[0] == "T"


def card_text(card: bytes) -> tuple[str, bool] | None:
    """Value of an 80-byte card as text, and whether it was quoted; None if it has none."""
    if card[8:9] != b"=":
        return None
    body = card[9:].decode("latin-1").strip()
    if body.startswith("'"):
        match = _STRING.match(body)
        return (match[1].replace("''", "'").rstrip(), True) if match else None
    text = body.split("/", 1)[0].strip(" \t\0")
    return (text, False) if text else None


def as_number(text: str) -> float | None:
    """Read a number in FITS spelling (exponents E or D, any case); NaN and inf pass through."""
    with contextlib.suppress(ValueError):
        return float(text.replace("D", "E").replace("d", "e"))
    return None


def card(keyword: str, value: str | float) -> bytes:
    """A card of 80 bytes; numbers keep every digit, for which the free format leaves room."""
    if isinstance(value, str):
        quoted = value.replace("'", "''")
        text = f"'{quoted:<8}'"
    elif isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    else:
        text = f"{value!r:>20}".upper()
    return f"{keyword:<8}= {text}".ljust(CARD_BYTES).encode("ascii", "replace")


def padded_header(cards: Iterable[tuple[str, str | float]]) -> bytes:
    """A whole header, from keywords and values."""
    raw = b"".join(card(keyword, value) for keyword, value in cards) + b"END"
    return raw.ljust(-(-len(raw) // _BLOCK_BYTES) * _BLOCK_BYTES)


def text_cards(text: bytes) -> Cards:
    """Header written one card a line, up to END or the end of the text."""
    cards = []
    for line in text.splitlines():
        if line.rstrip() == b"END":
            break
        cards.append(line[:CARD_BYTES].ljust(CARD_BYTES))
    return Cards(b"".join(cards))


# ------------------------------------------------------------------------------- bytes of a file


class Source(Protocol):
    """Bytes of a file by position; ``size_bytes`` is None where only reading on would tell."""

    size_bytes: int | None

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``offset`` on; fewer at the end."""
        ...

    def ends_at(self, offset: int) -> bool:
        """Whether it is known, without reading on, that nothing stands at ``offset``."""
        ...


class PlainSource:
    """An open file read by position."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.size_bytes: int | None = os.fstat(stream.fileno()).st_size

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``offset`` on; fewer at the end."""
        self._stream.seek(offset)
        data: bytes = self._stream.read(count)
        return data

    def ends_at(self, offset: int) -> bool:
        """Whether nothing stands at ``offset``."""
        return self.size_bytes is not None and offset >= self.size_bytes


class GzipSource:
    """A gzipped file, decompressed as far as asked.

    The last four bytes of a gzip member hold its size modulo 2**32.  If that is less than what
    a header promises, the file is either cut or made of several members: `missing_bytes`
    decompresses it all to know.
    """

    size_bytes: int | None = None

    def __init__(self, stream: Any) -> None:
        import gzip  # noqa: PLC0415 (most jobs never need it)

        stream.seek(-4, os.SEEK_END)
        self._claimed_bytes = int.from_bytes(stream.read(4), "little")
        stream.seek(0)
        self._stream = gzip.GzipFile(fileobj=stream)

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to ``count`` decompressed bytes from ``offset`` on; fewer at the end."""
        import zlib  # noqa: PLC0415

        try:
            self._stream.seek(offset)
            return self._stream.read(count)
        except (EOFError, zlib.error) as error:
            raise UnusableError(
                f"its gzip data are cut or damaged ({error})", "copy the file again or leave it out"
            ) from error

    def ends_at(self, offset: int) -> bool:
        """Whether the file says of itself that it ends there."""
        return self._claimed_bytes == offset % 2**32

    def missing_bytes(self, end: int) -> int:
        """How many bytes are missing before offset ``end``."""
        if self._claimed_bytes >= end:
            return 0
        import zlib  # noqa: PLC0415

        with contextlib.suppress(EOFError, OSError, zlib.error):
            self._stream.seek(end)
        return end - self._stream.tell()


@contextlib.contextmanager
def open_source(path: str) -> Iterator[PlainSource | GzipSource]:
    """Open a file for reading by position; gzip is known by its magic, not by the name."""
    # A pipe would be waited for, possibly for ever.
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):  # noqa: PTH112, PTH116
        raise UnusableError("it is no regular file", "name a FITS file")
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 (critical path)
        is_gzip = stream.read(2) == b"\x1f\x8b"
        yield GzipSource(stream) if is_gzip else PlainSource(stream)


def _read_header(source: Source, offset: int) -> tuple[bytes, int] | None:
    """Header bytes without END, and the offset of the data; None if END never comes."""
    raw = b""
    searched = 0
    while len(raw) < HEADER_MAX_BYTES:
        more = source.read_at(offset + len(raw), _HEADER_READ_BYTES)
        raw += more
        end = _find_end(raw, searched)
        if end >= 0:
            blocks = end // _BLOCK_BYTES + 1
            return raw[:end], offset + blocks * _BLOCK_BYTES
        if not more:
            return None
        searched = len(raw) // CARD_BYTES * CARD_BYTES
    return None


def _find_end(raw: bytes, start: int) -> int:
    """Position of the END card at or after ``start``, else -1."""
    position = raw.find(b"END", start)
    while position >= 0:
        card = raw[position : position + CARD_BYTES]
        if position % CARD_BYTES == 0 and not card[3:].strip(b" \0"):
            return position
        position = raw.find(b"END", position + 1)
    return -1


# --------------------------------------------------------------------------------------- HDUs


@dataclass(frozen=True, slots=True)
class Hdu:
    """One HDU: its cards, and where its data stand."""

    index: int
    cards: Cards
    data_offset: int
    data_bytes: int

    @property
    def is_tiled(self) -> bool:
        """Whether it is a table that holds a tile-compressed image."""
        return self.cards.logical("ZIMAGE")

    @property
    def is_image(self) -> bool:
        """Whether it is an image, tile-compressed or not, perhaps an empty one."""
        return self.index == 0 or self.is_tiled or self.cards.string("XTENSION") == "IMAGE"

    @property
    def name(self) -> str:
        """``EXTNAME``, else ``PRIMARY`` for the first HDU, else nothing."""
        return self.cards.string("EXTNAME") or ("PRIMARY" if self.index == 0 else "")

    @property
    def bitpix(self) -> int:
        """Encoding of the image itself."""
        return self.cards.integer("ZBITPIX" if self.is_tiled else "BITPIX") or 0

    @property
    def axes(self) -> tuple[int, ...]:
        """NAXIS1, NAXIS2, … of the image itself (first varies fastest)."""
        return _axes(self.cards, "ZNAXIS" if self.is_tiled else "NAXIS")


def _axes(cards: Cards, stem: str) -> tuple[int, ...]:
    """Lengths of the axes; raises if the header does not say them."""
    lengths = []
    for n in range(1, (cards.integer(stem) or 0) + 1):
        length = cards.integer(f"{stem}{n}")
        if length is None or length < 0 or n > 999:
            raise UnusableError(
                f"its header has no usable {stem}{n}", "repair the header or leave the file out"
            )
        lengths.append(length)
    return tuple(lengths)


def _data_bytes(cards: Cards) -> int:
    """Length of the data without padding, by the formula of the FITS standard (4.4.1)."""
    axes = _axes(cards, "NAXIS")
    if axes and axes[0] == 0 and cards.logical("GROUPS"):
        axes = axes[1:]
    values = math.prod(axes) if axes else 0
    groups = cards.integer("GCOUNT")
    per_group = (cards.integer("PCOUNT") or 0) + values
    return abs(cards.integer("BITPIX") or 0) // 8 * (1 if groups is None else groups) * per_group


def walk(source: Source) -> Iterator[Hdu]:
    """All HDUs of a file, headers only; stops quietly at trailing junk."""
    if source.read_at(0, 9) != b"SIMPLE  =":
        raise UnusableError("it is not a FITS file", "leave it out")
    offset = 0
    for index in range(_HDU_MAX):
        if index and source.read_at(offset, 9) != b"XTENSION=":
            return
        found = _read_header(source, offset)
        if found is None:
            raise UnusableError(
                "truncated in the header (no END card)", "copy the file again or leave it out"
            )
        raw, data_offset = found
        cards = Cards(raw)
        hdu = Hdu(index, cards, data_offset, _data_bytes(cards))
        yield hdu
        offset = data_offset + -(-hdu.data_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
        if source.ends_at(offset):
            return
