"""The Two-Pass as users run it: what it says, writes and leaves, and what happens when it fails."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import sky
import zmrs
from child import MIB, Outcome, run, run_witnessed, tree
from sky import unmatched
from zmrs import _zmrs
from zmrs.errors import BudgetError, Cancelled, DiskFullError, UsageError, ZmrsError
from zmrs.events import Event
from zmrs.io import output
from zmrs.two_pass import coverage_blur

SHAPE = (150, 190)
ORIGINS = [(0, 0), (0, 70), (50, 0), (55, 80), (30, 40)]
TILE = (90, 110)
TWO_PASS = ("--two-pass", "--two-pass-sigma", "5", "--two-pass-gain-clip", "1.18,0.85")


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    sky.write_tiles(folder, tiles())
    return folder


def tiles() -> list[sky.Tile]:
    base = sky.frame_wcs(SHAPE)
    made = []
    for n, origin in enumerate(ORIGINS):
        image = np.random.default_rng(n).normal(100 + n, 3, TILE).astype(np.float32)
        made.append((image, sky.shifted_wcs(base, origin, TILE)))
    return made


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def without_path(text: str) -> list[str]:
    """The lines of a log file, level first."""
    return [line.split(" ", 2)[2] for line in text.splitlines()]


# ------------------------------------------------------------------------------ what is said


@pytest.fixture(scope="module")
def one_run(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("run")
    done = run_witnessed(
        folder / "stats", "mosaic", frames, "-o", folder / "out.fits", *TWO_PASS,
        "--log-file", folder / "log", "--memory", "200MiB", "--threads", 2,
    )  # fmt: skip
    assert done.status == 0, done.err
    return done, folder


def test_the_lines(one_run: tuple[Outcome, Path]) -> None:
    done, folder = one_run
    header = fits.getheader(folder / "out.fits")
    shape = (header["NAXIS2"], header["NAXIS1"])
    figures = header["ZMPLAN"].split(" memory_mb=")[0]
    expected = [
        f"[TwoPass] Second pass requested (sigma=5, clip=(0.85, 1.18)); coverage shape={shape}",
        f"[TwoPass] plan={figures}",
    ]
    assert lines(done.err, "[TwoPass]") == expected
    logged = without_path((folder / "log").read_text())
    assert [line for line in logged if "[TwoPass]" in line] == [f"INFO {s}" for s in expected]


def test_one_plan(one_run: tuple[Outcome, Path]) -> None:
    """The figures of the line are those that the engine then uses."""
    done, folder = one_run
    assert_engine_uses(done, fits.getheader(folder / "out.fits")["NAXIS2"])


def assert_engine_uses(done: Outcome, height: int) -> None:
    (line,) = lines(done.err, "[TwoPass] plan=")
    found = dict(re.findall(r"(\w+)=(\S+)", line))
    assert found["plan"] == "phase5"
    again = done.stats["two_pass"]
    assert int(found["cpu_workers"]) == done.stats["workers"] == again["workers"]
    assert found["max_chunk_mb"] == f"{done.stats['chunk_peak_bytes'] / MIB:.2f}"
    assert 0 < again["chunk_peak_bytes"] <= done.stats["chunk_peak_bytes"]
    assert 0 < again["leased_peak_bytes"] <= done.stats["projected_bytes"]
    assert -(-height // int(found["rows"])) == done.stats["bands"]
    assert (found["use_gpu"], found["gpu_rows"], found["gpu_max_chunk_mb"]) == ("False", "-", "-")


def test_what_is_written(one_run: tuple[Outcome, Path]) -> None:
    done, folder = one_run
    gains = done.stats["two_pass"]["gains"]
    with fits.open(folder / "out.fits") as hdus:
        hdus.verify("exception")
        assert hdus[0].header["ZMTWOP"] is True
        assert list(hdus["INPUTS"].data["TWOPGAIN"]) == gains
        image, coverage = np.array(hdus[0].data), np.array(hdus["COVERAGE"].data)
    assert len(set(gains)) > 3
    assert all(0.85 <= gain <= 1.18 for gain in gains)
    assert np.array_equal(np.isnan(image), coverage == 0)
    figures = done.stats["two_pass"]
    assert (figures["applied"], figures["reason"]) == (True, "")
    assert figures["replaced_fraction"] == pytest.approx((coverage > 0).mean(), abs=1e-12)
    low, high = figures["scale_range"]
    assert 0.5 <= low < 1 < high <= 2
    assert list(figures["seconds"]) == ["gains", "percentile", "matching", "second pass"]
    assert tree(folder) == {"out.fits", "log", "stats"}


def test_the_memory(one_run: tuple[Outcome, Path]) -> None:
    stats = one_run[0].stats
    assert stats["hwm_bytes"] <= stats["projected_bytes"] <= stats["allowed_bytes"] == 200 * MIB


def test_the_memory_of_a_large_canvas(tmp_path: Path) -> None:
    """Its two images and its coverage would not fit."""
    assert 150 * MIB < 3 * 4 * 3600 * 3800
    shape = (1500, 1600)
    base = sky.frame_wcs((3600, 3800))
    folder = tmp_path / "in"
    folder.mkdir()
    for n, origin in enumerate([(0, 0), (0, 1100), (0, 2200), (1000, 500), (2100, 1300)]):
        tile = np.full(shape, 100.0 + n, np.float32), sky.shifted_wcs(base, origin, shape)
        sky.write_image(folder / f"{n}.fits", *sky.alive([tile])[0])
    words = [folder, "--two-pass", "--two-pass-sigma", "120", "--memory", "150MiB"]
    told = json.loads(run("plan", *words, "--json").out)
    done = run_witnessed(tmp_path / "stats", "mosaic", *words, "-o", tmp_path / "out.fits")
    assert done.status == 0, done.err
    assert_engine_uses(done, fits.getheader(tmp_path / "out.fits")["NAXIS2"])
    stats = done.stats
    assert stats["bands"] > 10
    assert stats["two_pass"]["applied"]
    assert stats["hwm_bytes"] <= stats["projected_bytes"] <= stats["allowed_bytes"] == 150 * MIB
    for figure in ("read_bytes", "write_bytes", "scratch_bytes"):
        assert stats[figure] == told[figure], figure
    assert told["scratch_bytes"] > 4 * 3600 * 3700
    assert tree(tmp_path) == {"in", "out.fits", "stats", *(f"in/{n}.fits" for n in range(5))}


def test_the_scratch(tmp_path: Path) -> None:
    """No more than was foretold: strips that lie across the seams between tiles of the engine."""
    shape, base = (700, 120), sky.frame_wcs((640, 1300))
    inputs, scratch = tmp_path / "in", tmp_path / "scratch"
    inputs.mkdir()
    scratch.mkdir()
    for n, x in enumerate([450, 490, 530, 970]):
        image = np.full(shape, 100.0 + n, np.float32)
        sky.write_image(inputs / f"{n}.fits", image, sky.shifted_wcs(base, (-30, x), shape))
    most = 0

    def watch(_: Event) -> None:
        nonlocal most
        most = max(most, sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file()))

    result = zmrs.mosaic(
        [inputs], tmp_path / "out.fits", two_pass=True, two_pass_sigma=20.0, scratch=str(scratch),
        wcs=base, shape=(640, 1300), progress=watch,
    )  # fmt: skip
    assert result.stats["two_pass"]["applied"]
    seams = sum(x // 512 != (x + shape[1] - 1) // 512 for x in [450, 490, 530, 970])
    marks, tasks = 640 * (4 + seams), 640 // 32
    assert most == 640 * 4 * 1300 + 16 * marks + 32 * tasks
    assert most <= result.stats["scratch_bytes"] < 1.01 * most
    assert tree(scratch) == set()


def test_off_by_default(frames: Path, tmp_path: Path) -> None:
    done = run_witnessed(tmp_path / "stats", "mosaic", frames, "-o", tmp_path / "out.fits")
    assert done.status == 0
    assert "[TwoPass]" not in done.err
    assert fits.getheader(tmp_path / "out.fits")["ZMTWOP"] is False
    assert "two_pass" not in done.stats
    table = fits.getdata(tmp_path / "out.fits", "INPUTS")
    assert list(table["TWOPGAIN"]) == [1.0] * 5


def test_the_stages_are_told(frames: Path, tmp_path: Path) -> None:
    done = run(
        "mosaic", frames, "-o", tmp_path / "out.fits", *TWO_PASS, "--progress", "json"
    )  # fmt: skip
    events = [json.loads(line) for line in lines(done.err, "{")]
    ends = [(e["stage"], e["event"]) for e in events if e["event"] != "progress"]
    stages = ("geometry", "survey", "mosaic", "two_pass")
    assert ends == [(stage, event) for stage in stages for event in ("start", "end")]
    assert all(0 <= e["done"] <= e["total"] for e in events)


def test_quiet(frames: Path, tmp_path: Path) -> None:
    done = run("mosaic", frames, "-o", tmp_path / "out.fits", *TWO_PASS, "-q")
    assert (done.status, done.err) == (0, "")


def test_other_ways_to_ask(frames: Path, tmp_path: Path) -> None:
    """Environment, file and Python give the bytes that the flags give."""
    said = run("mosaic", frames, "-o", tmp_path / "flags.fits", *TWO_PASS)
    assert said.status == 0
    settings = tmp_path / "zmrs.toml"
    settings.write_text("two-pass = true\ntwo-pass-sigma = 5\ntwo-pass-gain-clip = [0.85, 1.18]\n")
    told = run("mosaic", frames, "-o", tmp_path / "file.fits", "--config", settings)
    assert told.status == 0, told.err
    want = fits.getdata(tmp_path / "flags.fits")
    result = unmatched(
        frames, two_pass=True, two_pass_sigma=5, two_pass_gain_clip=[1.18, 0.85], threads=1
    )
    for image in (fits.getdata(tmp_path / "file.fits"), result.data):
        assert np.array_equal(image, want, equal_nan=True)
    off = run("mosaic", frames, "-o", tmp_path / "off.fits", "--config", settings, "--no-two-pass")
    assert "[TwoPass]" not in off.err
    assert fits.getheader(tmp_path / "off.fits")["ZMTWOP"] is False


def test_more_than_one_pass_with_matching(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    done = run_witnessed(
        tmp_path / "stats", "mosaic", frames, "-o", out, *TWO_PASS, "--match", "offset"
    )
    assert done.status == 0, done.err
    assert len(lines(done.err, "[TwoPass]")) == 2
    assert len(lines(done.err, "matched 5 inputs")) == 1
    assert done.stats["two_pass"]["applied"]
    assert fits.getheader(out)["ZMMATCH"] == "offset"


# ---------------------------------------------------------------------------- what is refused

NONSENSE = [
    ("--two-pass-sigma", "-1"),
    ("--two-pass-sigma", "nan"),
    ("--two-pass-sigma", "inf"),
    ("--two-pass-sigma", "abc"),
    ("--two-pass-sigma", "16385"),
    ("--two-pass-sigma", "1e9"),
    ("--two-pass-gain-clip", "0,1"),
    ("--two-pass-gain-clip", "-1,1"),
    ("--two-pass-gain-clip", "nan,1"),
    ("--two-pass-gain-clip", "1,inf"),
    ("--two-pass-gain-clip", "1"),
    ("--two-pass-gain-clip", "0.8,1,1.2"),
    ("--two-pass-gain-clip", "low,high"),
]


@pytest.mark.parametrize("flag", NONSENSE, ids=" ".join)
@pytest.mark.parametrize("command", ["mosaic", "plan"])
def test_nonsense(flag: tuple[str, str], command: str, frames: Path, tmp_path: Path) -> None:
    output = ["-o", tmp_path / "out.fits"] if command == "mosaic" else []
    done = run(command, frames, *output, "--two-pass", *flag)
    assert done.status == 2
    (sentence,) = done.err.splitlines()
    assert sentence.startswith(f"zmrs: {flag[0]}: ")
    assert sentence.endswith(".")
    assert not tree(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("two_pass_sigma", -1.0),
        ("two_pass_sigma", float("nan")),
        ("two_pass_sigma", "16385"),
        ("two_pass_sigma", None),
        ("two_pass_sigma", [5]),
        ("two_pass", "perhaps"),
        ("two_pass_gain_clip", 0.9),
        ("two_pass_gain_clip", None),
        ("two_pass_gain_clip", ("a", "b")),
        ("two_pass_gain_clip", (0.0, 1.0)),
        ("two_pass_gain_clip", (1.0, float("nan"))),
        ("two_pass_gain_clip", (1.0,)),
        ("two_pass_gain_clip", (1.0, float("inf"))),
    ],
)
def test_nonsense_in_python(name: str, value: Any, frames: Path) -> None:
    with pytest.raises(UsageError, match=name.replace("_", "[_-]")):
        zmrs.mosaic(frames, **{"two_pass": True} | {name: value})


def test_no_is_no(frames: Path) -> None:
    """Text is read as in a file."""
    assert "two_pass" not in unmatched(frames, two_pass="no").stats


@pytest.mark.parametrize("sigma_px", [-1.0, float("nan"), float("inf"), 16385.0])
def test_nonsense_on_arrays(sigma_px: float) -> None:
    with pytest.raises(UsageError):
        coverage_blur(np.ones((4, 5)), sigma_px)


@pytest.mark.parametrize("more", [{"two_pass": True}, {"combine": "kappa-sigma-stream"}])
@pytest.mark.parametrize("to_file", [True, False])
def test_scratch_that_will_not_fit(
    to_file: bool,
    more: dict[str, Any],
    frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is known before the first pixel is read, with the output on the same disk."""
    out = tmp_path / "out.fits" if to_file else None
    common = {"scratch": str(tmp_path), "overwrite": True} | more
    sizes = unmatched(frames, out, **common).stats
    needed = sizes["scratch_bytes"] + to_file * sizes["write_bytes"]
    monkeypatch.setattr(output, "_free_bytes", lambda _: needed - 1)
    events: list[Event] = []
    with pytest.raises(BudgetError, match="--scratch"):
        unmatched(frames, out, progress=events.append, **common)
    assert {event.stage for event in events} == {"geometry"}
    assert tree(tmp_path) == ({"out.fits"} if to_file else set())


def test_the_widest_blur(frames: Path, tmp_path: Path) -> None:
    done = run(
        "mosaic", frames, "-o", tmp_path / "out.fits", "--two-pass", "--two-pass-sigma", 16384
    )
    assert done.status == 0, done.err


# -------------------------------------------------------------------- the first pass is kept


def assert_kept(result: zmrs.Result, records: list[logging.LogRecord], reason: str) -> None:
    """The first pass is the result, and one warning says why."""
    first = unmatched(tiles_in_order(result), wcs=result.wcs, shape=result.data.shape)
    figures = result.stats["two_pass"]
    assert figures["applied"] is False
    assert re.search(reason, figures["reason"])
    assert figures["gains"] == [1.0] * len(first.inputs)
    assert figures["replaced_fraction"] == 0.0
    assert [row.two_pass_gain for row in result.inputs] == figures["gains"]
    (warning,) = [one for one in records if one.levelno >= logging.WARNING]
    assert warning.getMessage() == f"[TwoPass] the first pass is kept: {figures['reason']}"
    for name in ("data", "coverage"):
        ours, theirs = getattr(result, name), getattr(first, name)
        assert np.array_equal(np.asarray(ours, "=f4"), theirs, equal_nan=True)
    if result.path is not None:
        with fits.open(result.path) as hdus:
            assert hdus[0].header["ZMTWOP"] is False
            assert list(hdus["INPUTS"].data["TWOPGAIN"]) == figures["gains"]


def tiles_in_order(result: zmrs.Result) -> Any:
    """The inputs as they were, with the WCS that their files hold."""
    order = [int(Path(row.name).stem.split("_")[1]) - 1 for row in result.inputs]
    images = tiles()
    headers = [fits.Header(images[n][1].to_header(relax=True)) for n in order]
    return [fits.PrimaryHDU(images[n][0], header) for n, header in zip(order, headers, strict=True)]


class _AfterTheFirstPass:
    """A listener that does something once the first pass has ended."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act, self.times = act, 0

    def __call__(self, event: Event) -> None:
        if (event.stage, event.event) == ("mosaic", "end"):
            self.times += 1
            self._act()


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2880 + 4000)


@pytest.mark.parametrize("to_file", [True, False])
@pytest.mark.parametrize("harm", [truncate, Path.unlink], ids=["truncated", "removed"])
def test_an_input_that_is_lost_between_the_passes(
    harm: Callable[[Path], object], to_file: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    paths = sky.write_tiles(folder, tiles())
    listener = _AfterTheFirstPass(lambda: harm(paths[2]))
    out = tmp_path / "out.fits" if to_file else None
    result = unmatched(
        folder, out, two_pass=True, two_pass_sigma=5, plan={"rows_per_chunk": 40},
        progress=listener,
    )  # fmt: skip
    assert listener.times == 1
    assert_kept(result, caplog.records, re.escape(paths[2].name))
    assert tree(tmp_path) - {"in", *(f"in/{p.name}" for p in paths)} <= {"out.fits"}


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


STEPS = ["measure_gains", "luminance_percentile"]


@pytest.mark.parametrize("to_file", [True, False])
@pytest.mark.parametrize("kind", [ZmrsError, OSError, ValueError, RuntimeError, MemoryError])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails(
    step: str, kind: type[Exception], to_file: bool, frames: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(_zmrs, step, failing(kind("it is late.")))
    out = tmp_path / "out.fits" if to_file else None
    result = unmatched(frames, out, two_pass=True, two_pass_sigma=5)
    assert_kept(result, caplog.records, "it is late")
    assert tree(tmp_path) == ({"out.fits"} if to_file else set())


@pytest.mark.parametrize("error", [Cancelled("enough."), DiskFullError("the disk is full.")])
@pytest.mark.parametrize("step", STEPS)
def test_what_stops_the_run(
    step: str, error: Exception, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_zmrs, step, failing(error))
    with pytest.raises(type(error)):
        unmatched(frames, tmp_path / "out.fits", two_pass=True)
    assert not tree(tmp_path)


class EnoughError(Exception):
    pass


@pytest.mark.parametrize("kind", [EnoughError, BrokenPipeError, ValueError, ZmrsError])
@pytest.mark.parametrize("at", ["start", "progress"])
def test_a_listener_that_stops_the_second_pass(
    at: str, kind: type[Exception], tmp_path: Path
) -> None:
    """Whatever it raises is no failure of the second pass."""

    def stop(event: Event) -> None:
        if (event.stage, event.event) == ("two_pass", at):
            raise kind("enough.")

    # Large enough that the second pass is heard of before its end.
    base = sky.frame_wcs((3000, 3000))
    inputs = [(np.ones((3000, 3000), np.float32), base)] * 4
    with pytest.raises(kind, match="enough"):
        unmatched(inputs, tmp_path / "out.fits", two_pass=True, progress=stop, threads=1)
    assert not tree(tmp_path)


def test_infinity_replaces_nothing() -> None:
    """A gain may lead out of single precision: those pixels stay as they are."""
    image = np.full(TILE, 1e38, np.float32)
    image[:, 55:] = 2.9e38
    inputs = [(image, sky.frame_wcs(TILE))] * 3
    result = unmatched(inputs, two_pass=True, two_pass_gain_clip=(1.25, 1.3))
    assert result.stats["two_pass"]["replaced_fraction"] == 0.5
    np.testing.assert_allclose(result.data[:, :55], 1.25e38, rtol=1e-6)
    np.testing.assert_allclose(result.data[:, 55:], 2.9e38, rtol=1e-6)


@pytest.mark.parametrize("to_file", [True, False])
def test_gains_that_make_it_too_dark(
    to_file: bool, frames: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out.fits" if to_file else None
    result = unmatched(frames, out, two_pass=True, two_pass_sigma=5, two_pass_gain_clip=(0.1, 0.2))
    assert_kept(result, caplog.records, "less than 0.4 times as bright everywhere")


def test_the_command_that_keeps_the_first_pass(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    done = run_witnessed(
        tmp_path / "stats", "mosaic", frames, "-o", out, "--threads", 2,
        "--two-pass", "--two-pass-gain-clip", "0.1,0.2",
    )  # fmt: skip
    assert done.status == 0
    (warning,) = [line for line in done.remarks if not line.startswith("[TwoPass] ")]
    assert warning.startswith("warning: [TwoPass] the first pass is kept: ")
    assert fits.getheader(out)["ZMTWOP"] is False
    assert done.stats["two_pass"]["applied"] is False
    plain = run("mosaic", frames, "-o", tmp_path / "plain.fits", "--threads", 2)
    assert plain.status == 0
    for hdu in (0, "COVERAGE"):
        planes = [fits.getdata(path, hdu).tobytes() for path in (out, tmp_path / "plain.fits")]
        assert planes[0] == planes[1]


def test_a_background_that_is_gone(frames: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the sky is 0 the merge means little, which is said."""
    around_zero = [(image - np.float32(102), wcs) for image, wcs in tiles()]
    result = unmatched(around_zero, two_pass=True, two_pass_sigma=5)
    warnings = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "not above 0" in warnings[0]
    assert np.array_equal(np.isnan(result.data), result.coverage == 0)
