"""Clipping about the mean in two sweeps over the inputs: what `test_stacks` does not show of it.

Inputs are cut on the grid of the output, so their samples are known to the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sky
import stack_oracle
import zmrs
from sky import unmatched
from zmrs import _zmrs, forecast
from zmrs.errors import UsageError
from zmrs.events import Event

HOW = "kappa-sigma-stream"
SHAPE, TILE = (60, 90), (40, 55)


def strewn(
    n_tiles: int, channels: int = 1, seed: int = 0, levels: Sequence[float] | None = None
) -> tuple[list[sky.Tile], np.ndarray]:
    """Tiles with outliers and holes, some partly off the canvas; and their samples (N, C, H, W)."""
    rng = np.random.default_rng([n_tiles, channels, seed])
    truth = rng.normal(0.0, 30.0, SHAPE)
    samples = np.full((n_tiles, channels, *SHAPE), np.nan)
    tiles = []
    for n in range(n_tiles):
        y0, x0 = rng.integers(-10, SHAPE[0] - TILE[0] + 10), rng.integers(-10, SHAPE[1] - TILE[1])
        image = rng.normal(1000.0 if levels is None else levels[n], 5.0, (channels, *TILE))
        image[rng.random(image.shape) < 0.05] += 400.0
        ours = tuple(slice(max(-o, 0), s - o) for o, s in zip((y0, x0), SHAPE, strict=True))
        theirs = tuple(slice(max(o, 0), o + s) for o, s in zip((y0, x0), TILE, strict=True))
        image[:, *ours] += truth[theirs]
        image = image.astype(np.float32)
        image[:, rng.random(TILE) < 0.03] = np.nan
        samples[n][:, *theirs] = image[:, *ours]
        wcs = sky.shifted_wcs(sky.frame_wcs(SHAPE), (int(y0), int(x0)), TILE)
        tiles.append((image[0] if channels == 1 else image, wcs))
    return tiles, samples


def made(tiles: Sequence[sky.Tile], *output: Path, **given: Any) -> zmrs.Result:
    options = {"combine": HOW, "kernel": "nearest", "wcs": sky.frame_wcs(SHAPE), "shape": SHAPE}
    return unmatched(tiles, *output, **options | given)


def check(result: zmrs.Result, samples: np.ndarray, weights: np.ndarray, **given: Any) -> None:
    image, coverage, low, high = stack_oracle.combine(samples, weights, HOW, **given)
    np.testing.assert_allclose(result.data.reshape(image.shape), image, rtol=2e-7)
    np.testing.assert_allclose(result.coverage, coverage, rtol=1e-6)
    for counted, true in ((result.rejected_low, low), (result.rejected_high, high)):
        assert counted is not None
        np.testing.assert_array_equal(counted.reshape(true.shape), true)
    assert low.any()
    assert high.any()


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_coverage_of_all_depths(channels: int, together: bool) -> None:
    tiles, samples = strewn(25, channels)
    weights = np.random.default_rng(2).uniform(0.5, 3.0, 25)
    full = np.ones((25, *SHAPE)) * weights[:, None, None]
    given = {"kappa": (1.7, 2.5), "together": together}
    result = made(tiles, weights=list(weights), kappa=given["kappa"], reject_together=together)
    check(result, samples, full, **given)
    depth = np.isfinite(samples[:, 0]).sum(axis=0)
    assert {0, 1, 2, 3, 12} <= set(depth.ravel())


@pytest.mark.parametrize("together", [False, True])
def test_saturated_samples_give_way_in_both_sweeps(together: bool, tmp_path: Path) -> None:
    """They lie well within the bounds; where all are saturated all are kept."""
    rng = np.random.default_rng(3)
    level, shape = 1012.0, (30, 50)
    values = rng.normal(1000.0, 10.0, (16, 3, *shape)).astype(np.float32)
    values[3, :, :20], values[:, :, 25:] = 900.0, 1015.0
    values[4, :, 27:, 30:] = np.float32(1500.0)
    paths, samples = [], values.astype(float)
    for k, image in enumerate(values):
        name = tmp_path / f"{k}.fits"
        paths.append(sky.write_image(name, image, sky.frame_wcs(shape), SATURATE=level))
    over = (values >= level).any(axis=1)
    give_way = over & ~over.all(axis=0)
    samples[np.broadcast_to(give_way[:, np.newaxis], samples.shape)] = np.nan
    given = {"kappa": (1.5, 1.5), "together": together}
    image, coverage, low, high = stack_oracle.combine(samples, np.ones((16, *shape)), HOW, **given)
    everywhere = over.all(axis=0)
    image[:, everywhere] = values.astype(float).mean(axis=0)[:, everywhere]
    coverage[everywhere], low[:, everywhere], high[:, everywhere] = 16.0, 0, 0
    wcs = sky.frame_wcs(shape)
    result = made(paths, wcs=wcs, shape=shape, kappa=1.5, reject_together=together)
    np.testing.assert_allclose(result.data, image, rtol=2e-7)
    np.testing.assert_allclose(result.coverage, coverage, rtol=1e-6)
    np.testing.assert_array_equal(result.rejected_low, low)
    np.testing.assert_array_equal(result.rejected_high, high)
    assert everywhere.any()
    assert give_way.mean() > 0.02


def test_what_is_rejected_of_each_input() -> None:
    tiles, samples = strewn(25)
    kappa = (1.7, 2.5)
    rejected = np.zeros(25, int)
    for y, x in np.ndindex(SHAPE):
        valid = np.isfinite(samples[:, 0, y, x])
        values = samples[valid, 0, y, x]
        if valid.any():
            rejected[valid] += ~stack_oracle.JUDGES[HOW](values, values, kappa, (0, 0))[1]
    assert (rejected > 0).all()
    rows = made(tiles, kappa=kappa).inputs
    assert [row.n_samples for row in rows] == list(np.isfinite(samples).sum(axis=(1, 2, 3)))
    fractions = [row.rejected_fraction * row.n_samples for row in rows]
    np.testing.assert_allclose(fractions, rejected)


@pytest.mark.parametrize("channels", [1, 3])
def test_with_nothing_out_of_bounds_it_is_the_mean(channels: int) -> None:
    """To the last bit: the same sums in the same order."""
    tiles, _ = strewn(25, channels)
    rng = np.random.default_rng(6)
    weights = [float(rng.uniform(0.5, 3.0)) if n % 2 else rng.random(TILE) for n in range(25)]
    options = {"kernel": "lanczos3", "wcs": sky.frame_wcs(SHAPE, 3.0), "weights": weights}
    mean = made(tiles, combine="mean", **options)
    result = made(tiles, kappa=(40.0, 40.0), **options)
    assert result.data.tobytes() == mean.data.tobytes()
    np.testing.assert_allclose(result.coverage, mean.coverage, rtol=2e-7)
    assert not np.any(result.rejected_low)
    assert not np.any(result.rejected_high)


def test_kappas_of_1_leave_something() -> None:
    """Also where all samples lie just on the bounds, and rounding is worst."""
    values = np.array([-1e6, -7.0, -1.0, -1e-7, 0.0, 1e-7, 1 / 3, 1.0, 10.0, 1e6], np.float32)
    rng = np.random.default_rng(1)
    for depth in range(1, 9):
        some = rng.choice(values, (depth, *SHAPE))
        # As many of one value as of another in the upper half.
        some[:, : SHAPE[0] // 2] = some[np.arange(depth) % 2, : SHAPE[0] // 2]
        result = made([(image, sky.frame_wcs(SHAPE)) for image in some], kappa=(1.0, 1.0))
        assert np.isfinite(result.data).all()
        assert (result.coverage >= 1).all()
        assert depth < 3 or (result.coverage < depth).any()


def test_no_sample_within_the_bounds_of_all_channels() -> None:
    """Each is thrown out by another channel: then all are kept."""
    samples = np.full((6, 3, *SHAPE), 100.0)
    samples += np.arange(6)[:, None, None, None] * 0.0078125
    for channel in range(3):
        samples[[2 * channel, 2 * channel + 1], channel] += 50.0
    samples[2, :, 20:] = np.nan
    inputs = [(image.astype(np.float32), sky.frame_wcs(SHAPE)) for image in samples]
    given = {"kappa": (1.2, 1.2), "together": True}
    image, coverage, *_ = stack_oracle.combine(samples, np.ones((6, *SHAPE)), HOW, **given)
    result = made(inputs, kappa=(1.2, 1.2), reject_together=True)
    np.testing.assert_allclose(result.data, image, rtol=2e-7)
    np.testing.assert_array_equal(result.coverage, coverage)
    assert set(coverage.ravel()) == {6.0, 5.0}
    assert not np.any(result.rejected_low)
    assert not np.any(result.rejected_high)
    apart = made(inputs, kappa=(1.2, 1.2))
    assert (np.asarray(apart.rejected_high)[:, :20] == 2).all()


@pytest.mark.parametrize("pivot", [0.0, 60000.0])
def test_small_spreads_far_from_zero(pivot: float) -> None:
    """Samples of 16 bits with hardly any noise, also after a first one that lies far away."""
    rng = np.random.default_rng(4)
    samples = 60000.0 + rng.integers(-8, 9, (60, 1, *SHAPE)) / 256
    samples[30, :, ::3] += 5.0
    samples[0] = pivot
    inputs = [(image[0].astype(np.float32), sky.frame_wcs(SHAPE)) for image in samples]
    image, coverage, *_ = stack_oracle.combine(samples, np.ones((60, *SHAPE)), HOW)
    result = made(inputs)
    np.testing.assert_array_equal(result.coverage, coverage)
    np.testing.assert_allclose(result.data, image[0], rtol=1e-7)


def test_inputs_are_matched_first() -> None:
    """Bounds are those of samples whose levels agree."""
    rng = np.random.default_rng(8)
    tiles, samples = strewn(20, levels=1000.0 + rng.uniform(-90, 90, 20))
    result = made(tiles, match="offset", kappa=(2.0, 2.0))
    offsets = np.array([row.offset for row in result.inputs])[..., None, None]
    assert np.ptp(offsets) > 100
    shifted = (samples + offsets).astype(np.float32).astype(np.float64)
    check(result, shifted, np.ones((20, *SHAPE)), kappa=(2.0, 2.0))
    alone = made(tiles, kappa=(2.0, 2.0))
    assert np.not_equal(alone.rejected_high, result.rejected_high).mean() > 0.1


def test_the_second_pass_has_bounds_of_its_own(tmp_path: Path) -> None:
    tiles, samples = strewn(25)
    kappa = (1.5, 2.0)
    options = {"two_pass": True, "two_pass_sigma": 6, "kappa": kappa}
    result = made(tiles, **options)
    figures = result.stats["two_pass"]
    gains = np.array(figures["gains"])
    assert figures["applied"]
    assert np.ptp(gains) > 0.04
    ones = np.ones((25, *SHAPE))
    first, coverage, *_ = stack_oracle.combine(samples, ones, HOW, kappa=kappa)
    scaled = (samples * gains[:, None, None, None]).astype(np.float32).astype(np.float64)
    second, *_ = stack_oracle.combine(scaled, ones, HOW, kappa=kappa)
    np.testing.assert_allclose(result.data, second[0], rtol=3e-7)
    assert np.nanmedian(second / first) < 0.98
    # Coverage and counts are those of the first pass, which the gains came from.
    np.testing.assert_array_equal(result.coverage, coverage)
    stored = made(sky.write_tiles(tmp_path, tiles), tmp_path / "out.fits", **options)
    np.testing.assert_allclose(stored.data, result.data, rtol=1e-6)
    # Inputs are read in four sweeps.
    once = 25 * TILE[0] * TILE[1] * 4
    assert stored.stats["read_bytes"] == pytest.approx(4 * once, rel=0.2)
    assert stored.stats["two_pass"]["gains"] == pytest.approx(figures["gains"], abs=1e-6)


def test_progress_ends_where_it_should(tmp_path: Path) -> None:
    events: list[Event] = []
    tiles, _ = strewn(8)
    made(sky.write_tiles(tmp_path, tiles), tmp_path / "out.fits", progress=events.append)
    told = [event for event in events if event.stage == "mosaic"]
    done = [event.done for event in told]
    assert done == sorted(done)
    assert done[-1] == told[-1].total


@pytest.mark.parametrize("kappa", [(0.9, 3.0), (3.0, 0.999)])
def test_less_than_kappas_of_1(kappa: tuple[float, float]) -> None:
    tiles, _ = strewn(3)
    with pytest.raises(UsageError, match=r"--kappa: .* may leave no sample"):
        made(tiles, kappa=kappa)
    assert made(tiles, kappa=kappa, combine="kappa-sigma").rejected_low is not None
    with pytest.raises(ValueError, match="may reject every sample"):
        _zmrs.Job((1, *SHAPE), "nearest", HOW, [of_ones()], kappa=kappa)


def of_ones() -> _zmrs.Input:
    """An input that covers the canvas."""
    height, width = SHAPE
    nodes = np.stack(np.meshgrid([-128.0, 0, 128, 256], [-128.0, 0, 128, 256]), axis=-1)
    pixels = np.ones(SHAPE, np.float32).reshape(-1).view(np.uint8)
    source = _zmrs.Source.memory(pixels, -32, (1, *SHAPE))
    return _zmrs.Input("one", source, _zmrs.CoordGrid((0, 0), 128, (1, 1), (width, height), nodes))


def test_the_forecast() -> None:
    """Two sweeps take more than twice as long as one; inputs are matched once."""

    def told(how: str, matches: bool) -> float:
        job = _zmrs.Job((1, *SHAPE), "bilinear", how, [of_ones()], match_offsets=matches)
        layout = _zmrs.fit(job, zmrs.Plan(), 0, 0, 0, True)
        return forecast.seconds(layout, "bilinear", how, matches=matches, pixels=0)

    assert 2 * told("mean", False) < told(HOW, False) < 5 * told("mean", False)
    assert told(HOW, True) - told(HOW, False) == pytest.approx(
        told("mean", True) - told("mean", False)
    )


def test_the_engine_asks_for_a_scratch_file(tmp_path: Path) -> None:
    job = _zmrs.Job((1, *SHAPE), "nearest", HOW, [of_ones()])
    layout = _zmrs.fit(job, zmrs.Plan(), 0, 0, 0, True)
    assert layout.sweeps == 2
    assert layout.bounds_bytes == 2 * 4 * SHAPE[0] * SHAPE[1]
    image, coverage = np.empty((1, *SHAPE), np.float32), np.empty(SHAPE, np.float32)
    into = (job, layout, image, coverage)
    counts = np.empty((2, *SHAPE), np.int16)
    with pytest.raises(ValueError, match="needs a scratch file"):
        _zmrs.run_pass_into_arrays(*into, counts=counts)
    _zmrs.run_pass_into_arrays(*into, counts=counts, bounds=tmp_path / "bounds")
    assert (image == 1).all()
    assert (tmp_path / "bounds").stat().st_size == layout.bounds_bytes
