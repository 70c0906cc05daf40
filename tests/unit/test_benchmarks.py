"""What the benchmark of giant canvases checks, it can also find broken."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from child import MIB

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def giant(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from bench import giant

    yield giant
    for name in [name for name in sys.modules if name.partition(".")[0] == "bench"]:
        del sys.modules[name]


def a_good_one(giant: Any) -> Any:
    stats = {"allowed_bytes": 256 * MIB, "projected_bytes": 250 * MIB, "bands": 3}
    stats["two_pass"] = {"applied": True}
    told = {"grid": {"width": 800, "height": 800}, "scratch_bytes": 1000}
    run = giant.Run(1.0, 1.0, 240.0, stats)
    return giant.Measured(giant.woven(800), told, run, 1000, 0, [(0, 2), (1, 4), (0, 2)])


def test_nothing_is_broken(giant: Any) -> None:
    assert giant.broken(a_good_one(giant)) == []


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        ({"allowed_bytes": 239 * MIB, "projected_bytes": 239 * MIB}, "above what is allowed"),
        ({"projected_bytes": 239 * MIB}, "above what was projected"),
        ({"projected_bytes": 257 * MIB}, "more is projected than allowed"),
        ({"two_pass": {"applied": False}}, "given up"),
        ({"bands": 4}, "bands are others"),
    ],
)
def test_broken_figures(stats: dict[str, Any], words: str, giant: Any) -> None:
    good = a_good_one(giant)
    bad = replace(good, run=replace(good.run, stats=good.run.stats | stats))
    assert words in " ".join(giant.broken(bad))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"scratch_bytes": 1001}, "more than was foretold"),
        ({"scratch_bytes": 0}, "no scratch was seen"),
        ({"left_bytes": 1}, "left behind"),
        ({"depths": [(1, 2), (1, 1), (1, 2)]}, "no inputs overlap"),
        ({"told": {"grid": {"width": 800, "height": 799}, "scratch_bytes": 1000}}, "another size"),
    ],
)
def test_broken_promises(more: dict[str, Any], words: str, giant: Any) -> None:
    (said,) = giant.broken(replace(a_good_one(giant), **more))
    assert words in said


def test_a_gap(giant: Any) -> None:
    (said,) = giant.broken(replace(a_good_one(giant), case=giant.dense(800)))
    assert "nothing covers" in said


def test_a_disk_without_room(tmp_path: Path, giant: Any) -> None:
    made, wrong = giant.run_giants(tmp_path, [giant.dense(10_000_000)], tell=lambda _: None)
    assert made == []
    (said,) = wrong
    assert said.startswith("dense: NOT RUN: the dense canvas takes ")
    assert not list(tmp_path.iterdir())
