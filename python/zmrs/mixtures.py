"""What in a set of inputs is unlike the rest: allowed, but seldom meant, so it is warned of once.

Filters, exposure times, binnings, pixel scales and sizes are compared with what most of the inputs
have, and a file that is there twice under two names is told from two exposures of one field.  All
inputs are used as they are.  Headers suffice, but for files whose headers and lengths agree.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from zmrs import inputs
from zmrs.grid import input_pixel_scale_arcsec
from zmrs.io.names import and_others

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

__all__ = ["warn_of_copies", "warn_of_mixtures"]

log = logging.getLogger("zmrs")

_SAME_SCALE = 0.02
"""Pixel scales that differ by less are one: distortions and refraction change them by as much."""

_SAMPLE_BYTES = 1 << 16


def warn_of_mixtures(images: Sequence[inputs.Image], base: inputs.Image | None = None) -> None:
    """Warn once of each kind of mixture, naming the inputs that are unlike most of them.

    `base` is a finished mosaic to which they are added; its filter is all that compares.
    """
    filtered = images if base is None else [base, *images]
    _warn_of(filtered, "filters", lambda image: image.meta.filter)
    _warn_of(images, "exposure times", lambda image: image.meta.exptime)
    # Another binning brings another scale and size, and another scale is the better word for those.
    rest = _warn_of(images, "binnings", lambda image: _by(image.meta.binning))
    rest = _warn_of(rest, "pixel scales", _scales(rest))
    _warn_of(rest, "sizes", lambda image: _by(inputs.shape_of(image)[::-1]))


def _warn_of(
    images: Sequence[inputs.Image], words: str, look: Callable[[inputs.Image], Hashable]
) -> list[inputs.Image]:
    """Warn of more than one value among the inputs that have any; gives those like the most.

    Sizes and scales of tiles may all differ: that is no mixture but of a set in which most agree.
    """
    found = {id(image): value for image in images if (value := look(image)) is not None}
    counts = Counter(found.values())
    if len(counts) < 2:
        return list(images)
    usual, count = counts.most_common(1)[0]
    odd = [image for image in images if found.get(id(image), usual) != usual]
    most = 2 * count > len(found)
    if not most and words in ("pixel scales", "sizes"):
        return list(images)
    shown = ", ".join(str(value) for value in sorted(counts, key=str)[:4])
    names = and_others([image.name for image in odd])
    log.warning(
        "the inputs have %d different %s (%s%s)%s",
        len(counts),
        words,
        shown,
        ", …" if len(counts) > 4 else "",
        f"; unlike most of them: {names}" if most else "",
    )
    return [image for image in images if image not in odd] if most else list(images)


def _by(pair: tuple[int, int] | None) -> str | None:
    return None if pair is None else f"{pair[0]} x {pair[1]}"


def _scales(images: Sequence[inputs.Image]) -> Callable[[inputs.Image], str]:
    """How large the pixels of an input are, in words that are equal where it is nearly so."""
    scales = {
        id(image): input_pixel_scale_arcsec(image.wcs, inputs.shape_of(image)) for image in images
    }
    middle = statistics.median(scales.values()) if scales else 1.0

    def look(image: inputs.Image) -> str:
        scale = scales[id(image)]
        return f"{middle if abs(scale / middle - 1) <= _SAME_SCALE else scale:.3g} arcsec"

    return look


def warn_of_copies(images: Sequence[inputs.Image]) -> None:
    """Warn of files with one content under several names, which count more than once.

    Their headers and lengths agree and so does a sample from their middle.
    """
    alike: dict[str, list[str]] = {}
    for image in images:
        if not isinstance(image, inputs.ArrayImage) and image.imprint:
            alike.setdefault(image.imprint, []).append(image.name)
    again = []
    for names in alike.values():
        if len(names) > 1:
            samples = Counter[bytes]()
            for name in names:
                sample = _sample(name)
                samples[sample] += 1
                if sample and samples[sample] > 1:
                    again.append(name)
    if again:
        log.warning(
            "%s: the same as an input of another name, and counts once more; leave one of them out",
            and_others(again),
        )


def _sample(name: str) -> bytes:
    """Digest of the middle of a file; nothing if it cannot be read."""
    try:
        with Path(name).open("rb") as file:
            file.seek(max(Path(name).stat().st_size - _SAMPLE_BYTES, 0) // 2)
            return hashlib.blake2b(file.read(_SAMPLE_BYTES), digest_size=16).digest()
    except OSError:
        return b""
