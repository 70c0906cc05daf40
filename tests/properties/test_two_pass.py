"""The Two-Pass of `zmrs.mosaic` against its formulas in NumPy and SciPy, float64, whole canvases.

The oracle takes coverage and image of both passes from zmrs without Two-Pass, which other tests
judge; masks, blur, gains and merge are its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reproject import reproject_interp
from scipy.ndimage import gaussian_filter

import sky
import zmrs
from sky import unmatched
from zmrs import two_pass
from zmrs.errors import BudgetError
from zmrs.simulate import make_frame_wcs

Array = np.ndarray[Any, Any]


def blur(plane: Array, sigma_px: float) -> Array:
    if sigma_px == 0:
        return plane.astype(np.float64)
    return gaussian_filter(plane.astype(np.float64), sigma_px, truncate=4.0, mode="reflect")


@dataclass(frozen=True)
class Scene:
    """Inputs on a grid, and how to renormalise their mosaic."""

    inputs: Sequence[sky.Tile]
    shape: tuple[int, int]
    weights: Sequence[Any] | None = None
    sigma_px: float = 8.0
    clip: tuple[float, float] = (0.85, 1.18)
    threshold: float = 2.0

    @cached_property
    def wcs(self) -> Any:
        return sky.frame_wcs(self.shape)

    def plain(self, gains: Sequence[float] | None = None) -> zmrs.Result:
        """One pass over the inputs times gains."""
        factors = gains or [1.0] * len(self.inputs)
        inputs = [
            ((image * np.float64(gain)).astype(np.float32), wcs)
            for (image, wcs), gain in zip(self.inputs, factors, strict=True)
        ]
        return unmatched(inputs, wcs=self.wcs, shape=self.shape, weights=self.weights, threads=2)

    def made(self, *args: Any, **more: Any) -> zmrs.Result:
        inputs, *output = args or (self.inputs,)
        given = {"threads": 2, "plan": {"two_pass_coverage_threshold": self.threshold}} | more
        return unmatched(
            inputs, *output, wcs=self.wcs, shape=self.shape, weights=self.weights, two_pass=True,
            two_pass_sigma=self.sigma_px, two_pass_gain_clip=self.clip, **given,
        )  # fmt: skip

    @cached_property
    def first(self) -> zmrs.Result:
        return self.plain()

    def mask(self, number: int) -> Array:
        """Where an input lies: its validity, interpolated over the whole canvas."""
        image, wcs = self.inputs[number]
        valid = np.isfinite(image if image.ndim == 3 else image[np.newaxis]).all(axis=0)
        if self.weights is not None and np.ndim(self.weights[number]) == 2:
            valid &= np.nan_to_num(np.asarray(self.weights[number])) > 0
        found = reproject_interp(
            (valid.astype(np.float64), wcs), self.wcs, self.shape, return_footprint=False
        )
        return np.nan_to_num(found) > 1e-3

    @cached_property
    def gains(self) -> list[float]:
        coverage = self.first.coverage.astype(np.float64)
        reach = blur(coverage > 0, self.sigma_px)
        mean = np.divide(
            blur(coverage, self.sigma_px), reach, out=np.zeros(self.shape), where=reach > 0
        )
        scale = np.clip(mean / np.maximum(coverage, 1.19e-7), 0.5, 2.0)
        well = (coverage > 0) & (mean.astype(np.float32) >= self.threshold)
        low, high = sorted(self.clip)
        found = []
        for number in range(len(self.inputs)):
            mask = self.mask(number)
            used = scale[mask & well]
            if used.size < max(64, math.ceil(0.001 * mask.sum())):
                found.append(1.0)
            else:
                found.append(min(max(float(np.nanmedian(used)), low), high))
        return found

    @cached_property
    def merged(self) -> tuple[Array, float]:
        """The image, and the part of it that is the second pass's."""
        second = self.plain(self.gains)
        images = [one.data.astype(np.float64) for one in (self.first, second)]
        lights = [image if image.ndim == 2 else image.mean(axis=0) for image in images]
        valid = (self.first.coverage > 0) & (second.coverage > 0)
        epsilon = max(0.1 * np.nanpercentile(lights[0][valid], 5), 1e-6)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = lights[1] / (lights[0] + epsilon)
        assert not (np.abs(ratio[valid] - 0.4) < 1e-4).any(), "a pixel that rounding may decide"
        used = valid & (ratio >= 0.4)
        return np.where(used, images[1], images[0]), used.mean()

    def check(self) -> zmrs.Result:
        result = self.made()
        figures = result.stats["two_pass"]
        assert figures["gains"] == pytest.approx(self.gains, rel=1e-5)
        rows = [row.two_pass_gain for row in result.inputs]
        assert rows == figures["gains"]
        image, part = self.merged
        assert figures["applied"] is bool(part > 0)
        assert figures["replaced_fraction"] == pytest.approx(part, abs=0.5 / image[..., 0].size)
        np.testing.assert_array_equal(np.isnan(result.data), np.isnan(image))
        size = np.nanmax(np.abs(image))
        np.testing.assert_allclose(result.data, image, rtol=1e-4, atol=1e-6 * size)
        assert np.array_equal(result.coverage, self.first.coverage)
        return result


def frames(
    places: Sequence[tuple[float, float, float]],
    grid: tuple[int, int],
    shape: tuple[int, int] = (90, 110),
    channels: int = 1,
) -> list[sky.Tile]:
    """Frames centred at (x, y), turned by an angle, with levels of their own.

    The sky is dark in its middle, where a second pass is no better than the first one.
    """
    base = sky.frame_wcs(grid)
    made = []
    for n, (x, y, degrees) in enumerate(places):
        centre = tuple(map(float, base.all_pix2world(x, y, 0)))
        wcs = make_frame_wcs(centre, sky.SCALE_ARCSEC, degrees, shape)
        rng = np.random.default_rng([n, channels])
        image = rng.normal(100 + 7 * n, 5, (channels, *shape)).astype(np.float32)
        v, u = np.mgrid[: shape[0], : shape[1]]
        u, v = base.all_world2pix(*wcs.all_pix2world(u, v, 0), 0)
        image[:, np.hypot(u - grid[1] / 2, v - grid[0] / 2) < 6] = 0.5
        made.append((image if channels > 1 else image[0], wcs))
    return made


CANVAS = (170, 230)
STRAIGHT = [
    (x - 0.5, y - 0.5, 0) for x, y in [(60, 50), (150, 50), (60, 110), (150, 115), (110, 80)]
]
TURNED = [
    (60.3, 50.2, 3),
    (150.7, 52.1, -17),
    (62, 110, 41),
    (149.8, 115.3, 90),
    (110.2, 80.4, 180),
]


def with_holes(inputs: list[sky.Tile]) -> list[sky.Tile]:
    for n, (image, _) in enumerate(inputs):
        image[..., np.random.default_rng(n).random(image.shape[-2:]) < 0.02] = np.nan
        image[..., 20:50, 10:40] = np.nan
        image[..., :3] = np.inf
    return inputs


def in_one_channel(inputs: list[sky.Tile]) -> list[sky.Tile]:
    for n, (image, _) in enumerate(inputs):
        image[n % 3, 60:85, 20:90] = np.nan
    return inputs


def weights_of(n_inputs: int, shape: tuple[int, int]) -> list[Any]:
    """None, a number, a map with nothing in places."""
    weights: list[Any] = [None, 0.5, None, 2.5, 1.75]
    y, x = np.mgrid[: shape[0], : shape[1]]
    weights[2] = 1 + 0.4 * np.sin(x / 9) * np.cos(y / 7)
    weights[2][5:30, 5:60], weights[2][70:75], weights[2][76] = 0.0, np.nan, -1.0
    return weights[:n_inputs]


SCENES = {
    "straight": Scene(frames(STRAIGHT, CANVAS), CANVAS),
    "turned": Scene(frames(TURNED, CANVAS), CANVAS),
    "colour": Scene(frames(TURNED, CANVAS, channels=3), CANVAS),
    "holes": Scene(with_holes(frames(TURNED, CANVAS)), CANVAS),
    "holes of one channel": Scene(in_one_channel(frames(TURNED, CANVAS, channels=3)), CANVAS),
    "weights": Scene(frames(TURNED, CANVAS), CANVAS, weights_of(5, (90, 110))),
    "a tile with too few pixels": Scene(
        [*frames(TURNED, CANVAS), *frames([(110, 80, 0)], CANVAS, (7, 9))], CANVAS
    ),
    "a tile with just enough": Scene(
        [*frames(TURNED, CANVAS), *frames([(114.5, 84.5, 0)], CANVAS, (8, 8))], CANVAS
    ),
    "partly off the canvas": Scene(frames(TURNED, (120, 150)), (120, 150)),
    "narrow": Scene(frames([(20, 60, 0), (20, 100, 45), (20, 130, 9)], (310, 41)), (310, 41)),
    "wide blur": Scene(frames(TURNED, CANVAS), CANVAS, sigma_px=50.0, threshold=1.0),
    "wider than the canvas": Scene(
        frames(TURNED, CANVAS), CANVAS, sigma_px=400.0, clip=(0.1, 5), threshold=1.0
    ),
    "a fraction of a pixel": Scene(
        with_holes(frames(TURNED, CANVAS)), CANVAS, sigma_px=0.3
    ),
    "fractional": Scene(frames(TURNED, CANVAS), CANVAS, sigma_px=7.77),
    "clip reversed": Scene(frames(TURNED, CANVAS), CANVAS, sigma_px=20, clip=(1.01, 0.99)),
    "wide clip": Scene(frames(TURNED, CANVAS), CANVAS, sigma_px=30, clip=(0.1, 5.0), threshold=1.0),
    "threshold 0": Scene(frames(TURNED, CANVAS), CANVAS, threshold=0.0),
    "threshold 3": Scene(frames(TURNED, CANVAS), CANVAS, threshold=3.0),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_against_the_formulas(name: str) -> None:
    scene = SCENES[name]
    gains = scene.check().stats["two_pass"]["gains"]
    # So little blur leaves most pixels as they are, and their median.
    tries_something = scene.sigma_px >= 1
    assert any(gain != 1.0 for gain in gains) is tries_something


def test_the_merge_is_tried() -> None:
    """Where both passes are dark the first one stays."""
    scene = SCENES["turned"]
    covered = (scene.first.coverage > 0).mean()
    assert 0.9 * covered < scene.merged[1] < covered


def test_a_tile_needs_64_pixels() -> None:
    few = SCENES["a tile with too few pixels"].made().stats["two_pass"]["gains"]
    enough = SCENES["a tile with just enough"].made().stats["two_pass"]["gains"]
    assert few[-1] == 1.0 != enough[-1]


def test_a_tile_off_the_canvas() -> None:
    """It is left out, and changes nothing."""
    scene = SCENES["turned"]
    away = frames([(5000, 80, 0)], CANVAS)
    more = replace(scene, inputs=[*scene.inputs[:2], *away, *scene.inputs[2:]])
    result, want = more.made(), scene.made()
    assert_same(result, want)
    assert [row.status for row in result.inputs] == ["used"] * 5 + ["left_out"]
    assert [row.two_pass_gain for row in result.inputs] == [*want.stats["two_pass"]["gains"], 1.0]


def test_no_blur_no_gain() -> None:
    scene = replace(SCENES["turned"], sigma_px=0.0)
    result = scene.made()
    assert result.stats["two_pass"]["gains"] == [1.0] * 5
    assert np.array_equal(result.data, scene.first.data, equal_nan=True)


@pytest.mark.parametrize("n_equal", [1, 2, 3])
@pytest.mark.parametrize("sigma_px", [1.0, 50.0])
def test_flat_coverage_changes_nothing(n_equal: int, sigma_px: float) -> None:
    inputs = frames([(50, 40, 0)] * n_equal, (80, 100), (70, 84))
    scene = Scene(inputs, (80, 100), sigma_px=sigma_px)
    result = scene.made()
    assert result.stats["two_pass"]["gains"] == pytest.approx([1.0] * n_equal, abs=1e-7)
    np.testing.assert_allclose(result.data, scene.first.data, rtol=1e-6, atol=0)
    assert np.array_equal(result.coverage, scene.first.coverage)


@pytest.mark.parametrize("combine", ["sum", "min", "max", "first", "last"])
def test_other_combines(combine: str) -> None:
    """The second pass combines as the first one does."""
    scene = SCENES["straight"]
    common = {"wcs": scene.wcs, "shape": CANVAS, "combine": combine}
    result = scene.made(combine=combine)
    gains = result.stats["two_pass"]["gains"]
    assert gains == pytest.approx(scene.gains, rel=1e-5)
    scaled = [(image * np.float32(g), w) for (image, w), g in zip(scene.inputs, gains, strict=True)]
    second = unmatched(scaled, **common)
    first = unmatched(scene.inputs, **common)
    both = [np.isclose(result.data, one.data, rtol=1e-4) for one in (first, second)]
    assert (both[0] | both[1])[scene.first.coverage > 0].all()
    assert both[1][scene.first.coverage > 0].mean() > 0.95


def test_matched_inputs_are_matched_again() -> None:
    """Levels that gains have moved apart come together again."""
    grid = (420, 560)
    places = [(150, 120, 0), (400, 130, 2), (160, 290, -3), (390, 300, 0), (280, 210, 5)]
    inputs = [
        (np.full(image.shape, 1000.0 + 30 * n, np.float32), wcs)
        for n, (image, wcs) in enumerate(frames(places, grid, (230, 300)))
    ]
    scene = Scene(inputs, grid, sigma_px=20)
    result = scene.made(match="offset")
    gains = result.stats["two_pass"]["gains"]
    assert max(gains) - min(gains) > 0.005
    levels = result.data[np.isfinite(result.data)]
    assert np.ptp(levels) < 1e-3 * levels.mean()
    apart = scene.made().data
    assert np.nanmax(apart) - np.nanmin(apart) > 30


# ------------------------------------------------------------------------------- banded = unbanded


def assert_same(result: zmrs.Result, other: zmrs.Result) -> None:
    for name in ("data", "coverage"):
        ours, theirs = (np.asarray(getattr(one, name), "=f4") for one in (result, other))
        differ = ours.view(np.uint32) != theirs.view(np.uint32)
        assert not differ.any(), f"{name}: {differ.sum()} pixels differ"
    # The others are counts of what a plan has led to.
    for name in ("applied", "reason", "gains", "scale_range", "replaced_fraction"):
        assert result.stats["two_pass"][name] == other.stats["two_pass"][name], name


@pytest.mark.parametrize("name", ["colour", "weights", "wide blur"])
def test_bands_and_workers(name: str, tmp_path: Path) -> None:
    scene = SCENES[name]
    want = scene.made()
    assert want.stats["bands"] == 1
    for rows in (1, 3, 17, CANVAS[0]):
        for workers in (1, 2, 8):
            plan = {
                "rows_per_chunk": rows,
                "cpu_workers": workers,
                "two_pass_coverage_threshold": scene.threshold,
            }
            result = scene.made(plan=plan, threads=None)
            assert result.plan.rows_per_chunk == rows
            assert result.stats["workers"] == result.stats["two_pass"]["workers"] == workers
            assert_same(result, want)
            stored = tmp_path / f"{rows}-{workers}.fits"
            assert_same(scene.made(scene.inputs, stored, plan=plan, threads=None), want)


def test_inputs_in_files(tmp_path: Path) -> None:
    scene = SCENES["holes"]
    paths = sky.write_tiles(tmp_path, scene.inputs)
    # Headers round a WCS.
    result = scene.made(paths, tmp_path / "out.fits", plan={"rows_per_chunk": 3})
    want = scene.made(paths)
    assert_same(result, want)
    assert want.stats["two_pass"]["gains"] == pytest.approx(scene.gains, rel=1e-4)


@pytest.mark.parametrize("sigma_px", [20.0, 50.0, 900.0])
def test_the_smallest_memory(sigma_px: float) -> None:
    """Blur, medians and percentile in as little as the engine accepts: the same bits."""
    grid = (1000, 700)
    places = [(200, 250, 0), (480, 260, 7), (220, 700, 0), (470, 720, 90), (340, 480, 30)]
    scene = Scene(
        frames(places, grid, (600, 500)), grid, sigma_px=sigma_px, clip=(0.1, 5.0), threshold=1.0
    )
    want = scene.made(memory="2GiB")
    assert any(gain != 1.0 for gain in want.stats["two_pass"]["gains"])
    plan = {"cpu_workers": 2, "two_pass_coverage_threshold": 1.0}
    limit, narrow = 1, None
    # The process may grow while it is asked; a refusal names the limit anew.
    for _ in range(4):
        try:
            narrow = scene.made(plan=plan | {"memory_bytes": limit}, threads=None)
            break
        except BudgetError as refused:
            (least_mib,) = re.findall(r"needs (\d+) MiB", str(refused))
            limit = int(least_mib) + 1 << 20
    assert narrow is not None
    assert narrow.stats["bands"] > want.stats["bands"]
    assert_same(narrow, want)


def test_the_table_describes_the_pixels() -> None:
    """Gain times value plus offset, of the pass that was used."""
    frames = sky.constant_frames([1000.0 + 30.0 * n for n in range(5)], (60, 80))
    result = zmrs.mosaic(frames, two_pass=True, two_pass_sigma=20)
    assert result.stats["two_pass"]["applied"]
    levels = [
        row.two_pass_gain * (1000.0 + 30.0 * n) + row.offset[0]
        for n, row in enumerate(result.inputs)
    ]
    assert np.nanmax(np.abs(result.data - levels[0])) < 0.01
    assert np.ptp(levels) < 0.01


def test_gains_of_masks() -> None:
    coverage = np.zeros((120, 160))
    masks = []
    for y, x in ((0, 0), (0, 60), (40, 0), (40, 60), (20, 30)):
        mask = np.zeros(coverage.shape, bool)
        mask[y : y + 80, x : x + 100] = True
        coverage += mask
        masks.append(mask)
    assert two_pass.tile_gains(masks, coverage, sigma_px=5) == pytest.approx(
        [0.99289] * 4 + [0.992176], abs=2e-5
    )
    assert two_pass.tile_gains(masks, coverage, sigma_px=0) == [1.0] * 5
