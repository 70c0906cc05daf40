"""measured ≤ projected ≤ allowed, with a sweep that measures the inputs before the grid."""

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

pytest.importorskip("sep", reason="NOT TESTED: sep is not installed")
pytestmark = [
    pytest.mark.memory,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: peaks are read from /proc"),
]

WORDS = ("--select", "noise < 3*median and stars >= 0")
SIDE = 1536


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("selection")
    yield folder
    shutil.rmtree(folder)


def crowded(step: int) -> np.ndarray:
    """Small sources so close together that the look takes as much as it can."""
    rng = np.random.default_rng(3)
    image = rng.normal(100, 1, (SIDE, SIDE)).astype(np.float32)
    places = np.arange(0, SIDE - 3, step)
    for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1)):
        image[np.ix_(places + dy, places + dx)] = rng.uniform(500, 3000)
    return image


def write(folder: Path, image: np.ndarray, panels: tuple[int, int], form: str = "fits") -> Path:
    """Frames of one image side by side."""
    folder.mkdir()
    for number, wcs in enumerate(dither_pattern(panels, image.shape, 1.0, overlap=0.3)):
        header = wcs.to_header(relax=True)
        if form == "fits.fz":
            hdus = [fits.PrimaryHDU(), fits.CompImageHDU(image, header)]
            fits.HDUList(hdus).writeto(folder / f"{number:02d}.{form}")
        else:
            fits.PrimaryHDU(image, header).writeto(folder / f"{number:02d}.{form}")
    return folder


# The first have as many sources as a rich field has stars, the second the most that can be told
# apart.
@pytest.mark.parametrize("step", [24, 6])
def test_the_smallest_limit(step: int, work: Path) -> None:
    tiles = write(work / f"{step}", crowded(step), (2, 2))
    refused = run("plan", tiles, "--memory", "50MiB", *WORDS)
    limit = smallest_limit(refused)
    # Without a look less would do.
    assert limit > smallest_limit(run("plan", tiles, "--memory", "50MiB"))
    case = mosaic(tiles, work, "--memory", f"{limit}MiB", *WORDS)
    case.assert_kept(f"4 tiles of sources every {step} px, the smallest limit", limit)
    assert case.select["kept"] == 4
    shutil.rmtree(tiles)


def test_a_refusal_comes_before_a_look(work: Path) -> None:
    """And so does that of a limit just below the one that it names."""
    tiles = write(work / "refused", crowded(6), (2, 2))
    refused = run("plan", tiles, "--memory", "100MiB", *WORDS)
    assert refused.status == 3
    limit = smallest_limit(refused)
    assert "select: " not in refused.err
    again = run("plan", tiles, "--memory", f"{limit - 6}MiB", *WORDS)
    assert again.status == 3
    assert "select: " not in again.err
    shutil.rmtree(tiles)


@pytest.mark.parametrize("form", ["fits.fz", "fits.gz"])
def test_compressed_frames(form: str, work: Path) -> None:
    tiles = write(work / form, crowded(24), (2, 2), form)
    limit = smallest_limit(run("plan", tiles, "--memory", "50MiB", *WORDS))
    case = mosaic(tiles, work, "--memory", f"{limit}MiB", *WORDS)
    case.assert_kept(f"4 tiles .{form}, the smallest limit", limit)
    shutil.rmtree(tiles)


def test_huge_frames(work: Path) -> None:
    """What the look holds does not grow with the image."""
    folder = work / "huge"
    folder.mkdir()
    side = 20_000
    (wcs,) = dither_pattern((1, 1), (side, side), 0.05, max_rotation_deg=0.0)
    header = fits.PrimaryHDU(np.zeros((1, 1), ">f4")).header
    header["NAXIS1"] = header["NAXIS2"] = side
    header.extend(wcs.to_header(relax=True), update=True)
    rng = np.random.default_rng(0)
    for number in range(2):
        with (folder / f"{number}.fits").open("wb") as file:
            file.write(header.tostring(padding=True).encode("ascii"))
            start = file.tell()
            # Sparse, but for some rows in its middle.
            file.seek(start + 4 * side * (side // 2))
            file.write(rng.normal(100, 1, (64, side)).astype(">f4").tobytes())
            file.truncate(start + 4 * side * side + (-4 * side * side) % 2880)
    words = ("--scale", "5", "--zero-is-blank", "on", *WORDS)
    case = mosaic(folder, work, "--memory", "256MiB", *words)
    case.assert_kept("2 frames of 1.6 GB", 256)
    shutil.rmtree(folder)
