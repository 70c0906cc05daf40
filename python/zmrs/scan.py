"""From what the user typed to the list of usable images, reading headers only.

Names come from `zmrs.io.names`, cards and HDUs from `zmrs.io.headers`, the WCS from `zmrs.io.wcs`,
the place of pixels from `zmrs.io.storage`, that of weights from `zmrs.weight_maps`; here the HDU is
chosen.  A bad input never raises: it becomes a
:class:`LeftOut` whose reason is one sentence.  No header is kept.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zmrs.errors import InputError
from zmrs.io.headers import (
    CARD_BYTES,
    HEADER_MAX_BYTES,
    Cards,
    Hdu,
    NoSkyError,
    PlainSource,
    Source,
    UnusableError,
    open_source,
    text_cards,
    walk,
)
from zmrs.io.names import (
    Named,
    and_others,
    expand,
    expand_inputs,
    natural_key,
    unreadable,
    without_duplicates,
)
from zmrs.io.storage import Storage, storage_of
from zmrs.io.wcs import header_wcs
from zmrs.weight_maps import WeightMap, file_beside, find_weights, is_named
from zmrs.weight_rule import WeightRule, weight_rule

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = [
    "Cards",
    "InputImage",
    "LeftOut",
    "Meta",
    "Scan",
    "Solved",
    "Storage",
    "Unsolved",
    "expand_inputs",
    "header_wcs",
    "left_out_for",
    "natural_key",
    "scan_image",
    "scan_inputs",
    "scan_template",
    "scan_unsolved",
    "warnings_of",
]

_SOFTNAME = "zmrs"
_ALPHA = weight_rule(None, "weight")
# Where the programs that stack say how many exposures they have stacked, best first.
_FRAME_COUNTS = ("MT_NFRAMES", "ZMT_NALGN", "ZMT_NRAW", "NRAWPROC", "NRAWINIT")


# ------------------------------------------------------------------------------------ results


@dataclass(frozen=True, slots=True)
class Meta:
    """What the output header inherits from an input; None where the input does not say.

    Attributes
    ----------
    exptime
        Exposure, seconds (``EXPTIME``, else ``EXPOSURE``).
    stackcnt
        Single exposures in the image (``STACKCNT``, else ``NCOMBINE``, else 1).
    n_frames
        The same as ZeMosaic counts them (the first above 0 of ``MT_NFRAMES``, ``ZMT_NALGN``,
        ``ZMT_NRAW``, ``NRAWPROC``, ``NRAWINIT``, else `stackcnt`).
    saturate
        Value from which on pixels are saturated (``SATURATE``).
    binning
        Pixels of the camera in one of the image, along x and y (``XBINNING``, ``YBINNING``).
    date_obs, date_end
        As written in the header.
    mjd_obs
        Start, days (``MJD-OBS``, else from ``DATE-OBS``).
    filter, object, telescop, instrume, bunit
        Strings without trailing blanks.
    """

    exptime: float | None = None
    stackcnt: int = 1
    n_frames: float = 1.0
    saturate: float | None = None
    binning: tuple[int, int] | None = None
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
    weights
        The weights of its pixels, if it has any.
    solution
        Digest of the solution that is its WCS; None when that is the header's own.
    imprint
        Digest of its headers, with the length of the file: equal for copies; empty if not known.
    """

    name: str
    storage: Storage
    wcs: WCS
    meta: Meta
    warnings: tuple[str, ...] = ()
    weights: WeightMap | None = None
    solution: str | None = None
    imprint: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An input that is not used, and the sentence (file: cause; remedy) that says why.

    ``is_missing`` when there is no such file; ``is_own`` when that is no fault of the input: it is
    a mosaic of zmrs's that stood in a scanned folder, the weights of another input, or what the
    user's own condition leaves out; ``unsolved_hdu`` is the index of the HDU that lacks nothing but
    a celestial WCS.
    """

    name: str
    reason: str
    is_missing: bool = False
    is_own: bool = False
    unsolved_hdu: int | None = None


@dataclass(frozen=True, slots=True)
class Unsolved:
    """An image that lacks nothing but a celestial WCS: its pixels, and what its headers say."""

    storage: Storage
    cards: Cards
    primary: Cards


@dataclass(frozen=True, slots=True)
class Solved:
    """The cards of a WCS that is not the header's own, and their digest."""

    cards: Cards
    digest: str


@dataclass(slots=True)
class Scan:
    """Outcome of :func:`scan_inputs`.

    Attributes
    ----------
    results
        Usable images in job order, and between them those that are not.
    remarks
        Sentences about the arguments.
    """

    results: list[InputImage | LeftOut] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def images(self) -> list[InputImage]:
        """The usable ones."""
        return [result for result in self.results if isinstance(result, InputImage)]

    @property
    def left_out(self) -> list[LeftOut]:
        """The others."""
        return [result for result in self.results if isinstance(result, LeftOut)]

    @property
    def warnings(self) -> list[str]:
        """The remarks, and what is odd in the images."""
        return self.remarks + warnings_of(self.images)


def warnings_of(images: Iterable[InputImage]) -> list[str]:
    """What is odd in images: equal warnings of many are one sentence."""
    notes: dict[str, list[str]] = {}
    for image in images:
        for note in image.warnings:
            notes.setdefault(note, []).append(image.name)
    return [f"{and_others(names)}: {note}" for note, names in notes.items()]


# ------------------------------------------------------------------------------- choosing the HDU


@dataclass(frozen=True, slots=True)
class _Sky:
    """What `_examine` found: the shape, and a WCS that maps it to the sky."""

    channels: int
    height: int
    width: int
    wcs: WCS
    notes: tuple[str, ...]


def _shape(hdu: Hdu) -> tuple[list[int], tuple[int, int, int]]:
    """FITS numbers of the axes longer than 1, and (channels, height, width) of an image."""
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
    lengths = [axes[n - 1] for n in kept]
    width, height, channels = (*lengths, 1)[:3]
    return kept, (channels, height, width)


def _examine(hdu: Hdu, path: str | None, solved: Solved | None = None) -> _Sky:
    """Shape and WCS of an HDU; raises `UnusableError` with the reason if it is of no use."""
    kept, (channels, height, width) = _shape(hdu)
    if solved is None:
        wcs, notes = header_wcs(hdu.cards, kept, path=path, hdu=hdu.index)
    else:
        wcs, notes = header_wcs(Cards(solved.cards.raw + _dates(hdu.cards.raw)))
    wcs.pixel_shape = (width, height)
    return _Sky(channels, height, width, wcs, tuple(notes))


def _dates(raw: bytes) -> bytes:
    """The cards that say when an image was taken, which a WCS keeps beside its axes."""
    cards = (raw[start : start + CARD_BYTES] for start in range(0, len(raw), CARD_BYTES))
    return b"".join(card for card in cards if re.match(rb"(?:DATE|MJD)-OBS *=", card))


class _Hdus:
    """The HDUs of a file, to go through more than once: each header is read when first needed."""

    def __init__(self, source: Source) -> None:
        self._walk = walk(source)
        self._seen: list[Hdu] = []

    def __iter__(self) -> Iterator[Hdu]:
        yield from self._seen
        for hdu in self._walk:
            self._seen.append(hdu)
            yield hdu


def _select(
    hdus: Iterable[Hdu], wanted: int | str | None, path: str, solved: Solved | None = None
) -> tuple[Hdu, _Sky, Cards]:
    """First usable HDU, or the wanted one; also the primary header."""
    first_cause: UnusableError | None = None
    primary: Cards | None = None
    for hdu in hdus:
        primary = primary or hdu.cards
        if wanted is not None and not is_named(hdu, wanted):
            continue
        try:
            return hdu, _examine(hdu, path, solved), primary
        except UnusableError as cause:
            if wanted is not None or cause.final:
                raise
            # The first image explains the file best; that some HDU is no image says nothing.
            if hdu.is_image and hdu.axes:
                first_cause = first_cause or cause
    if wanted is not None:
        raise UnusableError(f"it has no HDU {wanted}", "name another HDU or leave the file out")
    raise first_cause or UnusableError("no image in it", "leave it out")


# ------------------------------------------------------------------------------------ one file


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
    count = count if count and count > 0 else 1
    frames = (c.number(k) for c in (cards, primary) for k in _FRAME_COUNTS)
    saturate = first(Cards.number, "SATURATE")
    across, down = first(Cards.integer, "XBINNING"), first(Cards.integer, "YBINNING")
    mjd = first(Cards.number, "MJD-OBS")
    if mjd is None and math.isfinite(wcs.wcs.mjdobs):
        mjd = float(wcs.wcs.mjdobs)
    return Meta(
        exptime=first(Cards.number, "EXPTIME", "EXPOSURE", "EXPTOTAL"),
        stackcnt=count,
        n_frames=next((n for n in frames if n is not None and n > 0), float(count)),
        saturate=saturate if saturate is not None and saturate > 0 else None,
        binning=None if across is None else (across, down or across),
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


def _scan_file(
    path: str,
    hdu: int | str | None,
    from_directory: bool,
    rule: WeightRule,
    solved: Solved | None,
) -> InputImage:
    """Scan one file; raises `UnusableError` or OSError if it is of no use."""
    with open_source(path) as source:
        hdus = _Hdus(source)
        chosen, sky, primary = _select(hdus, hdu, path, solved)
        if from_directory and primary.string("SOFTNAME") == _SOFTNAME:
            raise _OwnMosaicError(
                "it is a mosaic made by zmrs", "name the file itself if it is meant as an input"
            )
        storage, notes = storage_of(path, chosen, (sky.channels, sky.height, sky.width), source)
        weights, more_notes = find_weights(rule, storage, hdus, source)
        imprint = _imprint(primary, chosen.cards, source)
    meta = meta_of(chosen.cards, primary, sky.wcs)
    warnings = (*sky.notes, *notes, *more_notes)
    digest = None if solved is None else solved.digest
    return InputImage(path, storage, sky.wcs, meta, warnings, weights, digest, imprint)


def _imprint(primary: Cards, cards: Cards, source: Source) -> str:
    """What copies of a file have in common, from what has been read of it."""
    digest = hashlib.blake2b(primary.raw + cards.raw, digest_size=16)
    digest.update(str(source.size_bytes).encode())
    return digest.hexdigest()


def scan_image(
    path: str | os.PathLike[str],
    hdu: int | str | None = None,
    *,
    from_directory: bool = False,
    rule: WeightRule = _ALPHA,
    solved: Solved | None = None,
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
    rule
        Where its weights are.
    solved
        The WCS of the HDU, in the place of that of its header.

    Returns
    -------
    InputImage or LeftOut
        Never raises for a bad file.
    """
    name = os.fspath(path)
    try:
        return _scan_file(name, hdu, from_directory, rule, solved)
    except (OSError, UnusableError) as error:
        return left_out_for(name, error)


def left_out_for(name: str, error: OSError | UnusableError) -> LeftOut:
    """The input that cannot be used for this error."""
    match error:
        case FileNotFoundError():
            return LeftOut(name, str(unreadable(name)), is_missing=True)
        case IsADirectoryError():
            return LeftOut(name, f"{name}: it is a folder, not a file; name the files in it.")
        case OSError():
            cause = error.strerror or str(error)
            return LeftOut(name, f"{name}: cannot be read ({cause}); check it or leave it out.")
        case NoSkyError():
            reason = f"{name}: {error.cause}; let --solver look for one, or leave it out."
            return LeftOut(name, reason, unsolved_hdu=error.hdu)
    return LeftOut(name, f"{name}: {error}", is_own=isinstance(error, _OwnMosaicError))


def scan_unsolved(path: str, hdu: int) -> Unsolved:
    """What a solver has to know of the HDU of this index, which has no celestial WCS.

    Raises
    ------
    UnusableError, OSError
        It lacks more than that, or cannot be read.
    """
    with open_source(path) as source:
        primary: Cards | None = None
        for one in walk(source):
            primary = primary or one.cards
            if one.index == hdu:
                storage, _ = storage_of(path, one, _shape(one)[1], source)
                return Unsolved(storage, one.cards, primary)
    raise UnusableError(f"it has no HDU {hdu} any more", "leave it out")


def scan_inputs(
    args: Sequence[str],
    hdu: int | str | None = None,
    recursive: bool = False,
    rule: WeightRule = _ALPHA,
) -> Scan:
    """Expand the arguments and scan every file behind them.

    Parameters
    ----------
    args, recursive
        As for `expand_inputs`.
    hdu, rule
        As for `scan_image`.  Files that are the weights of others are left out.

    Returns
    -------
    Scan
        Arguments behind which nothing stands (missing file, empty folder) are among
        ``left_out``.
    """
    scan = Scan()
    entries, scan.remarks = without_duplicates(list(expand(args, recursive)))
    weights = _weights_among(entries, rule)
    for entry in entries:
        if isinstance(entry, Exception):
            name, missing = str(entry).split(": ", 1)[0], isinstance(entry, FileNotFoundError)
            scan.results.append(LeftOut(name, str(entry), is_missing=missing))
            continue
        if entry.path in weights:
            reason = f"{entry.path}: it holds the weights of another input; that is no fault."
            scan.results.append(LeftOut(entry.path, reason, is_own=True))
            continue
        scan.results.append(
            scan_image(entry.path, hdu, from_directory=entry.from_directory, rule=rule)
        )
    return scan


def _weights_among(entries: Sequence[Named | Exception], rule: WeightRule) -> set[str]:
    """Those of the files that hold the weights of others of them."""
    if rule.change is None:
        return set()
    paths = {os.path.realpath(e.path): e.path for e in entries if isinstance(e, Named)}
    beside = (file_beside(rule, path) for path in paths.values())
    return {paths[real] for name in beside if name and (real := os.path.realpath(name)) in paths}


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
                text = source.read_at(0, HEADER_MAX_BYTES)
                sky = _examine(Hdu(0, text_cards(text), 0, 0), None)
            else:
                _, sky, _ = _select(walk(source), None, name)
    except FileNotFoundError:
        raise unreadable(name) from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error}); name another template.") from error
    except UnusableError as error:
        raise InputError(f"{name}: not a usable template: {error}") from error
    return sky.wcs, (sky.height, sky.width)
