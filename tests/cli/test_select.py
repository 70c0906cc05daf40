"""`--select` as users run it: what is left out, what is said of it, and what does not depend on it.

Frames of one field, most of them good; one out of focus, one behind clouds, one trailed far off.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import zmrs
from child import Outcome, run, run_code, tree
from sky import CENTER_DEG, SCALE_ARCSEC
from zmrs.errors import InputError
from zmrs.simulate import FrameSpec, Sky, make_frame_wcs, write_frames

pytest.importorskip("sep", reason="NOT TESTED: sep is not installed")
pytestmark = pytest.mark.slow  # a process each

SHAPE = (240, 300)
GOOD = [0, 1, 3, 4, 6]
BLURRED, CLOUDED, ASTRAY = 2, 5, 7
CONDITION = "fwhm < 1.5*median and stars > 0.5*median"


def make(folder: Path, **more: Any) -> list[Path]:
    sky = Sky.random(3, CENTER_DEG, 0.3, 700, nebula_peak=0.0)
    specs = []
    for number in range(8):
        place = (CENTER_DEG[0] + (0.4 if number == ASTRAY else 0.002 * number), CENTER_DEG[1])
        specs.append(
            FrameSpec(
                make_frame_wcs(place, SCALE_ARCSEC, float(number), SHAPE), SHAPE,
                psf_fwhm_px=8.0 if number in (BLURRED, ASTRAY) else 3.0,
                gain=0.02 if number == CLOUDED else 1.0, noise_sigma=5.0, sky_level=300.0,
            )
        )  # fmt: skip
    return write_frames(folder, sky, specs, truth=False, **more)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make(tmp_path_factory.mktemp("frames"))


def left_out(outcome: Outcome) -> list[str]:
    return [line for line in outcome.err.splitlines() if "left out: " in line]


def planes(path: Path) -> list[bytes]:
    with fits.open(path) as hdus:
        return [hdus[k].data.tobytes() for k in (0, 1)]


def test_what_is_left_out_is_named_with_its_figures(frames: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    outcome = run("mosaic", *frames, "-o", out, "--select", CONDITION)
    assert outcome.status == 0, outcome.err
    blurred, clouded, astray = left_out(outcome)
    assert blurred.startswith(f"left out: {frames[BLURRED]}: it does not meet 'fwhm < 1.5*median'")
    assert clouded.startswith(f"left out: {frames[CLOUDED]}: it does not meet")
    assert "'stars > 0.5*median'" in clouded
    assert str(frames[ASTRAY]) in astray
    [told] = [line for line in outcome.err.splitlines() if line.startswith("select: ")]
    assert told.startswith(f"select: 5 of 8 inputs meet '{CONDITION}'")
    with fits.open(out) as hdus:
        assert hdus[0].header["NCOMBINE"] == 5
        rows = {row["NAME"]: row for row in hdus["INPUTS"].data}
        columns = hdus["INPUTS"].columns
    assert {"BACKGRND", "NOISE", "NSTARS", "FWHM", "ROUND"} <= set(columns.names)
    assert columns["FWHM"].unit == "pix"
    for number, path in enumerate(frames):
        row = rows[str(path)]
        assert row["STATUS"] == ("used" if number in GOOD else "left_out")
        assert (row["REASON"] == "") == (number in GOOD)
        assert row["NOISE"] == pytest.approx(5.0, rel=0.1)
        assert row["BACKGRND"] == pytest.approx(300.0, abs=2.0)
    for number in GOOD:
        assert rows[str(frames[number])]["FWHM"] == pytest.approx(3.1, rel=0.1)
    assert rows[str(frames[BLURRED])]["FWHM"] == pytest.approx(8.0, rel=0.2)


def test_the_mosaic_is_that_of_what_is_left(frames: list[Path], tmp_path: Path) -> None:
    """The frame that is astray does not stretch the grid, and nothing depends on the resources."""
    good = [frames[k] for k in GOOD]
    assert run("mosaic", *good, "-o", tmp_path / "by_hand.fits").status == 0
    expected = planes(tmp_path / "by_hand.fits")
    for k, words in enumerate([("--threads", 1, "--memory", "200MiB"), ("--threads", 3)]):
        out = tmp_path / f"{k}.fits"
        assert run("mosaic", *frames, "-o", out, "--select", CONDITION, *words).status == 0
        assert planes(out) == expected
    with fits.open(tmp_path / "by_hand.fits") as hdus:
        assert not {"FWHM", "NSTARS"} & set(hdus["INPUTS"].columns.names)


def test_the_plan_shows_the_same(frames: list[Path]) -> None:
    told = json.loads(run("plan", *frames, "--select", CONDITION, "--json").out)
    by_hand = json.loads(run("plan", *[frames[k] for k in GOOD], "--json").out)
    assert told["grid"] == by_hand["grid"]
    assert told["inputs"]["used"] == 5
    names = [left["name"] for left in told["inputs"]["left_out"]]
    assert names == [str(frames[k]) for k in (BLURRED, CLOUDED, ASTRAY)]
    # The window holds all of such small frames.
    assert told["read_bytes"] == by_hand["read_bytes"] + 8 * 4 * SHAPE[0] * SHAPE[1]


def test_batches_are_cut_from_what_is_left(frames: list[Path], tmp_path: Path) -> None:
    words = ("--mode", "sds", "--batch", "2")
    by_hand, chosen = tmp_path / "by_hand.fits", tmp_path / "chosen.fits"
    assert run("mosaic", *[frames[k] for k in GOOD], "-o", by_hand, *words).status == 0
    outcome = run("mosaic", *frames, "-o", chosen, *words, "--select", CONDITION)
    assert outcome.status == 0, outcome.err
    assert "5 subs in 3 batches" in outcome.err
    assert planes(chosen) == planes(by_hand)


def test_it_is_no_fault_to_be_left_out(frames: list[Path], tmp_path: Path) -> None:
    words = ("--select", CONDITION, "--strict")
    outcome = run("mosaic", *frames, "-o", tmp_path / "out.fits", *words)
    assert outcome.status == 0, outcome.err
    assert len(left_out(outcome)) == 3


def test_nothing_is_left(frames: list[Path], tmp_path: Path) -> None:
    outcome = run("mosaic", *frames, "-o", tmp_path / "out.fits", "--select", "fwhm < 1")
    assert outcome.status == 4
    assert outcome.err.splitlines()[-1].startswith("zmrs: none of the 8 inputs meets --select")
    assert len(left_out(outcome)) == 8
    assert not tree(tmp_path)


def test_a_bad_condition_reads_nothing(tmp_path: Path) -> None:
    """Not even that there are no files."""
    outcome = run("mosaic", "no.fits", "-o", tmp_path / "out.fits", "--select", "fwmh < 3")
    assert outcome.status == 2
    [sentence] = outcome.err.splitlines()
    assert "'fwmh' is not known" in sentence
    assert "background, noise, stars, fwhm, roundness" in sentence


def test_without_the_library(frames: list[Path], tmp_path: Path) -> None:
    code = "import sys; sys.modules['sep'] = None; from zmrs import cli; cli.run(sys.argv[1:])"
    words = ("mosaic", *frames[:2], "-o", tmp_path / "out.fits")
    outcome = run_code(code, *words, "--select", "fwhm < 9")
    assert outcome.status == 2
    [sentence] = outcome.err.splitlines()
    assert "zmrs[select]" in sentence
    assert run_code(code, *words).status == 0


@pytest.mark.parametrize("form", ["fz", "gz"])
def test_compressed_frames(form: str, frames: list[Path], tmp_path: Path) -> None:
    """They are measured like others; what is damaged is named, and a fault."""
    names = []
    for number, path in enumerate(frames[:5]):
        name = tmp_path / f"{number}.fits.{form}"
        with fits.open(path) as hdus:
            pixels, header = hdus[0].data, hdus[0].header
        if form == "gz":
            fits.PrimaryHDU(pixels, header).writeto(name)
        else:
            more = {"compression_type": "GZIP_1", "quantize_level": 0.0}
            hdu = fits.CompImageHDU(pixels, header, **more)
            fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(name)
        names.append(name)
    plain = zmrs.mosaic(frames[:5], select=CONDITION)
    result = zmrs.mosaic(names, select=CONDITION)
    assert np.array_equal(result.data, plain.data, equal_nan=True)
    mine, theirs = (r.stats["select"]["inputs"].values() for r in (result, plain))
    for one, other in zip(mine, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5, nan_ok=True)
    raw = names[3].read_bytes()
    half = len(raw) // 2
    # The last bytes of a gzipped file tell its length: those stay.
    names[3].write_bytes(raw[:half] + (raw[-8:] if form == "gz" else bytes(len(raw) - half)))
    outcome = run("mosaic", *names, "-o", tmp_path / "out.fits", "--select", CONDITION)
    assert outcome.status == 0, outcome.err
    assert any(f"warning: left out: {names[3]}: " in line for line in left_out(outcome))
    words = ("--select", CONDITION, "--strict")
    outcome = run("mosaic", *names, "-o", tmp_path / "strict.fits", *words)
    assert outcome.status == 4
    assert str(names[3]) in outcome.err


def test_the_python_interface(frames: list[Path]) -> None:
    """Arrays are measured too; weights stay with their inputs."""
    pairs = []
    for path in frames:
        with fits.open(path) as hdus:
            from astropy.wcs import WCS

            pairs.append((hdus[0].data.astype(np.float32), WCS(hdus[0].header)))
    weights = [1.0 + k for k in range(8)]
    result = zmrs.mosaic(pairs, weights=weights, select=CONDITION)
    chosen = result.stats["select"]
    assert (chosen["kept"], chosen["of"], chosen["condition"]) == (5, 8, CONDITION)
    assert chosen["median"]["fwhm"] == pytest.approx(3.1, rel=0.1)
    assert [one["kept"] for one in chosen["inputs"].values()] == [k in GOOD for k in range(8)]
    used = [row for row in result.inputs if row.status == "used"]
    assert [row.weight for row in used] == [weights[k] for k in GOOD]
    by_hand = zmrs.mosaic([pairs[k] for k in GOOD], weights=[weights[k] for k in GOOD])
    assert np.array_equal(result.data, by_hand.data, equal_nan=True)
    assert "select" not in by_hand.stats


def test_an_input_without_stars(frames: list[Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty.fits"
    with fits.open(frames[0]) as hdus:
        noise = np.random.default_rng(0).normal(300, 5, SHAPE).astype(np.float32)
        fits.PrimaryHDU(noise, hdus[0].header).writeto(empty)
    words = (*frames[:2], empty, "--select", "fwhm < 99")
    outcome = run("mosaic", *words, "-o", tmp_path / "out.fits")
    [told] = left_out(outcome)
    assert f"{empty}: " in told
    assert "fwhm not known because no star was found" in told
    with fits.open(tmp_path / "out.fits") as hdus:
        assert math.isnan(hdus["INPUTS"].data[-1]["FWHM"])
        assert hdus["INPUTS"].data[-1]["NSTARS"] == 0


def test_progress(frames: list[Path]) -> None:
    events = []
    with pytest.raises(InputError, match="none of the 8 inputs"):
        zmrs.mosaic(frames, select="stars < 0", progress=events.append)
    told = [(event.event, event.done, event.total) for event in events if event.stage == "select"]
    assert told[0] == ("start", 0, 8)
    assert told[-1] == ("end", 8, 8)
    assert len(told) == 10


def test_another_condition_is_another_job(frames: list[Path], tmp_path: Path) -> None:
    """What an interrupted run has made is not gone on with under another condition."""
    from zmrs.config import Options
    from zmrs.identity import identity_of
    from zmrs.prepare import prepare

    found = []
    for condition in ("fwhm < 99", "fwhm < 98", "fwhm < 99"):
        options = Options(select=condition)
        identity = identity_of(prepare(frames, options), options)
        assert identity is not None
        found.append(identity())
    assert found[0] == found[2] != found[1]
