"""Photometric matching beside ZeMosaic 4.5 (figures observed by running it).

Its least squares in entries (i, j, gain, offset) are right where entries form a tree, and for
offsets alone always; there the numbers are the same.  Where entries contradict each other around a
loop its gains shrink towards 0, where boxes are not near the first pixel its pairs are lost, and
only the component of its anchor is matched.  These faults are not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import sky
import zmrs
from zmrs import _zmrs, pipeline
from zmrs.config import Options

Line = tuple[int, int, float, float]

LOOP = [(0, 1, 1.02, 5.0), (1, 2, 0.97, -3.0), (0, 2, 1.05, 2.0)]
AREA = 1e4


def solve(
    lines: Sequence[Line], inputs: int = 3, anchor: int = 0, *, gains: bool = True
) -> np.ndarray[Any, Any]:
    """Gains and offsets, (N, 2).  Each line is entered twice, as the reference does."""
    entries = [(*line, AREA) for line in lines for _ in range(2)]
    return np.array(_zmrs.solve_entries(inputs, entries, anchor, gains))


def test_a_tree() -> None:
    wanted = [(1, 0), (0.980392, -4.901961), (1.010714, -1.869820)]
    np.testing.assert_allclose(solve(LOOP[:2]), wanted, atol=1e-6)


def test_offsets_alone() -> None:
    """The reference's M1."""
    np.testing.assert_allclose(solve(LOOP, gains=False), [(1, 0), (1, -5), (1, -2)], atol=1e-12)


def test_a_contradiction_does_not_shrink_gains() -> None:
    """The reference finds .03874, .03738, .03743, or, with M2, 1, .9, .9."""
    found = solve(LOOP)
    assert found[0].tolist() == [1.0, 0.0]
    # Around the loop the logarithms contradict each other by c; equal weights share it equally.
    c = np.log(1.05 / (1.02 * 0.97))
    logs = np.log(found[:, 0])
    np.testing.assert_allclose(logs[0] - logs[1] - np.log(1.02), c / 3, atol=1e-12)
    np.testing.assert_allclose(logs[1] - logs[2] - np.log(0.97), c / 3, atol=1e-12)
    np.testing.assert_allclose(logs[0] - logs[2] - np.log(1.05), -c / 3, atol=1e-12)
    assert np.abs(found[:, 0] - 1).max() < 0.04


def test_two_components_are_both_solved() -> None:
    """The reference has one anchor, for one of them."""
    found = solve([(0, 1, 1.1, 10.0), (2, 3, 0.8, -4.0)], 5, anchor=1)
    np.testing.assert_allclose(found[:2], [(1.1, 10.0), (1.0, 0.0)], atol=1e-12)
    np.testing.assert_allclose(found[2:4], [(1.0, 0.0), (1.25, 5.0)], atol=1e-12)
    assert found[4].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("match", ["offset", "gain"])
def test_overlaps_of_three_by_three(match: str) -> None:
    """The reference finds 6 of these 20: (1,2), (1,4), (1,5), (2,4), (2,5) and (4,5)."""
    boxes = [(y, y + 200, x, x + 200) for y in (0, 140, 280) for x in (0, 140, 280)]
    grid = sky.frame_wcs((480, 480))
    image = np.random.default_rng(1).normal(100.0, 1.0, (480, 480)).astype(np.float32)
    tiles = sky.cut_tiles(image, grid, boxes)
    prepared = pipeline.prepare(tiles, Options(match=match), grid=(grid, (480, 480)))
    solution = _zmrs.sample_lattice(prepared.job, prepared.plan).solve_offsets()
    neighbours = {
        (i, j)
        for j in range(9)
        for i in range(j)
        if abs(i % 3 - j % 3) <= 1 and abs(i // 3 - j // 3) <= 1
    }
    assert len(neighbours) == 20
    assert {pair[:2] for pair in solution.pairs} == neighbours
    result = zmrs.mosaic(tiles, wcs=grid, shape=(480, 480), match=match)
    assert result.stats["match"]["pairs"] == 20
