"""SDS mode as the reference system has it, figure for figure."""

from __future__ import annotations

import numpy as np
import pytest

import sky
import zmrs
from zmrs import _zmrs
from zmrs.crop import well_covered_box
from zmrs.sds import cut_batches


def whole(shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (0, shape[1]), (0, shape[0])


def sizes(batches: list[list[int]]) -> list[int]:
    assert [sub for batch in batches for sub in batch] == sorted(
        sub for batch in batches for sub in batch
    )
    return [len(batch) for batch in batches]


def test_batches_of_subs_that_cover_everything() -> None:
    shape = (600, 800)
    assert sizes(cut_batches([whole(shape)] * 23, shape)) == [5, 5, 5, 8]


def test_batches_of_subs_that_cover_little() -> None:
    shape = (600, 800)
    small = ((10, 60), (20, 50))
    assert sizes(cut_batches([small] * 23, shape)) == [10, 13]


def test_batches_of_few_subs() -> None:
    shape = (600, 800)
    assert sizes(cut_batches([whole(shape)] * 3, shape)) == [3]
    assert cut_batches([], shape) == []
    # A sub beside the output is in no batch.
    aside = ((900, 950), (0, 10))
    assert cut_batches([whole(shape), aside, whole(shape)], shape) == [[0, 2]]


def test_levels_of_batches_agree() -> None:
    """Batches at 10, 20 and 5 come to one level: here the mean, there the first one's."""
    levels = [10.0, 20.0, 5.0]
    subs = [sub for sub in sky.alive(sky.constant_frames(levels)) for _ in range(2)]
    made = zmrs.mosaic(subs, mode="sds", batch=2)
    assert made.stats["batches"]["count"] == 3
    assert np.nanmedian(made.data) == pytest.approx(np.mean(levels), rel=2e-3)
    assert np.nanpercentile(made.data, 99) - np.nanpercentile(made.data, 1) < 0.1


def test_the_mask_of_low_coverage() -> None:
    coverage = np.array([[10.0, 4.0], [3.9, 0.0]], np.float32)
    image = np.ones((2, 2, 2), np.float32)
    _zmrs.blank_low_coverage_of_arrays(image, coverage, 0.4)
    assert coverage.tolist() == [[10.0, 4.0], [0.0, 0.0]]
    assert np.isnan(image[:, 1, 0]).all()
    assert (image[:, [0, 0, 1], [0, 1, 1]] == 1.0).all()


def test_the_crop() -> None:
    coverage = np.zeros((100, 200))
    coverage[30:60, 50:120] = 1.0
    rows, columns = well_covered_box(coverage, (8, 8))
    assert (columns.start, rows.start) == (42, 22)
    assert (columns.stop - columns.start, rows.stop - rows.start) == (86, 46)
    # The crop that follows the signal leaves 5 % of its height and width, rounded up.
    assert well_covered_box(coverage, (2, 4)) == (slice(28, 62), slice(46, 124))
    assert well_covered_box(np.zeros((3, 4)), (1, 1)) == (slice(0, 3), slice(0, 4))
