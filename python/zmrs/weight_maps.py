"""The weight maps of input files: which HDU of which file, found by headers only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from zmrs.io.headers import Hdu, Source, UnusableError, open_source, walk
from zmrs.io.names import unreadable
from zmrs.io.storage import Storage, storage_of
from zmrs.weight_rule import WeightRule

__all__ = ["WeightMap", "file_beside", "find_weights", "is_named"]

_PACKED = (".fz", ".gz")
_REMEDY = "leave the file out or check --weights"


@dataclass(frozen=True, slots=True)
class WeightMap:
    """The weights of the pixels of one input.

    Attributes
    ----------
    storage
        Where they stand; one plane of the image's shape.
    kind
        What they mean, as `zmrs.weight_rule.WeightRule.kind`.
    """

    storage: Storage
    kind: str


def is_named(hdu: Hdu, wanted: int | str) -> bool:
    """Whether an HDU is the one asked for, by number or (any case) by name."""
    if isinstance(wanted, str) and not wanted.isdecimal():
        return hdu.name.upper() == wanted.strip().upper()
    return hdu.index == int(wanted)


def find_weights(
    rule: WeightRule, image: Storage, hdus: Iterable[Hdu], source: Source
) -> tuple[WeightMap | None, list[str]]:
    """The weight map of an image, and warnings.

    Parameters
    ----------
    rule
        Where it should be.
    image
        Where the image stands.
    hdus, source
        All HDUs of its file, and the file.

    Raises
    ------
    UnusableError
        There is no map, or one that does not fit, and the rule demands one.
    """
    if rule.change is not None:
        return _beside(rule, image)
    if rule.extension is None:
        return None, []
    try:
        found = next((hdu for hdu in hdus if is_named(hdu, rule.extension)), None)
    except UnusableError:
        # What follows the image is damaged; that matters only to those who need it.
        found = None
    if found is None:
        if rule.is_optional:
            return None, []
        raise UnusableError(f"it has no HDU {rule.extension} with its weights", _REMEDY)
    if found.index == image.hdu:
        raise UnusableError(
            f"its HDU {rule.extension} is the image itself, not its weights", _REMEDY
        )
    problem = _misfit(found, image)
    if problem:
        if not rule.is_optional:
            raise UnusableError(f"its HDU {rule.extension} {problem}", _REMEDY)
        return None, [f"its HDU {rule.extension} {problem} and is not used."]
    return _map(rule, image.path, found, image, source)


def _map(
    rule: WeightRule, path: str, hdu: Hdu, image: Storage, source: Source
) -> tuple[WeightMap, list[str]]:
    try:
        storage, notes = storage_of(path, hdu, (1, *image.shape), source)
    except UnusableError as error:
        raise UnusableError(f"its weights in HDU {hdu.index}: {error.cause}", _REMEDY) from error
    return WeightMap(storage, rule.kind), notes


def _misfit(hdu: Hdu, image: Storage) -> str:
    """Why an HDU cannot be the weights of an image; empty if it can."""
    axes = [length for length in hdu.axes if length != 1] if hdu.is_image else []
    want = [length for length in (image.width, image.height) if length != 1]
    if not hdu.is_image or not hdu.axes:
        return "is no image"
    if axes == want:
        return ""
    shape = " x ".join(map(str, hdu.axes))
    return f"has {shape} pixels where the image has {image.width} x {image.height}"


def _beside(rule: WeightRule, image: Storage) -> tuple[WeightMap, list[str]]:
    """The map in a file of its own: its HDU of the image's number, else its first image."""
    path = file_beside(rule, image.path)
    if path is None:
        assert rule.change is not None
        raise UnusableError(f"its name has no '{rule.change[0]}' in it for --weights", _REMEDY)
    if os.path.abspath(path) == os.path.abspath(image.path):  # noqa: PTH100
        raise UnusableError("--weights leads to the image itself", _REMEDY)
    try:
        with open_source(path) as source:
            images = [hdu for hdu in walk(source) if hdu.is_image and hdu.axes]
            same = [hdu for hdu in images if hdu.index == image.hdu]
            if not images:
                raise UnusableError("no image in it", _REMEDY)
            chosen = (same or images)[0]
            problem = _misfit(chosen, image)
            if problem:
                raise UnusableError(f"its HDU {chosen.index} {problem}", _REMEDY)
            return _map(rule, path, chosen, image, source)
    except UnusableError as error:
        raise UnusableError(f"its weights {path}: {error.cause}", _REMEDY) from error
    except OSError as error:
        cause = "there is no such file"
        if not isinstance(error, FileNotFoundError):
            cause = str(unreadable(path, error)).partition(": ")[2].rstrip(".")
        raise UnusableError(f"its weights {path}: {cause}", _REMEDY) from error


def file_beside(rule: WeightRule, path: str) -> str | None:
    """The file with the weights of an input: as named, or the same packed or unpacked."""
    name = rule.beside(path)
    if name is None:
        return None
    stem = next((name.removesuffix(end) for end in _PACKED if name.endswith(end)), name)
    candidates = [name, stem, *(stem + end for end in _PACKED)]
    return next((path for path in candidates if os.path.isfile(path)), name)  # noqa: PTH113
