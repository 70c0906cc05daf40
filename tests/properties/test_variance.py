"""The variance of every pixel, against `variance_oracle`, and where it is written."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.units import Unit
from astropy.wcs import WCS

import oracle
import sky
import variance_oracle
import zmrs
from child import clean_env, run
from sky import unmatched
from zmrs import pipeline
from zmrs.config import COMBINES, KERNELS, Options, resolve
from zmrs.errors import UsageError
from zmrs.io.cards import squared_unit
from zmrs.weights import noise_variances

SHAPE, FRAME = (58, 67), (44, 52)
STACKS = ("median", "kappa-sigma", "winsorized", "winsorized-reference", "winsor-percentile")
Array = np.ndarray[Any, Any]


@cache
def grid() -> WCS:
    return sky.frame_wcs(SHAPE, 7.3)


def frames(n: int = 5, channels: int = 1) -> list[sky.Tile]:
    """Noise on frames turned by different angles, a few pixels apart, with a few holes."""
    tiles = []
    for k, angle in enumerate((3.1, -2.2, 90.0, 137.0, 12.5)[:n]):
        wcs = sky.frame_wcs(FRAME, angle)
        wcs.wcs.crpix += np.array([5.37 * k - 9.1, 3.71 * k - 6.3])
        shape = FRAME if channels == 1 else (channels, *FRAME)
        image = np.random.default_rng([k, channels]).uniform(0.0, 1000.0, shape)
        image[..., 11 + k, 20] = np.nan
        image[..., 30, 5 + 9 * k : 8 + 9 * k] = np.nan
        tiles.append((image.astype(np.float32), WCS(wcs.to_header())))
    return tiles


def variances(n: int = 5) -> list[Array]:
    """Rough, of different size by input, with pixels of no use."""
    maps = []
    for k in range(n):
        v = np.random.default_rng([k, 5]).uniform(0.2, 4.0, FRAME).astype(np.float32) * (k + 1)
        v[5:7, 9:11], v[12, ::17], v[30, 4] = 0.0, -1.0, np.nan
        maps.append(v)
    return maps


def inverse(maps: Sequence[Array]) -> list[Array]:
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = [1 / v.astype(np.float64) for v in maps]
    return [np.where(np.isfinite(w) & (w > 0), w, 0.0) for w in weights]


def measured(image: Array) -> Array:
    """The variance of the noise by channel, from all rows (Stoehr et al. 2008)."""
    planes = np.atleast_3d(image.T).T.astype(np.float64)
    found = []
    for plane in planes:
        second = np.abs(2 * plane[:, 2:-2] - plane[:, :-4] - plane[:, 4:])
        # The upper one of two in the middle.
        middles = [np.sort(row[~np.isnan(row)]) for row in second]
        rows = [row[len(row) // 2] for row in middles]
        found.append(float(np.median(rows)) * 1.482602218505602 / np.sqrt(6))
    return np.array(found) ** 2


def made(inputs: Sequence[Any], kernel: str = "bilinear", **more: Any) -> zmrs.Result:
    return unmatched(
        inputs, wcs=grid(), shape=SHAPE, kernel=kernel, threads=2, **{"variance": True} | more
    )


def judged(tiles: Sequence[sky.Tile], noise: Sequence[Any], **more: Any) -> Array:
    found = variance_oracle.mosaic(tiles, grid(), SHAPE, noise, **more)
    return found[0] if len(found) == 1 else found


def assert_equal(result: zmrs.Result, want: Array, relative: float = 1e-5) -> None:
    assert result.variance is not None
    assert result.variance.dtype == np.float32
    assert np.isfinite(want).mean() > 0.5, "the scene is empty"
    np.testing.assert_array_equal(np.isnan(result.variance), np.isnan(result.data))
    np.testing.assert_array_equal(np.isnan(result.variance), np.isnan(want))
    np.testing.assert_allclose(result.variance, want, rtol=relative, atol=0)


# ------------------------------------------------------------------------------------ the formulas


@pytest.mark.parametrize("kernel", KERNELS)
def test_measured_noise_through_every_kernel(kernel: str) -> None:
    tiles = frames()
    assert_equal(made(tiles, kernel), judged(tiles, [measured(i) for i, _ in tiles], kernel=kernel))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["variance", "rms"])
def test_maps_through_every_kernel(kind: str, kernel: str) -> None:
    tiles, maps = frames(), variances()
    with np.errstate(invalid="ignore"):
        given = maps if kind == "variance" else [np.sqrt(v) for v in maps]
    result = made(tiles, kernel, weights=given, weight_type=kind)
    assert_equal(result, judged(tiles, maps, kernel=kernel, weights=inverse(maps)))


@pytest.mark.parametrize("how", COMBINES)
def test_every_combine(how: str) -> None:
    """With weights that differ, a ramp, and kappas that reject."""
    tiles, maps = frames(), variances()
    more = {"how": how, "feather_px": 8.0, "kappa": (1.2, 1.2), "winsor": (0.2, 0.3)}
    result = made(
        tiles, combine=how, weights=maps, weight_type="variance", feather=8.0, kappa=(1.2, 1.2),
        winsor=(0.2, 0.3),
    )  # fmt: skip
    assert_equal(result, judged(tiles, maps, weights=inverse(maps), **more))
    if how.startswith(("kappa", "winsorized")) and how != "winsorized-reference":
        assert result.rejected_low is not None
        assert result.rejected_low.any()


@pytest.mark.parametrize("how", COMBINES)
def test_every_combine_of_equal_weights(how: str) -> None:
    tiles = frames()
    noise = [measured(image) for image, _ in tiles]
    assert_equal(made(tiles, combine=how), judged(tiles, noise, how=how))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("how", ["mean", "max", "median", "kappa-sigma", "kappa-sigma-stream"])
def test_colour(how: str, together: bool) -> None:
    tiles = [
        (image * np.array([1, 2, 3 + k], np.float32)[:, None, None], wcs)
        for k, (image, wcs) in enumerate(frames(channels=3))
    ]
    noise = [measured(image) for image, _ in tiles]
    result = made(tiles, "bicubic", combine=how, kappa=(1.2, 1.2), reject_together=together)
    want = judged(
        tiles, noise, kernel="bicubic", how=how, kappa=(1.2, 1.2), together=together
    )  # fmt: skip
    assert result.variance is not None
    assert result.variance.shape == (3, *SHAPE)
    assert_equal(result, want)


@pytest.mark.parametrize("how", ["mean", "first", "kappa-sigma", "kappa-sigma-stream", "median"])
def test_saturation(how: str, tmp_path: Path) -> None:
    """Samples that give way take their noise with them."""
    level, paths = 3000.0, []
    tiles = frames()
    for k, (image, wcs) in enumerate(tiles):
        image[20:26, 30 + 4 * k : 37 + 4 * k] += np.float32(level)
        image[:2] += np.float32(level)
        header = wcs.to_header()
        header["SATURATE"] = level
        paths.append(tmp_path / f"{k}.fits")
        fits.PrimaryHDU(image, header).writeto(paths[-1])
    noise = [measured(image) for image, _ in tiles]
    sound = [(np.where(image >= level, np.nan, image), wcs) for image, wcs in tiles]
    for kernel in ("bilinear", "lanczos3"):
        better = judged(sound, noise, how=how, kernel=kernel)
        want = np.where(np.isnan(better), judged(tiles, noise, how=how, kernel=kernel), better)
        assert (want != better).sum() > np.isnan(want).sum() + 5
        assert_equal(made(paths, kernel, combine=how), want)


def test_numbers_weigh_but_are_no_variances() -> None:
    """Of a mean only the proportions of weights count; maps of them leave the noise alone."""
    tiles = frames(3)
    noise = [measured(image) for image, _ in tiles]
    numbers = [3.0, 0.5, 7.0]
    result = made(tiles, weights=numbers)
    assert_equal(result, judged(tiles, noise, weights=numbers))
    np.testing.assert_allclose(
        made(tiles, weights=[10 * w for w in numbers]).variance, result.variance, rtol=1e-6
    )
    maps = inverse(variances(3))
    want = judged(tiles, noise, weights=maps)
    assert_equal(made(tiles, weights=maps), want)
    assert_equal(made(tiles, weights=[9 * w for w in maps]), want)


def test_some_with_maps_and_some_without() -> None:
    tiles, maps = frames(3), variances(3)
    noise = [maps[0], measured(tiles[1][0]), maps[2]]
    weights = [inverse(maps)[0], 2.0, inverse(maps)[2]]
    result = made(tiles, weights=[maps[0], 2.0, maps[2]], weight_type="variance")
    assert_equal(result, judged(tiles, noise, weights=weights))


def test_offsets_of_matching_change_nothing() -> None:
    tiles = [(image + 300 * k, wcs) for k, (image, wcs) in enumerate(frames(3))]
    alone, matched = made(tiles), made(tiles, match="offset")
    assert any(abs(row.offset[0]) > 10 for row in matched.inputs)
    np.testing.assert_array_equal(alone.variance, matched.variance)


def test_the_image_is_the_same_with_and_without() -> None:
    tiles = frames(channels=3)
    for how in COMBINES:
        for more in ({}, {"two_pass": True, "two_pass_sigma": 4}):
            with_it = made(tiles, "bicubic", combine=how, **more)
            without = made(tiles, "bicubic", combine=how, variance=False, **more)
            assert without.variance is None
            for name in ("data", "coverage", "rejected_low", "rejected_high"):
                ours, theirs = getattr(with_it, name), getattr(without, name)
                assert ours is theirs or ours.tobytes() == theirs.tobytes()


# ------------------------------------------------------------------------------------ the Two-Pass


@pytest.mark.parametrize("into_file", [False, True])
@pytest.mark.parametrize("how", ["mean", "kappa-sigma"])
def test_gains_of_the_second_pass(how: str, into_file: bool, tmp_path: Path) -> None:
    tiles = [(image + 500, wcs) for image, wcs in frames()]
    noise = [measured(image) for image, _ in tiles]
    more: dict[str, Any] = {"two_pass": True, "two_pass_sigma": 3.0, "combine": how}
    out = tmp_path / "out.fits" if into_file else None
    result = made(tiles, output=out, **more)
    assert result.stats["two_pass"]["applied"]
    assert result.stats["two_pass"]["replaced_fraction"] == pytest.approx(
        np.isfinite(result.data).mean()
    )
    gains = [row.two_pass_gain for row in result.inputs]
    assert max(gains) < 0.99
    assert len(set(gains)) == len(gains)
    want = judged(tiles, noise, how=how, gains=[(gain, 0.0) for gain in gains])
    assert_equal(result, want)


@pytest.mark.parametrize("into_file", [False, True])
def test_pixels_of_the_first_pass_keep_their_variance(into_file: bool, tmp_path: Path) -> None:
    """Where the second pass is much darker, image and variance are the first one's."""
    tiles = [(image + 500, wcs) for image, wcs in frames()]
    image = tiles[0][0]
    # To the luminance of the first pass a small part of its percentile is added, beside which
    # this is nothing: a ratio below 0.4.
    image[10:20, 15:29] *= 1e-4
    image[10:20, 15:29] -= 0.04
    noise = [measured(image) for image, _ in tiles]
    out = tmp_path / "out.fits" if into_file else None
    result = made(tiles, output=out, combine="first", two_pass=True, two_pass_sigma=3.0)
    gains = [row.two_pass_gain for row in result.inputs]
    first = made(tiles, combine="first")
    second = judged(tiles, noise, how="first", gains=[(gain, 0.0) for gain in gains])
    with np.errstate(invalid="ignore"):
        is_first = result.data == first.data
    assert is_first.sum() > 100
    assert gains[0] != 1.0
    assert (np.isfinite(first.data) & ~is_first).sum() > 100
    # The image says which pass a pixel is of, and where both agree so do the variances.
    assert first.variance is not None
    assert_equal(result, np.where(is_first, first.variance, second))


@pytest.mark.parametrize("into_file", [False, True])
def test_a_second_pass_that_is_not_applied(into_file: bool, tmp_path: Path) -> None:
    """Gains far too low: the first pass's variance is put back."""
    tiles = frames()
    out = tmp_path / "out.fits" if into_file else None
    how = {"two_pass": True, "two_pass_gain_clip": (0.01, 0.02)}
    result = made(tiles, output=out, **how)
    assert not result.stats["two_pass"]["applied"]
    alone = made(tiles)
    np.testing.assert_array_equal(result.data, alone.data)
    np.testing.assert_array_equal(result.variance, alone.variance)


# ----------------------------------------------------------------------------------- the noise


def test_noise_that_is_not_known(caplog: pytest.LogCaptureFixture) -> None:
    """An input of one value has none that could be measured: the others' median counts."""
    tiles = [*frames(3), (np.full(FRAME, 7.0, np.float32), grid())]
    noise = [measured(image)[0] for image, _ in tiles[:3]]
    result = made(tiles)
    assert_equal(result, judged(tiles, [*noise, float(np.median(noise))]))
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert message == "input 4: the noise is not known; that of the others is taken"


def test_no_noise_is_known(caplog: pytest.LogCaptureFixture) -> None:
    result = made([(np.full(FRAME, 7.0, np.float32), grid())] * 2)
    assert np.isfinite(result.data).any()
    assert np.isnan(result.variance).all()
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert message == "input 1, input 2: the noise is not known; VAR is NaN there"


def test_variances_of_unknown_noise_by_channel() -> None:
    noise = [[1.0, np.nan], [3.0, 0.0], [np.inf, -2.0], [2.0, np.nan]]
    want = [[1.0, 4.0], [9.0, 4.0], [4.0, 4.0], [4.0, 4.0]]
    np.testing.assert_array_equal(noise_variances(noise), want)
    assert np.isnan(noise_variances([[np.nan], [0.0]])).all()


def test_zeros_that_are_blank_are_no_noise(tmp_path: Path) -> None:
    tiles, paths = frames(2), []
    for k, (image, wcs) in enumerate(tiles):
        image[~np.isfinite(image)] = 0.0
        image[:, : 12 + k] = 0.0
        paths.append(tmp_path / f"{k}.fits")
        fits.PrimaryHDU(image, wcs.to_header()).writeto(paths[-1])
        image[image == 0.0] = np.nan
    assert_equal(made(paths), judged(tiles, [measured(image) for image, _ in tiles]))


def test_inverse_variances_weigh_and_tell(caplog: pytest.LogCaptureFixture) -> None:
    tiles = [(image * (k + 1), wcs) for k, (image, wcs) in enumerate(frames(3))]
    noise = [measured(image)[0] for image, _ in tiles]
    result = made(tiles, weight_by="ivar")
    assert_equal(result, judged(tiles, noise, weights=[1 / v for v in noise]))


# ------------------------------------------------------------------------------------ the output


def test_the_file(tmp_path: Path) -> None:
    paths = []
    for k, (image, wcs) in enumerate(frames(channels=3)):
        header = wcs.to_header()
        header["BUNIT"] = "adu/s"
        paths.append(tmp_path / f"{k}.fits")
        fits.PrimaryHDU(image, header).writeto(paths[-1])
    out = tmp_path / "out.fits"
    result = made(paths, output=out, combine="kappa-sigma", kappa=(1.2, 1.2))
    arrays = made(paths, combine="kappa-sigma", kappa=(1.2, 1.2))
    with fits.open(out) as hdus:
        hdus.verify("exception")
        names = [hdu.name for hdu in hdus]
        assert names == ["PRIMARY", "COVERAGE", "REJLOW", "REJHIGH", "VAR", "INPUTS"]
        header, plane = hdus["VAR"].header, hdus["VAR"].data
        assert (header["BITPIX"], header["BUNIT"]) == (-32, "adu2 s-2")
        assert Unit(header["BUNIT"], format="fits") == Unit("adu/s", format="fits") ** 2
        assert plane.shape == hdus[0].data.shape == (3, *SHAPE)
        assert WCS(header).celestial.wcs.compare(WCS(hdus[0].header).celestial.wcs)
        for name, ours in (
            (0, arrays.data), ("COVERAGE", arrays.coverage), ("REJLOW", arrays.rejected_low),
            ("REJHIGH", arrays.rejected_high), ("VAR", arrays.variance),
        ):  # fmt: skip
            np.testing.assert_array_equal(hdus[name].data, ours)
    np.testing.assert_array_equal(result.variance, arrays.variance)
    assert result.stats["write_bytes"] == SHAPE[0] * SHAPE[1] * (3 * 4 + 4 + 6 * 2 + 3 * 4)


def test_without_it_the_file_is_as_it_was(tmp_path: Path) -> None:
    result = made(frames(2), output=tmp_path / "out.fits", variance=False)
    assert result.variance is None
    with fits.open(tmp_path / "out.fits") as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "COVERAGE", "INPUTS"]


@pytest.mark.parametrize(
    ("unit", "want"),
    [
        ("", ""),
        ("adu", "adu**2"),
        ("ADU", "ADU**2"),
        ("MJy/sr", "MJy2 sr-2"),
        ("10**-20 erg/s", "10**-40 erg2 s-2"),
        ("e-/s", "(e-/s)**2"),
    ],
)
def test_squared_units(unit: str, want: str) -> None:
    assert squared_unit(unit) == want


def test_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Options().variance
    assert resolve({}, None, {"ZMRS_VARIANCE": "on"}).variance
    assert not resolve({"variance": False}, None, {"ZMRS_VARIANCE": "on"}).variance
    with pytest.raises(UsageError, match="variance: 1 is neither True nor False"):
        made(frames(1), variance=1)
    with pytest.raises(UsageError, match="--weight-type variance: there are no weights"):
        made(frames(1), weight_type="variance")


def test_the_plan_foretells(tmp_path: Path) -> None:
    """Bytes that are read to measure noise, written and kept in scratch."""
    paths = []
    for k, (image, wcs) in enumerate(frames(2)):
        paths.append(tmp_path / f"{k}.fits")
        fits.PrimaryHDU(image, wcs.to_header()).writeto(paths[-1])

    def prepared(**more: Any) -> pipeline.Prepared:
        return pipeline.prepare(
            paths, Options(match="none", zero_is_blank="off", **more), grid=(grid(), SHAPE)
        )

    plane = SHAPE[0] * SHAPE[1] * 4
    without, with_it = prepared(), prepared(variance=True)
    assert without.survey_bytes == 0
    assert with_it.survey_bytes == 2 * FRAME[0] * FRAME[1] * 4
    assert with_it.layout.write_bytes - without.layout.write_bytes == plane
    twice = prepared(two_pass=True), prepared(two_pass=True, variance=True)
    assert twice[1].scratch_bytes - twice[0].scratch_bytes == plane
    assert with_it.layout.terms["output rows"] > without.layout.terms["output rows"]
    assert with_it.layout.terms["workers"] > without.layout.terms["workers"]

    def array_bytes(**more: Any) -> int:
        options = Options(match="none", **more)
        prepared = pipeline.prepare(paths, options, grid=(grid(), SHAPE), in_memory=True)
        return prepared.layout.terms["result arrays"]

    assert array_bytes(variance=True) - array_bytes() == plane


def test_the_command(tmp_path: Path) -> None:
    for k, (image, wcs) in enumerate(frames(2)):
        fits.PrimaryHDU(image, wcs.to_header()).writeto(tmp_path / f"{k}.fits")
    out = tmp_path / "m" / "out.fits"
    out.parent.mkdir()
    words = (tmp_path / "0.fits", tmp_path / "1.fits", "--variance", "--two-pass")
    planned = run("plan", *words, "--json")
    assert planned.status == 0, planned.err
    done = run("mosaic", *words, "-o", out)
    assert done.status == 0, done.err
    foretold = json.loads(planned.out)
    with fits.open(out) as hdus:
        planes = [hdus[name].data for name in ("PRIMARY", "COVERAGE", "VAR")]
        assert foretold["write_bytes"] == sum(plane.nbytes for plane in planes)
        np.testing.assert_array_equal(np.isnan(planes[0]), np.isnan(planes[2]))
        assert foretold["scratch_bytes"] >= planes[0].nbytes + planes[2].nbytes
    assert {path.name for path in out.parent.iterdir()} == {"out.fits"}
    refused = run("mosaic", *words[:2], "-o", out, env=clean_env(ZMRS_VARIANCE="some"))
    assert (refused.status, "ZMRS_VARIANCE: 'some' is not true or false" in refused.err) == (
        2,
        True,
    )


def test_nothing_is_said_of_noise_that_maps_tell(caplog: pytest.LogCaptureFixture) -> None:
    """No input is looked at, and none is warned of."""
    caplog.set_level(logging.INFO)
    flat = [(np.full(FRAME, 7.0, np.float32), wcs) for _, wcs in frames(2)]
    maps = [np.full(FRAME, 4.0), np.full(FRAME, 4.0)]
    result = made(flat, "nearest", weights=maps, weight_type="variance")
    assert "survey" not in result.stats["seconds"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    alone = result.coverage == np.float32(0.25)
    assert result.variance is not None
    assert np.unique(result.variance[alone]).tolist() == [4.0]
    both = result.coverage == np.float32(0.5)
    assert np.unique(result.variance[both]).tolist() == [2.0]


def test_the_oracle_says_what_it_says_of_images() -> None:
    """Both judges see the same samples as valid."""
    tiles = frames(1)
    points = oracle.locate(grid(), SHAPE, tiles[0][1])
    for kernel in KERNELS:
        values, _ = oracle.samples(tiles[0][0], points, kernel)
        noise = variance_oracle.samples(tiles[0][0], points, kernel, None, 1.0)
        np.testing.assert_array_equal(np.isnan(values), np.isnan(noise))
        assert np.nanmax(noise) < 1.3
