"""What weighs inputs as a whole, and maps of weights: formulas on numbers and arrays.

>>> frame_weights([10, 20, 40, 80]).round(4).tolist()
[0.75, 0.8165, 1.1547, 1.35]
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs.errors import UsageError
from zmrs.io.names import and_others

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from zmrs.placing import Placed

__all__ = [
    "are_counts",
    "border_margins",
    "exposure_weights",
    "frame_weights",
    "median_of_known",
    "noise_variances",
    "noise_weights",
    "radial_map",
    "warn_of_unknown",
    "weighed",
]

log = logging.getLogger("zmrs")

_CURVES = ("sqrt", "log", "softcap")


def frame_weights(
    counts: ArrayLike,
    *,
    unit: float | None = None,
    curve: str = "sqrt",
    strength: float = 1.0,
    clip: tuple[float, float] = (0.75, 1.35),
) -> NDArray[np.float64]:
    """Weights of stacks from the numbers of frames in them, as ZeMosaic 4.5 has them (v4).

    With n a count over the median count, f is √n (``sqrt``), 1 + ln(1 + max(0, n − 1)) (``log``) or
    1 + (n − 1) / (1 + ∣n − 1∣) (``softcap``), and the weight is 1 + strength · (f − 1), clipped.

    Parameters
    ----------
    counts
        (N,) frames of each stack; what is not a number above 0 counts as the median.
    unit
        What stands in the place of the median.
    curve
        ``sqrt``, ``log`` or ``softcap``.
    strength
        How much of the curve is used; kept between 0 and 2.
    clip
        Least and greatest weight; swapped when reversed.

    Returns
    -------
    ndarray
        (N,) float64.
    """
    if curve not in _CURVES:
        raise UsageError(f"curve: '{curve}' is not one of {', '.join(_CURVES)}.")
    n = _relative(counts, unit)
    if curve == "sqrt":
        f = np.sqrt(np.maximum(n, 1e-6))
    elif curve == "log":
        f = 1 + np.log1p(np.maximum(n - 1, 0.0))
    else:
        f = 1 + (n - 1) / (1 + np.abs(n - 1))
    weights = 1 + min(max(strength, 0.0), 2.0) * (f - 1)
    return np.minimum(np.maximum(weights, min(clip)), max(clip))


def exposure_weights(exposures_s: ArrayLike, *, unit: float | None = None) -> NDArray[np.float64]:
    """Weights in proportion to exposure times: each over the median of all.

    Parameters
    ----------
    exposures_s
        (N,) seconds; what is not a number above 0 weighs 1.
    unit
        Seconds that stand in the place of the median.

    Returns
    -------
    ndarray
        (N,) float64.
    """
    return _relative(exposures_s, unit)


def noise_weights(
    noise: ArrayLike, *, unit: float | None = None
) -> tuple[NDArray[np.float64], float]:
    """Weights in inverse proportion to the variance of the noise.

    Parameters
    ----------
    noise
        (N,) or (N, C) standard deviations; the variances of channels are averaged.  What is not
        above 0 in any channel weighs 1.
    unit
        Inverse variance that stands in the place of the median.

    Returns
    -------
    tuple
        (N,) float64: inverse variances over their median; and that median (NaN of nothing), or the
        given unit.
    """
    sigmas = np.asarray(noise, np.float64)
    variances = sigmas**2 if sigmas.ndim == 1 else (sigmas**2).mean(axis=1)
    known = np.isfinite(variances) & (variances > 0)
    inverse = np.divide(1.0, variances, out=np.full(variances.shape, np.nan), where=known)
    if unit is None:
        unit = float(np.median(inverse[known])) if known.any() else math.nan
    return _relative(inverse, unit), unit


def noise_variances(noise: ArrayLike) -> NDArray[np.float64]:
    """Variances of the noise of inputs, whatever is known of it.

    Parameters
    ----------
    noise
        (N, C) standard deviations by input and channel; what is not a number above 0 is not known.

    Returns
    -------
    ndarray
        (N, C) float64: their squares; the median of a channel's others where one is not known, NaN
        where none is.
    """
    variances = np.asarray(noise, np.float64) ** 2
    known = np.isfinite(variances) & (variances > 0)
    for channel in range(variances.shape[1]):
        others = variances[known[:, channel], channel]
        median = np.median(others) if others.size else math.nan
        variances[~known[:, channel], channel] = median
    return variances


def median_of_known(values: ArrayLike) -> float | None:
    """The median of those values that are numbers above 0; None of none."""
    numbers = np.asarray(values, np.float64)
    known = numbers[np.isfinite(numbers) & (numbers > 0)]
    return float(np.median(known)) if known.size else None


def _relative(values: ArrayLike, unit: float | None = None) -> NDArray[np.float64]:
    """Values over their median, or over `unit`; 1 for those that are not numbers above 0."""
    numbers = np.asarray(values, np.float64)
    known = np.isfinite(numbers) & (numbers > 0)
    result = np.ones(numbers.shape)
    unit = median_of_known(numbers) if unit is None else unit
    if unit is not None:
        result[known] = numbers[known] / unit
    return result


def radial_map(
    shape: tuple[int, int], *, fraction: float = 0.8, power: float = 2.0, floor: float = 0.05
) -> NDArray[np.float64]:
    """Weights that fall from the centre of a frame outwards, as ZeMosaic 4.5 has them.

    With d the distance from the centre over that of the corners, the weight is
    cos(π/2 · min(d / fraction, 1))^power, but at least `floor`.

    Parameters
    ----------
    shape
        (H, W) in pixels.
    fraction
        Where the weight would reach 0; kept between 0.1 and 1.
    power
        How steeply it falls.
    floor
        Least weight, kept between 0 and 0.99; as ``weights=`` of `zmrs.mosaic` a weight of 0 would
        mean that a pixel is invalid.

    Returns
    -------
    ndarray
        (H, W) float64.
    """
    height, width = shape
    y, x = np.ogrid[:height, :width]
    distance = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
    reach = 0.5 * math.hypot(height, width) * min(max(fraction, 0.1), 1.0)
    falling = np.cos(0.5 * np.pi * np.clip(distance / reach, 0.0, 1.0)) ** power
    floor = min(max(floor, 0.0), 0.99)
    return np.maximum(falling, floor) if floor > 1e-6 else falling


def border_margins(shape: tuple[int, int], percent: float) -> tuple[int, int]:
    """Rows and columns at every edge of an image that a border of so many percent takes.

    Each is the rounded part of the height or width, but at least 1 and at most half of it; an image
    that has no more than 2 rows or columns keeps them, as ZeMosaic 4.5 has it.

    Parameters
    ----------
    shape
        (H, W) in pixels.
    percent
        0 is no border.

    Returns
    -------
    tuple of int
        Rows at the lower and at the upper edge, columns at the left and at the right one.
    """
    if percent <= 0 or min(shape) <= 2:
        return 0, 0
    rows, columns = (min(max(round(n * percent / 100), 1), n // 2) for n in shape)
    return rows, columns


def weighed(
    placed: Sequence[Placed],
    weight_by: str,
    noise: Sequence[Sequence[float]] | None = None,
    unit: float | None = None,
) -> tuple[list[Placed], float | None]:
    """Inputs with the weights that `weight_by` gives them, times those of their own.

    Parameters
    ----------
    placed
        The inputs of a job.
    weight_by
        ``none``, ``n_frames``, ``exposure`` or ``ivar``.
    noise
        Standard deviations by input and channel, for ``ivar``; None before they are known.
    unit
        What weighs 1: frames, seconds or an inverse variance; None is the median of the inputs.

    Returns
    -------
    tuple
        The inputs, and what weighs 1; None where nothing tells.  A mosaic that is updated keeps the
        weights of its pixels: it is part of no median.
    """
    new = [one for one in placed if not one.is_base]
    weights = np.ones(len(new))
    if weight_by == "n_frames":
        counts = [one.image.meta.n_frames for one in new]
        unit = median_of_known(counts) if unit is None else unit
        weights = frame_weights(counts, unit=unit)
    elif weight_by == "exposure":
        exposures_s = [one.image.meta.exptime or math.nan for one in new]
        unit = median_of_known(exposures_s) if unit is None else unit
        weights = exposure_weights(exposures_s, unit=unit)
    elif weight_by == "ivar" and noise is not None:
        of_new = [sigmas for one, sigmas in zip(placed, noise, strict=True) if not one.is_base]
        weights, found = noise_weights(of_new, unit=unit)
        unit = found if math.isfinite(found) else None
    weights_of_new = iter(weights.tolist())
    return [
        one if one.is_base else replace(one, weight=one.own_weight * next(weights_of_new))
        for one in placed
    ], unit


def warn_of_unknown(
    placed: Sequence[Placed], weight_by: str, noise: Sequence[Sequence[float]] | None = None
) -> None:
    """Warn of inputs for which `weighed` has nothing to go by."""
    if weight_by == "exposure":
        known = [(one.image.meta.exptime or math.nan) > 0 for one in placed]
    elif weight_by == "ivar" and noise is not None:
        known = [all(sigma > 0 for sigma in sigmas) for sigmas in noise]
    else:
        return
    what = "exposure time" if weight_by == "exposure" else "noise"
    names = [
        one.image.name
        for one, is_known in zip(placed, known, strict=True)
        if not (is_known or one.is_base)
    ]
    if names:
        log.warning("%s: the %s is not known; it weighs as the median", and_others(names), what)


def are_counts(placed: Sequence[Any], weight_by: str) -> bool:
    """Whether the coverage of these inputs says how many they are.

    Opacities, masks and numbers of frames do not change that much; inverse variances, exposure
    times, ramps and weights of a caller's own do.
    """
    plain = all(
        one.own_weight == 1.0
        and one.feather_px == 0
        and (one.weight_map is None or one.map_kind in ("alpha", "mask"))
        for one in placed
    )
    return plain and weight_by in ("none", "n_frames")
