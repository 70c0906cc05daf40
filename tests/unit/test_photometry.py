"""Offsets that make inputs agree where they overlap: `_zmrs.sample_lattice` and what follows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.wcs import WCS

import sky
from zmrs import _zmrs, pipeline
from zmrs.config import Options
from zmrs.errors import BudgetError, InputError

Array = np.ndarray[Any, Any]

SIGMA = 5.0
WIDE = (640, 640)


def place(x: float, y: float, shape: tuple[int, int], degrees: float = 0.0) -> WCS:
    """A frame whose first pixel, were it not turned, would lie at output pixel (x, y)."""
    base = sky.frame_wcs(shape)
    if degrees == 0.0 and x == int(x) and y == int(y):
        return sky.shifted_wcs(base, (int(y), int(x)), shape)
    middle = base.all_pix2world(x + (shape[1] - 1) / 2, y + (shape[0] - 1) / 2, 0)
    return sky.make_frame_wcs(tuple(map(float, middle)), sky.SCALE_ARCSEC, degrees, shape)


def glow(wcs: WCS, shape: tuple[int, int]) -> Array:
    """A smooth sky, as a frame of that WCS sees it."""
    base = sky.frame_wcs(WIDE)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    world = wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    x, y = (v.reshape(shape) for v in base.all_world2pix(*world, 0))
    return 1000 + 40 * np.sin(x / 300) * np.cos(y / 250) + 0.02 * x


def frame(
    wcs: WCS, shape: tuple[int, int], level: Any = 0.0, sigma: float = SIGMA, seed: int = 0
) -> sky.Tile:
    """The sky with a level of its own, one a channel, and noise."""
    levels = np.atleast_1d(level)
    rng = np.random.default_rng([seed, shape[0]])
    planes = glow(wcs, shape) + levels[:, None, None]
    planes = planes + rng.normal(0, sigma, planes.shape) if sigma else planes
    return planes.astype(np.float32)[0 if levels.size == 1 else slice(None)], wcs


def quad(levels: Sequence[Any], degrees: float = 0.0, **kw: Any) -> list[sky.Tile]:
    """Four frames, two by two, with half of their width in common."""
    places = [(0, 0), (320.4, 10.2), (5.7, 330.1), (310.9, 305.5)]
    return [
        frame(place(x, y, WIDE, degrees * n), WIDE, level, seed=n, **kw)
        for n, ((x, y), level) in enumerate(zip(places, levels, strict=True))
    ]


def prepare(tiles: Sequence[Any], **kw: Any) -> pipeline.Prepared:
    return pipeline.prepare(tiles, Options(threads=2), **kw)


def sample(tiles: Sequence[Any], **kw: Any) -> _zmrs.LatticeSamples:
    prepared = prepare(tiles, **kw)
    return _zmrs.sample_lattice(prepared.job, prepared.plan)


def solve(tiles: Sequence[Any], **kw: Any) -> _zmrs.OffsetSolution:
    return sample(tiles, **kw).solve_offsets()


def wanted(levels: Any) -> Array:
    """What must be added to frames with these levels, (N, C)."""
    levels = np.asarray(levels, float).reshape(len(levels), -1)
    return levels.mean(axis=0) - levels


def assert_offsets(solution: _zmrs.OffsetSolution, levels: Any, tolerance: float) -> None:
    np.testing.assert_allclose(solution.offsets, wanted(levels), rtol=0, atol=tolerance)


# -------------------------------------------------------------------------------- what is found


@pytest.mark.parametrize("degrees", [0.0, 1.3, 47.0, 90.0])
def test_known_offsets_are_recovered(degrees: float) -> None:
    levels = [0.0, 31.0, -12.5, 100.0]
    solution = solve(quad(levels, degrees))
    assert_offsets(solution, levels, 0.05 * SIGMA)
    assert solution.components == [0, 0, 0, 0]
    assert solution.rms < 0.05 * SIGMA
    for i, j, n, residuals in solution.pairs:
        assert i < j
        assert n > 1000
        assert abs(residuals[0]) < 0.1 * SIGMA


def test_each_channel_for_itself() -> None:
    levels = [(0, 10, 20), (50, 10, -20), (7, 8, 9), (1, 0, 0)]
    assert_offsets(solve(quad(levels)), levels, 0.05 * SIGMA)


def test_holes_are_left_out() -> None:
    levels = [0.0, 30.0, -30.0, 60.0]
    tiles = quad(levels)
    clean = sample(tiles)
    for n, (image, _) in enumerate(tiles):
        image[np.random.default_rng([8, n]).random(image.shape) < 0.1] = np.nan
        image[100:500, 150:300] = np.nan
    holed = sample(tiles)
    # A sample needs its four pixels.
    assert holed.count < 0.7 * clean.count
    assert_offsets(holed.solve_offsets(), levels, 0.08 * SIGMA)


def test_pixels_of_no_weight_are_left_out() -> None:
    levels = [0.0, 30.0, -30.0, 60.0]
    tiles = quad(levels)
    weights = []
    for image, _ in tiles:
        image[:, 200:450] += 500.0
        weight = np.ones(image.shape, np.float32)
        weight[:, 200:450] = 0.0
        weights.append(weight)
    prepared = prepare(tiles, weights=weights)
    solution = _zmrs.sample_lattice(prepared.job, prepared.plan).solve_offsets()
    assert_offsets(solution, levels, 0.1 * SIGMA)


def test_stars_do_not_matter() -> None:
    levels = [0.0, 20.0, 40.0, -60.0]
    tiles = quad(levels)
    rng = np.random.default_rng(3)
    for image, _ in tiles:  # each its own: as bad as satellites and variable stars
        bright = rng.random(image.shape) < 0.05
        image[bright] += rng.exponential(3000.0, bright.sum())
    assert_offsets(solve(tiles), levels, 0.1 * SIGMA)


def test_a_chain_is_followed_to_its_end() -> None:
    shape, levels = (400, 300), np.cumsum(np.r_[0.0, np.full(11, 10.0)])
    tiles = [
        frame(place(200 * n, 0, shape), shape, level, seed=n) for n, level in enumerate(levels)
    ]
    solution = solve(tiles)
    assert [pair[:2] for pair in solution.pairs] == [(n, n + 1) for n in range(11)]
    assert solution.rms == pytest.approx(0, abs=1e-9)
    steps = np.diff(np.ravel(solution.offsets))
    np.testing.assert_allclose(steps, -10.0, rtol=0, atol=0.25 * SIGMA)


def test_every_group_of_inputs_keeps_its_mean() -> None:
    shape = (160, 200)
    where = [(0, 0), (1000, 0), (100, 0), (500, 600), (1100, 0), (50, 80), (2000, 2000)]
    levels = np.array([5.0, 900.0, 25.0, 1.0, 1000.0, -60.0, 77.0])
    tiles = [
        frame(place(*at, shape), shape, level, sigma=0.0)
        for at, level in zip(where, levels, strict=True)
    ]
    tiles[6][0][:] = np.nan  # nothing valid at all
    samples = sample(tiles)
    solution = samples.solve_offsets()
    assert solution.components == [0, 1, 0, 2, 1, 0, 3]
    offsets = np.ravel(solution.offsets)
    expected = np.zeros(7)
    for group in ([0, 2, 5], [1, 4]):
        expected[group] = wanted(levels[group])[:, 0]
    np.testing.assert_allclose(offsets, expected, rtol=0, atol=1e-3)
    assert samples.counts[6] == 0
    assert all(count > 0 for count in samples.counts[:6])
    assert samples.count == sum(samples.counts)


def test_a_canvas_smaller_than_the_inputs() -> None:
    levels = [0.0, 31.0, -12.5, 100.0]
    shape = (260, 280)
    tiles = quad(levels, 20.0)
    samples = sample(tiles, grid=(sky.shifted_wcs(sky.frame_wcs(WIDE), (350, 340), shape), shape))
    assert max(samples.counts) <= 33 * 35
    assert_offsets(samples.solve_offsets(), levels, 0.1 * SIGMA)


def test_one_input_alone() -> None:
    solution = solve([frame(sky.frame_wcs(WIDE), WIDE)])
    assert (solution.offsets, solution.pairs, solution.components) == ([[0.0]], [], [0])
    assert solution.rms == 0.0


def test_gains_come_first() -> None:
    levels, gains = [0.0, 10.0, 20.0, 30.0], [1.0, 1.25, 0.8, 2.0]
    tiles = [
        (((image + 0.0) / gain).astype(np.float32), wcs)
        for (image, wcs), gain in zip(quad(levels), gains, strict=True)
    ]
    samples = sample(tiles)
    assert_offsets(samples.solve_offsets(gains), levels, 0.05 * SIGMA)
    assert_offsets(samples.solve_offsets(np.array(gains)), levels, 0.05 * SIGMA)
    once = samples.solve_offsets()
    assert abs(once.offsets[0][0]) > 100
    assert once.offsets == samples.solve_offsets([1.0] * 4).offsets
    for bad in ([1.0], [1.0, 1.0, 1.0, np.nan]):
        with pytest.raises(ValueError, match="gain"):
            samples.solve_offsets(bad)


# ----------------------------------------------------------------------------------- the pairs


def test_a_grid_has_all_its_pairs() -> None:
    """The reference finds 6 of these 20."""
    shape = (200, 200)
    tiles = [
        frame(place(140 * (n % 3), 140 * (n // 3), shape), shape, 7.0 * n, sigma=0.0)
        for n in range(9)
    ]
    samples = sample(tiles, grid=(place(0, 0, shape), (480, 480)))
    solution = samples.solve_offsets()
    neighbours = {
        (i, j)
        for j in range(9)
        for i in range(j)
        if abs(i % 3 - j % 3) <= 1 and abs(i // 3 - j // 3) <= 1
    }
    assert len(neighbours) == 20
    assert [pair[:2] for pair in solution.pairs] == sorted(neighbours)
    points = range(0, 480, samples.spacing)
    lines = [{y for y in points if 0 <= y - 140 * n < 200} for n in range(3)]
    for i, j, n, _ in solution.pairs:
        across, down = lines[i % 3] & lines[j % 3], lines[i // 3] & lines[j // 3]
        assert n == len(across) * len(down)
    assert_offsets(solution, [7.0 * n for n in range(9)], 1e-3)


def test_many_inputs_over_one_field_have_few_pairs() -> None:
    shape, n_inputs = (128, 128), 300
    rng = np.random.default_rng(1)
    levels = rng.normal(0, 50, n_inputs)
    shifts = rng.integers(0, 24, (n_inputs, 2))
    tiles = [
        frame(place(x, y, shape), shape, level, seed=n)
        for n, ((x, y), level) in enumerate(zip(shifts, levels, strict=True))
    ]
    prepared = prepare(tiles)
    began = time.perf_counter()
    solution = _zmrs.sample_lattice(prepared.job, prepared.plan).solve_offsets()
    assert time.perf_counter() - began < 5.0
    assert len(solution.pairs) == solution.n_pairs <= 12 * n_inputs
    assert set(solution.components) == {0}
    errors = np.ravel(solution.offsets) - wanted(levels)[:, 0]
    # The median of the 200 samples that an input has in common with others scatters by 0.09 sigma.
    assert errors.std() < 0.15 * SIGMA
    assert np.abs(errors).max() < 0.6 * SIGMA


def test_crowds_that_hardly_touch_stay_connected() -> None:
    """Each input has more partners in its own crowd than it may choose."""
    shape = (96, 96)
    where = [(crowd * 80 + n % 3, n % 4) for crowd in range(3) for n in range(30)]
    levels = np.repeat([0.0, 50.0, -70.0], 30)
    tiles = [
        frame(place(x, y, shape), shape, level, sigma=0.0)
        for (x, y), level in zip(where, levels, strict=True)
    ]
    solution = solve(tiles)
    assert set(solution.components) == {0}
    assert_offsets(solution, levels, 1e-3)
    between = [pair for pair in solution.pairs if pair[0] // 30 != pair[1] // 30]
    assert 2 <= len(between) <= 8


def test_a_few_common_points_are_not_enough() -> None:
    shape = (48, 60)
    corner = [frame(place(*at, shape), shape, 9.0 * at[0], sigma=0.0) for at in ((0, 0), (58, 45))]
    assert solve(corner).n_pairs == 0
    side = [frame(place(x, 0, shape), shape, 9.0 * x, sigma=0.0) for x in (0, 58)]
    assert [pair[:3] for pair in solve(side).pairs] == [(0, 1, 2 * 48)]


@pytest.mark.parametrize(("size", "step"), [(32, 24), (60, 54), (100, 95)])
@pytest.mark.parametrize("degrees", [0.0, 2.0])
def test_small_inputs_are_matched_too(size: int, step: int, degrees: float) -> None:
    """Their overlaps are narrower than the distance of points that large inputs are sampled at."""
    shape, levels = (size, size), 20.0 * np.arange(9)
    tiles = [
        frame(place(step * (n % 3), step * (n // 3), shape, degrees), shape, level, 1.0, seed=n)
        for n, level in enumerate(levels)
    ]
    solution = solve(tiles)
    assert set(solution.components) == {0}
    assert_offsets(solution, levels, 0.6)


# ---------------------------------------------------------------------------------- how it runs


def numbers(solution: _zmrs.OffsetSolution) -> tuple[Any, ...]:
    return solution.offsets, solution.pairs, solution.components, solution.rms


def test_the_bits_do_not_depend_on_the_plan() -> None:
    levels = [(0, 10, 20), (50, 10, -20), (7, 8, 9), (1, 0, 0)]
    prepared = prepare(quad(levels, 3.3))
    job = prepared.job
    wanted_numbers = None
    for workers in (1, 2, 8):
        for memory in (None, 1 << 30, 24 << 20):
            plan = prepared.plan.replace(cpu_workers=workers, memory_bytes=memory)
            samples = _zmrs.sample_lattice(job, plan)
            got = (samples.spacing, samples.counts, *numbers(samples.solve_offsets()))
            wanted_numbers = wanted_numbers or got
            assert got == wanted_numbers


def test_what_is_held_was_foretold() -> None:
    prepared = prepare(quad([(0, 10, 20)] * 4, 30.0))
    for workers in (1, 4, 30):
        plan = prepared.plan.replace(cpu_workers=workers, memory_bytes=None)
        foretold = _zmrs.lattice_bytes(prepared.job, plan)
        samples = _zmrs.sample_lattice(prepared.job, plan)
        samples.solve_offsets()
        assert samples.bytes < samples.ledger_peak <= foretold
        enough = _zmrs.sample_lattice(prepared.job, plan.replace(memory_bytes=foretold))
        enough.solve_offsets()
        with pytest.raises(BudgetError):
            _zmrs.sample_lattice(prepared.job, plan.replace(memory_bytes=samples.bytes))


def test_files_give_what_arrays_give(tmp_path: Path) -> None:
    tiles = quad([0.0, 5.0, 10.0, 15.0], 2.0)
    paths = sky.write_tiles(tmp_path, tiles)
    assert numbers(solve(paths)) == numbers(solve(tiles))
    with paths[2].open("r+b") as file:
        file.truncate(paths[2].stat().st_size // 2)
    prepared = prepare(sky.write_tiles(tmp_path, tiles))
    with paths[1].open("r+b") as file:
        file.truncate(paths[1].stat().st_size // 2)
    with pytest.raises(InputError, match="tile_002"):
        _zmrs.sample_lattice(prepared.job, prepared.plan)


def by_hand(prepared: pipeline.Prepared, sources: Sequence[Any], grids: Any) -> _zmrs.Job:
    inputs = [_zmrs.Input("", *both) for both in zip(sources, grids, strict=True)]
    return _zmrs.Job((1, *prepared.grid.shape), "bilinear", "mean", inputs)


def test_images_that_come_later() -> None:
    tiles = quad([0.0, 5.0, 10.0, 15.0])
    prepared = prepare(tiles)
    sources = [_zmrs.Source.deferred(-32, (1, *WIDE)) for _ in tiles]
    grids = [placed.geometry.grid for placed in prepared.placed]
    job = by_hand(prepared, sources, grids)
    with pytest.raises(ValueError, match="not provided"):
        _zmrs.sample_lattice(job, prepared.plan)
    for source, (image, _) in zip(sources, tiles, strict=True):
        source.provide(image.reshape(-1).view(np.uint8))
    got = _zmrs.sample_lattice(job, prepared.plan).solve_offsets()
    assert numbers(got) == numbers(solve(tiles))


def test_inputs_with_exact_coordinates_only(tmp_path: Path) -> None:
    levels = [0.0, 5.0, 10.0, 15.0]
    where = [(0, 0), (320, 10), (5, 330), (310, 305)]
    tiles = [
        frame(place(x, y, WIDE), WIDE, level, seed=n)
        for n, ((x, y), level) in enumerate(zip(where, levels, strict=True))
    ]
    shape = (970, 970)
    prepared = prepare(tiles, grid=(place(0, 0, WIDE), shape))
    edge, cells = 64, 16
    grids = []
    for n, (x, y) in enumerate(where):
        j, i = np.mgrid[-1 : cells + 2, -1 : cells + 2] * float(edge)
        smooth = _zmrs.CoordGrid(
            (0, 0), edge, (cells, cells), WIDE[::-1], np.stack([i - x, j - y], axis=-1)
        )
        numbers_ = np.arange(cells**2, dtype=np.uint32)
        v, u = np.mgrid[0 : cells * edge, 0 : cells * edge].astype(float)
        places = np.stack([u - x, v - y], axis=-1)
        inside = (places >= -0.5).all(axis=-1) & (places <= 639.5).all(axis=-1)
        places[~inside] = np.nan
        records = places.reshape(cells, edge, cells, edge, 2).swapaxes(1, 2)
        records = records.reshape(cells**2, edge, edge, 2)
        (tmp_path / str(n)).write_bytes(records.tobytes())
        with np.errstate(all="ignore"):
            flat = records.reshape(cells**2, -1, 2)
            low, high = np.fmin.reduce(flat, axis=1), np.fmax.reduce(flat, axis=1)
        bounds = np.concatenate([low, high], axis=1)
        grids.append(smooth.with_exact(numbers_, tmp_path / str(n), bounds))
        assert not (grids[-1].cells() == 1).any()
    sources = [placed.source for placed in prepared.placed]
    job = by_hand(prepared, sources, grids)
    got = _zmrs.sample_lattice(job, prepared.plan)
    same = _zmrs.sample_lattice(prepared.job, prepared.plan)
    assert got.counts == same.counts
    assert_offsets(got.solve_offsets(), levels, 0.05 * SIGMA)
    assert got.solve_offsets().offsets == same.solve_offsets().offsets


def test_progress_is_told_and_may_stop_the_job() -> None:
    prepared = prepare(quad([0.0] * 4))
    sources = [placed.source for placed in prepared.placed] * 300
    grids = [placed.geometry.grid for placed in prepared.placed] * 300
    job = by_hand(prepared, sources, grids)
    told = []

    def progress(read_bytes: int, inputs: int) -> None:
        told.append(inputs)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _zmrs.sample_lattice(job, prepared.plan, progress=progress)
    assert len(told) == 1
    assert told[0] <= 1200


# ------------------------------------------------------------------------------- what comes of it


def mosaic(prepared: pipeline.Prepared, job: _zmrs.Job) -> Array:
    shape = prepared.grid.shape
    image = np.empty((1, *shape), np.float32)
    _zmrs.run_pass_into_arrays(job, prepared.layout, image, np.empty(shape, np.float32))
    return image[0]


def test_a_job_with_gains_and_offsets_is_a_new_one() -> None:
    tiles = sky.constant_frames([10.0, 20.0, 30.0])
    prepared = prepare(tiles)
    gains, offsets = [[2.0], [1.0], [0.5]], [[5.0], [5.0], [10.0]]
    flat = prepared.job.with_photometry(gains, offsets)
    assert np.nanmax(np.abs(mosaic(prepared, flat) - 25.0)) == 0.0
    before = mosaic(prepared, prepared.job)
    assert (np.nanmin(before), np.nanmax(before)) == (10.0, 30.0)
    assert flat.input_bytes == prepared.job.input_bytes
    for bad in ([[1.0]], [[1.0, 1.0]] * 3, [[np.inf]] * 3):
        with pytest.raises(ValueError, match="gain"):
            prepared.job.with_photometry(bad, offsets)
        with pytest.raises(ValueError, match="offset"):
            prepared.job.with_photometry(gains, bad)


def test_as_reproject_matches_backgrounds() -> None:
    from reproject import reproject_interp
    from reproject.mosaicking import reproject_and_coadd

    levels = np.array([0.0, 31.0, -12.5, 100.0])
    tiles = quad(levels, 2.0, sigma=0.0)
    prepared = prepare(tiles)
    solution = _zmrs.sample_lattice(prepared.job, prepared.plan).solve_offsets()
    ones = [[1.0]] * 4
    ours = mosaic(prepared, prepared.job.with_photometry(ones, solution.offsets))
    theirs, _ = reproject_and_coadd(
        tiles, prepared.grid.wcs, shape_out=prepared.grid.shape,
        reproject_function=reproject_interp, match_background=True,
    )  # fmt: skip
    both = np.isfinite(ours) & (theirs != 0)
    assert both.mean() > 0.8
    assert np.abs(ours - theirs)[both].max() < 1e-3 * np.ptp(levels)
