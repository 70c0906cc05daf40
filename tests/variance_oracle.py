"""The slow plain judge of variances: float64, from the definitions in docs/variance.md.

The variance of a sample is the sum over its pixels of tap² times variance, over the squared sum of
taps; that of a mosaic follows from those of its samples, which are independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import oracle
import stack_oracle
from oracle import Points

Array = np.ndarray


def sampled(image: Array, variance: Array, points: Points, kernel: str) -> Array:
    """Variance of samples of one plane (NaN = invalid), whose pixels have these variances."""
    height, width = image.shape
    x, y = oracle._snap(points[0]), oracle._snap(points[1])
    inside = np.isfinite(oracle.sample(image, *points, kernel))
    x = np.clip(np.where(inside, x, 0.0), 0, width - 1)
    y = np.clip(np.where(inside, y, 0.0), 0, height - 1)
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - column, y - row
    if kernel == "nearest":
        found = variance[row + (fy >= 0.5), column + (fx >= 0.5)]
        return np.where(inside, found, np.nan)
    total, squares = np.zeros(x.shape), np.zeros(x.shape)
    reach = range(1 - oracle.RADIUS[kernel], oracle.RADIUS[kernel] + 1)
    for j in reach:
        for i in reach:
            tap = oracle.tap(kernel, fx - i) * oracle.tap(kernel, fy - j)
            r, c = row + j, column + i
            there = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            r, c = np.clip(r, 0, height - 1), np.clip(c, 0, width - 1)
            valid = there & ~np.isnan(image[r, c])
            total += np.where(valid, tap, 0.0)
            squares += np.where(valid, tap**2 * np.where(valid, variance[r, c], 0.0), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(inside, squares / total**2, np.nan)


def samples(image: Array, points: Points, kernel: str, weight: Any, variance: Any) -> Array:
    """Variances (C, H, W) of the samples that `oracle.samples` makes.

    ``variance`` is one number a channel, or a plane for all.
    """
    planes = np.atleast_3d(image.T).T.astype(np.float64)
    planes[:, np.isnan(planes).any(axis=0)] = np.nan
    if np.ndim(weight) == 2:
        planes[:, ~(np.asarray(weight) > 0)] = np.nan
    each = [variance] * len(planes) if np.ndim(variance) != 1 else variance
    return np.stack(
        [
            sampled(plane, np.broadcast_to(np.asarray(v, np.float64), plane.shape), points, kernel)
            for plane, v in zip(planes, each, strict=True)
        ]
    )


def few(n: int) -> float:
    """Variance of the median of n equal normal variates, times n, as zmrs approximates it."""
    half = np.pi / 2
    c = 2 - half + (np.pi - 3) / n if n % 2 else 3 - half - (10 - 3 * np.pi) / n
    return float(half * n / (n + c))


def of_median(weights: Array, variances: Array) -> float:
    """Variance of the weighted median of samples of one pixel."""
    if len(weights) == 1:
        return float(variances[0])
    if len(weights) == 2:
        if weights[0] == weights[1]:
            return float(variances.sum() / 4)
        return float(variances[np.argmax(weights)])
    slope = (weights / np.sqrt(variances)).sum()
    factor = few(len(weights)) if (weights == weights[0]).all() else np.pi / 2
    return float(factor * (weights**2).sum() / slope**2)


def chosen(values: Array, how: str) -> int:
    """Which sample of a pixel is taken."""
    return {
        "min": int(np.argmin(values)),
        "max": int(np.argmax(values)),
        "first": 0,
        "last": len(values) - 1,
    }[how]


def of_pixel(values: Array, weights: Array, variances: Array, how: str, keep: Array) -> float:
    """Variance of one channel of one pixel from its valid samples."""
    if how in ("min", "max", "first", "last"):
        return float(variances[chosen(values, how)])
    if how == "median":
        return of_median(weights, variances)
    total = (weights[keep] ** 2 * variances[keep]).sum()
    return float(total if how == "sum" else total / weights[keep].sum() ** 2)


def combine(
    values: Array,
    weights: Array,
    variances: Array,
    how: str,
    *,
    kappa: tuple[float, float] = (3.0, 3.0),
    winsor: tuple[float, float] = (0.05, 0.05),
    together: bool = False,
) -> Array:
    """Variance (C, H, W) of the mosaic; values and variances (N, C, H, W), weights (N, H, W)."""
    _, channels, height, width = values.shape
    result = np.full((channels, height, width), np.nan)
    for y, x in np.ndindex(height, width):
        valid = ~np.isnan(values[:, 0, y, x])
        if not valid.any():
            continue
        w = weights[valid, y, x]
        keeps = [np.ones(valid.sum(), bool) for _ in range(channels)]
        if how in stack_oracle.JUDGES:
            judge = stack_oracle.JUDGES[how]
            keeps = [judge(values[valid, c, y, x], w, kappa, winsor)[1] for c in range(channels)]
            everywhere = np.logical_and.reduce(keeps)
            if together:
                every = everywhere if everywhere.any() else np.ones_like(everywhere)
                keeps = [every] * channels
        for c in range(channels):
            v = variances[valid, c, y, x]
            result[c, y, x] = of_pixel(values[valid, c, y, x], w, v, how, keeps[c])
    return result


def mosaic(
    inputs: Sequence[tuple[Array, Any]],
    wcs: Any,
    shape: tuple[int, int],
    variances: Sequence[Any],
    *,
    kernel: str = "bilinear",
    how: str = "mean",
    weights: Sequence[Any] | None = None,
    gains: Sequence[tuple[float, float]] | None = None,
    feather_px: float = 0.0,
    **more: Any,
) -> Array:
    """Variance (C, H, W) of what `oracle.mosaic` makes; ``variances`` one of each input.

    ``more`` goes to `combine`.
    """
    values, weighed, noise = [], [], []
    for n, (image, image_wcs) in enumerate(inputs):
        points = oracle.locate(wcs, shape, image_wcs)
        weight = weights[n] if weights else None
        v, w = oracle.samples(image, points, kernel, weight, feather_px)
        gain, offset = gains[n] if gains else (1.0, 0.0)
        values.append(gain * v + offset)
        weighed.append(w)
        noise.append(gain**2 * samples(image, points, kernel, weight, variances[n]))
    return combine(np.stack(values), np.stack(weighed), np.stack(noise), how, **more)
