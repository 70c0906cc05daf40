"""measured ≤ projected ≤ allowed, with weight maps, ramps, saturation and a look at the inputs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from test_limits import mosaic, smallest_limit

from child import run
from zmrs.simulate import dither_pattern

pytestmark = [
    pytest.mark.memory,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: peaks are read from /proc"),
]

SIDE = 1536


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("weights")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tiles(work: Path) -> Path:
    """25 frames with opacities and variances in extensions, borders of zeros, saturated stars."""
    rng = np.random.default_rng(3)
    image = (100 + rng.standard_normal((SIDE, SIDE), dtype=np.float32)).astype(">f4")
    image[rng.random(image.shape) < 1e-3] = 7e4
    image[:, :100] = 0
    alpha = rng.integers(1, 256, image.shape).astype(np.uint8)
    variance = rng.uniform(0.5, 2.0, image.shape).astype(">f4")
    folder = work / "25"
    folder.mkdir()
    pattern = {"overlap": 0.3, "max_rotation_deg": 3.0}
    for number, wcs in enumerate(dither_pattern((5, 5), (SIDE, SIDE), 1.0, **pattern)):
        header = wcs.to_header(relax=True)
        header["SATURATE"] = 6e4
        fits.HDUList(
            [
                fits.PrimaryHDU(image, header),
                fits.ImageHDU(alpha, name="ALPHA"),
                fits.ImageHDU(variance, name="VAR"),
            ]
        ).writeto(folder / f"{number:02d}.fits")
    return folder


CASES = {
    "opacities": (),
    "variances, a ramp and noise": (
        "--weights", "VAR", "--weight-type", "variance", "--feather", "200", "--weight-by", "ivar",
    ),
    "no maps": ("--weights", "none"),
    "variance of maps": ("--weights", "VAR", "--weight-type", "variance", "--variance"),
    "variance, two passes": ("--weights", "none", "--variance", "--two-pass", "--match", "offset"),
    "variance of a stack": ("--variance", "--combine", "median", "--kernel", "lanczos3"),
    "variance in two sweeps": ("--variance", "--combine", "kappa-sigma-stream"),
    "two passes": ("--weights", "VAR", "--two-pass", "--match", "offset"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_25_tiles(name: str, tiles: Path, work: Path) -> None:
    case = mosaic(tiles, work, "--memory", "256MiB", *CASES[name])
    case.assert_kept(f"25 tiles, {name}", 256)


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_limit(name: str, tiles: Path, work: Path) -> None:
    limit = smallest_limit(run("plan", tiles, "--memory", "50MiB", *CASES[name]))
    case = mosaic(tiles, work, "--memory", f"{limit}MiB", *CASES[name])
    case.assert_kept(f"25 tiles, {name}, the smallest limit", limit)


def test_a_look_at_wide_frames(work: Path) -> None:
    """What a worker holds while it looks does not grow with the width of a frame."""
    folder = work / "wide"
    folder.mkdir()
    rng = np.random.default_rng(0)
    (wcs,) = dither_pattern((1, 1), (150, 60_000), 0.05, max_rotation_deg=0.0)
    for number in range(4):
        image = rng.standard_normal((150, 60_000), dtype=np.float32)
        fits.PrimaryHDU(image, wcs.to_header()).writeto(folder / f"{number}.fits")
    limit = smallest_limit(run("plan", folder, "--memory", "50MiB", "--weight-by", "ivar"))
    case = mosaic(folder, work, "--memory", f"{limit}MiB", "--weight-by", "ivar")
    case.assert_kept("four wide frames, the smallest limit", limit)
    shutil.rmtree(folder)


@pytest.mark.parametrize("form", ["fz", "gz"])
def test_compressed_maps(form: str, work: Path) -> None:
    """They are decompressed into memory, and foretold."""
    folder = work / form
    folder.mkdir()
    rng = np.random.default_rng(0)
    image = (100 + rng.standard_normal((SIDE, SIDE))).astype(np.float32)
    mask = (rng.random(image.shape) < 0.01).astype(np.int16)
    for number, wcs in enumerate(dither_pattern((2, 2), image.shape, 1.0, overlap=0.3)):
        fits.PrimaryHDU(image, wcs.to_header()).writeto(folder / f"{number}.fits")
        name = folder / f"{number}.mask.fits"
        if form == "fz":
            fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(mask)]).writeto(f"{name}.fz")
        else:
            fits.PrimaryHDU(mask).writeto(f"{name}.gz")
    words = ("--weights", "s/.fits/.mask.fits/", "--weight-type", "mask")
    limit = smallest_limit(run("plan", folder, "--memory", "50MiB", *words))
    case = mosaic(folder, work, "--memory", f"{limit}MiB", *words)
    case.assert_kept(f"4 tiles with .{form} masks, the smallest limit", limit)
    shutil.rmtree(folder)
