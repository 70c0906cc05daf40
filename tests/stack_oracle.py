"""The slow plain judge of combines that reject samples: float64, one pixel at a time.

Written from the definitions in docs/combines.md, in the plainest form, without sorting tricks.
Every function takes the valid values of a pixel and their weights, and returns the values as they
count (drawn in or not), which of them count, and which lie below and above what is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
Verdict = tuple[Array, Array, Array, Array]

ROUNDS = 5


def _kept(values: Array, keep: Array, middle: float) -> Verdict:
    return values, keep, ~keep & (values < middle), ~keep & (values > middle)


def _rounds(
    values: Array, kappa: tuple[float, float], spread: Callable[[Array, float], float]
) -> Verdict:
    keep = np.ones(values.shape, bool)
    for _ in range(ROUNDS):
        middle = float(np.median(values[keep]))
        sigma = spread(values[keep], middle)
        within = (values >= middle - kappa[0] * sigma) & (values <= middle + kappa[1] * sigma)
        fewer = keep & within
        if fewer.sum() < 2 or np.array_equal(fewer, keep):
            break
        keep = fewer
    return _kept(values, keep, float(np.median(values[keep])))


def kappa_sigma(values: Array, _: Array, kappa: tuple[float, float], __: Any) -> Verdict:
    return _rounds(values, kappa, lambda kept, _middle: float(kept.std()))


def kappa_sigma_stream(values: Array, _: Array, kappa: tuple[float, float], __: Any) -> Verdict:
    low, high = values.mean() - kappa[0] * values.std(), values.mean() + kappa[1] * values.std()
    # Bounds are kept in single precision, rounded outward.
    with np.errstate(over="ignore"):
        bounds = np.array([low, high]).astype(np.float32)
    if bounds[0] > low:
        bounds[0] = np.nextafter(bounds[0], np.float32(-np.inf))
    if bounds[1] < high:
        bounds[1] = np.nextafter(bounds[1], np.float32(np.inf))
    below, above = values < bounds[0], values > bounds[1]
    return values, ~below & ~above, below, above


def winsorized(values: Array, _: Array, kappa: tuple[float, float], __: Any) -> Verdict:
    def spread(kept: Array, middle: float) -> float:
        fewer = min(1, len(kept) - 1)
        sigma = float(kept.std(ddof=fewer))
        for _ in range(100):
            drawn = np.clip(kept, middle - 1.5 * sigma, middle + 1.5 * sigma)
            new = 1.134 * float(drawn.std(ddof=fewer))
            settled = abs(new - sigma) <= 5e-4 * sigma
            sigma = new
            if settled:
                break
        return sigma

    return _rounds(values, kappa, spread)


def winsorized_reference(
    values: Array, weights: Array, kappa: tuple[float, float], _: Any
) -> Verdict:
    every = np.ones(values.shape, bool)
    if len(values) < 2:
        return values, every, ~every, ~every
    middle = float(np.median(values))
    sigma = max(1.4826 * float(np.median(np.abs(values - middle))), 1e-10)
    bounds = (np.nan, np.nan)
    for _ in range(10):
        new = (middle - kappa[0] * sigma, middle + kappa[0] * sigma)
        if new == bounds:
            break
        bounds = new
        drawn = np.clip(values, *bounds)
        mean = float(np.average(drawn, weights=weights))
        off = drawn - mean
        with np.errstate(divide="ignore"):
            huber = np.minimum(1.0, kappa[0] * sigma / np.abs(off)) * weights
        spread = float(np.sqrt((huber * off**2).sum() / huber.sum()))
        settled = abs(mean - middle) <= 5e-4 * max(1.0, abs(middle)) and (
            abs(spread - sigma) <= 5e-4 * max(1.0, abs(sigma))
        )
        middle, sigma = mean, max(spread, 1e-10)
        if settled:
            break
    return np.clip(values, *bounds), every, values < bounds[0], values > bounds[1]


def winsor_percentile(values: Array, _: Array, __: Any, winsor: tuple[float, float]) -> Verdict:
    low, high = np.percentile(values, [100 * winsor[0], 100 - 100 * winsor[1]])
    every = np.ones(values.shape, bool)
    return np.clip(values, low, high), every, values < low, values > high


def weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    below = np.cumsum(weights)
    half = 0.5 * weights.sum()
    place = int(np.argmax(below >= half * (1 - 1e-9)))
    if abs(below[place] - half) <= 1e-9 * half and place + 1 < len(values):
        return float(0.5 * (values[place] + values[place + 1]))
    return float(values[place])


JUDGES = {
    "kappa-sigma": kappa_sigma,
    "kappa-sigma-stream": kappa_sigma_stream,
    "winsorized": winsorized,
    "winsorized-reference": winsorized_reference,
    "winsor-percentile": winsor_percentile,
}
STACKED = ("median", *JUDGES)


def combine(
    values: Array,
    weights: Array,
    how: str,
    *,
    kappa: tuple[float, float] = (3.0, 3.0),
    winsor: tuple[float, float] = (0.05, 0.05),
    together: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """Image (C, H, W), coverage (H, W), counts below and above (C, H, W).

    ``values`` are (N, C, H, W), NaN where invalid, ``weights`` (N, H, W).
    """
    _, channels, height, width = values.shape
    image = np.full((channels, height, width), np.nan)
    coverage = np.zeros((height, width))
    low, high = np.zeros(image.shape, int), np.zeros(image.shape, int)
    for y, x in np.ndindex(height, width):
        valid = ~np.isnan(values[:, 0, y, x])
        if not valid.any():
            continue
        w = weights[valid, y, x]
        if how == "median":
            for c in range(channels):
                image[c, y, x] = weighted_median(values[valid, c, y, x], w)
            coverage[y, x] = w.sum()
            continue
        verdicts = [JUDGES[how](values[valid, c, y, x], w, kappa, winsor) for c in range(channels)]
        everywhere = np.logical_and.reduce([verdict[1] for verdict in verdicts])
        nothing = together and not everywhere.any()
        for c, (drawn, keep, below, above) in enumerate(verdicts):
            if together:
                keep = np.ones_like(keep) if nothing else everywhere  # noqa: PLW2901
            image[c, y, x] = np.average(drawn[keep], weights=w[keep])
            coverage[y, x] += w[keep].sum() / channels
            low[c, y, x], high[c, y, x] = (0, 0) if nothing else (below.sum(), above.sum())
    return image, coverage, low, high
