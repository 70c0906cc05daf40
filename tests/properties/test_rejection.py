"""Rejecting combines remove what is no sky and keep what is, within firm bounds.

The quick form of benchmarks/rejection.py: fewer stacks, the same simulation and the same measures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

# Depth, method: pixels removed at least, good samples lost at most, noise at most. The ideal is
# 0.997, 0 and 1: so many pixels of a mean without contaminants are within three sigma.
BOUNDS = [
    (5, "median", 0.85, 0.0, 1.22),
    (5, "kappa-sigma --kappa 2", 0.93, 0.10, 1.20),
    (5, "winsorized", 0.90, 0.025, 1.06),
    (10, "median", 0.93, 0.0, 1.20),
    (10, "kappa-sigma", 0.90, 0.001, 1.01),
    (10, "winsorized", 0.98, 0.015, 1.05),
    (30, "median", 0.96, 0.0, 1.24),
    (30, "kappa-sigma", 0.99, 0.003, 1.03),
    (30, "winsorized", 0.99, 0.008, 1.04),
    (30, "winsorized-reference", 0.70, 0.005, 1.02),
    (30, "winsor-percentile", 0.50, 0.12, 1.03),
]
STACKS = {5: 2, 10: 2, 30: 1}


@pytest.fixture(scope="module")
def rejection() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from bench import rejection

        yield rejection
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in [name for name in sys.modules if name.partition(".")[0] == "bench"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def scores(rejection: Any) -> dict[int, Any]:
    """Of every depth and method that is asked for below, and of the mean."""
    return {
        depth: rejection.evaluate(
            depth, stacks, ["mean", *(row[1] for row in BOUNDS if row[0] == depth)]
        )
        for depth, stacks in STACKS.items()
    }


@pytest.mark.parametrize(("depth", "name", "removed", "lost", "noise"), BOUNDS, ids=str)
def test_bounds(
    depth: int, name: str, removed: float, lost: float, noise: float, scores: Any
) -> None:
    score = scores[depth][name]
    assert score.hit["all"] > 5000
    assert removed < score.removed("all") < 0.998
    assert score.lost_part <= lost
    assert 0.98 < score.noise < noise


@pytest.mark.parametrize("depth", STACKS)
def test_a_mean_removes_nothing(depth: int, scores: Any) -> None:
    """So there is something to remove, and the measure of noise is right."""
    score = scores[depth]["mean"]
    assert score.removed("all") < 0.2
    assert score.lost == 0
    assert score.noise == pytest.approx(1.0, abs=0.02)


def test_the_very_samples_that_astropy_rejects(rejection: Any) -> None:
    stack = rejection.make_stack(12, 3)
    ours, theirs = (
        rejection.METHODS[name](stack) for name in ("kappa-sigma", "astropy sigma_clip")
    )
    assert theirs.rejected.any()
    np.testing.assert_array_equal(ours.rejected, theirs.rejected)
    np.testing.assert_allclose(ours.image, theirs.image, rtol=3e-7)


def test_more_than_a_single_round_removes(rejection: Any) -> None:
    pytest.importorskip("ccdproc")
    stack = rejection.make_stack(30, 3)
    images = [rejection.METHODS[name](stack) for name in ("ccdproc Combiner", "kappa-sigma")]
    once, ours = (rejection.error(stack, made) for made in images)
    assert (np.abs(ours) <= 3).mean() > 0.99 > 0.9 > (np.abs(once) <= 3).mean()
    rejected = [made.rejected for made in images]
    assert not (rejected[0] & ~rejected[1]).any(), "it rejects a part of what ours does"
