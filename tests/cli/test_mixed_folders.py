"""A folder as nights leave it: good frames among all kinds of others, in both modes.

What cannot be used is left out with its reason; what is unlike the rest is used and named.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from child import Outcome, run
from sky import CENTER_DEG, SCALE_ARCSEC, frame_wcs
from zmrs.simulate import make_frame_wcs

pytestmark = pytest.mark.slow  # a process each

SHAPE = (64, 80)
N_GOOD = 8
LEFT_OUT = ("truncated", "black", "saturated", "no_wcs")
ODD = ("size", "binned", "filter")
MODES = {"normal": (), "sds": ("--mode", "sds", "--sds-min-batch", "2", "--sds-target-batch", "4")}


def frame(
    seed: int, shape: tuple[int, int] = SHAPE, level: float = 1000.0, **cards: Any
) -> fits.PrimaryHDU:
    """Camera counts of a field, with the cards of a camera."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(level, 10, shape).clip(0, 65535).round().astype(np.uint16)
    header = frame_wcs(SHAPE).to_header()
    header.update({"FILTER": "L", "EXPTIME": 10.0, "XBINNING": 1, "YBINNING": 1})
    header["DATE-OBS"] = f"2026-01-01T20:00:{seed % 60:02}"
    header.update(cards)
    return fits.PrimaryHDU(pixels, header)


def write_saturated(path: Path) -> None:
    """The twilight has come; of some pixels it is not seen."""
    hdu = frame(50, level=2e5)
    hdu.data[::7, ::8] = 60000
    hdu.writeto(path)


def write_truncated(path: Path) -> None:
    frame(51).writeto(path)
    path.write_bytes(path.read_bytes()[:6000])


def write_black(path: Path) -> None:
    hdu = frame(52)
    hdu.data[:] = 0
    hdu.writeto(path)


def write_without_wcs(path: Path) -> None:
    fits.PrimaryHDU(frame(53).data).writeto(path)


def write_binned(path: Path) -> None:
    wcs = make_frame_wcs(CENTER_DEG, 2 * SCALE_ARCSEC, 0.0, (32, 40))
    frame(54, (32, 40), XBINNING=2, YBINNING=2, **wcs.to_header()).writeto(path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "truncated": write_truncated,
    "black": write_black,
    "saturated": write_saturated,
    "no_wcs": write_without_wcs,
    "size": lambda path: frame(55, (60, 90)).writeto(path),
    "binned": write_binned,
    "filter": lambda path: frame(56, FILTER="Ha").writeto(path),
}


def write_good(folder: Path) -> list[Path]:
    paths = [folder / f"good_{number}.fits" for number in range(N_GOOD)]
    for number, path in enumerate(paths):
        frame(number).writeto(path)
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("night")
    good = write_good(place)
    for name, write in WRITERS.items():
        write(place / f"{name}.fits")
    shutil.copy(good[3], place / "copy.fits")
    return place


def lines_about(outcome: Outcome, name: object) -> list[str]:
    return [line for line in outcome.err.splitlines() if str(name) in line]


@pytest.mark.parametrize("mode", MODES)
def test_a_folder_of_everything(mode: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    outcome = run("mosaic", folder, folder / "good_1.fits", "-o", out, *MODES[mode])
    assert outcome.status == 0, outcome.err
    expected = {
        "truncated": "truncated: header promises",
        "black": "all its pixels are 0",
        "saturated": "nearly all its pixels are saturated",
        "no_wcs": "no WCS in its header",
        "size": "2 different sizes (80 x 64, 90 x 60); unlike most of them: ",
        "binned": "2 different binnings (1 x 1, 2 x 2); unlike most of them: ",
        "filter": "2 different filters (Ha, L); unlike most of them: ",
        "copy": "the same as an input of another name",
        "good_1": "named more than once, used once",
    }
    for name, words in expected.items():
        if name == "copy":
            # Of two copies the second is named, as the folder is sorted.
            [line] = lines_about(outcome, "the same as an input")
            assert str(folder / "good_3.fits") in line
            continue
        [line] = lines_about(outcome, folder / f"{name}.fits")
        assert line.startswith("warning: ")
        assert words in line
    # One line for each, and the usual ones; the plan of what is left is told again.
    assert len(outcome.err.splitlines()) - len(lines_about(outcome, "warning: ")) <= 5
    assert len(lines_about(outcome, "plan=phase5 ")) == 2
    assert len(lines_about(outcome, "warning: ")) == len(expected)
    with fits.open(out) as hdus:
        rows = {Path(row["NAME"]).stem: row for row in hdus["INPUTS"].data}
        used = [name for name, row in rows.items() if row["STATUS"] == "used"]
        assert hdus[0].header["NCOMBINE"] == len(used) == N_GOOD + len(ODD) + 1
    for name in LEFT_OUT:
        assert rows[name]["STATUS"] == "left_out"
        assert expected[name] in rows[name]["REASON"]


@pytest.mark.parametrize("mode", MODES)
def test_colour_among_mono_is_refused(mode: str, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "mixed"
    place.mkdir()
    good = write_good(place)
    colour = place / "rgb.fits"
    header = frame(0).header
    fits.PrimaryHDU(np.ones((3, *SHAPE), np.float32), header).writeto(colour)
    outcome = run("mosaic", place, "-o", tmp_path / "out.fits", *MODES[mode])
    assert outcome.status == 4
    [sentence] = outcome.err.splitlines()
    assert str(colour) in sentence
    assert str(good[0]) in sentence
    assert "channels" in sentence


@pytest.mark.parametrize("form", ["fits", "fits.fz", "fits.gz"])
def test_saturated_by_what_the_header_says(form: str, tmp_path: Path) -> None:
    """`SATURATE`, in floating point too, compressed or not; a few saturated stars do no harm."""
    names = []
    for number in range(3):
        hdu = frame(number)
        pixels = hdu.data.astype(np.float32)
        pixels[:20, :30] = 5000
        if number == 1:
            pixels[3:] += 5000
        hdu.header["SATURATE"] = 5000.0
        names.append(tmp_path / f"{number}.{form}")
        if form.endswith("fz"):
            more = {"compression_type": "GZIP_1", "quantize_level": 0.0}
            image = fits.CompImageHDU(pixels, hdu.header, **more)
            fits.HDUList([fits.PrimaryHDU(), image]).writeto(names[-1])
        else:
            fits.PrimaryHDU(pixels, hdu.header).writeto(names[-1])
    outcome = run("mosaic", *names, "-o", tmp_path / "out.fits")
    assert outcome.status == 0, outcome.err
    [line] = outcome.remarks
    assert line.startswith(f"warning: left out: {names[1]}: nearly all its pixels are saturated")
    # Among others only, and never against one's word.
    for words in ((names[1],), (*names, "--zero-is-blank", "off")):
        outcome = run("mosaic", *words, "-o", tmp_path / "kept.fits", "--overwrite")
        assert outcome.status == 0, outcome.err
        assert not lines_about(outcome, "left out")


def test_tiles_that_all_differ_are_no_mixture(tmp_path: Path) -> None:
    for number in range(4):
        frame(number, (60 + number, 80 - number)).writeto(tmp_path / f"{number}.fits")
    outcome = run("mosaic", tmp_path, "-o", tmp_path / "out.fits")
    assert (outcome.status, outcome.remarks) == (0, [])


def test_equal_headers_are_no_copies(tmp_path: Path) -> None:
    """Exposures of a camera that has no clock."""
    for number in range(3):
        hdu = frame(number)
        del hdu.header["DATE-OBS"]
        hdu.writeto(tmp_path / f"{number}.fits")
    outcome = run("mosaic", tmp_path, "-o", tmp_path / "out.fits")
    assert (outcome.status, outcome.remarks) == (0, [])


def test_another_pixel_scale(tmp_path: Path) -> None:
    write_good(tmp_path)
    odd = tmp_path / "odd.fits"
    wider = make_frame_wcs(CENTER_DEG, 1.5 * SCALE_ARCSEC, 0.0, (60, 70))
    frame(30, (60, 70), **wider.to_header()).writeto(odd)
    outcome = run("mosaic", tmp_path, "-o", tmp_path / "out.fits")
    assert outcome.status == 0, outcome.err
    # Its size is another too, which then goes without saying.
    [line] = outcome.remarks
    assert line.endswith(
        f"2 different pixel scales (2 arcsec, 3 arcsec); unlike most of them: {odd}"
    )
