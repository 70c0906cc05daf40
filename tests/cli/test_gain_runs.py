"""`--match gain` as users run it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import clouds
import sky
from child import MIB, run, run_witnessed

GAIN = ("--match", "gain")


@pytest.fixture(scope="module")
def scene() -> clouds.Scene:
    return clouds.make((3, 2), (300, 400), channels=3, overlap=0.4)


@pytest.fixture(scope="module")
def frames(scene: clouds.Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    tiles = scene.raw()
    # One shows something else.
    tiles[5] = (tiles[5][0][:, ::-1].copy(), tiles[5][1])
    sky.write_tiles(folder, tiles)
    return folder


def test_the_output_tells_what_was_done(scene: clouds.Scene, frames: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out.fits", tmp_path / "log.txt"
    words = ("-o", out, *GAIN, "--log-file", log, "--progress", "json", "--memory", "300MiB")
    done = run_witnessed(tmp_path / "stats", "mosaic", frames, *words)
    assert done.status == 0, done.err
    with fits.open(out) as hdus:
        assert hdus[0].header["ZMMATCH"] == "gain"
        table = hdus["INPUTS"].data
        gains, offsets = np.array(table["GAIN"]), np.array(table["OFFSET"])
    assert gains.shape == offsets.shape == (6, 3)
    seen = (gains * scene.factors)[:5]
    assert np.abs(seen / seen.mean(axis=0) - 1).max() < 5e-3
    assert offsets.any()
    told = done.stats["match"]
    assert told["gain_range"] == [gains.min(), gains.max()]
    assert told["rejected_pairs"]
    assert all(5 in pair for pair in told["rejected_pairs"])
    assert "matched 6 inputs by " in done.err
    assert f"pairs rejected: {len(told['rejected_pairs'])}" in done.err
    assert log.read_text().count("contradict the other overlaps") == len(told["rejected_pairs"])
    assert "tile_006.fits contradict" in log.read_text()
    events = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    assert [e["done"] for e in events if (e["stage"], e["event"]) == ("match", "end")] == [6]
    stats = done.stats
    assert stats["hwm_bytes"] <= stats["projected_bytes"] <= stats["allowed_bytes"] == 300 * MIB


def test_with_a_second_pass(scene: clouds.Scene, frames: Path, tmp_path: Path) -> None:
    """Its gains come on top, and levels agree after both."""
    out = tmp_path / "out.fits"
    good = [path for path in sorted(frames.iterdir()) if path.stem != "tile_006"]
    done = run("mosaic", *good, "-o", out, *GAIN, "--two-pass", "--two-pass-sigma", "20")
    assert done.status == 0, done.err
    with fits.open(out) as hdus:
        assert hdus[0].header["ZMTWOP"]
        table = hdus["INPUTS"].data
        gains, again, offsets = (np.array(table[n]) for n in ("GAIN", "TWOPGAIN", "OFFSET"))
    factors, levels = scene.factors[:5], scene.levels[:5]
    assert np.ptp(again) > 0
    seen = gains * factors
    assert np.abs(seen / seen.mean(axis=0) - 1).max() < 5e-3
    found = again[:, None] * gains * (clouds.SKY_LEVEL * factors + levels) + offsets
    # Clouds that are multiplied differ by what the second pass has made of them.
    assert np.abs(found - found.mean(axis=0)).max() < 300 * np.ptp(again) + 0.1 * clouds.SIGMA


def test_a_plan_tells_what_will_be_read(frames: Path, tmp_path: Path) -> None:
    told = json.loads(run("plan", frames, *GAIN, "--json").out)
    done = run_witnessed(tmp_path / "stats", "mosaic", frames, "-o", tmp_path / "out.fits", *GAIN)
    assert told["read_bytes"] == done.stats["read_bytes"]
    assert told["read_bytes"] >= 2 * done.stats["input_bytes"]


@pytest.mark.parametrize(
    "words",
    [("--match-gain-limits", "2,3"), ("--match-sky", "90,10"), ("--match-offset-limit", "-3")],
)
def test_nonsense_is_a_usage_error(words: tuple[str, str], frames: Path, tmp_path: Path) -> None:
    done = run("mosaic", frames, "-o", tmp_path / "out.fits", *GAIN, *words)
    assert done.status == 2
    assert words[0] in done.err
    assert not list(tmp_path.iterdir())
