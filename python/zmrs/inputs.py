"""Inputs of every kind as the engine takes them: a source of stored samples and a WCS.

Plain FITS files are read by the engine itself.  Compressed ones are decompressed here, by
astropy, before the first pass, into memory or, where they are many, into scratch; arrays of a
caller are used in place.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from zmrs import _zmrs
from zmrs.errors import DiskFullError, InputError, UsageError
from zmrs.io.headers import Cards, UnusableError
from zmrs.io.storage import Storage
from zmrs.io.wcs import header_wcs
from zmrs.scan import InputImage, LeftOut, Meta, Scan, meta_of, scan_inputs, warnings_of
from zmrs.sky import is_known_sky
from zmrs.weight_rule import WeightRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "ArrayImage",
    "Image",
    "Packed",
    "Weights",
    "as_stored",
    "decompress",
    "file_bytes",
    "gather",
    "source_of",
    "stored_source",
    "weights_of",
]

_LEAST_WEIGHT = 1e-30
"""Sums of smaller weights would vanish in the single-precision coverage."""

_DTYPES = {
    "u1": 8,
    "i2": 16,
    "i4": 32,
    "i8": 64,
    "f4": -32,
    "f8": -64,
}


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """An image in memory.

    Attributes
    ----------
    name
        What messages call it.
    pixels
        (C, H, W), any real dtype; NaN is invalid.
    wcs
        Two-dimensional celestial WCS.
    meta, warnings
        As for `zmrs.scan.InputImage`.
    """

    name: str
    pixels: NDArray[Any]
    wcs: Any
    meta: Meta = field(default_factory=Meta)
    warnings: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Number of planes."""
        return int(self.pixels.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])


Image = InputImage | ArrayImage


def channels_of(image: Image) -> int:
    """Number of planes of an image."""
    return image.channels if isinstance(image, ArrayImage) else image.storage.colours


def shape_of(image: Image) -> tuple[int, int]:
    """(height, width) of an image."""
    return image.shape if isinstance(image, ArrayImage) else image.storage.shape


@dataclass
class Gathered:
    """Outcome of :func:`gather`.

    Attributes
    ----------
    results
        Usable images in job order, and between them those that are not.
    weights
        What weighs each of the results.
    remarks
        Sentences about what was given.
    """

    results: list[Image | LeftOut]
    weights: list[Any]
    remarks: list[str]

    def take(self, scan: Scan, weight: Any) -> None:
        """Add the results of a scan."""
        self.results += scan.results
        self.weights += [weight] * len(scan.results)
        self.remarks += scan.remarks

    def drop(self, images: Sequence[Image]) -> None:
        """Forget these images."""
        gone = {id(image) for image in images}
        both = zip(self.results, self.weights, strict=True)
        kept = [(result, weight) for result, weight in both if id(result) not in gone]
        self.results = [result for result, _ in kept]
        self.weights = [weight for _, weight in kept]

    @property
    def images(self) -> list[Image]:
        """The usable ones."""
        return [result for result in self.results if not isinstance(result, LeftOut)]

    @property
    def image_weights(self) -> list[Any]:
        """What weighs each of them."""
        both = zip(self.results, self.weights, strict=True)
        return [weight for result, weight in both if not isinstance(result, LeftOut)]

    @property
    def left_out(self) -> list[LeftOut]:
        """The others."""
        return [result for result in self.results if isinstance(result, LeftOut)]

    @property
    def warnings(self) -> list[str]:
        """The remarks, and what is odd in the files."""
        files = (result for result in self.results if isinstance(result, InputImage))
        return self.remarks + warnings_of(files)


def gather(
    given: Sequence[Any],
    *,
    hdu: str | int | None,
    recursive: bool,
    rule: WeightRule,
    weights: Sequence[Any] | None = None,
) -> Gathered:
    """Images from paths, HDUs, ``(array, wcs)`` pairs and ``NDData``, in the order given.

    `rule` says where files have their weights.  `weights` belong to the inputs as given; all images
    of a folder or glob share one.
    """
    number = int(str(hdu)) if re.fullmatch("[0-9]+", str(hdu)) else hdu
    if weights is not None and len(weights) != len(given):
        raise UsageError(f"{len(weights)} weights were given for {len(given)} inputs.")
    found = Gathered([], [], [])
    # Neighbouring paths of equal weight are scanned together, which finds files named twice.
    paths: list[str] = []
    shared: Any = None
    for position, item in enumerate(given):
        weight = None if weights is None else weights[position]
        is_path = isinstance(item, str | Path)
        if paths and not (is_path and weight is shared):
            found.take(scan_inputs(paths, number, recursive, rule), shared)
            paths = []
        if is_path:
            paths.append(str(item))
            shared = weight
        else:
            name = f"input {position + 1}"
            if weight is None and not rule.is_optional:
                raise UsageError(f"weights: {name} is no file, so it has none; give it an array.")
            found.results.append(_from_object(item, name))
            found.weights.append(weight)
    if paths:
        found.take(scan_inputs(paths, number, recursive, rule), shared)
    return found


def as_stored(result: Image | LeftOut) -> Image | LeftOut:
    """The same, without taking the colours of a raw frame apart."""
    if not isinstance(result, InputImage) or result.storage.bayer is None:
        return result
    return replace(result, storage=replace(result.storage, bayer=None))


def _from_object(item: Any, name: str) -> ArrayImage:
    """An image from a pair, an NDData or an HDU."""
    mask, meta = None, Meta()
    if isinstance(item, tuple) and len(item) == 2:
        pixels, wcs = item
    elif hasattr(item, "wcs") and hasattr(item, "data"):
        pixels, wcs, mask = item.data, item.wcs, getattr(item, "mask", None)
    elif hasattr(item, "header") and hasattr(item, "data"):
        pixels = item.data
        wcs, meta = _from_header(item.header, name)
    else:
        raise InputError(
            f"{name}: a {type(item).__name__} is no image; give a path, an HDU, an (array, wcs) "
            "pair or an NDData."
        )
    if pixels is None or wcs is None or not getattr(wcs, "has_celestial", False):
        raise InputError(f"{name}: it lacks pixels or a celestial WCS; give it both.")
    if not is_known_sky(wcs.celestial):
        raise InputError(f"{name}: its sky is neither equatorial nor galactic; reproject it.")
    if isinstance(pixels, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(pixels)
        mask = hidden if mask is None else hidden | mask
        pixels = pixels.data
    pixels = np.asarray(pixels)
    if mask is not None:
        pixels = np.where(mask, np.nan, pixels)
    pixels = _planes(pixels, name)
    return ArrayImage(name, pixels, wcs.celestial if wcs.naxis > 2 else wcs, meta)


def _from_header(header: Any, name: str) -> tuple[Any, Meta]:
    """The WCS and the rest of an HDU's header, read as that of a file is."""
    cards = Cards(header.tostring().encode("ascii", "replace"))
    axes = [n for n in range(1, int(header.get("NAXIS", 0)) + 1) if header[f"NAXIS{n}"] != 1]
    try:
        wcs, _ = header_wcs(cards, axes)
    except UnusableError as error:
        raise InputError(f"{name}: {error}") from error
    return wcs, meta_of(cards, cards, wcs)


def _planes(pixels: NDArray[Any], name: str) -> NDArray[Any]:
    """(C, H, W) from an array with axes of length 1 dropped."""
    shape = pixels.shape
    outer = tuple(n for n in shape[:-2] if n != 1)
    if pixels.ndim < 2 or len(outer) > 1 or 0 in shape or pixels.dtype.kind not in "uif":
        raise InputError(
            f"{name}: an array of shape {shape} and type {pixels.dtype} is no image; give real "
            "numbers of shape (H, W) or (C, H, W)."
        )
    return pixels.reshape((*(outer or (1,)), *shape[-2:]))


def source_of(image: Image) -> _zmrs.Source:
    """The engine's view of an image; that of a compressed one gets its pixels later."""
    if isinstance(image, ArrayImage):
        return _memory_source(image.pixels)
    return stored_source(image.storage, image.meta.saturate)


def stored_source(
    store: Storage, saturation: float | None = None, unpacked_at: Path | None = None
) -> _zmrs.Source:
    """The engine's view of samples in a file; that of compressed ones gets them later.

    Parameters
    ----------
    store
        Where they stand; those of a raw colour frame are read as three channels.
    saturation
        From which value on they are saturated, and what they are mixed into.
    unpacked_at
        File into which they will be decompressed; None is memory.
    """
    shape, scale = (store.channels, *store.shape), (store.bscale, store.bzero)
    filters = None if store.bayer is None else (store.bayer, saturation)
    if unpacked_at is not None:
        where = str(unpacked_at.resolve())
        return _zmrs.Source.unpacked(where, store.bitpix, shape, scale, store.blank, filters)
    if store.compressed:
        return _zmrs.Source.deferred(store.bitpix, shape, scale, store.blank, filters)
    path = str(Path(store.path).resolve())
    return _zmrs.Source.file(path, store.offset, store.bitpix, shape, scale, store.blank, filters)


@dataclass(frozen=True)
class Weights:
    """What weighs one image.

    Attributes
    ----------
    scalar
        Weight of the whole.
    source
        Of each pixel, if they differ.
    kind
        What the values of `source` mean, as `zmrs.weight_rule.WeightRule.kind`.
    storage
        Where they stand, if in a file.
    """

    scalar: float = 1.0
    source: _zmrs.Source | None = None
    kind: str = "weight"
    storage: Storage | None = None


def weights_of(given: Any, image: Image, kind: str) -> Weights:
    """What weighs an image.

    Parameters
    ----------
    given
        By a caller: None, a number, or an array, whose values are of `kind` and take the place of
        weights that the file has.
    image
        The image, perhaps with weights in a file.

    Raises
    ------
    InputError
        A weight that is none, or of another shape than the image.
    """
    if np.ndim(given) == 0:
        scalar = 1.0 if given is None else _scalar_weight(given, image)
        if isinstance(image, InputImage) and image.weights is not None:
            stored = image.weights.storage
            return Weights(scalar, stored_source(stored), image.weights.kind, stored)
        return Weights(scalar)
    weights = np.asarray(given)
    if weights.dtype.kind not in "biuf":
        raise InputError(f"{image.name}: its weights are {weights.dtype}; give real numbers.")
    if weights.shape != shape_of(image):
        raise InputError(
            f"{image.name}: its weights have the shape {weights.shape}, its pixels "
            f"{shape_of(image)}; give them the same."
        )
    return Weights(1.0, _memory_source(weights[np.newaxis]), kind)


def _scalar_weight(given: Any, image: Image) -> float:
    scalar = float(given) if isinstance(given, SupportsFloat) else math.nan
    if not _LEAST_WEIGHT <= scalar <= 1 / _LEAST_WEIGHT:
        raise InputError(
            f"{image.name}: its weight is {given}; give one above 0 that single precision can hold."
        )
    return scalar


def _memory_source(pixels: NDArray[Any]) -> _zmrs.Source:
    native = pixels.dtype.newbyteorder("=")
    code = f"{native.kind}{native.itemsize}"
    if code not in _DTYPES:
        # What has no BITPIX: half floats and unsigned integers, none of which needs a double
        # but the 32-bit ones.
        code = "f4" if native.itemsize <= 2 else "f8"
        native = np.dtype(code)
    pixels = np.ascontiguousarray(pixels, dtype=native)
    return _zmrs.Source.memory(_as_bytes(pixels), _DTYPES[code], pixels.shape)


def _as_bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    return pixels.reshape(-1).view(np.uint8)


def file_bytes(store: Storage) -> int:
    """Size of the file of a compressed image, which is read whole; 0 once it has gone."""
    try:
        return Path(store.path).stat().st_size
    except OSError:
        return 0


@dataclass(frozen=True)
class Packed:
    """Compressed samples, which have to be brought where the engine can read them.

    Attributes
    ----------
    source
        The engine's view of them.
    storage
        Where they stand.
    unpacked_at
        File to decompress them into; None is memory.
    """

    source: _zmrs.Source
    storage: Storage
    unpacked_at: Path | None

    def unpack(self) -> None:
        """Decompress them.

        Raises
        ------
        InputError
            They are damaged.
        DiskFullError
            The file cannot be written.
        """
        samples = decompress(self.storage)
        if self.unpacked_at is None:
            self.source.provide(samples)
            return
        try:
            samples.tofile(self.unpacked_at)
        except OSError as error:
            raise DiskFullError(
                f"{self.storage.path}: cannot be decompressed into scratch ({error.strerror}); "
                "free some space or name another folder with --scratch."
            ) from error


def decompress(store: Storage) -> NDArray[np.uint8]:
    """The stored samples of a compressed image, in this machine's byte order, as bytes."""
    from astropy.io import fits  # noqa: PLC0415  (late: 0.3 s)

    code = next(code for code, bitpix in _DTYPES.items() if bitpix == store.bitpix)
    try:
        with fits.open(
            store.path, memmap=False, do_not_scale_image_data=True, lazy_load_hdus=True
        ) as hdus:
            pixels = hdus[store.hdu].data
            pixels = np.ascontiguousarray(pixels, dtype=np.dtype(code))
    except MemoryError:
        raise
    # Decompressors raise what they like: zlib.error, OSError, ValueError, IndexError.
    except Exception as error:
        raise InputError(
            f"{store.path}: cannot be decompressed ({error}); the file is damaged, get it anew."
        ) from error
    return _as_bytes(pixels)


def check_channels(images: Sequence[Image]) -> None:
    """Make sure that all images have the same number of channels.

    Raises
    ------
    InputError
        When they differ; the message names one of each kind.
    """
    kinds: dict[int, str] = {}
    for image in images:
        kinds.setdefault(channels_of(image), image.name)
    if len(kinds) > 1:
        each = ", ".join(f"{name} has {count}" for count, name in sorted(kinds.items()))
        raise InputError(f"the inputs differ in their number of channels: {each}; mosaic one kind.")
