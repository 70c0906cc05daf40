"""The variance is that of the pixels: many draws of the noise of a scene, in every kernel and way.

A draw is a channel of the inputs, so that one mosaic makes 64 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from astropy.wcs import WCS

import sky
import zmrs
from sky import unmatched
from zmrs.config import KERNELS

SHAPE, FRAME = (34, 39), (40, 44)
DRAWS, AT_ONCE = 768, 64
Array = np.ndarray[Any, Any]


@cache
def grid() -> WCS:
    return sky.frame_wcs(SHAPE, 7.3)


@cache
def places(n: int) -> list[WCS]:
    """Where frames lie: over most of the output, each turned and shifted otherwise."""
    found = []
    for k in range(n):
        wcs = sky.frame_wcs(FRAME, 29.0 * k + 3.1)
        wcs.wcs.crpix += np.array([5.37 * (k % 3) - 4.1, 3.71 * (k % 4) - 5.3])
        found.append(WCS(wcs.to_header()))
    return found


def truth(n: int) -> list[Array]:
    """Variances of the pixels of each frame: rough, and of different size by frame."""
    return [
        np.random.default_rng([k, 9]).uniform(0.5, 2.0, FRAME) * (1.0 + 0.6 * (k % 4))
        for k in range(n)
    ]


def draws(
    kernel: str, variances: Sequence[Array], levels: Sequence[float], **more: Any
) -> tuple[Array, Array]:
    """Mosaics of many draws (N, H, W), and what is said of their variance (H, W)."""
    rng = np.random.default_rng(20)
    images, said = [], []
    for _ in range(DRAWS // AT_ONCE):
        tiles = [
            ((level + rng.normal(size=(AT_ONCE, *FRAME)) * np.sqrt(v)).astype(np.float32), wcs)
            for level, v, wcs in zip(levels, variances, places(len(levels)), strict=True)
        ]
        result = made(tiles, kernel, **more)
        assert result.variance is not None
        images.append(result.data)
        said.append(result.variance.astype(np.float64).mean(axis=0))
    return np.concatenate(images).astype(np.float64), np.mean(said, axis=0)


def made(tiles: Sequence[sky.Tile], kernel: str, **more: Any) -> zmrs.Result:
    return unmatched(tiles, wcs=grid(), shape=SHAPE, kernel=kernel, variance=True, **more)


def ratio_of(images: Array, said: Array) -> Array:
    """Variance as found in the draws over what was said of it, where the mosaic has a value."""
    covered = np.isfinite(said)
    assert covered.mean() > 0.8, "the scene is empty"
    return images.var(axis=0, ddof=1)[covered] / said[covered]


def assert_true(images: Array, said: Array, *, bias: float = 0.01) -> None:
    """Every ratio within 5.5 of its sampling errors of 1, and the mean of all within `bias`."""
    ratio = ratio_of(images, said)
    error = np.sqrt(2 / (DRAWS - 1))
    assert np.abs(ratio - 1).max() < 5.5 * error + bias
    assert abs(ratio.mean() - 1) < bias


@pytest.mark.parametrize("kernel", KERNELS)
def test_means_of_every_kernel(kernel: str) -> None:
    variances = truth(5)
    more = {"weights": variances, "weight_type": "variance", "feather": 6.0}
    assert_true(*draws(kernel, variances, [0.0] * 5, **more))


@pytest.mark.parametrize("kernel", ["nearest", "lanczos3"])
def test_sums(kernel: str) -> None:
    variances = truth(4)
    more = {"weights": variances, "weight_type": "variance", "combine": "sum"}
    assert_true(*draws(kernel, variances, [0.0] * 4, **more))


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("how", ["min", "max", "first", "last"])
def test_a_chosen_sample(how: str, kernel: str) -> None:
    """Levels far apart, so that noise has no part in the choice."""
    variances = truth(4)
    more = {"weights": variances, "weight_type": "variance", "combine": how}
    images, said = draws(kernel, variances, [300.0, 100.0, 400.0, 200.0], **more)
    assert_true(images, said)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_medians(n: int) -> None:
    """Of few samples and of many, all alike."""
    variances = [np.full(FRAME, 3.0)] * n
    more = {"weights": variances, "weight_type": "variance", "combine": "median"}
    assert_true(*draws("nearest", variances, [0.0] * n, **more), bias=0.015)


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos2"])
def test_weighted_medians(kernel: str) -> None:
    """Of samples of unlike weight and variance the formula holds when there are many."""
    variances = truth(9)
    more = {"weights": variances, "weight_type": "variance", "combine": "median"}
    ratio = ratio_of(*draws(kernel, variances, [0.0] * 9, **more))
    assert abs(ratio.mean() - 1) < 0.05
    assert 0.6 < ratio.min() < ratio.max() < 1.5


@pytest.mark.parametrize("how", ["kappa-sigma", "winsorized", "kappa-sigma-stream"])
def test_what_rejects_little_is_a_mean(how: str) -> None:
    """Clipping at four sigma, which normal noise hardly reaches."""
    variances = truth(12)
    more = {"weights": variances, "weight_type": "variance", "combine": how, "kappa": (4.0, 4.0)}
    assert_true(*draws("bilinear", variances, [0.0] * 12, **more), bias=0.03)


@pytest.mark.parametrize("how", ["kappa-sigma", "winsorized"])
def test_what_is_rejected_has_no_part(how: str) -> None:
    """One of the frames is far off: the others' noise remains."""
    n = 20
    variances = truth(n)
    levels = [0.0] * (n - 1) + [1e5]
    more = {"weights": variances, "weight_type": "variance"}
    images, said = draws("bilinear", variances, levels, combine=how, **more)
    others = more | {"weights": variances[:-1]}
    _, of_mean = draws("bilinear", variances[:-1], levels[:-1], **others)
    # Where the far frame lies beside enough others it is rejected, and lies alone elsewhere.
    clean = np.abs(np.nanmean(images, axis=0)) < 10
    assert clean.mean() > 0.5
    ratio = images.var(axis=0, ddof=1)[clean] / said[clean]
    assert abs(np.median(ratio) - 1) < 0.06
    # A little more, since now and then a good sample is rejected, too.
    more_noise = said[clean] / of_mean[clean]
    assert 0.99 < np.median(more_noise) < 1.06


def test_measured_noise() -> None:
    """Of frames without maps, through a wide kernel; the median of 600 values is 0.2 % high."""
    frame = (44, 600)
    rng = np.random.default_rng(3)
    images, said = [], []
    wcses = [sky.frame_wcs(frame, 2.0 * k - 3.3) for k in range(4)]
    for _ in range(DRAWS // AT_ONCE):
        tiles = [
            ((50 + sigma * rng.normal(size=(AT_ONCE, *frame))).astype(np.float32), wcs)
            for sigma, wcs in zip((2.0, 3.0, 1.0, 0.5), wcses, strict=True)
        ]
        result = made(tiles, "lanczos3")
        assert result.variance is not None
        images.append(result.data)
        said.append(result.variance.astype(np.float64).mean(axis=0))
    assert_true(np.concatenate(images).astype(np.float64), np.mean(said, axis=0), bias=0.02)


def test_gains_of_the_second_pass() -> None:
    """They scale the noise, and so its variance."""
    variances = truth(4)
    more = {"weights": variances, "weight_type": "variance", "two_pass": True}
    clip = {"two_pass_sigma": 3.0, "two_pass_gain_clip": (0.55, 0.7)}
    images, said = draws("bilinear", variances, [1000.0] * 4, **more, **clip)
    alone, of_alone = draws("bilinear", variances, [1000.0] * 4, **(more | {"two_pass": False}))
    assert_true(images, said)
    assert_true(alone, of_alone)
    covered = np.isfinite(said)
    assert np.median(said[covered] / of_alone[covered]) < 0.6
