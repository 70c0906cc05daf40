"""Frames that are not good enough: measured in a first sweep, and left out by ``--select``.

It comes before the grid is chosen, so that what is left out does not stretch it.  What is looked at
and what follows depend on the inputs alone, not on memory or threads: the same frames are left out
wherever a job runs.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs import _zmrs, inputs, limits
from zmrs.criterion import QUANTITIES, Comparison, Criterion, Usual
from zmrs.errors import InputError
from zmrs.events import Stage
from zmrs.io import window
from zmrs.quality import MEASURING_BYTES, WINDOW_PX, Quality, measure, need_library, superpixels
from zmrs.scan import LeftOut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from zmrs.config import Options
    from zmrs.events import Event

__all__ = ["Selection", "select"]

log = logging.getLogger("zmrs")

_UNITS = {"fwhm": " px"}


@dataclass(frozen=True)
class Selection:
    """What is left of the inputs, and the figures that decided it.

    Attributes
    ----------
    images, weights
        The inputs that are used, in job order, and what weighs each.
    left_out
        The others: what is not good enough is no fault, what cannot be read is one.
    condition
        What they had to meet; None if nothing was asked.
    qualities
        Figures of every input that could be read, by name.
    read_bytes
        Bytes read from files.
    unmet_bytes
        What the process would have to hold to measure them, if that is more than it may: then all
        are kept, and the job is to be refused.
    """

    images: list[inputs.Image]
    weights: list[Any]
    left_out: list[LeftOut] = field(default_factory=list)
    condition: str | None = None
    qualities: dict[str, Quality] = field(default_factory=dict)
    read_bytes: int = 0
    unmet_bytes: int = 0

    @property
    def damaged(self) -> list[str]:
        """Why inputs cannot be read."""
        return [left.reason for left in self.left_out if not left.is_own]

    def figures(self) -> dict[str, Any]:
        """The choice in numbers: how many of how many, what is usual, and each input."""
        usual = Usual([quality.figures() for quality in self.qualities.values()])
        kept = {image.name for image in self.images}
        return {
            "condition": self.condition,
            "kept": len(self.images),
            "of": len(self.images) + len(self.left_out),
            "median": {name: usual.median(name) for name in QUANTITIES},
            "inputs": {
                name: quality.figures() | {"kept": name in kept}
                for name, quality in self.qualities.items()
            },
        }


def select(
    gathered: inputs.Gathered,
    options: Options,
    allowed_bytes: int,
    listener: Callable[[Event], object] | None,
) -> Selection:
    """Measure the inputs and say which of them meet the condition of ``--select``.

    Parameters
    ----------
    gathered
        The inputs and what weighs them.
    options
        What the user decided; without a condition all are kept and nothing is read.
    allowed_bytes
        The most that the process may hold.
    listener
        Receives `zmrs.events.Event` objects.

    Raises
    ------
    zmrs.errors.UsageError
        The library that measures is missing.
    zmrs.errors.InputError
        No input meets the condition.
    """
    images, weights = gathered.images, gathered.image_weights
    if options.select is None:
        return Selection(images, weights)
    need_library()
    needed_bytes = limits.resident_bytes() + MEASURING_BYTES + max(map(_held_bytes, images))
    if needed_bytes > allowed_bytes:
        return Selection(images, weights, condition=options.select, unmet_bytes=needed_bytes)
    criterion = Criterion(options.select)
    qualities, damaged = _measured(images, options, listener)
    usual = Usual([quality.figures() for quality in qualities.values()])
    left_out = dict(damaged)
    for name, quality in qualities.items():
        failing = criterion.failing(quality.figures(), usual)
        if failing:
            reason = f"{name}: {_words(failing, quality, usual)}; change --select to keep it."
            left_out[name] = LeftOut(name, reason, is_own=True)
    kept = [k for k, image in enumerate(images) if image.name not in left_out]
    selection = Selection(
        [images[k] for k in kept],
        [weights[k] for k in kept],
        list(left_out.values()),
        criterion.text,
        qualities,
        sum(map(_read_bytes, images)),
    )
    _tell(selection, usual)
    if not kept:
        first = next(iter(left_out.values())).reason
        raise InputError(
            f"none of the {len(left_out)} inputs meets --select; of the first it is said: {first}"
        )
    return selection


def _measured(
    images: Sequence[inputs.Image],
    options: Options,
    listener: Callable[[Event], object] | None,
) -> tuple[dict[str, Quality], dict[str, LeftOut]]:
    """Figures of the inputs by name, and those that cannot be read."""
    stage = Stage(listener, "select", len(images), "files")
    qualities, damaged = {}, {}
    # One after the other: two threads gained a tenth.
    for number, image in enumerate(images, start=1):
        try:
            qualities[image.name] = _quality(image, options)
        except InputError as error:
            damaged[image.name] = LeftOut(image.name, str(error))
        # What a crowded frame leaves behind must not add up, nor be missing in the passes.
        _zmrs.give_back()
        stage.advance(number)
    stage.end()
    return qualities, damaged


def _quality(image: inputs.Image, options: Options) -> Quality:
    """Figures of one input, as its pixels are."""
    is_raw = _is_raw(image)
    pixels = _middle(image, 2 * WINDOW_PX if is_raw else WINDOW_PX)
    is_array = isinstance(image, inputs.ArrayImage)
    # Arrays of a caller mean what they say.
    zeros = "off" if is_array and options.zero_is_blank == "auto" else options.zero_is_blank
    found = measure(
        superpixels(pixels) if is_raw else pixels,
        saturation=image.meta.saturate,
        zero_is_blank=zeros,
    )
    return found.scaled(2.0) if is_raw else found


def _middle(image: inputs.Image, most: int) -> NDArray[np.float32]:
    """The mean of the channels in the middle of an image; NaN is invalid."""
    if not isinstance(image, inputs.ArrayImage):
        return window.middle(image.storage, most)
    rows, columns = (slice(*window.middle_of(length, most)) for length in image.shape)
    total = np.zeros(image.pixels[0, rows, columns].shape, np.float32)
    for plane in image.pixels:
        total += plane[rows, columns]
    total /= len(image.pixels)
    return total


def _is_raw(image: inputs.Image) -> bool:
    """Whether it is a raw colour frame."""
    return not isinstance(image, inputs.ArrayImage) and image.storage.bayer is not None


def _held_bytes(image: inputs.Image) -> int:
    return 0 if isinstance(image, inputs.ArrayImage) else window.held_bytes(image.storage)


def _read_bytes(image: inputs.Image) -> int:
    """What a look reads: of compressed files all at most, of a caller's arrays nothing."""
    if isinstance(image, inputs.ArrayImage):
        return 0
    store = image.storage
    most = 2 * WINDOW_PX if _is_raw(image) else WINDOW_PX
    return inputs.file_bytes(store) if store.compressed else window.window_bytes(store, most)


def _words(failing: Sequence[Comparison], quality: Quality, usual: Usual) -> str:
    """What an input fails to meet, with the figures."""
    unmet = " and ".join(f"'{comparison.text}'" for comparison in failing)
    names = {name for comparison in failing for name in comparison.names}
    figures = quality.figures()
    known = [
        f"{name} {figures[name]:.4g}{_UNITS.get(name, '')} (median {usual.median(name):.4g})"
        for name in QUANTITIES
        if name in names and not math.isnan(figures[name])
    ]
    unknown = [name for name in QUANTITIES if name in names and math.isnan(figures[name])]
    if unknown:
        known.append(f"{' and '.join(unknown)} not known because {quality.note}")
    return f"it does not meet {unmet}, with {', '.join(known) or 'these numbers'}"


def _tell(selection: Selection, usual: Usual) -> None:
    """Name what is left out, and say how much is left."""
    for left in selection.left_out:
        if left.is_own:
            log.info("left out: %s", left.reason)
    medians = ", ".join(
        f"{name} {usual.median(name):.4g}{_UNITS.get(name, '')}" for name in QUANTITIES
    )
    log.info(
        "select: %d of %d inputs meet '%s' (medians: %s)",
        len(selection.images),
        len(selection.images) + len(selection.left_out),
        selection.condition,
        medians,
    )
