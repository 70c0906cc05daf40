"""Combines that look at all samples of a pixel, against `stack_oracle`, sample for sample.

Inputs lie on the grid of the output, so their samples are known to the last digit and no decision
hangs on an interpolation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.stats import sigma_clip
from astropy.wcs import WCS

import sky
import stack_oracle
import zmrs
from sky import unmatched

SHAPE = (9, 37)
DEPTHS = (1, 2, 3, 4, 5, 8, 13, 30, 100)


def scene(depth: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise with outliers of either sign, (N, C, H, W); some samples, and some pixels, invalid."""
    rng = np.random.default_rng([depth, channels, seed])
    values = rng.normal(1000.0, 10.0, (depth, channels, *SHAPE))
    hit = rng.random(values.shape) < 0.08
    values[hit] += rng.choice([-300.0, 60.0, 5000.0], hit.sum())
    invalid = rng.random((depth, *SHAPE)) < 0.1
    invalid[:, 4, 10:14] = True
    values[np.broadcast_to(invalid[:, np.newaxis], values.shape)] = np.nan
    return values.astype(np.float32).astype(np.float64)


def made(values: np.ndarray, combine: str, **given: Any) -> zmrs.Result:
    wcs = sky.frame_wcs(SHAPE)
    planes = [image.astype(np.float32) for image in values]
    inputs = [(image[0] if len(image) == 1 else image, wcs) for image in planes]
    return unmatched(inputs, wcs=wcs, shape=SHAPE, combine=combine, kernel="nearest", **given)


def check(result: zmrs.Result, want: tuple[np.ndarray, ...], how: str) -> None:
    image, coverage, low, high = want
    channels = len(image)
    data = np.asarray(result.data).reshape(image.shape)
    np.testing.assert_array_equal(np.isnan(data), np.isnan(image))
    np.testing.assert_allclose(data, image, rtol=2e-7)
    np.testing.assert_allclose(result.coverage, coverage, rtol=1e-6)
    if how == "median":
        assert result.rejected_low is None
        assert result.rejected_high is None
        return
    for counted, true in ((result.rejected_low, low), (result.rejected_high, high)):
        assert counted is not None
        assert counted.dtype == np.int16
        np.testing.assert_array_equal(counted.reshape(channels, *SHAPE), true)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("how", stack_oracle.STACKED)
def test_every_method_at_every_depth(how: str, depth: int) -> None:
    values = scene(depth)
    check(made(values, how), stack_oracle.combine(values, np.ones((depth, *SHAPE)), how), how)


@pytest.mark.parametrize("how", stack_oracle.STACKED)
@pytest.mark.parametrize("with_maps", [False, True])
def test_weights(how: str, with_maps: bool) -> None:
    values = scene(11, seed=1)
    rng = np.random.default_rng(5)
    weights: list[Any] = [float(w) for w in rng.uniform(0.5, 3.0, 11)]
    if with_maps:
        for n in range(0, 11, 2):
            weights[n] = rng.uniform(0.25, 2.0, SHAPE).astype(np.float32)
    full = np.stack([np.broadcast_to(np.float32(w), SHAPE) for w in weights]).astype(float)
    check(made(values, how, weights=weights), stack_oracle.combine(values, full, how), how)


@pytest.mark.parametrize("how", ["kappa-sigma", "winsorized"])
@pytest.mark.parametrize("together", [False, True])
def test_channels_apart_and_together(how: str, together: bool) -> None:
    values = scene(12, channels=3)
    want = stack_oracle.combine(values, np.ones((12, *SHAPE)), how, together=together)
    check(made(values, how, reject_together=together), want, how)


def test_no_sample_that_all_channels_keep() -> None:
    """Each of three samples is thrown out by another channel: then all are kept."""
    values = np.full((6, 3, *SHAPE), 100.0)
    values += np.arange(6)[:, None, None, None] * 0.01
    for channel in range(3):
        values[[2 * channel, 2 * channel + 1], channel] += 50.0
    want = stack_oracle.combine(values, np.ones((6, *SHAPE)), "winsorized", together=True)
    assert (want[1] == 6).all()
    check(made(values, "winsorized", reject_together=True), want, "winsorized")


@pytest.mark.parametrize("kappa", [(3.0, 3.0), (1.5, 4.0), (0.1, 0.1), (30.0, 2.0)])
@pytest.mark.parametrize("how", ["kappa-sigma", "winsorized", "winsorized-reference"])
def test_kappas(how: str, kappa: tuple[float, float]) -> None:
    values = scene(17)
    want = stack_oracle.combine(values, np.ones((17, *SHAPE)), how, kappa=kappa)
    check(made(values, how, kappa=kappa), want, how)


@pytest.mark.parametrize("winsor", [(0.0, 0.0), (0.2, 0.1), (0.49, 0.49)])
def test_winsor_limits(winsor: tuple[float, float]) -> None:
    values, how = scene(17), "winsor-percentile"
    want = stack_oracle.combine(values, np.ones((17, *SHAPE)), how, winsor=winsor)
    check(made(values, how, winsor=winsor), want, how)


def test_kappa_sigma_is_what_astropy_means() -> None:
    values = scene(30, seed=3)
    stack = np.ma.masked_invalid(values[:, 0])
    clipped = sigma_clip(stack, sigma=3.0, maxiters=5, cenfunc="median", stdfunc="std", axis=0)
    want = clipped.mean(axis=0).filled(np.nan)
    np.testing.assert_allclose(made(values, "kappa-sigma").data, want, rtol=2e-7)


@pytest.mark.parametrize(
    ("n", "want"),
    [(4, 20.75), (6, 17.3333), (9, 12.1877), (10, 11.6928), (12, 11.4376), (15, 11.1738),
     (20, 11.1540), (30, 11.0535)],
)  # fmt: skip
def test_winsorized_reference_as_observed(n: int, want: float) -> None:
    samples = np.resize([10.0, 11.0, 12.0, 11.0], n)
    samples[-1] = 50.0
    values = np.broadcast_to(samples[:, None, None, None], (n, 1, *SHAPE))
    np.testing.assert_allclose(made(values, "winsorized-reference").data, want, atol=5e-5)


def test_combines_as_observed() -> None:
    samples = np.array([10.0, 11.0, 12.0, 11.0, 10.0, 50.0])
    values = np.broadcast_to(samples[:, None, None, None], (6, 1, *SHAPE))
    percentile = made(values, "winsor-percentile")
    np.testing.assert_allclose(percentile.data, 15.75, rtol=1e-6)
    assert (percentile.coverage == 6).all()
    kappa = made(values, "kappa-sigma", kappa=(2.0, 2.0))
    np.testing.assert_allclose(kappa.data, 10.8, rtol=1e-6)
    assert (kappa.coverage == 5).all()
    weights = [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(
        made(values, "winsorized-reference", weights=weights).data, 14.694754, rtol=1e-6
    )


@pytest.mark.parametrize("how", stack_oracle.STACKED)
def test_few_samples(how: str) -> None:
    """One is kept, two are as well, however far apart, and a pixel with none is none."""
    values = np.full((2, 1, *SHAPE), np.nan)
    values[0, 0, :, :20], values[1, 0, :, 10:30] = 5.0, 4e6
    result = made(values, how)
    assert (result.data[:, :10] == 5.0).all()
    assert (result.data[:, 20:30] == 4e6).all()
    np.testing.assert_allclose(result.data[:, 10:20], 2000002.5, rtol=1e-7)
    assert np.isnan(result.data[:, 30:]).all()
    want = np.repeat([1.0, 2.0, 1.0, 0.0], [10, 10, 10, 7])
    np.testing.assert_array_equal(result.coverage, np.broadcast_to(want, SHAPE))


@pytest.mark.parametrize("how", stack_oracle.STACKED)
@pytest.mark.parametrize("value", [0.0, -7.25, 3e38, 1e-44])
def test_constant_samples(how: str, value: float) -> None:
    result = made(np.full((9, 1, *SHAPE), np.float32(value)), how)
    np.testing.assert_array_equal(result.data, np.float32(value))
    np.testing.assert_array_equal(result.coverage, 9.0)
    assert result.inputs[0].rejected_fraction == 0.0


@pytest.mark.parametrize("kernel", ["nearest", "bicubic", "lanczos3"])
@pytest.mark.parametrize("how", stack_oracle.STACKED)
def test_values_at_the_end_of_what_a_float_holds(how: str, kernel: str) -> None:
    """Kernels overshoot there: what no float can hold is an outlier like any other."""
    rng = np.random.default_rng(8)
    most = np.finfo(np.float32).max
    frames = [
        (rng.choice([-most, 100.0, most], SHAPE).astype(np.float32), sky.frame_wcs(SHAPE, 3.0 * k))
        for k in range(6)
    ]
    wcs = sky.frame_wcs(SHAPE, 20.0)
    result = unmatched(frames, wcs=wcs, shape=SHAPE, combine=how, kernel=kernel)
    covered = result.coverage > 0
    assert covered.mean() > 0.3
    assert np.isfinite(result.data[covered]).all()
    assert np.isnan(result.data[~covered]).all()


@pytest.mark.parametrize("how", stack_oracle.STACKED)
def test_a_sample_that_lies_beyond_everything(how: str) -> None:
    rng = np.random.default_rng(9)
    values = rng.normal(100.0, 1.0, (12, 1, *SHAPE)).astype(np.float32).astype(float)
    values[3], values[7, :, :, :20] = 3.4e38, -3.4e38
    check(made(values, how), stack_oracle.combine(values, np.ones((12, *SHAPE)), how), how)


@pytest.mark.parametrize("how", stack_oracle.STACKED)
def test_weights_over_twelve_decades(how: str) -> None:
    values = scene(9, seed=2)
    weights = [float(np.float32(10.0**k)) for k in np.linspace(-6, 6, 9)]
    full = np.stack([np.full(SHAPE, w) for w in weights])
    check(made(values, how, weights=weights), stack_oracle.combine(values, full, how), how)


@pytest.mark.parametrize("how", stack_oracle.STACKED)
@pytest.mark.parametrize("together", [False, True])
def test_holes_in_single_channels(how: str, together: bool) -> None:
    """A colour pixel with a hole in one channel is no sample at all."""
    rng = np.random.default_rng(10)
    values = scene(12, channels=3)
    values[rng.random(values.shape) < 0.15] = np.nan
    frames = values.copy()
    values[np.broadcast_to(np.isnan(values).any(axis=1, keepdims=True), values.shape)] = np.nan
    want = stack_oracle.combine(values, np.ones((12, *SHAPE)), how, together=together)
    check(made(frames, how, reject_together=together), want, how)


@pytest.mark.parametrize("how", stack_oracle.STACKED)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_canvases_one_pixel_wide(how: str, shape: tuple[int, int]) -> None:
    """Each is a cut-out of a larger one."""
    values = scene(7, seed=3)
    wcs = sky.frame_wcs(SHAPE)
    frames = [(image[0].astype(np.float32), wcs) for image in values]
    grid = sky.shifted_wcs(wcs, (3, 2), shape)
    cut = unmatched(frames, wcs=grid, shape=shape, combine=how, kernel="nearest")
    whole = made(values, how).data[3 : 3 + shape[0], 2 : 2 + shape[1]]
    np.testing.assert_array_equal(cut.data[: whole.shape[0], : whole.shape[1]], whole)
    assert cut.data.shape == shape


def test_the_file_has_the_counts(tmp_path: Any) -> None:
    values = scene(9, channels=3)
    out = tmp_path / "out.fits"
    result = made(values, "kappa-sigma", output=out)
    in_memory = made(values, "kappa-sigma")
    with fits.open(out) as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "COVERAGE", "REJLOW", "REJHIGH", "INPUTS"]
        for name, want in (
            ("REJLOW", in_memory.rejected_low), ("REJHIGH", in_memory.rejected_high),
        ):  # fmt: skip
            assert hdus[name].data.shape == (3, *SHAPE)
            assert hdus[name].header["BITPIX"] == 16
            assert WCS(hdus[name].header).celestial.wcs == WCS(hdus[0].header).celestial.wcs
            np.testing.assert_array_equal(hdus[name].data, want)
        np.testing.assert_array_equal(hdus[0].data, in_memory.data)
        low, high = (hdus[name].data.sum(dtype=int) for name in ("REJLOW", "REJHIGH"))
        table = hdus["INPUTS"].data
        rejected = (table["REJFRAC"] * table["NPIX"] * 3).sum()
        np.testing.assert_allclose(rejected, low + high)
    np.testing.assert_array_equal(result.rejected_low, in_memory.rejected_low)
    assert (np.asarray(result.rejected_high) > 0).any()
