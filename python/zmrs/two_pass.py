"""The Two-Pass on arrays: coverage renormalisation step by step, for those who hold all in memory.

`zmrs.mosaic(two_pass=True)` does the same out of memory.  Definitions are those of ZeMosaic 4.5, as
observed from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs import _zmrs, limits
from zmrs.config import MOST_SIGMA_PX
from zmrs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["coverage_blur", "coverage_renorm", "gain_of", "scale_map", "tile_gains"]

THRESHOLD = 2.0
"""Blurred coverage from which a pixel counts as well covered."""

_LEAST_PIXELS = 64
_LEAST_PART = 0.001
_LEAST_COVERAGE = 1.19e-7
_LEAST_RATIO = 0.4


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
        Workers; None is all processors.

    Returns
    -------
    ndarray
        (H, W) float64; 0 where nothing is covered within reach.
    """
    plane = _plane(coverage)
    out = np.empty(plane.shape, np.float64)
    planes = _zmrs.Planes.in_memory(plane.shape[1], [plane.reshape(-1).view(np.uint8)])
    _zmrs.blur_coverage(planes, _sigma(sigma_px), threads or limits.usable_processors(), out)
    return out


def scale_map(coverage: ArrayLike, blurred: ArrayLike) -> NDArray[np.float32]:
    """How well the neighbourhood of a pixel is covered, beside the pixel itself.

    ``clamp(blurred / coverage, 0.5, 2)``; 1 where nothing covers.  Both (H, W).
    """
    plane = _plane(coverage)
    ratio = np.asarray(blurred, np.float64) / np.maximum(plane, _LEAST_COVERAGE)
    scales = np.clip(ratio, 0.5, 2.0).astype(np.float32)
    scales[plane <= 0] = 1.0
    return scales


def gain_of(
    mask: NDArray[np.bool_],
    coverage: ArrayLike,
    blurred: ArrayLike,
    *,
    clip: tuple[float, float] = (0.85, 1.18),
    threshold: float = THRESHOLD,
) -> float:
    """The gain of one input: the median of the scale map over its well-covered pixels.

    Parameters
    ----------
    mask
        (H, W) bool: where the input lies.
    coverage, blurred
        (H, W): coverage, and what `coverage_blur` makes of it.
    clip
        Least and greatest gain; swapped when reversed.
    threshold
        Blurred coverage from which a pixel counts.

    Returns
    -------
    float
        1 with fewer than 64 such pixels, or a thousandth of the mask.
    """
    low, high = sorted(clip)
    plane = _plane(coverage)
    valid = mask & (plane > 0) & (np.asarray(blurred, np.float32) >= max(threshold, 0.0))
    if valid.sum() < max(_LEAST_PIXELS, np.ceil(_LEAST_PART * mask.sum())):
        return 1.0
    gain = float(np.median(scale_map(plane, blurred)[valid]))
    return min(max(gain, low), high) if np.isfinite(gain) else 1.0


def tile_gains(
    masks: Sequence[NDArray[np.bool_]],
    coverage: ArrayLike,
    *,
    sigma_px: float = 50.0,
    clip: tuple[float, float] = (0.85, 1.18),
    threshold: float = THRESHOLD,
) -> list[float]:
    """The gains of inputs that lie where `masks` are True; see `coverage_blur` and `gain_of`."""
    blurred = coverage_blur(coverage, sigma_px)
    return [gain_of(mask, coverage, blurred, clip=clip, threshold=threshold) for mask in masks]


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
        cover and where its luminance (mean of the channels) is at least 0.4 times the first's.
    """
    image, coverage = (np.array(part, np.float32) for part in first)
    image_two, coverage_two = (np.asarray(part, np.float32) for part in second)
    if image.shape != image_two.shape or coverage.shape != coverage_two.shape:
        raise UsageError("the two passes differ in shape; give both on one grid.")
    valid = (coverage > 0) & (coverage_two > 0)
    if not valid.any():
        return image, coverage, 0.0
    luminance, luminance_two = (
        plane if plane.ndim == 2 else plane.mean(axis=-1) for plane in (image, image_two)
    )
    epsilon = max(0.1 * float(np.nanpercentile(luminance[valid], 5)), 1e-6)
    with np.errstate(invalid="ignore", divide="ignore"):
        used = valid & (luminance_two / (luminance + epsilon) >= _LEAST_RATIO)
    image[used], coverage[used] = image_two[used], coverage_two[used]
    return image, coverage, float(used.sum() / used.size)


def masks_of(
    planes: Sequence[ArrayLike], grids: Sequence[_zmrs.CoordGrid | None], shape: tuple[int, int]
) -> list[NDArray[np.bool_]]:
    """Where mask planes, interpolated linearly, are above 0.001 on an output of `shape`."""
    found = []
    for plane, grid in zip(planes, grids, strict=True):
        mask = np.zeros(shape, bool)
        if grid is not None:
            values = _plane(plane)
            height, width = values.shape
            bytes_of = values.reshape(-1).view(np.uint8)
            source = _zmrs.Source.memory(bytes_of, -32, (1, height, width))
            job = _zmrs.Job((1, *shape), "bilinear", "mean", [_zmrs.Input("mask", source, grid)])
            layout = _zmrs.fit(job, _zmrs.Plan(), 0, 0, 0, True)
            image, weights = np.empty((1, *shape), np.float32), np.empty(shape, np.float32)
            _zmrs.run_pass_into_arrays(job, layout, image, weights)
            mask = np.nan_to_num(image[0]) > 1e-3
        found.append(mask)
    return found


def _plane(coverage: Any) -> NDArray[np.float32]:
    plane = np.nan_to_num(np.asarray(coverage, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if plane.ndim != 2:
        raise UsageError(f"coverage: {plane.ndim} dimensions; give a plane (H, W).")
    return np.ascontiguousarray(plane)


def _sigma(sigma_px: float) -> float:
    if not 0 <= sigma_px <= MOST_SIGMA_PX:
        raise UsageError(f"sigma: {sigma_px} px is no blur; give 0 to {MOST_SIGMA_PX}.")
    return float(sigma_px)
