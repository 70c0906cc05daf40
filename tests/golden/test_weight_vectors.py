"""Weights as the reference system has them, figure for figure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zmrs.weights import border_margins, frame_weights, radial_map

COUNTS = [10, 20, 40, 80]


def test_the_square_root_curve() -> None:
    weights = frame_weights(COUNTS)
    assert weights == pytest.approx([0.75, 0.8165, 1.1547, 1.35], abs=5e-5)
    unclipped = frame_weights(COUNTS, clip=(0.0, 10.0))
    assert unclipped == pytest.approx([math.sqrt(n / 30) for n in COUNTS])


def test_the_other_curves() -> None:
    n = np.array(COUNTS) / 30
    wide = (0.0, 10.0)
    assert frame_weights(COUNTS, curve="log", clip=wide) == pytest.approx(
        [1.0, 1.0, 1 + math.log(1 + 1 / 3), 1 + math.log(1 + 5 / 3)]
    )
    assert frame_weights(COUNTS, curve="softcap", clip=wide) == pytest.approx(
        1 + (n - 1) / (1 + np.abs(n - 1))
    )


def test_strength_and_clip_are_clamped_and_swapped() -> None:
    half = frame_weights(COUNTS, strength=0.5, clip=(10.0, 0.0))
    assert half == pytest.approx(1 + 0.5 * (np.sqrt(np.array(COUNTS) / 30) - 1))
    assert np.array_equal(frame_weights(COUNTS, strength=-1), np.ones(4))
    assert np.array_equal(frame_weights(COUNTS, strength=9), frame_weights(COUNTS, strength=2))


def test_the_radial_map() -> None:
    first = radial_map((5, 7), fraction=0.92, power=2, floor=0.10)[0]
    assert first == pytest.approx([0.1, 0.18765, 0.39848, 0.49148, 0.39848, 0.18765, 0.1], abs=5e-6)
    middle = radial_map((5, 7), fraction=0.8, power=2, floor=0)[2]
    assert middle == pytest.approx(
        [0.03997, 0.37377, 0.80568, 1, 0.80568, 0.37377, 0.03997], abs=5e-6
    )


def test_the_radial_map_keeps_its_bounds() -> None:
    assert radial_map((5, 7)).min() == 0.05
    assert np.array_equal(radial_map((9, 9), fraction=7), radial_map((9, 9), fraction=1))
    assert np.array_equal(radial_map((9, 9), fraction=0), radial_map((9, 9), fraction=0.1))
    assert radial_map((9, 9), floor=5).min() == 0.99


def test_the_border_mask() -> None:
    rows, columns = border_margins((200, 300), 3.0)
    assert (2 * rows, 2 * columns) == (12, 18)


def test_the_border_mask_keeps_its_bounds() -> None:
    assert border_margins((200, 300), 0.0) == (0, 0)
    assert border_margins((200, 300), -1.0) == (0, 0)
    assert border_margins((200, 300), 0.01) == (1, 1)
    assert border_margins((200, 301), 80.0) == (100, 150)
    assert border_margins((2, 300), 3.0) == (0, 0)
