"""From what the user typed to the list of usable images, reading headers only.

The way goes through four steps, one a section of this file: names (:func:`expand_inputs`), header
cards (:class:`Cards`), the HDU and its pixels' place (:class:`Storage`), and the WCS
(:func:`header_wcs`).  A bad input never raises: it becomes a :class:`LeftOut` whose reason is one
sentence.  Thousands of headers are on the critical path, so headers are read raw, and only the
cards that matter to the sky are shown to ``astropy.wcs``: with all cards the same WCS costs five
times as much.  No header is kept.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zmrs.errors import InputError

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = [
    "Cards",
    "InputImage",
    "LeftOut",
    "Meta",
    "Scan",
    "Storage",
    "expand_inputs",
    "header_wcs",
    "scan_image",
    "scan_inputs",
    "scan_template",
]

SUFFIXES = tuple(s + c for s in (".fits", ".fit", ".fts") for c in ("", ".fz", ".gz"))

_BLOCK_BYTES = 2880
_CARD_BYTES = 80
# One read of ten blocks (360 cards) holds nearly every header met in practice.
_HEADER_READ_BYTES = 10 * _BLOCK_BYTES
# A header without END must not make us read gigabytes of pixels in search of it.
_HEADER_MAX_BYTES = 2000 * _BLOCK_BYTES
# What a walk through the HDUs of one file may at most visit (a guard against cyclic nonsense).
_HDU_MAX = 10_000
_BITPIX = frozenset({8, 16, 32, 64, -32, -64})
_SOFTNAME = "zmrs"


# ------------------------------------------------------------------------------------ results


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the pixels of one input stand and how they are encoded.

    Attributes
    ----------
    path
        The file, as the user gave it.
    hdu
        Index of the HDU (0 is the primary).
    offset
        Byte offset of the first data byte in the *uncompressed* file; without use when
        ``compressed``.
    bitpix
        8, 16, 32, 64, -32 or -64; of the image itself when it is tile-compressed.
    channels, height, width
        Shape after axes of length 1 were dropped; ``channels`` is 1 for a 2-D image.
    bscale, bzero
        Physical value = ``bzero + bscale * stored``.
    blank
        Stored value (before scaling) that means "no data"; None if there is none, and always
        None for floating-point pixels, where NaN says it.
    compressed
        True for tile-compressed images and gzipped files, whose bytes cannot be read in place.
    """

    path: str
    hdu: int
    offset: int
    bitpix: int
    channels: int
    height: int
    width: int
    bscale: float = 1.0
    bzero: float = 0.0
    blank: int | None = None
    compressed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width


@dataclass(frozen=True, slots=True)
class Meta:
    """What the output header inherits from an input; None where the input does not say.

    Attributes
    ----------
    exptime
        Exposure, seconds (``EXPTIME``, else ``EXPOSURE``).
    stackcnt
        Single exposures in the image (``STACKCNT``, else ``NCOMBINE``, else 1).
    date_obs, date_end
        As written in the header.
    mjd_obs
        Start, days (``MJD-OBS``, else from ``DATE-OBS``).
    filter, object, telescop, instrume, bunit
        Strings without trailing blanks.
    """

    exptime: float | None = None
    stackcnt: int = 1
    date_obs: str | None = None
    date_end: str | None = None
    mjd_obs: float | None = None
    filter: str | None = None
    object: str | None = None
    telescop: str | None = None
    instrume: str | None = None
    bunit: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class InputImage:
    """One usable input.

    Attributes
    ----------
    name
        The path as the user gave it; what logs and the ``INPUTS`` table show.
    storage
        Where and how the pixels stand.
    wcs
        Two-dimensional celestial WCS, distortions included.  World axes keep the header's
        order: ``wcs.wcs.lng`` and ``wcs.wcs.lat`` tell which is which.
    meta
        What the output header inherits.
    warnings
        Sentences without the file's name.
    """

    name: str
    storage: Storage
    wcs: WCS
    meta: Meta
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An input that is not used, and the sentence (file: cause; remedy) that says why."""

    name: str
    reason: str


@dataclass(slots=True)
class Scan:
    """Outcome of :func:`scan_inputs`: usable images in job order, the others, and warnings."""

    images: list[InputImage] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class _UnusableError(Exception):
    """Why an HDU cannot be used; ``final`` when looking at further HDUs would do harm.

    A broken science image must not be replaced by the error plane that follows it, whereas an
    image without any WCS may well be a thumbnail in front of the real one.
    """

    def __init__(self, cause: str, remedy: str, *, final: bool = True) -> None:
        super().__init__(f"{cause}; {remedy}.")
        self.final = final


# -------------------------------------------------------------------------------------- names


@dataclass(frozen=True, slots=True)
class _Named:
    """One file of the expansion: found in a folder, or named by the user."""

    path: str
    from_directory: bool = False


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``img2`` stands before ``img10``; upper and lower case are equal."""
    parts = re.split(r"([0-9]+)", text)
    keys = ((0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts if p)
    return (*keys, (2, 0, text))


def _is_image_name(name: str) -> bool:
    """Whether a name found by scanning is an image; hidden files (``._x.fits``) never are."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _from_directory(folder: str, recursive: bool) -> list[_Named]:
    """Files of a folder in natural order, then those of its subfolders if asked."""
    found: list[_Named] = []
    for here, folders, files in os.walk(folder):
        names = sorted(filter(_is_image_name, files), key=natural_key)
        found += [_Named(os.path.join(here, name), True) for name in names]  # noqa: PTH118
        if not recursive:
            break
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=natural_key)
    if not found:
        raise InputError(
            f"{folder}: the folder holds no {', '.join(SUFFIXES[::3])} file; name another one"
            f"{'' if recursive else ', or add --recursive for its subfolders'}."
        )
    return found


def _from_glob(pattern: str) -> list[_Named]:
    """Image files that match a pattern, in natural order."""
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 (keeps the names as typed)
    names = [m for m in matches if _is_image_name(os.path.basename(m)) and os.path.isfile(m)]  # noqa: PTH113, PTH119
    if not names:
        raise InputError(f"{pattern}: no image matches; check the pattern and its folder.")
    return [_Named(name) for name in sorted(names, key=natural_key)]


def _from_list(arg: str, recursive: bool) -> Iterator[list[_Named] | Exception]:
    """Entries of an ``@list.txt``, each expanded on its own.

    Relative entries are looked for beside the list file first, since lists travel with their
    images, and in the working directory if they are not there.
    """
    listing = Path(arg[1:])
    try:
        lines = listing.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        yield _missing(arg[1:], error)
        return
    entries = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not entries:
        yield InputError(f"{arg[1:]}: the list names no file; write one name a line.")
    for entry in entries:
        beside = str(listing.parent / entry)
        is_there = os.path.exists(beside) or (glob.has_magic(entry) and glob.glob(beside))  # noqa: PTH110, PTH207
        yield _expand_one(beside if is_there else entry, recursive)


def _missing(path: str, error: OSError | None = None) -> FileNotFoundError | InputError:
    """Error for a name behind which nothing readable stands."""
    if error is None or isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{path}: there is no such file; check the name.")
    return InputError(f"{path}: cannot be read ({error.strerror or error}); check its permissions.")


def _expand_one(arg: str, recursive: bool) -> list[_Named] | Exception:
    """Files behind one argument that is not a list, or the error that says why there are none."""
    try:
        if os.path.isdir(arg):  # noqa: PTH112
            return _from_directory(arg, recursive)
        if os.path.exists(arg):  # noqa: PTH110 (before globbing: names may hold brackets)
            return [_Named(arg)]
        return _from_glob(arg) if glob.has_magic(arg) else _missing(arg)
    except InputError as error:
        return error


def _expand(args: Sequence[str], recursive: bool) -> Iterator[_Named | Exception]:
    """All files behind all arguments in job order, errors in their places."""
    for arg in map(os.fspath, args):
        parts = _from_list(arg, recursive) if arg.startswith("@") else [_expand_one(arg, recursive)]
        for part in parts:
            if isinstance(part, Exception):
                yield part
            else:
                yield from part


def _without_duplicates(
    entries: Sequence[_Named | Exception],
) -> tuple[list[_Named | Exception], list[str]]:
    """Drop the second and later mentions of a file; return the rest and a warning.

    The inode number decides first because resolving every path costs 50 times as much; a hard
    link (same inode, other real path) stays.
    """
    kept: list[_Named | Exception] = []
    again: list[str] = []
    seen: dict[tuple[int, int], set[str] | str] = {}
    for entry in entries:
        if isinstance(entry, _Named) and _seen_before(entry.path, seen):
            again.append(entry.path)
        else:
            kept.append(entry)
    if not again:
        return kept, []
    return kept, [f"{_and_others(again)}: named more than once, used once."]


def _seen_before(path: str, seen: dict[tuple[int, int], set[str] | str]) -> bool:
    """Whether the file was seen; remembers it.  ``seen`` holds a path until two share an inode."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return False
    inode = (status.st_dev, status.st_ino)
    known = seen.setdefault(inode, path)
    if known is path:
        return False
    real_paths = {os.path.realpath(known)} if isinstance(known, str) else known
    seen[inode] = real_paths
    real = os.path.realpath(path)
    was_there = real in real_paths
    real_paths.add(real)
    return was_there


def _and_others(names: Sequence[str], shown: int = 3) -> str:
    """Shorten a list of names to ``a, b, c and 7 others``."""
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} others"


def expand_inputs(args: Sequence[str], *, recursive: bool = False) -> tuple[list[str], list[str]]:
    """Turn files, folders, globs and ``@list.txt`` files into a list of file names.

    Parameters
    ----------
    args
        What the user typed.  Order is kept; within a folder or a glob names stand in natural
        order.  Folders and globs give only names that end in one of `SUFFIXES`; a file named
        outright is taken whatever its suffix.  List files hold one entry a line (file, folder
        or glob; blank lines and ``#`` lines are skipped), relative to the list file's folder,
        or else to the working directory.
    recursive
        Descend into subfolders.

    Returns
    -------
    paths, warnings
        Names without duplicates, and sentences about what was dropped.

    Raises
    ------
    FileNotFoundError
        A named file, or a list, does not exist.
    zmrs.errors.InputError
        An empty folder or list, or a glob without a match.
    """
    entries, notes = _without_duplicates(list(_expand(args, recursive)))
    paths: list[str] = []
    for entry in entries:
        if isinstance(entry, Exception):
            raise entry
        paths.append(entry.path)
    return paths, notes


# -------------------------------------------------------------------------------------- cards

_STRING = re.compile(r"'((?:[^']|'')*)'?")


class Cards:
    """The cards of one header, read leniently: what cannot be understood is as if absent.

    Dirty headers are the rule: cards without ``=``, ``HIERARCH``, ``CONTINUE``, bytes beyond
    ASCII.  Of a repeated keyword the first counts, except for the WCS (see `header_wcs`).

    Parameters
    ----------
    raw
        Header bytes without END, a multiple of 80 long.
    """

    __slots__ = ("_first", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        # Filled from behind, so that the first of equal keywords stays.
        last = len(raw) - _CARD_BYTES
        self._first = {raw[i : i + 8]: i for i in range(last, -1, -_CARD_BYTES)}

    def text(self, keyword: str) -> tuple[str, bool] | None:
        """Value as text and whether it was quoted; None if absent or undefined."""
        start = self._first.get(keyword.ljust(8).encode())
        if start is None:
            return None
        return card_text(self.raw[start : start + _CARD_BYTES])

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


# ------------------------------------------------------------------------------- bytes of a file


class _Source(Protocol):
    """Bytes of a file by position; ``size_bytes`` is None where only reading on would tell."""

    size_bytes: int | None

    def read_at(self, offset: int, count: int) -> bytes: ...


class _PlainSource:
    """An open file read by position."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.size_bytes: int | None = os.fstat(stream.fileno()).st_size

    def read_at(self, offset: int, count: int) -> bytes:
        self._stream.seek(offset)
        data: bytes = self._stream.read(count)
        return data


class _GzipSource:
    """A gzipped file, decompressed as far as asked.

    The last four bytes of a gzip member hold its size modulo 2**32.  If that is less than what
    a header promises, the file is either cut or made of several members: `holds` decompresses
    it all to know.
    """

    size_bytes: int | None = None

    def __init__(self, stream: Any) -> None:
        import gzip  # noqa: PLC0415 (most jobs never need it)

        stream.seek(-4, os.SEEK_END)
        self._claimed_bytes = int.from_bytes(stream.read(4), "little")
        stream.seek(0)
        self._stream = gzip.GzipFile(fileobj=stream)

    def read_at(self, offset: int, count: int) -> bytes:
        import zlib  # noqa: PLC0415

        try:
            self._stream.seek(offset)
            return self._stream.read(count)
        except (EOFError, zlib.error) as error:
            raise _UnusableError(
                f"its gzip data are cut or damaged ({error})", "copy the file again or leave it out"
            ) from error

    def missing_bytes(self, end: int) -> int:
        """How many bytes are missing before offset ``end``."""
        if self._claimed_bytes >= end:
            return 0
        import zlib  # noqa: PLC0415

        with contextlib.suppress(EOFError, OSError, zlib.error):
            self._stream.seek(end)
        return end - self._stream.tell()


@contextlib.contextmanager
def _open_source(path: str) -> Iterator[_PlainSource | _GzipSource]:
    """Open a file for reading by position; gzip is known by its magic, not by the name."""
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 (critical path)
        is_gzip = stream.read(2) == b"\x1f\x8b"
        yield _GzipSource(stream) if is_gzip else _PlainSource(stream)


def _read_header(source: _Source, offset: int) -> tuple[bytes, int] | None:
    """Header bytes without END, and the offset of the data; None if END never comes."""
    raw = b""
    searched = 0
    while len(raw) < _HEADER_MAX_BYTES:
        more = source.read_at(offset + len(raw), _HEADER_READ_BYTES)
        raw += more
        end = _find_end(raw, searched)
        if end >= 0:
            blocks = end // _BLOCK_BYTES + 1
            return raw[:end], offset + blocks * _BLOCK_BYTES
        if not more:
            return None
        searched = len(raw) // _CARD_BYTES * _CARD_BYTES
    return None


def _find_end(raw: bytes, start: int) -> int:
    """Position of the END card at or after ``start``, else -1."""
    position = raw.find(b"END", start)
    while position >= 0:
        card = raw[position : position + _CARD_BYTES]
        if position % _CARD_BYTES == 0 and not card[3:].strip(b" \0"):
            return position
        position = raw.find(b"END", position + 1)
    return -1


# --------------------------------------------------------------------------------------- HDUs


@dataclass(frozen=True, slots=True)
class _Hdu:
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
            raise _UnusableError(
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


def _walk(source: _Source) -> Iterator[_Hdu]:
    """All HDUs of a file, headers only; stops quietly at trailing junk."""
    if source.read_at(0, 9) != b"SIMPLE  =":
        raise _UnusableError("it is not a FITS file", "leave it out")
    offset = 0
    for index in range(_HDU_MAX):
        if index and source.read_at(offset, 9) != b"XTENSION=":
            return
        found = _read_header(source, offset)
        if found is None:
            raise _UnusableError(
                "truncated in the header (no END card)", "copy the file again or leave it out"
            )
        raw, data_offset = found
        cards = Cards(raw)
        hdu = _Hdu(index, cards, data_offset, _data_bytes(cards))
        yield hdu
        offset = data_offset + -(-hdu.data_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
        if source.size_bytes is not None and offset >= source.size_bytes:
            return


@dataclass(frozen=True, slots=True)
class _Sky:
    """What `_examine` found: the shape, and a WCS that maps it to the sky."""

    channels: int
    height: int
    width: int
    wcs: WCS
    notes: tuple[str, ...]


def _examine(hdu: _Hdu, path: str | None) -> _Sky:
    """Shape and WCS of an HDU; raises `_UnusableError` with the reason if it is of no use."""
    axes = hdu.axes if hdu.is_image else ()
    if not axes:
        raise _UnusableError("no image in it", "leave it out, or name the HDU", final=False)
    if 0 in axes:
        raise _UnusableError(f"its image has no pixels {axes}", "leave it out", final=False)
    kept = [n for n, length in enumerate(axes, start=1) if length > 1]
    if len(kept) not in (2, 3):
        raise _UnusableError(
            f"its image is {len(kept)}-D without axes of length 1, not 2-D or 3-D",
            "name another HDU or leave the file out",
            final=False,
        )
    wcs, notes = header_wcs(hdu.cards, kept, path=path, hdu=hdu.index)
    lengths = [axes[n - 1] for n in kept]
    width, height, channels = (*lengths, 1)[:3]
    wcs.pixel_shape = (width, height)
    return _Sky(channels, height, width, wcs, tuple(notes))


def _select(source: _Source, wanted: int | str | None, path: str) -> tuple[_Hdu, _Sky, Cards]:
    """First usable HDU, or the wanted one; also the primary header."""
    first_cause: _UnusableError | None = None
    primary: Cards | None = None
    for hdu in _walk(source):
        primary = primary or hdu.cards
        if wanted is not None and not _is_wanted(hdu, wanted):
            continue
        try:
            return hdu, _examine(hdu, path), primary
        except _UnusableError as cause:
            if wanted is not None or cause.final:
                raise
            # The first image explains the file best; that some HDU is no image says nothing.
            if hdu.is_image and hdu.axes:
                first_cause = first_cause or cause
    if wanted is not None:
        raise _UnusableError(f"it has no HDU {wanted}", "name another HDU or leave the file out")
    raise first_cause or _UnusableError("no image in it", "leave it out")


def _is_wanted(hdu: _Hdu, wanted: int | str) -> bool:
    """Whether an HDU is the one asked for, by number or (any case) by name."""
    if isinstance(wanted, str) and not wanted.isdecimal():
        return hdu.name.upper() == wanted.strip().upper()
    return hdu.index == int(wanted)


# ---------------------------------------------------------------------------------------- WCS

# Keywords of the primary coordinate description that wcslib or astropy use (FITS WCS papers I
# to III, the TPV convention, and AIPS' CROTA).  A card outside this list cannot change the sky.
_WCS_NUMBER = re.compile(
    rb"(?:WCSAXES|C(?:RVAL|RPIX|DELT|ROTA)\d{1,2}|(?:CD|PC|PV)\d{1,2}_\d{1,3}|PC\d{6}"
    rb"|LONPOLE|LATPOLE|EQUINOX|MJD-OBS|RESTFRQ|RESTFREQ|RESTWAV|VELOSYS|VELREF) *="
)
_WCS_STRING = re.compile(
    rb"(?:C(?:TYPE|UNIT)\d{1,2}|PS\d{1,2}_\d{1,3}|RADESYS|RADECSYS|DATE-OBS|SPECSYS) *="
)
_WCS_INITIALS = re.compile(
    rb"WCSA|C[DTRUPQ]|P[CVS]\d|LONP|LATP|EQUI|EPOC|MJD-O|RADE|REST|VELO|VELR|DATE-O|SPECS"
    rb"|[AB]P?_|D2IM|AXISC"
)
# EPOCH is a number in AIPS headers and a free string in others, which is no reason to refuse.
_WCS_EPOCH = re.compile(rb"EPOCH +=")
_SIP_NUMBER = re.compile(rb"[AB]P?_(?:ORDER|\d_\d) *=")
_LOOKUP = re.compile(rb"(?:C[PQ]DIS\d|D2IMDIS\d|D2IMARR|D2IM\dA?|AXISCORR) *=")
# Wrong in these, a number makes a wrong sky; in the others (MJD-OBS, …) it is only untidy.
_VITAL = re.compile(r"C(?:RVAL|RPIX|DELT|ROTA|D|\d)|PC|PV|LONPOLE|LATPOLE|[AB]P?_")

_REPAIR = "solve the image again or leave it out"


@dataclass(slots=True)
class _WcsCards:
    """The cards of a header that make its WCS, cleaned, and sorted by who deals with them."""

    core: list[bytes] = field(default_factory=list)
    sip_cards: list[bytes] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    sip: dict[str, float] = field(default_factory=dict)
    ctypes: dict[str, str] = field(default_factory=dict)
    has_lookup: bool = False
    notes: list[str] = field(default_factory=list)


def _collect(raw: bytes) -> _WcsCards:
    """Sort out the WCS cards.  Of repeated ones the last counts, as for wcslib."""
    found = _WcsCards()
    for start in range(0, len(raw), _CARD_BYTES):
        # One look at the first letters spares most cards of a long header the rest.
        if not _WCS_INITIALS.match(raw, start):
            continue
        card = raw[start : start + _CARD_BYTES]
        if _WCS_NUMBER.match(card):
            _add_number(found, card, found.core, found.numbers)
        elif _WCS_STRING.match(card):
            _add_string(found, card)
        elif _SIP_NUMBER.match(card):
            _add_number(found, card, found.sip_cards, found.sip)
        elif _WCS_EPOCH.match(card):
            value = card_text(card)
            if value and as_number(value[0]) is not None:
                found.core.append(card)
        elif _LOOKUP.match(card):
            found.has_lookup = True
    return found


def _add_string(found: _WcsCards, card: bytes) -> None:
    """Take a string card; CTYPEs are kept apart for the checks."""
    value = card_text(card)
    if value is None:
        return
    if card.startswith(b"CTYPE"):
        found.ctypes[card[:8].decode("latin-1").strip()] = value[0]
    found.core.append(card.decode("latin-1").encode("ascii", "replace"))


def _add_number(
    found: _WcsCards, card: bytes, cards: list[bytes], numbers: dict[str, float]
) -> None:
    """Take a numeric card, rewritten where wcslib would misread it.

    wcslib reads ``1.5D+02`` as 1.5 and a quoted number, NaN or inf as 0, without a word.
    """
    value = card_text(card)
    if value is None:
        return
    keyword = card[:8].decode("latin-1").strip()
    text, quoted = value
    number = as_number(text)
    if number is None or not math.isfinite(number):
        if _VITAL.match(keyword):
            raise _UnusableError(f"its {keyword} is not a finite number ({text!r})", _REPAIR)
        return
    if quoted:
        found.notes.append(f"{keyword} is a quoted string in the header; read as a number.")
    if quoted or "D" in text.upper():
        clean = repr(int(number)) if number.is_integer() else repr(number)
        card = f"{keyword:<8}= {clean:>20}".ljust(_CARD_BYTES).encode()
    numbers[keyword] = number
    cards.append(card)


def header_wcs(
    cards: Cards,
    kept_axes: Sequence[int] = (1, 2),
    *,
    path: str | None = None,
    hdu: int = 0,
) -> tuple[WCS, list[str]]:
    """Two-dimensional celestial WCS of a header.

    Parameters
    ----------
    cards
        The header.
    kept_axes
        FITS numbers (from 1) of the axes longer than 1, fastest first; the sky must lie on the
        first two.
    path, hdu
        Where the header comes from: distortion look-up tables stand in other HDUs of the file.

    Returns
    -------
    wcs, warnings
        The WCS without ``pixel_shape``, and sentences about what is odd in it.

    Notes
    -----
    SIP polynomials are attached by hand (FITS SIP convention, Shupe et al. 2005), since astropy
    takes 1.5 ms to find them among the cards.  Headers that have SIP *and* PV terms go to
    astropy as they are: it knows which of them are leftovers of SCAMP.
    """
    found = _collect(cards.raw)
    _check_ctypes(found, kept_axes)
    # SIP of order 1 or 0 is no distortion; astropy's own reading knows the rules for the rest.
    has_pv = any(k.startswith("PV") for k in found.numbers)
    odd = bool(found.sip) and (has_pv or not _sip_is_plain(found.sip))
    wcs = _astropy_wcs(found, path, hdu, with_sip=odd)
    if found.sip and wcs.sip is None and not odd:
        wcs.sip = _sip(found)
    _check_wcs(wcs)
    return wcs, found.notes + _sip_notes(wcs) + _matrix_notes(found)


def _check_ctypes(found: _WcsCards, kept_axes: Sequence[int]) -> None:
    """Refuse headers without sky axes, with the sky on other axes, or with IRAF distortions."""
    if not found.ctypes:
        raise _UnusableError(
            "no WCS in its header", "solve the image astrometrically or leave it out", final=False
        )
    codes = {key: ctype[5:8].strip("-") for key, ctype in found.ctypes.items()}
    sky_axes = {
        int(key[5:]): codes[key]
        for key, ctype in found.ctypes.items()
        if re.match(r"(?:RA--|DEC-|[A-Z]LON|[A-Z]LAT|[A-Z]{2}L[NT])", ctype)
    }
    if len(sky_axes) < 2:
        raise _UnusableError(
            f"its WCS is not celestial ({', '.join(found.ctypes.values())})",
            "name another HDU or leave the file out",
            final=False,
        )
    if not set(sky_axes) <= set(kept_axes[:2]):
        raise _UnusableError(
            f"its sky axes {sorted(sky_axes)} are not the first two axes longer than 1",
            "reorder the axes or leave the file out",
            final=False,
        )
    for code in sky_axes.values():
        if code in {"TNX", "ZPX"}:
            raise _UnusableError(
                f"its WCS has an IRAF -{code} distortion, which is not supported",
                "convert it to TPV or SIP, or solve the image again",
            )
    systems = {found.ctypes[f"CTYPE{n}"][:4] for n in sky_axes}
    if systems not in ({"RA--", "DEC-"}, {"GLON", "GLAT"}):
        raise _UnusableError(
            f"its sky system ({', '.join(sorted(systems))}) is neither equatorial nor galactic",
            "reproject it to ICRS first or leave it out",
        )
    missing = [f"CRVAL{n}" for n in sky_axes if f"CRVAL{n}" not in found.numbers]
    if missing:
        raise _UnusableError(f"its WCS lacks {' and '.join(sorted(missing))}", _REPAIR)
    if not any(re.match(r"CD|PC", key) for key in found.numbers):
        raise _UnusableError("its WCS gives no pixel scale (no CD, no CDELT)", _REPAIR)
    i, j = sorted(sky_axes)
    cd = [found.numbers.get(f"CD{row}_{column}", 0.0) for row in (i, j) for column in (i, j)]
    # wcslib quietly puts 1 degree on the diagonal of a row that is all 0.
    has_cd = any(key.startswith("CD") and "_" in key for key in found.numbers)
    if has_cd and not (any(cd[:2]) and any(cd[2:])):
        raise _UnusableError("its CD matrix is singular", _REPAIR)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence astropy: what matters in its warnings is said by us, once and with a name."""
    log = logging.getLogger("astropy")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def _astropy_wcs(found: _WcsCards, path: str | None, hdu: int, *, with_sip: bool) -> WCS:
    """Let astropy make the WCS of the cleaned cards and reduce it to the two sky axes."""
    from astropy.wcs import WCS, Wcsprm  # noqa: PLC0415 (0.8 s to import)

    header = b"".join(found.core + (found.sip_cards if with_sip else []))
    with _quiet():
        try:
            if found.has_lookup and path is not None:
                wcs = _wcs_with_tables(path, hdu)
            elif not with_sip and not _may_be_scamp(found):
                # WCS(header) does the same after taking the header apart twice, for 0.6 ms
                # instead of 0.06: what it looks for there is known to be absent.
                core = Wcsprm(header=header, relax=True)
                wcs = WCS(naxis=core.naxis)
                wcs.wcs = core
                wcs.fix()
                wcs.wcs.set()
            else:
                # Reducing the axes early hides SCAMP's leftovers from astropy: only if need be.
                is_cube = with_sip and _declares_more_axes(found)
                wcs = WCS(header, naxis=2 if is_cube else None)
            if wcs.naxis != 2:
                wcs = wcs.celestial
        # wcslib and astropy raise a dozen unrelated classes for bad headers, TypeError included.
        except Exception as error:
            raise _UnusableError(f"its WCS is invalid ({_last_line(error)})", _REPAIR) from error
    if wcs.naxis != 2 or not wcs.has_celestial:
        raise _UnusableError("its WCS is not celestial", _REPAIR, final=False)
    return wcs


def _may_be_scamp(found: _WcsCards) -> bool:
    """Whether there are PV terms without -TPV: before 2012 SCAMP wrote TPV as TAN."""
    has_pv = any(key.startswith("PV") for key in found.numbers)
    return has_pv and not all(ctype.endswith("-TPV") for ctype in found.ctypes.values())


def _declares_more_axes(found: _WcsCards) -> bool:
    """Whether the header describes axes beyond the second."""
    return "CTYPE3" in found.ctypes or found.numbers.get("WCSAXES", 2) > 2


def _wcs_with_tables(path: str, hdu: int) -> WCS:
    """WCS with look-up table distortions, which stand in other HDUs of the file."""
    from astropy.io import fits  # noqa: PLC0415
    from astropy.wcs import WCS  # noqa: PLC0415

    with fits.open(path, memmap=False) as hdus:
        return WCS(hdus[hdu].header, fobj=hdus, naxis=2)


def _last_line(error: Exception) -> str:
    """Last line of a message without its full stop: wcslib puts its own source lines first."""
    lines = str(error).strip().splitlines()
    return lines[-1].rstrip(".") if lines else type(error).__name__


def _sip_is_plain(sip: Mapping[str, float]) -> bool:
    """Whether the SIP terms can be taken as they stand: A and B, orders 2 to 9, all integers."""
    orders = {key[:-6]: value for key, value in sip.items() if key.endswith("_ORDER")}
    complete = {"A", "B"} <= set(orders) and ("AP" in orders) == ("BP" in orders)
    return complete and all(v.is_integer() and 2 <= v <= 9 for v in orders.values())


def _sip(found: _WcsCards) -> Any:
    """Astropy's SIP object from the collected coefficients."""
    import numpy as np  # noqa: PLC0415
    from astropy.wcs import Sip  # noqa: PLC0415

    def matrix(stem: str) -> Any:
        if f"{stem}_ORDER" not in found.sip:
            return None
        order = int(found.sip[f"{stem}_ORDER"])
        values = np.zeros((order + 1, order + 1))
        for i in range(order + 1):
            for j in range(order + 1 - i):
                values[i, j] = found.sip.get(f"{stem}_{i}_{j}", 0.0)
        return values

    origin = (found.numbers.get("CRPIX1", 0.0), found.numbers.get("CRPIX2", 0.0))
    return Sip(matrix("A"), matrix("B"), matrix("AP"), matrix("BP"), origin)


def _check_wcs(wcs: WCS) -> None:
    """Refuse a matrix without an inverse."""
    (a, b), (c, d) = wcs.pixel_scale_matrix.tolist()
    scale2 = a * a + b * b + c * c + d * d
    # The ratio of the axes may be extreme (long slits), a ratio of 1e8 is a mistake.
    if not math.isfinite(scale2) or abs(a * d - b * c) <= 1e-8 * scale2 or scale2 == 0:
        raise _UnusableError("its CD matrix is singular", _REPAIR)


def _sip_notes(wcs: WCS) -> list[str]:
    """Say loudly where header and distortion contradict each other."""
    if wcs.sip is None or all(ctype.endswith("-SIP") for ctype in wcs.wcs.ctype):
        return []
    return ["SIP coefficients but CTYPE lacks -SIP; the distortion IS applied, as astropy does."]


def _matrix_notes(found: _WcsCards) -> list[str]:
    """Say which matrix counts when a header has two."""
    if not any(k.startswith("CD1_") for k in found.numbers):
        return []
    if not any(k.startswith("PC") for k in found.numbers):
        return []
    return ["header has both CDi_j and PCi_j; the CD matrix is used."]


# ------------------------------------------------------------------------------------ one file


def _storage(path: str, hdu: _Hdu, sky: _Sky, source: _Source) -> tuple[Storage, list[str]]:
    """Where the pixels stand; raises if they are not all there or not decodable."""
    if hdu.bitpix not in _BITPIX:
        raise _UnusableError(f"its BITPIX {hdu.bitpix} is not one of FITS", "leave it out")
    _check_length(hdu, source)
    bscale, bzero = hdu.cards.number("BSCALE"), hdu.cards.number("BZERO")
    if bscale == 0:
        raise _UnusableError("its BSCALE is 0", "repair the header or leave it out")
    blank, notes = _blank(hdu)
    storage = Storage(
        path=path,
        hdu=hdu.index,
        offset=hdu.data_offset,
        bitpix=hdu.bitpix,
        channels=sky.channels,
        height=sky.height,
        width=sky.width,
        bscale=1.0 if bscale is None else bscale,
        bzero=0.0 if bzero is None else bzero,
        blank=blank,
        compressed=hdu.is_tiled or isinstance(source, _GzipSource),
    )
    return storage, notes


def _check_length(hdu: _Hdu, source: _Source) -> None:
    """Compare what the header promises with what the file holds; missing padding is no harm."""
    end = hdu.data_offset + hdu.data_bytes
    if isinstance(source, _GzipSource):
        missing = source.missing_bytes(end)
    else:
        missing = end - (end if source.size_bytes is None else source.size_bytes)
    if missing > 0:
        raise _UnusableError(
            f"truncated: header promises {end} bytes, the file has {end - missing}",
            "copy the file again or leave it out",
        )


def _blank(hdu: _Hdu) -> tuple[int | None, list[str]]:
    """BLANK of an integer image.

    The standard wants an integer; ``-32768.0`` is met (HiPS tiles) and plainly means -32768.
    """
    keyword = "ZBLANK" if hdu.is_tiled and hdu.cards.text("BLANK") is None else "BLANK"
    found = hdu.cards.text(keyword)
    if hdu.bitpix < 0 or found is None:
        return None, []
    blank = hdu.cards.integer(keyword)
    if blank is None:
        return None, [f"{keyword} is not an integer ({found[0]!r}) and is ignored."]
    if found[0].lstrip("+-").isdecimal():
        return blank, []
    return blank, [f"{keyword} {found[0]!r} is not an integer; read as {blank}."]


def _meta(cards: Cards, primary: Cards, wcs: WCS) -> Meta:
    """Collect what the output inherits; what the extension does not say, the primary may."""

    def first(read: Callable[[Cards, str], Any], *keywords: str) -> Any:
        values = (read(c, k) for c in (cards, primary) for k in keywords)
        return next((v for v in values if v is not None), None)

    def string(keyword: str) -> str | None:
        value: str | None = first(Cards.string, keyword)
        return value

    count = first(Cards.integer, "STACKCNT")
    count = first(Cards.integer, "NCOMBINE") if count is None else count
    mjd = first(Cards.number, "MJD-OBS")
    if mjd is None and math.isfinite(wcs.wcs.mjdobs):
        mjd = float(wcs.wcs.mjdobs)
    return Meta(
        exptime=first(Cards.number, "EXPTIME", "EXPOSURE"),
        stackcnt=count if count and count > 0 else 1,
        date_obs=string("DATE-OBS"),
        date_end=string("DATE-END"),
        mjd_obs=mjd,
        filter=string("FILTER"),
        object=string("OBJECT"),
        telescop=string("TELESCOP"),
        instrume=string("INSTRUME"),
        bunit=string("BUNIT"),
    )


def _scan_file(path: str, hdu: int | str | None, from_directory: bool) -> InputImage:
    """Scan one file; raises `_UnusableError` or OSError if it is of no use."""
    with _open_source(path) as source:
        chosen, sky, primary = _select(source, hdu, path)
        if from_directory and primary.string("SOFTNAME") == _SOFTNAME:
            raise _UnusableError(
                "it is a mosaic made by zmrs", "name the file itself if it is meant as an input"
            )
        storage, notes = _storage(path, chosen, sky, source)
    meta = _meta(chosen.cards, primary, sky.wcs)
    return InputImage(path, storage, sky.wcs, meta, (*sky.notes, *notes))


def scan_image(
    path: str | os.PathLike[str], hdu: int | str | None = None, *, from_directory: bool = False
) -> InputImage | LeftOut:
    """Read the headers of one file and say where its image stands, in pixels and on the sky.

    Parameters
    ----------
    path
        A FITS file, plain, gzipped, or with a tile-compressed image.
    hdu
        Number or name (``EXTNAME``, any case) of the HDU; None takes the first image that is
        2-D or 3-D without axes of length 1 and has a celestial WCS.
    from_directory
        The file was found in a scanned folder: zmrs's own mosaics are then left out.

    Returns
    -------
    InputImage or LeftOut
        Never raises for a bad file.
    """
    name = os.fspath(path)
    try:
        return _scan_file(name, hdu, from_directory)
    except FileNotFoundError:
        return LeftOut(name, str(_missing(name)))
    except IsADirectoryError:
        return LeftOut(name, f"{name}: it is a folder, not a file; name the files in it.")
    except OSError as error:
        cause = error.strerror or str(error)
        return LeftOut(name, f"{name}: cannot be read ({cause}); check it or leave it out.")
    except _UnusableError as error:
        return LeftOut(name, f"{name}: {error}")


def scan_inputs(args: Sequence[str], hdu: int | str | None = None, recursive: bool = False) -> Scan:
    """Expand the arguments and scan every file behind them.

    Parameters
    ----------
    args, recursive
        As for `expand_inputs`.
    hdu
        As for `scan_image`.

    Returns
    -------
    Scan
        Arguments behind which nothing stands (missing file, empty folder) are among
        ``left_out``; equal warnings of many images are one sentence.
    """
    scan = Scan()
    entries, scan.warnings = _without_duplicates(list(_expand(args, recursive)))
    notes: dict[str, list[str]] = {}
    for entry in entries:
        if isinstance(entry, Exception):
            scan.left_out.append(LeftOut(str(entry).split(": ", 1)[0], str(entry)))
            continue
        result = scan_image(entry.path, hdu, from_directory=entry.from_directory)
        if isinstance(result, LeftOut):
            scan.left_out.append(result)
            continue
        scan.images.append(result)
        for note in result.warnings:
            notes.setdefault(note, []).append(result.name)
    scan.warnings += [f"{_and_others(names)}: {note}" for note, names in notes.items()]
    return scan


def scan_template(path: str | os.PathLike[str]) -> tuple[WCS, tuple[int, int]]:
    """WCS and (height, width) of a template: a FITS file, or a header as plain text.

    Parameters
    ----------
    path
        FITS (the pixels may be missing), or text with one card a line, as Montage's ``.hdr``.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    zmrs.errors.InputError
        It holds no image size or no celestial WCS.
    """
    name = os.fspath(path)
    try:
        with _open_source(name) as source:
            if isinstance(source, _PlainSource) and b"\n" in source.read_at(0, _CARD_BYTES + 1):
                sky = _examine(_text_header(source), None)
            else:
                _, sky, _ = _select(source, None, name)
    except FileNotFoundError:
        raise _missing(name) from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error}); name another template.") from error
    except _UnusableError as error:
        raise InputError(f"{name}: not a usable template: {error}") from error
    return sky.wcs, (sky.height, sky.width)


def _text_header(source: _PlainSource) -> _Hdu:
    """Header written one card a line, up to END or the end of the file."""
    lines = source.read_at(0, _HEADER_MAX_BYTES).splitlines()
    cards = []
    for line in lines:
        if line.rstrip() == b"END":
            break
        cards.append(line[:_CARD_BYTES].ljust(_CARD_BYTES))
    return _Hdu(0, Cards(b"".join(cards)), 0, 0)
