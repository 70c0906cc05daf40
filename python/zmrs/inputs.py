"""Inputs of every kind as the engine takes them: a source of stored samples and a WCS.

Plain FITS files are read by the engine itself.  Compressed ones are decompressed here, by
astropy, just before the pass; arrays of a caller are used in place.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from zmrs import _zmrs
from zmrs.errors import InputError, UsageError
from zmrs.io.headers import Cards, UnusableError
from zmrs.io.storage import Storage
from zmrs.io.wcs import header_wcs
from zmrs.scan import InputImage, LeftOut, Meta, Scan, meta_of, scan_inputs
from zmrs.sky import is_known_sky
from zmrs.weight_rule import WeightRule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "ArrayImage",
    "Image",
    "Weights",
    "decompress",
    "file_bytes",
    "gather",
    "some_rows_of",
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
    return image.channels if isinstance(image, ArrayImage) else image.storage.channels


def shape_of(image: Image) -> tuple[int, int]:
    """(height, width) of an image."""
    return image.shape if isinstance(image, ArrayImage) else image.storage.shape


@dataclass
class Gathered:
    """Usable images in job order with what weighs each, the others, and warnings."""

    images: list[Image]
    weights: list[Any]
    left_out: list[LeftOut]
    warnings: list[str]

    def take(self, scan: Scan, weight: Any) -> None:
        """Add the images of a scan."""
        self.images += scan.images
        self.weights += [weight] * len(scan.images)
        self.left_out += scan.left_out
        self.warnings += scan.warnings


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
    found = Gathered([], [], [], [])
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
            found.images.append(_from_object(item, name))
            found.weights.append(weight)
    if paths:
        found.take(scan_inputs(paths, number, recursive, rule), shared)
    return found


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
    return stored_source(image.storage)


def stored_source(store: Storage) -> _zmrs.Source:
    """The engine's view of samples in a file; that of compressed ones gets them later."""
    shape, scale = (store.channels, *store.shape), (store.bscale, store.bzero)
    if store.compressed:
        return _zmrs.Source.deferred(store.bitpix, shape, scale, store.blank)
    path = str(Path(store.path).resolve())
    return _zmrs.Source.file(path, store.offset, store.bitpix, shape, scale, store.blank)


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


def some_rows_of(pixels: NDArray[np.uint8], store: Storage, most: int) -> Iterator[NDArray[Any]]:
    """At most so many rows of each channel of what `decompress` gives, evenly spread."""
    code = next(code for code, bitpix in _DTYPES.items() if bitpix == store.bitpix)
    planes = pixels.view(code).reshape(store.channels, *store.shape)
    yield from (row for plane in planes for row in plane[:: -(-store.height // most)])


def check_channels(images: Sequence[Image]) -> int:
    """The number of channels that all images share.

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
    return next(iter(kinds))
