"""What any mosaic must do, whatever the formulas: no oracle, only truths about the sky."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, maximum_filter, minimum_filter

import sky
import zmrs
from sky import unmatched
from zmrs.config import COMBINES, KERNELS
from zmrs.simulate import FrameSpec, Sky, dither_pattern, make_frame_wcs, pixel_area, render

RADIUS = {"nearest": 1, "bilinear": 1, "bicubic": 2, "lanczos2": 2, "lanczos3": 3}


def mosaic(inputs: object, **kw: object) -> zmrs.Result:
    return unmatched(inputs, **{"threads": 2, "memory": "1GiB"} | kw)


# --------------------------------------------------------------------------------------- identity


def textured(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """Noise over six decades, negative values included."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0.0, 1.0, shape) * 10.0 ** rng.uniform(-2.0, 4.0, shape)
    return image.astype(np.float32)


@pytest.mark.parametrize("combine", ["mean", "min", "max", "first", "last"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_of_an_image_coadd_to_exactly_that_image(
    channels: int, kernel: str, combine: str
) -> None:
    shape = (71, 103)
    image = textured((3, *shape) if channels == 3 else shape)
    wcs = sky.frame_wcs(shape, 31.0)
    tiles = sky.cut_tiles(image, wcs, sky.overlapping_boxes(shape, (2, 3), 14))
    result = mosaic(tiles, wcs=wcs, shape=shape, kernel=kernel, combine=combine)
    np.testing.assert_array_equal(result.data, image)
    assert set(np.unique(result.coverage)) == {1.0, 2.0, 4.0}


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_do_not_disturb_the_identity(kernel: str) -> None:
    shape = (60, 80)
    image, wcs = textured(shape), sky.frame_wcs(shape)
    tiles = sky.cut_tiles(image, wcs, sky.overlapping_boxes(shape))
    result = mosaic(tiles, wcs=wcs, shape=shape, kernel=kernel, weights=[1, 3, 0.7, 11, 0.1, 2])
    np.testing.assert_allclose(result.data, image, rtol=1e-7)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_only_move_pixels(turns: int, kernel: str) -> None:
    image = textured((40, 57))
    turned = np.ascontiguousarray(np.rot90(image, turns))
    wcs = sky.frame_wcs(image.shape)
    # np.rot90 takes the last column to the first row: +y of the new image is -x of the old.
    matrix = {1: [[0, -1], [1, 0]], 2: [[-1, 0], [0, -1]], 3: [[0, 1], [-1, 0]]}[turns]
    other = wcs.deepcopy()
    other.wcs.cd = wcs.wcs.cd @ np.array(matrix, float)
    centre = (np.array(turned.shape[::-1]) + 1) / 2
    other.wcs.crpix = centre
    result = mosaic([(turned, other)], wcs=wcs, shape=image.shape, kernel=kernel)
    np.testing.assert_array_equal(result.data, image)


def test_the_optimal_grid_of_one_image_is_its_own() -> None:
    image = textured((40, 57))
    result = mosaic([(image, sky.frame_wcs(image.shape))])
    np.testing.assert_array_equal(result.data, image)


# -------------------------------------------------------------------------------------- constants


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [1.0, -3.7e-12, 65535.0, 2.5e30])
def test_constant_in_constant_out(value: float, kernel: str) -> None:
    frames = [
        (np.full((60, 70), value, np.float32), sky.frame_wcs((60, 70), angle))
        for angle in (0.0, 33.0, 137.0)
    ]
    image = frames[0][0].copy()
    image[::9, ::7] = np.nan  # with taps that are left out, too
    frames[0] = (image, frames[0][1])
    result = mosaic(frames, kernel=kernel)
    covered = result.data[result.coverage > 0]
    np.testing.assert_allclose(covered, np.float32(value), rtol=1e-6)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos2", "lanczos3"])
def test_a_slope_of_the_sky_stays_a_slope(kernel: str) -> None:
    """Bilinear and bicubic keep planes; normalised Lanczos to 6 % of the step between pixels."""
    shape = (80, 90)
    wcs, turned = sky.frame_wcs(shape), sky.frame_wcs(shape, 27.0)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    result = mosaic([(3.0 * x + 2.0 * y, turned)], wcs=wcs, shape=shape, kernel=kernel)
    u, v = turned.all_world2pix(*wcs.all_pix2world(x.ravel(), y.ravel(), 0), 0)
    plane = (3.0 * u + 2.0 * v).reshape(shape)
    inner = minimum_filter(result.coverage, 9) > 0
    error = np.abs(result.data - plane)[inner].max()
    assert error < (0.06 * np.hypot(3.0, 2.0) if kernel.startswith("lanczos") else 2e-3)


# --------------------------------------------------------------------------------------- coverage


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("combine", COMBINES)
def test_coverage_is_the_number_of_inputs(combine: str, kernel: str) -> None:
    shape = (60, 80)
    frames = [(textured(shape, n), sky.frame_wcs(shape, 10.0 * n)) for n in range(5)]
    result = mosaic(frames, wcs=sky.frame_wcs((30, 40)), shape=(30, 40), combine=combine,
                    kernel=kernel)  # fmt: skip
    left_out = 0
    if combine in ("kappa-sigma", "winsorized"):
        left_out = result.rejected_low + result.rejected_high
        assert left_out.any() == (combine == "winsorized"), "five samples hide all from kappa-sigma"
    np.testing.assert_array_equal(result.coverage, 5.0 - left_out)
    rows = result.inputs
    assert [row.n_samples for row in rows] == [30 * 40] * 5
    assert sum(row.rejected_fraction for row in rows) >= np.sum(left_out) / (30 * 40)


def test_coverage_is_the_area_of_the_frames() -> None:
    frames = [(textured((60, 80), n), sky.frame_wcs((60, 80), 29.0 * n)) for n in range(7)]
    result = mosaic(frames)
    assert result.coverage.sum() == pytest.approx(7 * 60 * 80, rel=2e-3)
    assert sum(row.n_samples for row in result.inputs) == result.coverage.sum()


def test_uncovered_is_nan_with_coverage_zero_and_nothing_else_is() -> None:
    frames = [(textured((40, 50), n), sky.frame_wcs((40, 50), 29.0 * n)) for n in range(3)]
    for combine in COMBINES:
        result = mosaic(frames, wcs=sky.frame_wcs((90, 100)), shape=(90, 100), combine=combine)
        np.testing.assert_array_equal(np.isnan(result.data), result.coverage == 0)
        assert (result.coverage == 0).sum() > 2000


def test_an_edge_along_pixel_centres_is_covered_wholly_or_not_at_all() -> None:
    """Half a pixel between frame and output: the frame's outer edge meets pixel centres."""
    wcs = sky.frame_wcs((40, 50), 23.0)
    grid = sky.shifted_wcs(wcs, (-5.5, -5.5), (52, 62))
    result = mosaic([(textured((40, 50)), wcs)], wcs=grid, shape=(52, 62))
    rows, columns = (result.coverage.sum(axis=k) for k in (1, 0))
    assert np.unique(rows[rows > 0]).size == 1
    assert np.unique(columns[columns > 0]).size == 1


def test_a_file_named_twice_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = sky.write_image(tmp_path / "a.fits", textured((30, 40)), sky.frame_wcs((30, 40)))
    result = mosaic([path, path])
    assert result.coverage.max() == 1.0
    assert "named more than once" in caplog.text


def test_weights_add_up_in_the_coverage() -> None:
    shape = (60, 80)
    frames = [(textured(shape, n), sky.frame_wcs(shape, 10.0 * n)) for n in range(3)]
    ramp = np.linspace(1.0, 3.0, 80) * np.ones((60, 1))
    result = mosaic(
        frames, wcs=frames[2][1], shape=shape, weights=[None, 0.25, ramp], kernel="lanczos3"
    )
    inner = (slice(25, 35), slice(30, 50))
    np.testing.assert_allclose(result.coverage[inner], 1.25 + ramp[inner], rtol=1e-6)


def test_a_weight_of_one_everywhere_is_no_weight() -> None:
    frames = [(textured((40, 50), n), sky.frame_wcs((40, 50), 29.0 * n)) for n in range(3)]
    for kernel in KERNELS:
        plain = mosaic(frames, kernel=kernel)
        weighted = mosaic(frames, kernel=kernel, weights=[np.ones((40, 50)), 1.0, None])
        np.testing.assert_array_equal(plain.data, weighted.data)
        np.testing.assert_array_equal(plain.coverage, weighted.coverage)


# -------------------------------------------------------------------------------------------- NaN


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kernel", KERNELS)
def test_invalid_pixels_never_leak(kernel: str, bad: float) -> None:
    """Beyond the reach of an invalid pixel nothing changes; within it nothing is lost twice."""
    shape = (70, 80)
    image, wcs = textured(shape), sky.frame_wcs(shape, 21.0)
    grid = sky.frame_wcs((64, 64))
    clean = mosaic([(image, wcs)], wcs=grid, shape=(64, 64), kernel=kernel)
    spoilt = image.copy()
    spoilt[33, 41] = spoilt[50:53, 20] = bad
    got = mosaic([(spoilt, wcs)], wcs=grid, shape=(64, 64), kernel=kernel)
    lost = np.isnan(got.data) & ~np.isnan(clean.data)
    assert 4 <= lost.sum() <= 4 * 4 + 4
    assert not np.isinf(got.data).any()
    np.testing.assert_array_equal(got.coverage, np.where(lost, 0, clean.coverage))
    size = 2 * RADIUS[kernel] + 1
    reached = binary_dilation(lost, np.ones((size, size)))
    np.testing.assert_array_equal(got.data[~reached], clean.data[~reached])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_hole_in_one_frame_is_filled_by_the_other(kernel: str) -> None:
    shape = (60, 80)
    frames = [(np.full(shape, v, np.float32), sky.frame_wcs(shape, v)) for v in (1.0, 5.0)]
    frames[1][0][20:40, 30:50] = np.nan
    result = mosaic(frames, wcs=sky.frame_wcs((20, 20)), shape=(20, 20), kernel=kernel)
    np.testing.assert_allclose(result.data[8:12, 8:12], 1.0, rtol=1e-6)
    np.testing.assert_array_equal(result.coverage[8:12, 8:12], 1.0)


def test_a_pixel_of_colour_is_valid_only_in_all_channels() -> None:
    image = np.ones((3, 30, 40), np.float32)
    image[0, 5, 5] = image[1, 10, 10] = image[2, 15, 15] = np.nan
    wcs = sky.frame_wcs((30, 40))
    result = mosaic([(image, wcs)], wcs=wcs, shape=(30, 40))
    for y, x in ((5, 5), (10, 10), (15, 15)):
        assert np.isnan(result.data[:, y, x]).all()
        assert result.coverage[y, x] == 0
    assert np.isnan(result.data).sum() == 9


def test_masked_pixels_are_invalid() -> None:
    wcs = sky.frame_wcs((30, 40))
    image = np.ma.masked_array(np.ones((30, 40), np.float32), mask=False)
    image[5:9, 7:9] = np.ma.masked
    result = mosaic([(image, wcs)], wcs=wcs, shape=(30, 40))
    np.testing.assert_array_equal(np.isnan(result.data), np.ma.getmaskarray(image))


# ------------------------------------------------------------------------------------------ stars

FIELD = (220, 240)


def starry() -> Sky:
    """Isolated stars on a jittered grid of 20 pixels, fluxes over a decade."""
    rng = np.random.default_rng(8)
    grid = sky.frame_wcs(FIELD)
    y, x = np.mgrid[20:201:20, 20:221:20].astype(float)
    x, y = (v.ravel() + rng.uniform(-2, 2, v.size) for v in (x, y))
    ra, dec = grid.all_pix2world(x, y, 0)
    flux = 10.0 ** rng.uniform(4.0, 5.0, x.size)
    return Sky(sky.CENTER_DEG, ra, dec, flux, np.ones((3, x.size)))


def dithered(**kw: float) -> list[sky.Tile]:
    """Turned frames of the stars that overlap by more than half; sky level 100."""
    stars = starry()
    frames = dither_pattern(
        6, (190, 200), sky.SCALE_ARCSEC, center_deg=sky.CENTER_DEG, overlap=0.8,
        max_rotation_deg=20.0, seed=4, **kw,
    )  # fmt: skip
    specs = [FrameSpec(w, (190, 200), psf_fwhm_px=3.2, sky_level=100.0) for w in frames]
    return [(render(stars, spec), spec.wcs) for spec in specs]


def apertures(
    image: np.ndarray, x: np.ndarray, y: np.ndarray, radius: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux, and the distance in x and y of the windowed centroid from where the star is."""
    flux, dx, dy = (np.full(x.size, np.nan) for _ in range(3))
    for n, (cx, cy) in enumerate(zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True)):
        if not (radius <= cx < image.shape[1] - radius and radius <= cy < image.shape[0] - radius):
            continue
        cut = image[cy - radius : cy + radius + 1, cx - radius : cx + radius + 1] - 100.0
        flux[n] = cut.sum()
        v, u = np.mgrid[cy - radius : cy + radius + 1, cx - radius : cx + radius + 1]
        # A Gaussian window about the true position: unbiased there, and deaf to far residuals.
        window = np.exp(-((u - x[n]) ** 2 + (v - y[n]) ** 2) / (2 * 1.5**2)) * cut
        dx[n] = 2 * (window * (u - x[n])).sum() / window.sum()
        dy[n] = 2 * (window * (v - y[n])).sum() / window.sum()
    return flux, dx, dy


@pytest.mark.parametrize("sip_strength", [0.0, 2.0])
def test_fluxes_and_positions_of_stars_are_recovered(sip_strength: float) -> None:
    tiles, stars = dithered(sip_strength=sip_strength), starry()
    grid = make_frame_wcs(sky.CENTER_DEG, sky.SCALE_ARCSEC, 0.0, FIELD)
    result = mosaic(tiles, wcs=grid, shape=FIELD, kernel="lanczos3")
    x, y = grid.all_world2pix(stars.star_ra_deg, stars.star_dec_deg, 0)
    flux, dx, dy = apertures(result.data, x, y)
    # Values are surface brightness: a star sums to the ratio of the areas of the pixels, which
    # distorted frames do not share; then it is the mean over the frames that see it.
    ratio = mean_area(tiles, stars) / pixel_area(grid, x, y)
    error = flux / (stars.star_flux * ratio) - 1.0
    # Where a frame ends in a star its outer taps are missing: not what is asked here.
    ends = maximum_filter(result.coverage, 17) != minimum_filter(result.coverage, 17)
    whole = ~ends[np.rint(y).astype(int), np.rint(x).astype(int)]
    seen = np.isfinite(error) & whole
    assert seen.sum() >= 20
    assert abs(np.median(error[seen])) < 0.002
    assert np.abs(error[seen]).max() < 0.005
    assert abs(np.median(dx[seen])) < 0.002
    assert abs(np.median(dy[seen])) < 0.002
    assert np.hypot(dx, dy)[seen].max() < 0.01


def mean_area(tiles: list[sky.Tile], stars: Sky) -> np.ndarray:
    """Mean over the frames that see each star of the area of their pixels there, arcsec**2."""
    total, count = np.zeros(stars.star_flux.size), np.zeros(stars.star_flux.size)
    for image, wcs in tiles:
        x, y = wcs.wcs_world2pix(stars.star_ra_deg, stars.star_dec_deg, 0)
        near = (np.abs(x - 100) < 120) & (np.abs(y - 95) < 120)
        x[near], y[near] = wcs.all_world2pix(
            stars.star_ra_deg[near], stars.star_dec_deg[near], 0, tolerance=1e-8, maxiter=50
        )
        height, width = image.shape
        inside = near & (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
        total[inside] += pixel_area(wcs, x[inside], y[inside])
        count += inside
    with np.errstate(invalid="ignore"):
        return total / count


def test_a_smooth_sky_has_the_same_values_at_any_scale() -> None:
    """Surface brightness: twice as fine or coarse, the values stay."""
    glow = sky.smooth_sky()
    wcs = sky.frame_wcs((200, 220), 17.0)
    image = render(glow, FrameSpec(wcs, (200, 220), sky_level=50.0))
    for scale in (0.9, 2.0, 4.4):
        grid = make_frame_wcs(sky.CENTER_DEG, scale, -5.0, (60, 70))
        result = mosaic([(image, wcs)], wcs=grid, shape=(60, 70), kernel="bicubic")
        truth = render(glow, FrameSpec(grid, (60, 70), sky_level=50.0))
        covered = result.coverage > 0
        assert covered.mean() > 0.9
        np.testing.assert_allclose(result.data[covered], truth[covered], rtol=2e-4)


def test_sixteen_bit_counts_of_many_frames_keep_their_last_digit() -> None:
    """300 frames of 65,535 counts that differ by one: the mean is right to 1e-7 of the value."""
    shape, wcs = (12, 16), sky.frame_wcs((12, 16))
    rng = np.random.default_rng(3)
    frames = [rng.integers(65530, 65536, shape).astype(np.uint16) for _ in range(300)]
    result = mosaic([(frame, wcs) for frame in frames], wcs=wcs, shape=shape)
    mean = np.mean(np.array(frames, np.float64), axis=0)
    np.testing.assert_array_equal(result.data, mean.astype(np.float32))
