"""Observed frames whose WCS is taken away and found again by the real ``solve-field``.

What is compared, and printed (``pytest tests/real/test_solved_frames.py -m '' -s``): where 240
places of a frame fall in it by the WCS that it came with, and by the one that was found.  Both are
fits to stars and their own errors are a few tenths of a pixel, so that is what they differ by.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zmrs.config import Options
from zmrs.prepare import prepare
from zmrs.scan import InputImage, scan_image

DATA = Path(__file__).parents[3] / "shared" / "data"
SEESTAR = sorted((DATA / "seestar_m94").glob("*.fits.fz"))
PANOPTES = DATA / "panoptes_dslr_bayer"
INDEXES = [
    *Path("/usr/share/astrometry").glob("index-*"),
    *Path("/usr/local/astrometry/data").glob("index-*"),
]

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason=f"NOT TESTED: {DATA} is no folder"),
    pytest.mark.skipif(
        shutil.which("solve-field") is None, reason="NOT TESTED: there is no solve-field"
    ),
    pytest.mark.skipif(not INDEXES, reason="NOT TESTED: solve-field has no index files"),
]

_WCS_KEYWORD = re.compile(
    r"_?(?:WCSAXES|CTYPE\d|CRVAL\d|CRPIX\d|CUNIT\d|CD\d_\d|LONPOLE|LATPOLE|[AB]P?_(ORDER|\d_\d))"
)


@pytest.fixture(autouse=True)
def dirty_headers() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def strip(path: Path, folder: Path, *more: str) -> Path:
    """A copy of a frame without its WCS, nor these cards; compressed like the frame itself."""
    out = folder / path.name
    with fits.open(path) as hdus:
        header, pixels = hdus[1].header, hdus[1].data
        for keyword in {key for key in header if _WCS_KEYWORD.fullmatch(key)} | set(more):
            header.remove(keyword, ignore_missing=True, remove_all=True)
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(pixels, header)]).writeto(out)
    return out


def solved(*paths: Path) -> list[InputImage]:
    options = Options(solver="astrometry.net", match="none")
    placed = prepare([str(path) for path in paths], options).placed
    assert [one.image.name for one in placed] == [str(path) for path in paths]
    images = [one.image for one in placed]
    assert all(isinstance(image, InputImage) and image.solution for image in images)
    return images  # type: ignore[return-value]


def own_wcs(path: Path) -> WCS:
    image = scan_image(path)
    assert isinstance(image, InputImage)
    return image.wcs


def differences_px(image: InputImage, truth: WCS) -> np.ndarray:
    """Distances between the places where the two put the same spots of the sky, pixels."""
    height, width = image.storage.shape
    x, y = np.meshgrid(np.linspace(0, width - 1, 12), np.linspace(0, height - 1, 20))
    theirs = image.wcs.all_world2pix(*truth.all_pix2world(x, y, 0), 0)
    return np.hypot(theirs[0] - x, theirs[1] - y)


CASES = [*((number, True) for number in range(12)), (0, False), (6, False), (11, False)]


@pytest.mark.parametrize(
    ("number", "has_hints"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])],
)
def test_frames_of_a_smart_telescope(number: int, has_hints: bool, tmp_path: Path) -> None:
    path = SEESTAR[number]
    frame = strip(path, tmp_path, *([] if has_hints else ["RA", "DEC", "FOCALLEN"]))
    (image,) = solved(frame)
    off = differences_px(image, own_wcs(path))
    rms = np.sqrt(np.mean(off**2))
    hints = "with" if has_hints else "no"
    print(f"\n{path.name}, {hints} hints: rms {rms:.2f}, most {off.max():.2f} px")
    # Without the star files of the finest scale; with them the half of it.
    assert rms < 1.0
    assert off.max() < 3.0


@pytest.mark.slow
def test_a_camera_on_a_mount(tmp_path: Path) -> None:
    """Without hints; the solved file shows what the other one sees, two minutes later.

    A pixel is 10 arcsec here, and the index files have about twenty stars for the whole field:
    however the solver is called, the two differ by one or two pixels.
    """
    path = PANOPTES / "solved.fits.fz"
    unsolved = shutil.copy(PANOPTES / "unsolved.fits", tmp_path)
    again, other = solved(strip(path, tmp_path), Path(unsolved))
    off = differences_px(again, own_wcs(path))
    print(f"\n{path.name}: rms {np.sqrt(np.mean(off**2)):.2f}, most {off.max():.2f} px")
    assert np.sqrt(np.mean(off**2)) < 2.0
    assert off.max() < 6.0
    # The mount follows the stars to a few pixels.
    assert differences_px(other, own_wcs(path)).max() < 10
