"""Opacities as the reference system has them, figure for figure."""

from __future__ import annotations

import numpy as np
import pytest

from zmrs.errors import UsageError
from zmrs.report.alpha import alpha_mask


def test_alpha_from_coverage() -> None:
    assert alpha_mask(coverage=[[0.0, 1.0, 4.0]]).tolist() == [[0, 63, 255]]
    assert alpha_mask(coverage=[[np.nan, -1.0, 2.0]]).tolist() == [[0, 0, 255]]
    assert alpha_mask(coverage=np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]


def test_alpha_from_an_alpha_map() -> None:
    assert alpha_mask(alpha=[[True, False]]).tolist() == [[255, 0]]
    assert alpha_mask(alpha=[[0.0, 0.25, 1.0]]).tolist() == [[0, 63, 255]]
    assert alpha_mask(alpha=[[-3.0, 7.9, 300.0]]).tolist() == [[0, 7, 255]]
    assert alpha_mask(alpha=np.array([[0, 1, 200]], np.uint8)).tolist() == [[0, 1, 200]]
    # An alpha map comes before the coverage.
    assert alpha_mask(alpha=[[True]], coverage=[[0.0]]).tolist() == [[255]]


def test_alpha_from_what_is_finite() -> None:
    image = np.ones((3, 1, 2))
    image[1, 0, 1] = np.nan
    assert alpha_mask(image=image).tolist() == [[255, 0]]
    assert alpha_mask(image=image[1]).tolist() == [[255, 0]]


def test_alpha_of_another_size() -> None:
    mask = alpha_mask(coverage=[[1.0, 2.0], [3.0, 4.0]], shape=(4, 3))
    assert mask.tolist() == [[63, 63, 127]] * 2 + [[191, 191, 255]] * 2


def test_nothing_to_go_by() -> None:
    with pytest.raises(UsageError, match="give opacities, a coverage or an image"):
        alpha_mask()
