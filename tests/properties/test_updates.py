"""Updates: frames added to a finished mean mosaic against the mosaic made of all at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

import clouds
import sky
import zmrs
from zmrs.config import KERNELS
from zmrs.errors import UsageError
from zmrs.grid import optimal_grid
from zmrs.photometry import connected
from zmrs.simulate import FrameSpec, make_frame_wcs, write_frames

SHAPE = (72, 90)
NOISE = 5.0
N_FRAMES = 8
N_OLD = 5
_ROUNDING = 2.0**-22
"""Two roundings to single precision, of the old mean and of the new."""


def write(folder: Path, channels: int = 1, **spec: Any) -> list[Path]:
    """Eight frames around one place, turned and shifted, of levels that differ by up to 200."""
    rng = np.random.default_rng(8)
    specs = []
    for _ in range(N_FRAMES):
        wcs = make_frame_wcs(sky.CENTER_DEG, sky.SCALE_ARCSEC, rng.uniform(-8, 8), SHAPE)
        wcs.wcs.crpix += rng.uniform(-25, 25, 2)
        level = rng.uniform(900.0, 1100.0)
        more = {"noise_sigma": NOISE, "sky_level": level, "channels": channels} | spec
        specs.append(FrameSpec(wcs, SHAPE, **more))
    stars = sky.tiny_sky(nebula_peak=400.0)
    paths = write_frames(folder, stars, specs, truth=False)
    for number, path in enumerate(paths):
        fits.setval(path, "EXPTIME", value=30.0 * (1 + number % 3 + 3 * (number // N_OLD)))
        fits.setval(path, "STACKCNT", value=4 + number)
    return paths


@pytest.fixture(scope="module", params=[1, 3], ids=["mono", "rgb"])
def frames(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("frames"), request.param)


def at_once(frames: list[Path], grid: Path, out: Path, **how: Any) -> zmrs.Result:
    """The mosaic of all frames on the grid of another."""
    return zmrs.mosaic(frames, out, wcs=grid, **how)


def in_steps(
    frames: list[Path], out: Path, cuts: tuple[int, ...] = (N_OLD,), **how: Any
) -> zmrs.Result:
    """The mosaic of the first frames, and then those up to each further cut added to it."""
    result = zmrs.mosaic(frames[: cuts[0]], out, **how)
    for first, past in zip(cuts, (*cuts[1:], len(frames)), strict=True):
        result = zmrs.update(out, frames[first:past])
    return result


def relative(a: np.ndarray, b: np.ndarray) -> float:
    assert (np.isnan(a) == np.isnan(b)).all()
    return float(np.nanmax(np.abs(a - b) / np.abs(b)))


def headers(path: Path) -> dict[str, Any]:
    """Cards of the first header, but those of the run itself."""
    header = fits.getheader(path)
    ours = ("ZMPLAN", "ZMMEM", "ZMPEAK", "", "CONTINUE")
    return {keyword: header[keyword] for keyword in header if keyword not in ours}


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_update_is_the_mosaic_of_all(kernel: str, frames: list[Path], tmp_path: Path) -> None:
    out, whole = tmp_path / "out.fits", tmp_path / "whole.fits"
    how = {"match": "none", "kernel": kernel}
    updated = in_steps(frames, out, **how)
    expected = at_once(frames, out, whole, **how)
    assert relative(updated.data, expected.data) < _ROUNDING
    assert np.array_equal(updated.coverage, expected.coverage)
    assert headers(out) == headers(whole)
    old, new = Table.read(out, "INPUTS"), Table.read(whole, "INPUTS")
    assert old.colnames == new.colnames
    # The old frames were placed on the grid before it was written with 15 digits.
    assert all(np.array_equal(old[name], new[name]) for name in old.colnames if name != "GEOMERR")
    assert np.array(old["GEOMERR"]) == pytest.approx(np.array(new["GEOMERR"]), abs=1e-9)
    assert [row.name for row in updated.inputs] == [str(path) for path in frames]


@pytest.mark.parametrize("kernel", KERNELS)
def test_pixels_that_nothing_new_covers_stay_bit_for_bit(
    kernel: str, frames: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.fits"
    before = zmrs.mosaic(frames[:N_OLD], out, kernel=kernel, border_mask=8)
    image, coverage = before.data, before.coverage
    small = tmp_path / "small.fits"
    with fits.open(frames[-1]) as hdus:
        hdus[0].data[..., :40, :] = np.nan
        hdus.writeto(small)
    after = zmrs.update(out, small)
    same = after.coverage == coverage
    assert 0.3 < same.mean() < 0.99
    kept = np.where(same, after.data, 0), np.where(same, image, 0)
    assert kept[0].tobytes() == kept[1].tobytes()
    # The border of holes in the mosaic takes nothing from its neighbours.
    covered = coverage > 0
    assert not np.isnan(after.data[..., covered]).any()


@pytest.mark.parametrize("match", ["none", "offset"])
def test_many_updates_are_one(match: str, frames: list[Path], tmp_path: Path) -> None:
    several = in_steps(frames, tmp_path / "several.fits", (2, 3, 5, 6), match=match)
    one = in_steps(frames, tmp_path / "one.fits", (2,), match=match)
    assert np.array_equal(several.coverage, one.coverage)
    assert headers(tmp_path / "several.fits") == headers(tmp_path / "one.fits")
    if match == "none":
        assert relative(several.data, one.data) < 4 * _ROUNDING
    else:
        # The levels of those that came before are not solved again.
        difference = (several.data - one.data).astype(np.float64)
        rms = np.sqrt(np.nanmean(difference**2))
        print(f"several updates against one, matched: rms {rms:.3f} of a noise of {NOISE}")
        assert rms < 0.1 * NOISE


def test_offsets_keep_the_level_of_the_mosaic(tmp_path: Path) -> None:
    """New frames come to the mosaic, whose pixels stay; levels are up to 200 apart."""
    frames = write(tmp_path / "frames")
    out = tmp_path / "out.fits"
    alone = zmrs.mosaic(frames[:N_OLD], tmp_path / "alone.fits")
    updated = in_steps(frames, out)
    expected = at_once(frames, out, tmp_path / "whole.fits")
    offsets = [row.offset for row in updated.inputs]
    assert offsets[:N_OLD] == [row.offset for row in alone.inputs]
    assert max(abs(offset) for (offset,) in offsets[N_OLD:]) > 50
    # Where only old frames are nothing moves.
    only_old = updated.coverage == alone.coverage
    assert only_old.mean() > 0.2
    assert np.array_equal(updated.data[only_old], alone.data[only_old], equal_nan=True)
    # The mosaic of all has another level, the mean of all.
    difference = (updated.data - expected.data).astype(np.float64)
    level, rms = np.nanmean(difference), np.nanstd(difference)
    print(f"offsets, update against all at once: {level:+.2f}, rms {rms:.3f} of a noise of {NOISE}")
    assert rms < 0.02 * NOISE


@pytest.mark.parametrize("channels", [1, 3])
def test_gains_keep_the_scale_of_the_mosaic(channels: int, tmp_path: Path) -> None:
    """Frames whose gains and levels are known, half of them added to the mosaic of the others."""
    scene = clouds.make((2, 3), (300, 380), channels=channels)
    tiles = scene.raw()
    grid = optimal_grid([(wcs, image.shape[-2:]) for image, wcs in tiles])
    out = tmp_path / "out.fits"
    before = zmrs.mosaic(tiles[:3], out, match="gain", wcs=grid.wcs, shape=grid.shape)
    result = zmrs.update(out, tiles[3:])
    assert result.stats["match"]["gain_groups"] == 1
    old, new = result.inputs[:3], result.inputs[3:]
    assert [row.gain for row in old] == [row.gain for row in before.inputs]
    scales = np.array([row.gain for row in (*old, *new)]) * scene.factors
    levels = np.array([row.gain for row in (*old, *new)]) * (
        scene.factors * clouds.SKY_LEVEL + scene.levels
    ) + np.array([row.offset for row in (*old, *new)])
    wrong_scale = np.abs(scales[3:] / scales[:3].mean(axis=0) - 1).max()
    wrong_level = np.abs(levels[3:] - levels[:3].mean(axis=0)).max() / clouds.SIGMA
    print(f"gains off by {wrong_scale:.1e}, levels by {wrong_level:.3f} of the noise")
    assert wrong_scale < 2e-3
    assert wrong_level < 0.1


def test_frames_beside_the_mosaic_agree_among_themselves(tmp_path: Path) -> None:
    """What no overlap connects with it has no level to come to, and keeps its own mean."""
    base = sky.frame_wcs((64, 300))
    rng = np.random.default_rng(4)
    image = 1000 + rng.normal(0, 1, (64, 300)).astype(np.float32)
    boxes = [(0, 64, 0, 100), (0, 64, 150, 240), (0, 64, 200, 300)]
    (first, *others) = sky.cut_tiles(image, base, boxes)
    others = [(pixels + 30 * number, wcs) for number, (pixels, wcs) in enumerate(others)]
    out = tmp_path / "out.fits"
    zmrs.mosaic([first], out, wcs=base, shape=(64, 300))
    result = zmrs.update(out, others, match="offset")
    assert [row.offset for row in result.inputs[1:]] == [
        [pytest.approx(15, abs=0.1)], [pytest.approx(-15, abs=0.1)],
    ]  # fmt: skip
    assert np.array_equal(result.data[:, :100], image[:, :100])


def test_limits_of_matching_are_about_the_mosaic(tmp_path: Path) -> None:
    frames = write(tmp_path / "frames")
    out = tmp_path / "out.fits"
    zmrs.mosaic(frames[:-1], out)
    with fits.open(frames[-1], mode="update") as hdus:
        hdus[0].data += 1000.0
    result = zmrs.update(out, frames[-1], match_offset_limit=600.0)
    assert result.inputs[-1].offset == [-600.0]
    assert result.stats["match"]["clipped"] == 1


@pytest.mark.parametrize("weight_by", ["none", "n_frames", "exposure", "ivar"])
def test_weights_keep_their_unit(weight_by: str, tmp_path: Path) -> None:
    """What weighed 1 goes on to: old and new frames weigh as they do in one mosaic."""
    frames = write(tmp_path / "frames", noise_sigma=NOISE)
    for number, path in enumerate(frames):
        noise = np.random.default_rng(number).normal(0, 1 + 3 * number, SHAPE)
        with fits.open(path, mode="update") as hdus:
            hdus[0].data += noise.astype(np.float32)
    out, whole = tmp_path / "out.fits", tmp_path / "whole.fits"
    how = {"match": "none", "weight_by": weight_by, "feather": 9.0}
    if weight_by == "exposure":
        # Then nothing is looked at, and weights are those of the plan.
        how["zero_is_blank"] = "off"
    updated = in_steps(frames, out, **how)
    expected = at_once(frames, out, whole, **how)
    weights = np.array([[row.weight for row in made.inputs] for made in (updated, expected)])
    scale = weights[0] / weights[1]
    if weight_by == "n_frames":
        # Its curve is not straight: frames are measured by the median of the first mosaic.
        counts = np.arange(4, 4 + N_FRAMES)
        expected_weights = np.minimum(np.sqrt(counts / np.median(counts[:N_OLD])), 1.35)
        assert weights[0] == pytest.approx(expected_weights, abs=1e-12)
        return
    assert scale == pytest.approx(scale[0], rel=1e-12)
    assert (scale[0] == 1) == (weight_by == "none")
    assert relative(updated.data, expected.data) < 4 * _ROUNDING
    assert relative(updated.coverage + 1, scale[0] * expected.coverage + 1) < 4 * _ROUNDING


def test_the_header_tells_the_defaults(tmp_path: Path) -> None:
    frames = write(tmp_path / "frames")
    for path in frames:
        variance = np.random.default_rng(1).uniform(1.0, 9.0, SHAPE).astype(np.float32)
        fits.append(path, variance, fits.Header({"EXTNAME": "VARIANCE"}))
    how = {
        "kernel": "lanczos2", "match": "none", "feather": 7.0, "border_mask": 3.0,
        "weights": "VARIANCE", "weight_type": "variance", "zero_is_blank": "off",
    }  # fmt: skip
    out = tmp_path / "out.fits"
    updated = in_steps(frames, out, **how)
    expected = at_once(frames, out, tmp_path / "whole.fits", **how)
    assert relative(updated.data, expected.data) < 4 * _ROUNDING
    # And what is said counts.
    zmrs.mosaic(frames[:N_OLD], out, overwrite=True, **how)
    other = zmrs.update(out, frames[N_OLD:], kernel="nearest", feather=0.0)
    assert fits.getval(out, "ZMKERN") == "nearest"
    assert not np.array_equal(other.data, updated.data, equal_nan=True)


def test_what_sticks_out_is_cut_and_what_lies_beside_left_out(tmp_path: Path) -> None:
    frames = write(tmp_path / "frames")
    out = tmp_path / "out.fits"
    zmrs.mosaic(frames[:1], out, match="none")
    shape = fits.getdata(out).shape
    away = make_frame_wcs((sky.CENTER_DEG[0] + 2, sky.CENTER_DEG[1]), 2.0, 0.0, SHAPE)
    beside = sky.write_image(tmp_path / "beside.fits", np.ones(SHAPE, np.float32), away)
    result = zmrs.update(out, [frames[1], beside])
    assert result.data.shape == shape
    assert np.nanmax(result.coverage) == 2
    assert [row.status for row in result.inputs] == ["used", "used", "left_out"]
    assert "does not touch the output grid" in result.inputs[-1].reason
    # Another trial takes the place of the one that failed.
    again = zmrs.update(out, [beside, frames[2]])
    assert [Path(row.name).name for row in again.inputs] == [
        "frame_0001.fits", "frame_0002.fits", "frame_0003.fits", "beside.fits",
    ]  # fmt: skip


def test_arrays_and_a_copy_elsewhere(tmp_path: Path) -> None:
    frames = write(tmp_path / "frames")
    out, other = tmp_path / "out.fits", tmp_path / "other.fits"
    zmrs.mosaic(frames[:N_OLD], out, match="none")
    bytes_before = out.read_bytes()
    with fits.open(frames[-1]) as hdus:
        pair = hdus[0].data, WCS(hdus[0].header)
        result = zmrs.update(out, [pair], other, weights=[2.0])
    assert out.read_bytes() == bytes_before
    assert result.path == other
    assert result.inputs[-1].weight == 2.0
    assert fits.getval(other, "NCOMBINE") == N_OLD + 1


def test_subs_whose_batches_were_means_can_go_on(tmp_path: Path) -> None:
    frames = write(tmp_path / "frames")
    out = tmp_path / "out.fits"
    how = {"mode": "sds", "batch": 2, "match": "none"}
    zmrs.mosaic(frames[:N_OLD], out, combine="mean", sds_combine="mean", **how)
    updated = zmrs.update(out, frames[N_OLD:])
    expected = at_once(frames, out, tmp_path / "whole.fits", match="none")
    assert relative(updated.data, expected.data) < 4 * _ROUNDING
    zmrs.mosaic(frames[:N_OLD], out, combine="mean", overwrite=True, **how)
    with pytest.raises(UsageError, match="stacks of its batches were combined by winsorized"):
        zmrs.update(out, frames[N_OLD:])


def test_groups_of_links() -> None:
    links = [(3, 1), (0, 3), (2, 4), (5, 6), (6, 1)]
    assert connected(0, links) == [0, 1, 3, 5, 6]
    assert connected(2, links) == [2, 4]
    assert connected(7, links) == [7]


@pytest.mark.slow
def test_two_hundred_updates(tmp_path: Path) -> None:
    """Mean and sum of weights in single precision are all that it takes: errors do not pile up."""
    rng = np.random.default_rng(0)
    wcs = sky.frame_wcs(SHAPE)
    folder = tmp_path / "frames"
    folder.mkdir()
    frames = [
        sky.write_image(
            folder / f"{number}.fits", rng.normal(1000, 30, SHAPE).astype(np.float32), wcs
        )
        for number in range(201)
    ]
    out = tmp_path / "out.fits"
    zmrs.mosaic(frames[0], out, match="none", wcs=str(frames[0]))
    for frame in frames[1:]:
        zmrs.update(out, frame)
    everything = np.stack([fits.getdata(frame) for frame in frames]).astype(np.float64)
    truth = everything.mean(axis=0)
    error = fits.getdata(out) / truth - 1
    once = zmrs.mosaic(frames, match="none", wcs=str(frames[0])).data / truth - 1
    shown = [f"{np.sqrt((e**2).mean()):.1e} (most {np.abs(e).max():.1e})" for e in (error, once)]
    print(f"200 updates: relative error rms {shown[0]}; at once {shown[1]}")
    assert np.abs(error).max() < 1e-6
    assert np.array_equal(fits.getdata(out, "COVERAGE"), np.full(SHAPE, 201))
    shutil.rmtree(folder)
