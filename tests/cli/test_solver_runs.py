"""Runs with frames that have no WCS, and a solver that does as it is told."""

from __future__ import annotations

import logging
import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import sky
import zmrs
from child import MIB, run, run_witnessed, start, tree
from fake_solver import FakeSolver, is_alive
from zmrs.config import Options
from zmrs.errors import DiskFullError, InputError, UsageError
from zmrs.identity import identity_of
from zmrs.prepare import prepare
from zmrs.simulate import make_frame_wcs
from zmrs.solving import cache

SHAPE = (64, 80)
SOME_HINTS = {"RA": 150.0, "DEC": 30.0}


@pytest.fixture
def fake(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeSolver:
    solver = FakeSolver(tmp_path_factory.mktemp("solver") / "fake")
    monkeypatch.setenv("PATH", f"{solver.install()}:/usr/bin:/bin")
    return solver


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    return folder


def pixels(number: int = 0) -> np.ndarray:
    return np.random.default_rng(number).normal(100, 10, SHAPE).astype(np.float32)


def wcs_of(number: int = 0) -> WCS:
    """Neighbours with most of their area in common, turned a little."""
    wcs = sky.frame_wcs(SHAPE, 3.0 * number)
    return sky.shifted_wcs(wcs, (0, 20 * number), SHAPE)


def bare(folder: Path, number: int = 0, **cards: Any) -> Path:
    return sky.write_image(folder / f"f{number}.fits", pixels(number), None, **cards)


def mosaic(*inputs: object, **more: Any) -> zmrs.Result:
    return sky.unmatched([str(path) for path in inputs], **{"solver": "astrometry.net"} | more)


def statuses(result: zmrs.Result) -> list[str]:
    return [row.status for row in result.inputs]


# ----------------------------------------------------------------------------------- solutions


def test_a_solved_frame_is_as_one_with_a_wcs(
    fake: FakeSolver, frames: Path, tmp_path: Path
) -> None:
    """To the bit: among others that have one, and in its own place among them."""
    others = [sky.write_image(tmp_path / f"g{n}.fits", pixels(n), wcs_of(n)) for n in (0, 1, 2)]
    fake.solves(wcs_of(1))
    solved = mosaic(others[0], bare(frames, 1), others[2], combine="first")
    expected = mosaic(*others, combine="first", solver="none")
    assert [Path(row.name).name for row in solved.inputs] == ["g0.fits", "f1.fits", "g2.fits"]
    np.testing.assert_array_equal(solved.data, expected.data)
    np.testing.assert_array_equal(solved.coverage, expected.coverage)
    assert len(fake.calls) == 1


def test_a_raw_colour_frame(fake: FakeSolver, frames: Path, tmp_path: Path) -> None:
    """The solver sees half the pixels; the frame keeps all of them."""
    full = sky.frame_wcs(SHAPE, 10.0)
    half = (SHAPE[0] // 2, SHAPE[1] // 2)
    seen = make_frame_wcs(sky.CENTER_DEG, 2 * sky.SCALE_ARCSEC, 10.0, half)
    # The centre of the frame is that of the picture.
    np.testing.assert_array_equal(seen.wcs.crpix - 0.5, (full.wcs.crpix - 0.5) / 2)
    fake.solves(seen)
    result = mosaic(bare(frames, BAYERPAT="RGGB"))
    stored = sky.write_image(tmp_path / "g.fits", pixels(), full)
    fits.setval(stored, "BAYERPAT", value="RGGB")
    other = mosaic(stored, solver="none")
    assert result.data.shape == other.data.shape == (3, *other.data.shape[1:])
    np.testing.assert_allclose(result.data, other.data, rtol=1e-6)


def test_what_was_found_is_kept(fake: FakeSolver, frames: Path, tmp_path: Path) -> None:
    frame = bare(frames)
    fake.solves(wcs_of())
    first = mosaic(frame)
    assert tree(frames) == {"f0.fits", "f0.fits.wcs"}
    again = mosaic(frames)
    np.testing.assert_array_equal(again.data, first.data)
    assert statuses(again) == ["used"]
    assert len(fake.calls) == 1
    header = fits.getheader(cache.cache_of(str(frame)))
    assert (header["CRVAL1"], header["CRVAL2"]) == sky.CENTER_DEG
    # It goes with the frame.
    elsewhere = tmp_path / "elsewhere"
    frames.rename(elsewhere)
    os.utime(elsewhere / "f0.fits", (1, 1))
    assert statuses(mosaic(elsewhere)) == ["used"]
    assert len(fake.calls) == 1


def test_without_a_solver_what_was_kept_does_not_count(fake: FakeSolver, frames: Path) -> None:
    fake.solves(wcs_of())
    mosaic(bare(frames))
    with pytest.raises(InputError, match=r"f0.fits: no WCS in its header; let --solver look"):
        mosaic(frames, solver="none")


@pytest.mark.parametrize("change", ["pixels", "header", "rubbish", "hdu"])
def test_what_was_kept_of_another_frame_is_replaced(
    change: str, fake: FakeSolver, frames: Path
) -> None:
    frame = bare(frames)
    fake.solves(wcs_of())
    mosaic(frame)
    kept = cache.cache_of(str(frame))
    before = kept.read_bytes()
    if change == "pixels":
        bare(frames, 0).write_bytes(sky.write_image(frame, pixels(7)).read_bytes())
    elif change == "header":
        bare(frames, 0, NOTE="anew")
    elif change == "rubbish":
        kept.write_bytes(before.replace(b"CTYPE1", b"CTYPO1"))
    else:
        kept.write_bytes(
            before.replace(b"ZMHDU   =                    0", b"ZMHDU   = 3".ljust(30))
        )
    fake.solves(wcs_of(1))
    result = mosaic(frame)
    assert len(fake.calls) == 2
    assert kept.read_bytes() != before
    expected = sky.unmatched([(fits.getdata(frame), wcs_of(1))])
    np.testing.assert_array_equal(result.data, expected.data)


def test_a_file_of_somebody_else_stays(
    fake: FakeSolver, frames: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = bare(frames)
    kept = cache.cache_of(str(frame))
    kept.write_text("notes")
    for _ in range(2):
        fake.solves(wcs_of())
        assert statuses(mosaic(frame)) == ["used"]
    assert kept.read_text() == "notes"
    assert len(fake.calls) == 2
    assert "a file of somebody else has that name" in caplog.text


def test_a_folder_that_cannot_be_written(
    fake: FakeSolver,
    frames: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number in range(3):
        bare(frames, number)
        fake.solves(wcs_of(number))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache, "store", refuse)
    assert statuses(mosaic(frames)) == ["used"] * 3
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "f0.fits.wcs: cannot be written (Permission denied)" in warning
    assert "what was found of 3 frames" in warning


def test_a_place_where_no_file_can_be_made(
    fake: FakeSolver, frames: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even by root, who may write to read-only folders."""
    fake.solves(wcs_of())
    with bare(frames).open("rb") as file:
        assert statuses(mosaic(f"/dev/fd/{file.fileno()}")) == ["used"]
    assert ".wcs: cannot be written (" in caplog.text
    assert tree(frames) == {"f0.fits"}


def test_kept_solutions_are_no_inputs(fake: FakeSolver, frames: Path) -> None:
    fake.solves(wcs_of())
    mosaic(bare(frames))
    for given in (frames, frames / "*", frames / "f*"):
        assert [Path(row.name).name for row in mosaic(given).inputs] == ["f0.fits"]


def test_two_solutions_are_two_jobs(fake: FakeSolver, frames: Path) -> None:
    frame = bare(frames)
    found = []
    for wcs in (wcs_of(), wcs_of(), wcs_of(1)):
        fake.solves(wcs)
        options = Options(solver="astrometry.net", center=sky.CENTER_DEG, size=(80, 80), scale=2.0)
        prepared = prepare([str(frame)], options)
        identity = identity_of(prepared, options)
        assert identity is not None
        found.append(identity())
        cache.cache_of(str(frame)).unlink()
    assert found[0] == found[1] != found[2]
    assert found[0] | {"solutions": None} == found[2] | {"solutions": None}


# --------------------------------------------------------------------------------------- tries


def test_first_with_hints_then_without(fake: FakeSolver, frames: Path) -> None:
    fake.gives_up()
    fake.solves(wcs_of())
    assert statuses(mosaic(bare(frames, RA=150.0, DEC=30.0, FOCALLEN=250, XPIXSZ=2.9))) == ["used"]
    first, second = fake.calls
    assert "--ra 150.000000 --dec 30.000000" in first
    assert "--scale-low" in first
    assert not any(word in second for word in ("--ra ", "--scale-low"))


@pytest.mark.parametrize("how", ["hangs", "fails", "gives_up", "rubbish", "empty", "absurd"])
def test_a_try_that_leads_nowhere_is_followed_by_another(
    how: str, fake: FakeSolver, frames: Path
) -> None:
    if how == "rubbish":
        fake.writes(b"\0\1\2 no FITS at all")
    elif how == "empty":
        fake.writes(b"")
    elif how == "absurd":
        fake.solves(make_frame_wcs(sky.CENTER_DEG, 50 * 3600.0, 0.0, SHAPE))
    else:
        getattr(fake, how)()
    fake.solves(wcs_of())
    frame = bare(frames, **SOME_HINTS)
    assert statuses(mosaic(frame, solver_timeout=2.0)) == ["used"]
    assert len(fake.calls) == 2
    if how == "hangs":
        assert not is_alive(fake.child())


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("hangs", "without hints: not within 0.5 s"),
        ("fails", "without hints: it failed with status 5: no index files"),
        ("gives_up", "without hints: no match"),
        ("rubbish", r"without hints: what it wrote is no WCS \(it is not a FITS file; leave"),
    ],
)
def test_a_frame_that_is_not_solved_says_why(
    how: str, cause: str, fake: FakeSolver, frames: Path, tmp_path: Path
) -> None:
    other = sky.write_image(tmp_path / "g.fits", pixels(1), wcs_of(1))
    frame = bare(frames)
    for _ in range(2):
        if how == "rubbish":
            fake.writes(b"nonsense")
        else:
            getattr(fake, how)()
    result = mosaic(frame, other, solver_timeout=0.5)
    assert statuses(result) == ["used", "left_out"]
    sentence = rf"f0.fits: no WCS of the sky in its header, and solve-field found none \({cause}"
    with pytest.raises(InputError, match=sentence):
        mosaic(frame, other, solver_timeout=0.5, strict=True)
    # Failures are not kept: the frame was shown to the solver again.
    assert len(fake.calls) == 2
    assert tree(frames) == {"f0.fits"}


def test_a_truncated_frame_is_not_shown(fake: FakeSolver, frames: Path) -> None:
    frame = bare(frames)
    frame.write_bytes(frame.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"f0.fits: truncated"):
        mosaic(frame)
    assert not fake.calls


def test_other_faults_are_not_shown(fake: FakeSolver, frames: Path, tmp_path: Path) -> None:
    """Nor is anything that has a WCS."""
    good = sky.write_image(tmp_path / "g.fits", pixels(), wcs_of())
    broken = bare(frames, CTYPE1="RA---TAN", CTYPE2="DEC--TAN")
    text = frames / "t.fits"
    text.write_text("no FITS")
    assert statuses(mosaic(good, broken, text)) == ["used", "left_out", "left_out"]
    assert not fake.calls


def test_a_header_with_axes_that_are_no_sky(fake: FakeSolver, frames: Path) -> None:
    """What it says of them does not mix with the solution."""
    frame = bare(frames, CTYPE1="LINEAR", CTYPE2="LINEAR", CDELT1=7.0, CRVAL1=1.0, CROTA2=5.0)
    fake.solves(wcs_of())
    expected = sky.unmatched([(pixels(), wcs_of())])
    np.testing.assert_array_equal(mosaic(frame).data, expected.data)


def test_dates_stay(fake: FakeSolver, frames: Path, tmp_path: Path) -> None:
    fake.solves(wcs_of())
    frame = bare(frames, **{"DATE-OBS": "2024-05-01T00:00:00"})
    mosaic(frame, output=tmp_path / "out.fits")
    header = fits.getheader(tmp_path / "out.fits")
    assert header["DATE-OBS"] == "2024-05-01T00:00:00"
    assert header["MJD-OBS"] == 60431.0
    assert header["ZMSOLVED"] == 1


def test_packed_frames_and_extensions(fake: FakeSolver, frames: Path) -> None:
    whole = np.round(pixels()).astype(np.int16)
    fits.CompImageHDU(whole, name="RAW").writeto(frames / "a.fits.fz")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(whole, name="SCI")]).writeto(
        frames / "b.fits.gz"
    )
    expected = sky.unmatched([(whole, wcs_of())])
    for name, hdu in (("a.fits.fz", "RAW"), ("b.fits.gz", None)):
        fake.solves(wcs_of())
        np.testing.assert_array_equal(mosaic(frames / name, hdu=hdu).data, expected.data)


def test_weights_stay_with_their_inputs(fake: FakeSolver, frames: Path, tmp_path: Path) -> None:
    """Whether a frame between others is solved or not."""
    inputs = [sky.write_image(tmp_path / f"g{n}.fits", pixels(n), wcs_of()) for n in (0, 1)]
    inputs.insert(1, bare(frames, 2))
    for outcome in ("used", "left_out"):
        if outcome == "used":
            fake.solves(wcs_of())
        else:
            cache.cache_of(str(inputs[1])).unlink()
        result = mosaic(*inputs, weights=[2.0, 3.0, 5.0])
        weights = {Path(row.name).stem: row.weight for row in result.inputs if row.status == "used"}
        assert weights == {"g0": 2.0, "g1": 5.0} | ({"f2": 3.0} if outcome == "used" else {})


def test_a_full_disk_is_told(fake: FakeSolver, frames: Path, tmp_path: Path) -> None:
    """Files of this process may not grow beyond 8 KB."""
    frame = bare(frames)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(DiskFullError, match=r"cannot be written there .*; name a roomier"):
            mosaic(frame, scratch=str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path) == {"frames", "frames/f0.fits"}
    assert not fake.calls


def test_progress_is_told(fake: FakeSolver, frames: Path) -> None:
    for number in range(3):
        bare(frames, number)
        fake.solves(wcs_of(number))
    events: list[Any] = []
    mosaic(frames, progress=events.append)
    told = [(e.event, e.done, e.total) for e in events if e.stage == "solve"]
    steps = [("progress", n, 3) for n in (1, 2, 3)]
    assert told == [("start", 0, 3), *steps, ("end", 3, 3)]


def test_no_solver_no_work(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"--solver astap: there is no program"):
        mosaic(frames / "missing.fits", solver="astap")


def test_astap_is_run_too(
    tmp_path_factory: pytest.TempPathFactory, frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in that writes what ASTAP writes."""
    fake = FakeSolver(tmp_path_factory.mktemp("solver") / "fake")
    monkeypatch.setenv("PATH", f"{fake.install('astap')}:/usr/bin:/bin")
    fake.gives_up()
    fake.solves(wcs_of())
    result = mosaic(bare(frames, **SOME_HINTS), solver="astap")
    np.testing.assert_array_equal(result.data, sky.unmatched([(pixels(), wcs_of())]).data)
    first, second = fake.calls
    assert "-ra 10.000000 -spd 120.000000" in first
    assert "-r 180" in second


# -------------------------------------------------------------------------------- whole commands


def command(*words: object, **more: Any) -> Any:
    return run(*words, "--solver", "astrometry.net", **more)


def test_exit_statuses(fake: FakeSolver, frames: Path, tmp_path: Path) -> None:
    good = sky.write_image(tmp_path / "g.fits", pixels(1), wcs_of(1))
    frame, out = bare(frames), tmp_path / "out.fits"
    done = command("mosaic", frame, good, "-o", out)
    assert done.status == 0
    assert "frames without a WCS: 1 (0 solved by solve-field, 0 known, 1 not solved)" in done.err
    (left_out,) = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert "f0.fits: no WCS of the sky in its header, and solve-field found none" in left_out
    out.unlink()
    assert command("mosaic", frame, good, "-o", out, "--strict").status == 4
    assert command("mosaic", frame, "-o", out).status == 4
    assert not out.exists()


def test_a_solver_that_is_not_installed(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    env = {**os.environ, "PATH": str(tmp_path)}
    done = command("mosaic", bare(frames), "-o", out, env=env)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("zmrs: --solver astrometry.net: there is no program solve-field")
    assert len(done.err.splitlines()) == 1
    assert tree(tmp_path) == {"frames", "frames/f0.fits"}


def test_plan_solves_too(fake: FakeSolver, frames: Path) -> None:
    fake.solves(wcs_of())
    frame = bare(frames)
    for _ in range(2):
        done = command("plan", frame)
        assert done.status == 0, done.err
        assert "1 used, 0 left out" in done.out
    assert len(fake.calls) == 1


@pytest.mark.memory
def test_solving_stays_inside_the_limit(fake: FakeSolver, frames: Path, tmp_path: Path) -> None:
    """A frame that would not fit as floats."""
    shape = (4000, 6000)
    frame = np.random.default_rng(1).integers(900, 1100, shape, dtype=np.int16)
    fits.PrimaryHDU(frame).writeto(frames / "f.fits")
    seen = make_frame_wcs(sky.CENTER_DEG, 2 * sky.SCALE_ARCSEC, 0.0, (2000, 3000))
    fake.solves(seen)
    words = ("-o", tmp_path / "out.fits", "--memory", "144MiB", "--size", "200x200")
    words += ("--center", "150,30", "--solver", "astrometry.net")
    done = run_witnessed(tmp_path / "report", "mosaic", frames, *words)
    assert done.status == 0, done.err
    assert done.stats["hwm_bytes"] <= done.stats["projected_bytes"] <= 144 * MIB
    assert len(fake.calls) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(
    number: int, fake: FakeSolver, frames: Path, tmp_path: Path
) -> None:
    bare(frames)
    fake.hangs()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = ("--solver", "astrometry.net", "--scratch", scratch)
    process = start("mosaic", frames, "-o", tmp_path / "out.fits", *words, env=dict(os.environ))
    child = fake.child()
    assert any(scratch.iterdir())
    assert is_alive(child)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number, said
    assert not is_alive(child)
    assert tree(tmp_path) == {"frames", "frames/f0.fits", "scratch"}
