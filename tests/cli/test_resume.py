"""Runs that are killed, run out of disk or change: what is done stays done, to the byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import sky
from child import Outcome, bare_env, run, start, tree
from zmrs.io.journal import Journal
from zmrs.simulate import Contaminants, FrameSpec, make_frame_wcs, write_frames

SHAPE = (300, 400)
CASES = {
    "normal": ("--two-pass", "--combine", "winsorized"),
    "sds": ("--mode", "sds", "--two-pass", "--sds-min-coverage-keep", "0.2"),
    "stream": ("--two-pass", "--combine", "kappa-sigma-stream", "--weight-by", "ivar"),
    "mean": ("--match", "gain", "--variance", "--two-pass"),
}
AT_ONCE = ("--journal-after", "0")


@pytest.fixture(scope="module")
def subs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Subs that take a few seconds."""
    folder = tmp_path_factory.mktemp("subs")
    rng = np.random.default_rng(3)
    specs = []
    for _ in range(60):
        wcs = make_frame_wcs(sky.CENTER_DEG, 2.0, rng.uniform(-40, 40), SHAPE)
        wcs.wcs.crpix += rng.uniform(-60, 60, 2)
        light = Contaminants(satellites=0.2, hot=1e-4)
        level = rng.uniform(900, 1100)
        specs.append(FrameSpec(wcs, SHAPE, noise_sigma=10.0, sky_level=level, contaminants=light))
    write_frames(folder, sky.tiny_sky(), specs, bitpix=16, truth=False)
    yield folder
    shutil.rmtree(folder)


def mosaic(subs: Path, out: Path, *words: str, **more: object) -> Outcome:
    env = bare_env()
    return run("mosaic", subs, "-o", out, "--overwrite", *words, env=env, **more)


def result(out: Path) -> dict[str, bytes]:
    """Every plane and table; the first header has figures of the run itself."""
    with fits.open(out) as hdus:
        return {hdu.name or "IMAGE": hdu.data.tobytes() for hdu in hdus}


def kill_at(seconds: float, *words: object) -> tuple[bool, str]:
    """Whether a run was killed after so many seconds, before its end, and what it said."""
    process = start(*words, env=bare_env())
    try:
        _, said = process.communicate(timeout=seconds)
        assert process.returncode == 0, said
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
    return process.returncode == -signal.SIGKILL, said


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_random(case: str, subs: Path, tmp_path: Path) -> None:
    """Five kills or more of each kind; limits and threads change from run to run."""
    words = CASES[case]
    reference, out = tmp_path / "reference.fits", tmp_path / "out.fits"
    began = time.perf_counter()
    assert mosaic(subs, reference, *words).status == 0
    took_s = time.perf_counter() - began
    dice = random.Random(case)
    kills = resumed = ended = 0
    for _ in range(60):
        how = ("--memory", dice.choice(["200MiB", "400MiB", "1GiB"]))
        how += ("--threads", dice.choice("123"))
        command = ("mosaic", subs, "-o", out, "--overwrite", *AT_ONCE, *words, *how)
        was_killed, said = kill_at(dice.uniform(0.4, 1.2) * took_s, *command)
        resumed += "going on with an interrupted run" in said
        if was_killed:
            kills += 1
            continue
        assert result(out) == result(reference)
        assert tree(tmp_path) == {"reference.fits", "out.fits"}
        out.unlink()
        ended += 1
        if kills >= 5 and resumed >= 2:
            break
    print(f"{case}: {kills} kills, gone on with {resumed} times, {took_s:.1f} s a run")
    assert kills >= 5
    assert resumed >= 2
    assert ended


def wait_for(is_there: Callable[[], bool]) -> None:
    for _ in range(2000):
        if is_there():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def lines_of(out: Path) -> int:
    journal = out.with_name(out.name + ".zmrs-state") / "journal"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_good_order(number: int, subs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    words = CASES["sds"]
    process = start("mosaic", subs, "-o", out, "--overwrite", *AT_ONCE, *words, env=bare_env())
    wait_for(lambda: lines_of(out) > 3)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number
    assert "what is finished is kept; the same command goes on from there" in said
    again = mosaic(subs, out, *AT_ONCE, *words)
    assert "going on with an interrupted run" in again.err
    assert tree(tmp_path) == {"out.fits"}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["normal", "stream"])
def test_a_finished_pass_is_kept(case: str, subs: Path, tmp_path: Path) -> None:
    """Killed in its second pass a run does not make the first one again."""
    words = CASES[case]
    reference, out = tmp_path / "reference.fits", tmp_path / "out.fits"
    assert mosaic(subs, reference, *words).status == 0
    command = ("mosaic", subs, "-o", out, *AT_ONCE, *words, "--progress", "json")
    process = start(*command, env=bare_env())
    assert process.stderr is not None
    for line in process.stderr:
        if '"stage": "two_pass"' in line:
            break
    process.kill()
    process.communicate()
    again = mosaic(subs, out, *AT_ONCE, *words)
    assert "going on with an interrupted run" in again.err
    assert "starting anew" not in again.err
    assert result(out) == result(reference)


@pytest.mark.slow
def test_another_job_starts_anew(subs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    command = ("mosaic", subs, "-o", out, "--overwrite", *AT_ONCE, *CASES["sds"])
    process = start(*command, env=bare_env())
    wait_for(lambda: lines_of(out) > 3)
    process.kill()
    process.communicate()
    changed = mosaic(subs, out, *CASES["sds"], "--kernel", "bicubic")
    assert changed.status == 0
    assert "starting anew: this is another job: options: kernel was bilinear, is bicubic" in (
        changed.err
    )
    assert tree(tmp_path) == {"out.fits"}
    process = start(*command, env=bare_env())
    wait_for(lambda: lines_of(out) > 3)
    process.kill()
    process.communicate()
    touched = subs / "frame_0001.fits"
    os.utime(touched)
    changed = mosaic(subs, out, *CASES["sds"])
    assert "starting anew: this is another job: inputs:" in changed.err
    process = start(*command, env=bare_env())
    wait_for(lambda: lines_of(out) > 3)
    process.kill()
    process.communicate()
    fresh = mosaic(subs, out, *CASES["sds"], "--no-resume")
    assert fresh.status == 0
    assert "going on" not in fresh.err


def small_disk(size: str) -> str | None:
    """A place of so many bytes; None where none can be had."""
    folder = Path(f"/tmp/zmrs-small-disk-{os.getpid()}")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        check=False, capture_output=True,
    )  # fmt: skip
    if mounted.returncode:
        folder.rmdir()
        return None
    return str(folder)


def fill(ballast: Path) -> None:
    """Take all the room that there is."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass


@pytest.mark.slow
def test_a_full_disk(subs: Path, tmp_path: Path) -> None:
    """The run says so, keeps what is done, and goes on once there is room."""
    reference, words = tmp_path / "reference.fits", CASES["sds"]
    assert mosaic(subs, reference, *words).status == 0
    place = small_disk("100M")
    if place is None:
        pytest.skip("no small disk can be mounted here: NOT TESTED")
    try:
        out, ballast = Path(place) / "out.fits", Path(place) / "ballast"
        process = start("mosaic", subs, "-o", out, *AT_ONCE, *words, env=bare_env())
        wait_for(lambda: lines_of(out) > 3)
        # Somebody else fills the disk.
        fill(ballast)
        _, said = process.communicate()
        assert process.returncode == 5, said
        assert "the disk is full" in said
        assert "Traceback" not in said
        assert not out.exists()
        ballast.unlink()
        again = mosaic(subs, out, *AT_ONCE, *words)
        assert again.status == 0, again.err
        assert "going on with an interrupted run" in again.err
        assert result(out) == result(reference)
        assert tree(Path(place)) == {"out.fits"}
    finally:
        subprocess.run(["umount", place], check=True)
        Path(place).rmdir()


def test_two_runs_of_one_output(subs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    with Journal(out, None, after_s=30.0, resumes=True):
        second = mosaic(subs, out)
    assert second.status == 2
    assert "another run is making it" in second.err
    assert tree(tmp_path) == set()
