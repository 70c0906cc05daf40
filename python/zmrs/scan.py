"""From what the user typed to the list of usable images, reading headers only.

Names come from `zmrs.io.names`, cards and HDUs from `zmrs.io.headers`, the WCS from `zmrs.io.wcs`;
here the HDU is chosen and the place of its pixels found.  A bad input never raises: it becomes a
:class:`LeftOut` whose reason is one sentence.  No header is kept.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zmrs.errors import InputError
from zmrs.io.headers import (
    CARD_BYTES,
    HEADER_MAX_BYTES,
    Cards,
    GzipSource,
    Hdu,
    PlainSource,
    Source,
    UnusableError,
    open_source,
    walk,
)
from zmrs.io.names import (
    and_others,
    expand,
    expand_inputs,
    natural_key,
    unreadable,
    without_duplicates,
)
from zmrs.io.wcs import header_wcs

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
    "natural_key",
    "scan_image",
    "scan_inputs",
    "scan_template",
]

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
    """An input that is not used, and the sentence (file: cause; remedy) that says why.

    ``is_missing`` when there is no such file; ``is_own`` when it is a mosaic of zmrs's that stood
    in a scanned folder, which is no fault of the input.
    """

    name: str
    reason: str
    is_missing: bool = False
    is_own: bool = False


@dataclass(slots=True)
class Scan:
    """Outcome of :func:`scan_inputs`: usable images in job order, the others, and warnings."""

    images: list[InputImage] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------- choosing the HDU


@dataclass(frozen=True, slots=True)
class _Sky:
    """What `_examine` found: the shape, and a WCS that maps it to the sky."""

    channels: int
    height: int
    width: int
    wcs: WCS
    notes: tuple[str, ...]


def _examine(hdu: Hdu, path: str | None) -> _Sky:
    """Shape and WCS of an HDU; raises `UnusableError` with the reason if it is of no use."""
    axes = hdu.axes if hdu.is_image else ()
    if not axes:
        raise UnusableError("no image in it", "leave it out, or name the HDU", final=False)
    if 0 in axes:
        raise UnusableError(f"its image has no pixels {axes}", "leave it out", final=False)
    kept = [n for n, length in enumerate(axes, start=1) if length > 1]
    if len(kept) not in (2, 3):
        raise UnusableError(
            f"its image is {len(kept)}-D without axes of length 1, not 2-D or 3-D",
            "name another HDU or leave the file out",
            final=False,
        )
    wcs, notes = header_wcs(hdu.cards, kept, path=path, hdu=hdu.index)
    lengths = [axes[n - 1] for n in kept]
    width, height, channels = (*lengths, 1)[:3]
    wcs.pixel_shape = (width, height)
    return _Sky(channels, height, width, wcs, tuple(notes))


def _select(source: Source, wanted: int | str | None, path: str) -> tuple[Hdu, _Sky, Cards]:
    """First usable HDU, or the wanted one; also the primary header."""
    first_cause: UnusableError | None = None
    primary: Cards | None = None
    for hdu in walk(source):
        primary = primary or hdu.cards
        if wanted is not None and not _is_wanted(hdu, wanted):
            continue
        try:
            return hdu, _examine(hdu, path), primary
        except UnusableError as cause:
            if wanted is not None or cause.final:
                raise
            # The first image explains the file best; that some HDU is no image says nothing.
            if hdu.is_image and hdu.axes:
                first_cause = first_cause or cause
    if wanted is not None:
        raise UnusableError(f"it has no HDU {wanted}", "name another HDU or leave the file out")
    raise first_cause or UnusableError("no image in it", "leave it out")


def _is_wanted(hdu: Hdu, wanted: int | str) -> bool:
    """Whether an HDU is the one asked for, by number or (any case) by name."""
    if isinstance(wanted, str) and not wanted.isdecimal():
        return hdu.name.upper() == wanted.strip().upper()
    return hdu.index == int(wanted)


# ------------------------------------------------------------------------------------ one file


def _storage(path: str, hdu: Hdu, sky: _Sky, source: Source) -> tuple[Storage, list[str]]:
    """Where the pixels stand; raises if they are not all there or not decodable."""
    if hdu.bitpix not in _BITPIX:
        raise UnusableError(f"its BITPIX {hdu.bitpix} is not one of FITS", "leave it out")
    _check_length(hdu, source)
    bscale, bzero = hdu.cards.number("BSCALE"), hdu.cards.number("BZERO")
    if bscale == 0:
        raise UnusableError("its BSCALE is 0", "repair the header or leave it out")
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
        compressed=hdu.is_tiled or isinstance(source, GzipSource),
    )
    return storage, notes


def _check_length(hdu: Hdu, source: Source) -> None:
    """Compare what the header promises with what the file holds; missing padding is no harm."""
    end = hdu.data_offset + hdu.data_bytes
    if isinstance(source, GzipSource):
        missing = source.missing_bytes(end)
    else:
        missing = end - (end if source.size_bytes is None else source.size_bytes)
    if missing > 0:
        raise UnusableError(
            f"truncated: header promises {end} bytes, the file has {end - missing}",
            "copy the file again or leave it out",
        )


def _blank(hdu: Hdu) -> tuple[int | None, list[str]]:
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


def meta_of(cards: Cards, primary: Cards, wcs: WCS) -> Meta:
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
        exptime=first(Cards.number, "EXPTIME", "EXPOSURE", "EXPTOTAL"),
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


class _OwnMosaicError(UnusableError):
    """A mosaic of zmrs's own in a scanned folder: an output of before, most likely."""


def _scan_file(path: str, hdu: int | str | None, from_directory: bool) -> InputImage:
    """Scan one file; raises `UnusableError` or OSError if it is of no use."""
    with open_source(path) as source:
        chosen, sky, primary = _select(source, hdu, path)
        if from_directory and primary.string("SOFTNAME") == _SOFTNAME:
            raise _OwnMosaicError(
                "it is a mosaic made by zmrs", "name the file itself if it is meant as an input"
            )
        storage, notes = _storage(path, chosen, sky, source)
    meta = meta_of(chosen.cards, primary, sky.wcs)
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
        return LeftOut(name, str(unreadable(name)), is_missing=True)
    except IsADirectoryError:
        return LeftOut(name, f"{name}: it is a folder, not a file; name the files in it.")
    except OSError as error:
        cause = error.strerror or str(error)
        return LeftOut(name, f"{name}: cannot be read ({cause}); check it or leave it out.")
    except UnusableError as error:
        own = isinstance(error, _OwnMosaicError)
        return LeftOut(name, f"{name}: {error}", is_own=own)


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
    entries, scan.warnings = without_duplicates(list(expand(args, recursive)))
    notes: dict[str, list[str]] = {}
    for entry in entries:
        if isinstance(entry, Exception):
            name, missing = str(entry).split(": ", 1)[0], isinstance(entry, FileNotFoundError)
            scan.left_out.append(LeftOut(name, str(entry), is_missing=missing))
            continue
        result = scan_image(entry.path, hdu, from_directory=entry.from_directory)
        if isinstance(result, LeftOut):
            scan.left_out.append(result)
            continue
        scan.images.append(result)
        for note in result.warnings:
            notes.setdefault(note, []).append(result.name)
    scan.warnings += [f"{and_others(names)}: {note}" for note, names in notes.items()]
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
        with open_source(name) as source:
            if isinstance(source, PlainSource) and b"\n" in source.read_at(0, CARD_BYTES + 1):
                sky = _examine(_text_header(source), None)
            else:
                _, sky, _ = _select(source, None, name)
    except FileNotFoundError:
        raise unreadable(name) from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error}); name another template.") from error
    except UnusableError as error:
        raise InputError(f"{name}: not a usable template: {error}") from error
    return sky.wcs, (sky.height, sky.width)


def _text_header(source: PlainSource) -> Hdu:
    """Header written one card a line, up to END or the end of the file."""
    lines = source.read_at(0, HEADER_MAX_BYTES).splitlines()
    cards = []
    for line in lines:
        if line.rstrip() == b"END":
            break
        cards.append(line[:CARD_BYTES].ljust(CARD_BYTES))
    return Hdu(0, Cards(b"".join(cards)), 0, 0)
