"""SDS mode: batches, their stacks, and the road that they share with the tiles of normal mode."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import sky
import zmrs
from zmrs.crop import MARGIN_PX, cropped
from zmrs.errors import BudgetError, UsageError
from zmrs.grid import optimal_grid
from zmrs.simulate import FrameSpec, make_frame_wcs, write_frames

SHAPE = (64, 80)
NOISE = 5.0


def subs(number: int, channels: int = 1, **spec: Any) -> list[FrameSpec]:
    """Subs of two overlapping fields, one after the other, each turned and shifted a little."""
    rng = np.random.default_rng(number)
    fields = [sky.frame_wcs(SHAPE), sky.shifted_wcs(sky.frame_wcs(SHAPE), (10, 50), SHAPE)]
    specs = []
    for k in range(number):
        field = fields[2 * k // number]
        middle = field.all_pix2world((SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2, 0)
        wcs = make_frame_wcs(tuple(map(float, middle)), sky.SCALE_ARCSEC, rng.uniform(-3, 3), SHAPE)
        wcs.wcs.crpix += rng.uniform(-3, 3, 2)
        level = rng.uniform(900.0, 1100.0)
        specs.append(
            FrameSpec(wcs, SHAPE, noise_sigma=NOISE, channels=channels, sky_level=level, **spec)
        )
    return specs


@pytest.fixture(scope="module", params=[1, 3], ids=["mono", "rgb"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("subs")
    write_frames(place, sky.tiny_sky(), subs(24, request.param), bitpix=16, truth=False)
    return place


def relative(a: np.ndarray, b: np.ndarray) -> float:
    assert (np.isnan(a) == np.isnan(b)).all()
    return float(np.nanmax(np.abs(a - b) / np.abs(b)))


def test_batches_change_no_mean(folder: Path) -> None:
    means = {"mode": "sds", "combine": "mean", "sds_combine": "mean"}
    at_once = zmrs.mosaic([folder], batch=0, **means)
    normal = zmrs.mosaic([folder])
    assert np.array_equal(at_once.data, normal.data, equal_nan=True)
    for batch in (None, 2, 7, 24):
        made = zmrs.mosaic([folder], batch=batch, **means)
        assert relative(made.data, at_once.data) < 4e-7
        assert np.abs(made.coverage - at_once.coverage).max() == 0
        # Rows of batches end elsewhere, but what each sub gave is the same.
        assert [r.n_samples for r in made.inputs] == [r.n_samples for r in at_once.inputs]
        assert [r.offset for r in made.inputs] == [r.offset for r in at_once.inputs]


def test_weights_count_in_every_batch(folder: Path) -> None:
    """A batch of heavy subs outweighs one of light ones."""
    files = sorted(folder.glob("*.fits"))
    weights = [3.0 if k % 5 else 0.25 for k in range(len(files))]
    means = {"mode": "sds", "combine": "mean", "sds_combine": "mean", "weights": weights}
    at_once = zmrs.mosaic(files, batch=0, **means)
    made = zmrs.mosaic(files, batch=5, **means)
    assert relative(made.data, at_once.data) < 4e-7
    assert relative(np.where(made.coverage > 0, made.coverage, 1), np.where(
        at_once.coverage > 0, at_once.coverage, 1)) < 4e-7  # fmt: skip


def test_defaults_of_the_mode(folder: Path) -> None:
    made = zmrs.mosaic([folder], mode="sds")
    assert made.stats["batches"] == {"count": 2, "least": 10, "most": 14}
    assert made.rejected_low is not None
    named = zmrs.mosaic(
        [folder], mode="sds", combine="kappa-sigma", kappa=(2.0, 2.0), sds_combine="winsorized"
    )
    assert np.array_equal(made.data, named.data, equal_nan=True)
    other = zmrs.mosaic([folder], mode="sds", kappa=(9.0, 9.0))
    assert not np.array_equal(made.data, other.data, equal_nan=True)
    with pytest.raises(UsageError, match="mode: 'fast' is not one of"):
        zmrs.mosaic([folder], mode="fast")


def test_trails_are_rejected(tmp_path: Path) -> None:
    """What passes through one sub is gone, though its batch has few."""
    write_frames(tmp_path, sky.tiny_sky(n_stars=0), subs(24), bitpix=16, truth=False)
    clean = zmrs.mosaic([tmp_path], mode="sds").data
    with fits.open(tmp_path / "frame_0003.fits", mode="update") as hdus:
        hdus[0].data[20:23] += 3000
    hit = zmrs.mosaic([tmp_path], mode="sds")
    mean = zmrs.mosaic([tmp_path], mode="sds", combine="mean", sds_combine="mean")
    # Where two subs differ nobody knows which one is right.
    deep = mean.coverage >= 8
    assert np.abs(mean.data - clean)[deep].max() > 100.0
    assert np.abs(hit.data - clean)[deep].max() < 5 * NOISE
    assert hit.inputs[2].rejected_fraction > 0.03


def test_the_same_on_disk_and_in_memory(folder: Path, tmp_path: Path) -> None:
    options = {"mode": "sds", "two_pass": True, "two_pass_sigma": 6.0, "batch": 6}
    here = zmrs.mosaic([folder], sds_min_coverage_keep=0.3, **options)
    out = tmp_path / "out.fits"
    there = zmrs.mosaic([folder], out, sds_min_coverage_keep=0.3, **options)
    assert np.array_equal(here.data, there.data, equal_nan=True)
    assert np.array_equal(here.coverage, there.coverage)
    assert [path.name for path in tmp_path.iterdir()] == ["out.fits"]
    header = fits.getheader(out)
    assert (header["ZMBATCH"], header["ZMSTACK"]) == (4, "winsorized")
    assert (header["COMBINET"], header["NCOMBINE"]) == ("kappa-sigma", 24)


def test_low_coverage_is_left_empty(folder: Path) -> None:
    whole = zmrs.mosaic([folder], mode="sds")
    kept = zmrs.mosaic([folder], mode="sds", sds_min_coverage_keep=0.4)
    low = whole.coverage / whole.coverage.max() < 0.4
    assert 0.05 < low.mean() < 0.95
    assert (kept.coverage[low] == 0).all()
    assert np.isnan(np.atleast_3d(kept.data.T).T[..., low]).all()
    assert np.array_equal(kept.data[..., ~low], whole.data[..., ~low], equal_nan=True)
    # The second pass does not bring it back.
    again = zmrs.mosaic([folder], mode="sds", preset="zemosaic")
    assert again.stats["two_pass"]["applied"]
    assert (again.coverage == 0).sum() >= low.sum() * 0.9
    assert np.isnan(np.atleast_3d(again.data.T).T[..., again.coverage == 0]).all()


def test_one_plan(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="zmrs"):
        made = zmrs.mosaic([folder], mode="sds", two_pass=True)
    lines = [r.getMessage() for r in caplog.records if "[TwoPass] plan=" in r.getMessage()]
    assert len(lines) == 1
    assert f"plan=phase5 {made.plan.figures()}".startswith(lines[0].split("] ")[1])


def test_gains_of_the_second_pass(folder: Path) -> None:
    """All subs of a batch have its gain, and their offsets are those of the final pixels."""
    made = zmrs.mosaic(
        [folder], mode="sds", two_pass=True, two_pass_sigma=10.0, batch=6,
        combine="mean", sds_combine="mean",
    )  # fmt: skip
    assert made.stats["two_pass"]["applied"]
    gains = [row.two_pass_gain for row in made.inputs]
    assert gains == [g for g in made.stats["two_pass"]["gains"] for _ in range(6)]
    assert len(set(gains)) > 1
    flat = zmrs.mosaic(
        [folder], mode="sds", two_pass=True, two_pass_sigma=10.0, batch=6,
        combine="mean", sds_combine="mean", two_pass_gain_clip=(1.0, 1.0),
    )  # fmt: skip
    first = zmrs.mosaic([folder], mode="sds", batch=6, combine="mean", sds_combine="mean")
    # Gains of 1 upset no level.
    assert relative(flat.data, first.data) < 4e-7


def test_a_dead_sub_is_left_out(tmp_path: Path) -> None:
    write_frames(tmp_path, sky.tiny_sky(), subs(12), bitpix=16, truth=False)
    for number in range(1, 7):
        with fits.open(tmp_path / f"frame_{number:04d}.fits", mode="update") as hdus:
            hdus[0].data[:] = 0
    made = zmrs.mosaic([tmp_path], mode="sds", batch=6)
    assert made.stats["batches"]["count"] == 1
    assert sum(row.status == "used" for row in made.inputs) == 6
    rest = [tmp_path / f"frame_{number:04d}.fits" for number in range(7, 13)]
    alone = zmrs.mosaic(rest, mode="sds", batch=6, wcs=made.wcs, shape=made.data.shape)
    assert np.array_equal(made.data, alone.data, equal_nan=True)


def test_scratch_has_a_limit(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    with pytest.raises(BudgetError, match=r"--scratch-max allows 0\.009537; .* --batch 0"):
        zmrs.mosaic([folder], out, mode="sds", scratch_max="10kB")
    assert list(tmp_path.iterdir()) == []
    zmrs.mosaic([folder], out, mode="sds", scratch_max="10kB", batch=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 1}, "--batch: 1 is no batch"),
        ({"batch": -1}, "--batch"),
        ({"sds_target_batch": 4}, "less than --sds-min-batch 5"),
        ({"sds_coverage": 1.5}, "--sds-coverage: 1.5 is no part"),
        ({"sds_min_coverage_keep": 1.0}, "--sds-min-coverage-keep: 1 leaves nothing"),
        ({"variance": True}, "stacks of batches do not carry it"),
        ({"combine": "sum"}, "their sum would mean nothing"),
        ({"sds_combine": "sum"}, "their sum would mean nothing"),
        ({"journal_after": -1.0}, "--journal-after: -1 s is no time"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], words: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=words):
        zmrs.mosaic([folder], mode="sds", **options)


def test_batches_belong_to_a_mode(folder: Path) -> None:
    with pytest.raises(UsageError, match="there are batches in --mode sds only"):
        zmrs.mosaic([folder], batch=3)


def test_a_stray_sub_does_not_stretch_the_mosaic() -> None:
    shape = (100, 120)
    near = [(sky.frame_wcs(shape), shape)] * 900
    far = sky.shifted_wcs(sky.frame_wcs(shape), (0, 2000), shape)
    images = [*near, (far, shape)]
    names = [str(k) for k in range(len(images))]
    grid = optimal_grid(images)
    cut = cropped(grid, images, names)
    assert grid.width > 2000
    assert shape[1] <= cut.width <= shape[1] + MARGIN_PX + 32
    assert cut.height == grid.height
    # The same sky at the same pixel, as far as it is left.
    x, y = grid.wcs.world_to_pixel(near[0][0].pixel_to_world(0, 0))
    u, v = cut.wcs.world_to_pixel(near[0][0].pixel_to_world(0, 0))
    assert u - x == pytest.approx(cut.wcs.wcs.crpix[0] - grid.wcs.wcs.crpix[0], abs=1e-9)
    assert v - y == pytest.approx(cut.wcs.wcs.crpix[1] - grid.wcs.wcs.crpix[1], abs=1e-9)
    # Few inputs are all well covered.
    assert cropped(grid, images[-300:], names[-300:]) is grid
