"""Gains and offsets of simulated frames are found again, and no seams are left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from reproject import reproject_interp
from reproject.mosaicking import reproject_and_coadd

import clouds
import sky
import zmrs
from clouds import SIGMA, Scene
from zmrs.simulate import Contaminants

Array = np.ndarray[Any, Any]


@cache
def scene(channels: int, seed: int = 1) -> Scene:
    return clouds.make(channels=channels, seed=seed)


def match(tiles: Sequence[sky.Tile], how: str = "gain", **more: Any) -> zmrs.Result:
    return zmrs.mosaic(tiles, match=how, threads=2, **more)


def solution(result: zmrs.Result) -> tuple[Array, Array]:
    """Gains and offsets, both (N, C)."""
    rows = [row for row in result.inputs if row.status == "used"]
    return np.array([row.gain for row in rows]), np.array([row.offset for row in rows])


def steps(tiles: Sequence[sky.Tile], truth: Sequence[sky.Tile], canvas: zmrs.Result) -> Array:
    """By how much the errors of two neighbouring pixels differ at the borders of tiles.

    (C, n), in adu, of images without noise: borders are where the coverage changes along a row.
    """
    grid = {"wcs": canvas.wcs, "shape": canvas.coverage.shape}
    made, wanted = sky.unmatched(tiles, **grid), sky.unmatched(truth, **grid)
    error = np.atleast_3d((made.data - wanted.data).T).T
    depth = made.coverage
    is_border = (np.diff(depth, axis=1) != 0) & (depth[:, 1:] > 0) & (depth[:, :-1] > 0)
    assert is_border.sum() > 3000
    return np.asarray(np.abs(np.diff(error, axis=2))[:, is_border])


@pytest.mark.parametrize(("channels", "seed"), [(1, 1), (1, 2), (3, 1)])
def test_gains_and_levels_are_found_again(channels: int, seed: int) -> None:
    one = scene(channels, seed)
    result = match(one.raw())
    gains, offsets = solution(result)
    assert gains.shape == (9, channels)
    assert np.ptp(one.factors) > 0.2
    assert np.abs(one.gain_errors(gains)).max() < 1e-3
    assert np.abs(one.level_errors(gains, offsets)).max() < 0.05
    # Neither the mean gain nor the mean level has changed.
    np.testing.assert_allclose(gains.mean(axis=0), 1.0, rtol=1e-9)
    raw = clouds.SKY_LEVEL * one.factors + one.levels
    np.testing.assert_allclose((gains * raw + offsets).mean(axis=0), raw.mean(axis=0), atol=5.0)
    figures = result.stats["match"]
    assert (figures["pairs"], figures["components"], figures["gain_groups"]) == (20, 1, 1)
    assert (figures["gain_pairs"], figures["rejected_pairs"]) == (20, [])
    assert figures["gain_rms"] < 2e-3
    assert figures["rms"] < figures["greatest_residual"] < SIGMA


@pytest.mark.parametrize("channels", [1, 3])
def test_no_seams_are_left(channels: int) -> None:
    one = scene(channels)
    result = match(one.raw())
    gains, offsets = solution(result)
    # One gain and level of all is none of the matching's business.
    mean = (gains * one.factors).mean(axis=0)
    level = (gains * one.levels + offsets).mean(axis=0)
    ideal_gains = mean / one.factors
    ideal = one.corrected(ideal_gains, level - ideal_gains * one.levels)
    left = np.median(steps(one.corrected(gains, offsets), ideal, result), axis=1)
    before = np.median(steps(one.raw(noisy=False), ideal, result), axis=1)
    assert left.max() <= 0.05 * SIGMA
    assert (before >= 5 * left).all(), (before, left)


def test_colours_are_the_same_everywhere() -> None:
    one = scene(3)
    gains, offsets = solution(match(one.raw()))
    seen = gains * one.factors
    ratios = seen / seen[:, :1]
    assert np.abs(ratios / ratios.mean(axis=0) - 1).max() < 1.5e-3
    levels = one.level_errors(gains, offsets)
    assert np.abs(levels - levels[:, :1]).max() < 0.05


def test_gains_do_more_than_offsets() -> None:
    """A cloud of 300 adu differs by 30 between frames whose levels agree."""
    one = scene(1)
    apart = {}
    for how in ("offset", "gain"):
        result = match(one.raw(), how)
        gains, offsets = solution(result)
        apart[how] = result.stats["match"]["rms"]
        assert (how == "offset") == bool((gains == 1.0).all())
        assert np.abs(offsets).max() > 0
    assert apart["gain"] < 0.1 * apart["offset"]


def test_offsets_are_those_of_match_background() -> None:
    """Where no noise makes medians differ, reproject finds the same levels."""
    base, rng = sky.frame_wcs((160, 200)), np.random.default_rng(5)
    image = rng.uniform(90.0, 110.0, (160, 200))
    boxes = sky.overlapping_boxes((160, 200), (2, 3), 30)
    tiles = [
        ((tile + 20.0 * number**2).astype(np.float32), wcs)
        for number, (tile, wcs) in enumerate(sky.cut_tiles(image, base, boxes))
    ]
    wanted, footprint = reproject_and_coadd(
        tiles, base, (160, 200), reproject_function=reproject_interp, match_background=True
    )
    result = match(tiles, "offset", wcs=base, shape=(160, 200))
    assert (footprint > 0).all()
    np.testing.assert_allclose(result.data, wanted, rtol=0, atol=1e-2)


# ------------------------------------------------------------------------------- what may disturb


def test_slopes_of_the_sky() -> None:
    """Each exposure has its own; of its level only the mean can be matched then."""
    one = clouds.make(slope=0.02)
    gains, offsets = solution(match(one.raw()))
    assert np.abs(one.gain_errors(gains)).max() < 1e-3
    # From the middle of a frame to its border its own sky changes by up to 1.2 sigma.
    assert np.abs(one.level_errors(gains, offsets)).max() < 1.0


def test_trails_and_cosmic_rays() -> None:
    dirt = Contaminants(satellites=2.0, planes=0.5, hot=1e-3, cosmic_rays=20.0)
    one = clouds.make(contaminants=dirt)
    gains, offsets = solution(match(one.raw()))
    assert np.abs(one.gain_errors(gains)).max() < 2e-3
    assert np.abs(one.level_errors(gains, offsets)).max() < 0.05


def test_crowded_stars_of_other_widths() -> None:
    one = clouds.make(stars=20_000)
    gains, offsets = solution(match(one.raw()))
    assert np.abs(one.gain_errors(gains)).max() < 1e-3
    assert np.abs(one.level_errors(gains, offsets)).max() < 0.05


def test_holes() -> None:
    one = scene(1)
    tiles = one.raw()
    rng = np.random.default_rng(0)
    for image, _ in tiles:
        image[rng.random(image.shape) < 0.02] = np.nan
        image[100:300, 200:330] = np.nan
    gains, offsets = solution(match(tiles))
    assert np.abs(one.gain_errors(gains)).max() < 1e-3
    assert np.abs(one.level_errors(gains, offsets)).max() < 0.05


def test_an_input_that_shows_something_else() -> None:
    """Its pairs contradict the others, which are matched as if it were not there."""
    one = scene(1)
    tiles = one.raw()
    image, wcs = tiles[4]
    ghost = 3.0 * clouds.glow(tiles[3][1], image.shape)
    tiles[4] = ((image + ghost).astype(np.float32), wcs)
    result = match(tiles)
    gains, offsets = solution(result)
    others = np.arange(9) != 4
    seen = (gains * one.factors)[others]
    assert np.abs(seen / seen.mean() - 1).max() < 1e-3
    levels = one.level_errors(gains, offsets)[others]
    assert np.abs(levels - levels.mean()).max() < 0.05
    rejected = result.stats["match"]["rejected_pairs"]
    assert rejected
    assert all(4 in pair for pair in rejected)


def test_a_flat_sky_tells_no_gains(caplog: pytest.LogCaptureFixture) -> None:
    levels, shape = [0.0, 30.0, -20.0], (200, 240)
    tiles = []
    for number, level in enumerate(levels):
        wcs = sky.shifted_wcs(sky.frame_wcs(shape), (0, 150 * number), shape)
        noise = np.random.default_rng(number).normal(clouds.SKY_LEVEL + level, SIGMA, shape)
        tiles.append((noise.astype(np.float32), wcs))
    gains, offsets = solution(match(tiles))
    assert (gains == 1.0).all()
    np.testing.assert_allclose(offsets[:, 0], np.mean(levels) - np.array(levels), atol=0.2 * SIGMA)
    assert "no overlap shows enough structure" in caplog.text


def test_stars_of_other_widths_are_not_taken_for_gains(caplog: pytest.LogCaptureFixture) -> None:
    """Point by point they differ by more than gains do; without clouds there is nothing else."""
    one = clouds.make((3, 2), (400, 500), stars=20_000, cloudy=False)
    gains, offsets = solution(match(one.raw()))
    assert (gains == 1.0).all()
    assert np.abs(one.level_errors(gains, offsets)).max() < 0.5
    assert "no overlap shows enough structure" in caplog.text


# ---------------------------------------------------------------------------------- the groups


def test_two_fields_are_matched_each_for_itself() -> None:
    one = clouds.make((4, 1), (300, 400), overlap=0.5)
    tiles = one.raw()
    far = []
    for image, wcs in tiles[2:]:
        moved = wcs.deepcopy()
        moved.wcs.crval = wcs.wcs.crval + np.array([1.0, 0.0])
        far.append((image, moved))
    result = match([*tiles[:2], *far])
    gains, offsets = solution(result)
    assert (result.stats["match"]["components"], result.stats["match"]["gain_groups"]) == (2, 2)
    raw = clouds.SKY_LEVEL * one.factors + one.levels
    for group in (slice(0, 2), slice(2, 4)):
        seen = (gains * one.factors)[group]
        assert abs(seen[0] / seen[1] - 1) < 4e-3
        assert abs(gains[group].mean() - 1) < 1e-9
        level = (gains * raw + offsets)[group]
        assert abs(level[0] - level[1]) < 0.1 * SIGMA
    assert not np.allclose(gains, 1.0, atol=0.01)


def test_inputs_without_overlaps_are_left_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    one = clouds.make((2, 1), (120, 150), overlap=-0.5)
    result = match(one.raw())
    gains, offsets = solution(result)
    assert (gains == 1.0).all()
    assert (offsets == 0.0).all()
    assert result.stats["match"]["pairs"] == 0
    assert result.stats["match"]["components"] == 2
    assert "no overlap shows enough structure" in caplog.text


# ------------------------------------------------------------------------------------ the limits


def test_limits_are_kept_and_told(caplog: pytest.LogCaptureFixture) -> None:
    one = scene(1)
    free, _ = solution(match(one.raw()))
    assert free.max() > 1.05
    result = match(one.raw(), match_gain_limits=(0.95, 1.05), match_offset_limit=40.0)
    gains, offsets = solution(result)
    np.testing.assert_array_equal(gains, np.clip(free, 0.95, 1.05))
    assert np.abs(offsets).max() == 40.0
    clipped = ((gains == 0.95) | (gains == 1.05)).sum() + (np.abs(offsets) == 40.0).sum()
    assert result.stats["match"]["clipped"] == clipped > 1
    assert f"{clipped} gains or offsets are at their limits" in caplog.text


def test_only_a_band_of_brightness() -> None:
    """Above the level of half of the clouds one frame is not linear."""
    one = clouds.make((2, 1), overlap=0.6, stars=0)
    bent = []
    for (image, wcs), factor in zip(one.raw(), one.factors[:, 0], strict=True):
        knee = factor * clouds.SKY_LEVEL
        above = np.maximum(image - np.float32(knee), 0)
        bent.append((image - np.float32(0.3 * (factor > 1)) * above, wcs))
    low, _ = solution(match(bent, match_sky=(0.0, 20.0)))
    everything, _ = solution(match(bent))
    assert np.abs(one.gain_errors(low)).max() < 1e-2
    assert np.abs(one.gain_errors(everything)).max() > 5e-2
