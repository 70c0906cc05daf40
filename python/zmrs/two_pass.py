"""The Two-Pass on arrays: coverage renormalisation step by step, for those who hold all in memory.

`zmrs.mosaic(two_pass=True)` does the same out of memory.  Definitions are those of ZeMosaic 4.5, as
observed from outside.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs import _zmrs, limits
from zmrs.config import MOST_SIGMA_PX, are_gains
from zmrs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

__all__ = ["coverage_blur", "coverage_renorm", "gain_of", "scale_map", "tile_gains"]

THRESHOLD = 2.0
"""Blurred coverage from which a pixel counts as well covered."""

DEFAULT_CLIP = (0.85, 1.18)
"""Least and greatest gain."""

PERCENTILE = 5.0
"""Of the first pass's luminance: what is dark in it."""

_LEAST_PIXELS = 64
_LEAST_PART = 0.001
_LEAST_COVERAGE = 1.19e-7
_LEAST_MASK = 1e-3
_LEAST_RATIO = 0.4
_PART_OF_PERCENTILE = 0.1
_LEAST_EPSILON = 1e-6


def coverage_blur(
    coverage: ArrayLike, sigma_px: float, *, threads: int | None = None
) -> NDArray[np.float64]:
    """The mean coverage around every pixel: ``G(c) / G(c > 0)`` with a Gaussian G.

    Parameters
    ----------
    coverage
        (H, W), any real type; NaN, infinity and values below 0 count as 0.
    sigma_px
        Standard deviation in pixels; the kernel ends at 4 of them, and the image is mirrored at
        its borders (half-sample symmetric).  0 is no blur.
    threads
        Workers, at least 1; None is all processors.

    Returns
    -------
    ndarray
        (H, W) float64; 0 where nothing is covered within reach.

    Raises
    ------
    zmrs.errors.UsageError
        The coverage is no plane, or there is no such blur.
    """
    plane = plane_of(coverage)
    if threads is not None and threads < 1:
        raise UsageError(f"threads: {threads} cannot work; give a number of at least 1.")
    out = np.empty(plane.shape, np.float64)
    planes = _zmrs.Planes.in_memory(plane.shape[1], [plane.reshape(-1).view(np.uint8)])
    _zmrs.blur_coverage(planes, _sigma(sigma_px), threads or limits.usable_processors(), out)
    return out


def scale_map(coverage: ArrayLike, blurred: ArrayLike) -> NDArray[np.float32]:
    """How well the neighbourhood of a pixel is covered, beside the pixel itself.

    ``clamp(blurred / coverage, 0.5, 2)``; 1 where nothing covers.  Both (H, W).
    """
    plane = plane_of(coverage)
    ratio = _like(blurred, plane, "blurred") / np.maximum(plane, _LEAST_COVERAGE)
    scales: NDArray[np.float32] = np.clip(ratio, 0.5, 2.0).astype(np.float32)
    scales[plane <= 0] = 1.0
    return scales


def well_covered(
    coverage: ArrayLike, blurred: ArrayLike, threshold: float = THRESHOLD
) -> NDArray[np.float32]:
    """The scale map, (H, W); NaN where nothing covers or the blurred coverage is below `threshold`.

    Raises
    ------
    zmrs.errors.UsageError
        The shapes differ, or the threshold is NaN.
    """
    if math.isnan(threshold):
        raise UsageError("threshold: NaN is no coverage; give a number.")
    plane = plane_of(coverage)
    scales = scale_map(plane, blurred)
    scales[~((plane > 0) & (np.asarray(blurred, np.float32) >= threshold))] = np.nan
    return scales


def median_gain(
    mask: ArrayLike, scales: NDArray[np.float32], clip: tuple[float, float] = DEFAULT_CLIP
) -> float:
    """The gain of an input that lies where `mask` is true: the median of what `well_covered` gives.

    It is kept within `clip`, and 1 with fewer than 64 such pixels, or a thousandth of the mask.
    """
    low, high = sorted(map(float, clip))
    under = scales[_like(mask, scales, "mask", bool)]
    used = under[~np.isnan(under)]
    if used.size < max(_LEAST_PIXELS, math.ceil(_LEAST_PART * under.size)):
        return 1.0
    return min(max(float(np.median(used)), low), high)


def gain_of(
    mask: ArrayLike,
    coverage: ArrayLike,
    blurred: ArrayLike,
    *,
    clip: tuple[float, float] = DEFAULT_CLIP,
    threshold: float = THRESHOLD,
) -> float:
    """The gain of one input: the median of the scale map over its well-covered pixels.

    Parameters
    ----------
    mask
        (H, W): true where the input lies.
    coverage, blurred
        (H, W): coverage, and what `coverage_blur` makes of it.
    clip
        Least and greatest gain, above 0; swapped when reversed.
    threshold
        Blurred coverage from which a pixel counts.

    Returns
    -------
    float
        1 with fewer than 64 such pixels, or a thousandth of the mask.

    Raises
    ------
    zmrs.errors.UsageError
        A bound is no gain, the threshold is NaN, or the shapes differ.
    """
    return median_gain(mask, well_covered(coverage, blurred, threshold), _clip(clip))


def tile_gains(
    masks: Iterable[ArrayLike],
    coverage: ArrayLike,
    *,
    sigma_px: float = 50.0,
    clip: tuple[float, float] = DEFAULT_CLIP,
    threshold: float = THRESHOLD,
) -> list[float]:
    """The gains of inputs that lie where `masks` are true; see `coverage_blur` and `gain_of`."""
    bounds = _clip(clip)
    scales = well_covered(coverage, coverage_blur(coverage, sigma_px), threshold)
    return [median_gain(mask, scales, bounds) for mask in masks]


def merge_epsilon(percentile: float) -> float:
    """What is added to the first pass's luminance when that of the second is divided by it.

    `percentile` is the `PERCENTILE` of the first pass's luminance where both passes cover.
    """
    return max(_PART_OF_PERCENTILE * percentile, _LEAST_EPSILON)


def coverage_renorm(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Lay a second pass over the first one.

    Parameters
    ----------
    first, second
        Mosaic (H, W) or (H, W, C) and coverage (H, W) of each pass.

    Returns
    -------
    tuple
        Mosaic, coverage, and the part of all pixels that are the second pass's: those that both
        cover and where its luminance (mean of the channels) is finite and at least 0.4 times the
        first's.

    Raises
    ------
    zmrs.errors.UsageError
        The shapes differ.
    """
    image, coverage = (np.array(part, np.float32) for part in first)
    image_two, coverage_two = (np.asarray(part, np.float32) for part in second)
    shapes = {image.shape[:2], image_two.shape[:2], coverage.shape, coverage_two.shape}
    if len(shapes) > 1 or image.shape != image_two.shape:
        raise UsageError("the two passes differ in shape; give both on one grid.")
    luminance, luminance_two = (
        plane if plane.ndim == 2 else plane.mean(axis=-1) for plane in (image, image_two)
    )
    valid = (coverage > 0) & (coverage_two > 0)
    lights = luminance[valid & ~np.isnan(luminance)]
    if not lights.size:
        return image, coverage, 0.0
    epsilon = merge_epsilon(float(np.percentile(lights, PERCENTILE)))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        bright = luminance_two / (luminance + epsilon) >= _LEAST_RATIO
    used = valid & bright & np.isfinite(luminance_two)
    image[used], coverage[used] = image_two[used], coverage_two[used]
    return image, coverage, float(used.sum() / used.size)


def mask_of(
    plane: ArrayLike, grid: _zmrs.CoordGrid | None, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Where a mask plane, interpolated linearly, is above 0.001 on an output of `shape`.

    `grid` is where the output's pixels fall in the plane; None is nowhere.
    """
    if grid is None:
        return np.zeros(shape, bool)
    values = plane_of(plane)
    source = _zmrs.Source.memory(values.reshape(-1).view(np.uint8), -32, (1, *values.shape))
    job = _zmrs.Job((1, *shape), "bilinear", "mean", [_zmrs.Input("mask", source, grid)])
    layout = _zmrs.fit(job, _zmrs.Plan(), 0, 0, 0, True)
    image, weights = np.empty((1, *shape), np.float32), np.empty(shape, np.float32)
    _zmrs.run_pass_into_arrays(job, layout, image, weights)
    # NaN compares false.
    mask: NDArray[np.bool_] = image[0] > _LEAST_MASK
    return mask


def plane_of(coverage: ArrayLike) -> NDArray[np.float32]:
    """A coverage or a mask, (H, W) float32; NaN, infinity and values below 0 are 0 in it."""
    with np.errstate(over="ignore"):
        plane = np.asarray(coverage, np.float32)
    if plane.ndim != 2:
        raise UsageError(f"coverage: {plane.ndim} dimensions; give a plane (H, W).")
    clean: NDArray[np.float32] = np.where((plane > 0) & (plane < np.inf), plane, np.float32(0))
    return clean


def _like(values: ArrayLike, plane: NDArray[Any], name: str, dtype: Any = np.float64) -> Any:
    """Values of the shape of a plane."""
    array = np.asarray(values, dtype)
    if array.shape != plane.shape:
        raise UsageError(f"{name}: its shape {array.shape} is not the coverage's {plane.shape}.")
    return array


def _clip(clip: tuple[float, float]) -> tuple[float, float]:
    if not are_gains(clip):
        raise UsageError(f"clip: {clip} are no gains; give two numbers above 0.")
    return clip


def _sigma(sigma_px: float) -> float:
    if not 0 <= sigma_px <= MOST_SIGMA_PX:
        raise UsageError(f"sigma: {sigma_px} px is no blur; give 0 to {MOST_SIGMA_PX}.")
    return float(sigma_px)
