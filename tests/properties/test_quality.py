"""Figures of frames against what was put into them, and windows against whole files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from scipy.special import erf

from sky import frame_wcs
from zmrs.config import Options
from zmrs.errors import InputError
from zmrs.inputs import Gathered, Image
from zmrs.io import window
from zmrs.quality import Quality, measure, superpixels
from zmrs.scan import InputImage, scan_image
from zmrs.selection import select

pytest.importorskip("sep", reason="NOT TESTED: sep is not installed")

PIXEL = 2 * math.sqrt(2 * math.log(2) / 12)  # FWHM of a pixel's own width


def stars(
    fwhm: float, *, count: int = 60, flux: float = 3e4, axis_ratio: float = 1.0,
    shape: tuple[int, int] = (512, 512), noise: float = 10.0, level: float = 1000.0, seed: int = 1,
) -> np.ndarray:  # fmt: skip
    """Gaussian stars, integrated over pixels, on a level with noise; `fwhm` is in pixels."""
    rng = np.random.default_rng(seed)
    image = rng.normal(level, noise, shape)

    def profile(centre: float, length: int, width: float) -> np.ndarray:
        edges = (np.arange(length + 1) - 0.5 - centre) / (width * math.sqrt(2))
        return 0.5 * np.diff(erf(edges))

    sigma = fwhm / 2.3548
    # On a lattice, out of their places by up to two pixels: no two of them touch.
    side = math.ceil(math.sqrt(count))
    for k in range(count):
        y, x = ((n + 0.5) * length / side for n, length in zip(divmod(k, side), shape, strict=True))
        y, x = (float(c) + rng.uniform(-2, 2) for c in (y, x))
        light = flux * rng.uniform(0.5, 2.0)
        image += light * np.outer(
            profile(y, shape[0], sigma * axis_ratio), profile(x, shape[1], sigma)
        )
    return image.astype(np.float32)


@pytest.mark.parametrize("flux", [5e3, 3e4, 3e5])
@pytest.mark.parametrize("fwhm", [2.0, 3.0, 5.0])
def test_width_does_not_depend_on_brightness(fwhm: float, flux: float) -> None:
    found = measure(stars(fwhm, flux=flux))
    assert found.fwhm == pytest.approx(math.hypot(fwhm, PIXEL), rel=0.07)
    assert found.roundness > 0.85


def test_sky_and_noise_and_number() -> None:
    found = measure(stars(3.0, count=49, noise=7.0, level=321.0))
    assert found.background == pytest.approx(321.0, abs=1.0)
    assert found.noise == pytest.approx(7.0, rel=0.03)
    assert found.stars == 49
    assert found.note == ""


def test_trailed_stars_are_not_round() -> None:
    found = measure(stars(3.0, axis_ratio=2.0))
    # The pixel widens the narrow side too.
    expected = math.hypot(3.0, PIXEL) / math.hypot(6.0, PIXEL)
    # Only what rises above the threshold is looked at, which makes stars a little rounder.
    assert found.roundness == pytest.approx(expected, abs=0.08)


def test_hot_pixels_and_cosmic_rays_are_no_stars() -> None:
    image = stars(3.0, count=25)
    rng = np.random.default_rng(5)
    places = rng.integers(5, 500, (300, 2))
    image[places[:, 0], places[:, 1]] += 5000
    image[places[:50, 0], places[:50, 1] + 1] += 3000
    found = measure(image)
    assert 20 <= found.stars <= 27
    assert found.fwhm == pytest.approx(math.hypot(3.0, PIXEL), rel=0.08)


def test_saturated_stars_have_no_shape() -> None:
    image = np.minimum(stars(3.0, count=64, flux=1e5), 7000)
    blown, told = measure(image.copy()), measure(image.copy(), saturation=7000)
    assert told.stars == blown.stars == 64
    assert told.fwhm == pytest.approx(math.hypot(3, PIXEL), rel=0.07)
    assert blown.fwhm > 1.07 * told.fwhm
    everywhere = measure(np.minimum(image, 2000), saturation=2000)
    assert everywhere.stars == 64
    assert math.isnan(everywhere.fwhm)
    assert "saturated" in everywhere.note


def test_invalid_pixels_do_not_count() -> None:
    image = stars(3.0, count=49)
    whole = measure(image.copy())
    image[:, :150] = np.nan
    part = measure(image)
    assert 25 <= part.stars <= 36
    assert part.background == pytest.approx(whole.background, abs=1.0)
    assert part.noise == pytest.approx(whole.noise, rel=0.05)
    assert part.fwhm == pytest.approx(whole.fwhm, rel=0.05)


def test_zeros_that_lie_together_are_blank_and_counts_are_not() -> None:
    image = stars(3.0, count=49)
    image[:, :256] = 0
    assert measure(image.copy(), zero_is_blank="auto") == measure(image.copy(), zero_is_blank="on")
    assert measure(image.copy(), zero_is_blank="auto").background == pytest.approx(1000, abs=1)
    counts = np.random.default_rng(0).poisson(0.5, (256, 256)).astype(np.float32)
    kept = measure(counts.copy(), zero_is_blank="auto")
    assert kept == measure(counts.copy(), zero_is_blank="off")
    assert kept != measure(counts.copy(), zero_is_blank="on")


def test_what_cannot_be_measured_is_nan_with_a_reason() -> None:
    nothing = measure(np.full((64, 64), np.nan, np.float32))
    assert all(math.isnan(value) for value in nothing.figures().values())
    flat = measure(np.full((64, 64), 7, np.float32))
    assert (flat.background, flat.noise, flat.stars) == (7.0, 0.0, 0.0)
    empty = measure(np.random.default_rng(0).normal(0, 1, (64, 64)).astype(np.float32))
    assert empty.stars == 0
    for found in (nothing, flat, empty):
        assert math.isnan(found.fwhm)
        assert math.isnan(found.roundness)
        assert found.note


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 500), (70, 5)])
def test_small_windows(shape: tuple[int, int]) -> None:
    found = measure(np.random.default_rng(0).normal(50, 1, shape).astype(np.float32))
    assert found.background == pytest.approx(50, abs=6)


# ------------------------------------------------------------------------------- windows of files


def expected_middle(physical: np.ndarray, most: int) -> np.ndarray:
    planes = physical.reshape(-1, *physical.shape[-2:])
    rows, columns = (slice(*window.middle_of(length, most)) for length in planes.shape[1:])
    return planes[:, rows, columns].mean(axis=0)


def scanned(path: Path) -> InputImage:
    image = scan_image(path)
    assert isinstance(image, InputImage), image
    return image


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("form", ["fits", "fits.gz", "fits.fz"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("most", [32, 1024])
def test_a_window_is_the_middle_of_the_file(
    kind: str, form: str, channels: int, most: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    shape = (70, 91) if channels == 1 else (3, 70, 91)
    pixels = rng.integers(0, 200, shape).astype(kind)
    header = frame_wcs((70, 91)).to_header()
    path = tmp_path / f"image.{form}"
    if form.endswith("fz"):
        lossless = {"compression_type": "GZIP_1", "quantize_level": 0.0}
        hdu = fits.CompImageHDU(pixels, header, **lossless)
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    else:
        fits.PrimaryHDU(pixels, header).writeto(path)
    found = window.middle(scanned(path).storage, most)
    np.testing.assert_allclose(found, expected_middle(pixels.astype(float), most), rtol=1e-6)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous


def test_blank_and_scaled_pixels_of_an_extension(tmp_path: Path) -> None:
    stored = np.arange(60 * 80, dtype=np.int16).reshape(1, 60, 80)
    hdu = fits.ImageHDU(stored, frame_wcs((60, 80)).to_header())
    hdu.header.update({"BSCALE": 0.5, "BZERO": 10.0, "BLANK": 2000})
    path = tmp_path / "extension.fits"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    found = window.middle(scanned(path).storage, 1024)
    expected = 10 + 0.5 * stored[0].astype(float)
    expected[stored[0] == 2000] = np.nan
    assert np.isnan(expected).sum() == 1
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_a_file_that_was_cut_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "cut.fits"
    fits.PrimaryHDU(np.ones((60, 80), np.float32), frame_wcs((60, 80)).to_header()).writeto(path)
    storage = scanned(path).storage
    path.write_bytes(path.read_bytes()[:-12000])
    with pytest.raises(InputError, match=r"cut\.fits"):
        window.middle(storage, 1024)


# --------------------------------------------------------------------------------- raw colour


def test_raw_colour_is_measured_on_superpixels(tmp_path: Path) -> None:
    """The pattern would drown the stars, and pass for noise."""
    grey = stars(4.0, count=49, shape=(700, 700), noise=5.0)
    pattern = np.tile(np.array([[900.0, 300.0], [100.0, 800.0]], np.float32), (350, 350))
    header = frame_wcs((700, 700)).to_header()
    header["BAYERPAT"] = "GRBG"
    fits.PrimaryHDU((grey + pattern).astype(np.float32), header).writeto(tmp_path / "raw.fits")
    found = _figures(scanned(tmp_path / "raw.fits"))
    assert found.stars == 49
    assert found.noise == pytest.approx(5.0 / 2, rel=0.05)
    assert found.background == pytest.approx(1000 + 525, abs=1)
    # Pixels of the frame; the superpixel's own width is twice as large.
    assert found.fwhm == pytest.approx(math.hypot(4.0, 2 * PIXEL), rel=0.08)


def test_superpixels_begin_at_even_pixels() -> None:
    rows, columns = window.middle_of(4099, 2048), window.middle_of(2050, 2048)
    assert rows[0] % 2 == columns[0] % 2 == 0
    assert rows[1] - rows[0] == columns[1] - columns[0] == 2048
    image = np.arange(30, dtype=np.float32).reshape(5, 6)
    np.testing.assert_array_equal(superpixels(image), [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]])


def _figures(image: Image) -> Quality:
    everything = Options(select="noise >= 0")
    found = select(Gathered([image], [None], []), everything, 1 << 40, None)
    return found.qualities[image.name]
