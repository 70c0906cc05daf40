"""Matching as users run it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import sky
import zmrs
from child import run, run_witnessed
from zmrs.events import Event

LEVELS = (100.0, 130.0, 90.0)
OFFSET = ("--match", "offset")


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    sky.write_tiles(folder, sky.constant_frames(LEVELS, (80, 120)))
    return folder


def test_it_is_a_stage_of_its_own(frames: Path, tmp_path: Path) -> None:
    done = run("mosaic", frames, "-o", tmp_path / "out.fits", *OFFSET, "--progress", "json")
    assert done.status == 0, done.err
    events = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    ends = [(e["stage"], e["event"]) for e in events if e["event"] != "progress"]
    stages = ("geometry", "match", "mosaic")
    assert ends == [(stage, event) for stage in stages for event in ("start", "end")]
    told = [(e["done"], e["total"], e["unit"]) for e in events if e["stage"] == "match"]
    assert (told[0], told[-1]) == ((0, 3, "files"), (3, 3, "files"))


def test_a_listener_stops_it(frames: Path, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.stage == "match":
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        zmrs.mosaic(frames, tmp_path / "out.fits", progress=stop)
    assert not list(tmp_path.iterdir())


def test_levels_agree(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    done = run("mosaic", frames, "-o", out, *OFFSET)
    assert done.status == 0, done.err
    assert "matched 3 inputs by 2 overlaps, connected groups: 1, rms" in done.err
    offsets = fits.getdata(out, "INPUTS")["OFFSET"]
    np.testing.assert_allclose(offsets, np.mean(LEVELS) - np.array(LEVELS), atol=1e-4)
    assert np.nanmax(np.abs(fits.getdata(out) - np.mean(LEVELS))) < 1e-3


def test_one_input_has_nothing_to_agree_with(frames: Path, tmp_path: Path) -> None:
    """It is read once."""
    (one, *_) = sorted(frames.iterdir())
    told = json.loads(run("plan", one, *OFFSET, "--json").out)
    done = run_witnessed(tmp_path / "stats", "mosaic", one, "-o", tmp_path / "out.fits", *OFFSET)
    assert done.status == 0, done.err
    assert "matched" not in done.err
    assert told["read_bytes"] == done.stats["read_bytes"] == done.stats["input_bytes"]
    assert told["memory"]["terms"]["matching"] == 0
    assert np.nanmax(np.abs(fits.getdata(tmp_path / "out.fits") - LEVELS[0])) == 0
