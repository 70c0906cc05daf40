"""The coadd of the reference system, number for number, where it is right; else what is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sky
import zmrs

SHAPE, TILE = (120, 160), (80, 100)
ORIGINS = ((0, 0), (0, 60), (40, 0), (40, 60), (20, 30))
GRID = sky.frame_wcs(SHAPE)
TILES = [
    (np.full(TILE, 100.0 + n, np.float32), sky.shifted_wcs(GRID, origin, TILE))
    for n, origin in enumerate(ORIGINS)
]
WEIGHTS = [1.0, 1.0, 1.0, 1.0, 2.0]


def made(**more: Any) -> zmrs.Result:
    return zmrs.mosaic(TILES, wcs=GRID, shape=SHAPE, **{"match": "none", "weights": WEIGHTS} | more)


def test_a_pixel_that_all_five_cover() -> None:
    result = made()
    assert result.data[60, 80] == pytest.approx(102.3333333, abs=1e-5)
    assert result.coverage[60, 80] == 6.0


def test_invalid_columns() -> None:
    """The reference writes 0 where nothing covers; zmrs says that there is nothing."""
    tiles = [(image.copy(), wcs) for image, wcs in TILES]
    tiles[0][0][:, 50:] = np.nan
    result = zmrs.mosaic(tiles, wcs=GRID, shape=SHAPE, match="none")
    assert np.isnan(result.data[10, 55])
    assert result.coverage[10, 55] == 0.0
    assert (result.data[10, 49], result.coverage[10, 49]) == (100.0, 1.0)


def test_the_median_which_the_reference_refuses() -> None:
    assert made(combine="median", weights=None).data[60, 80] == 102.0


def test_matched_levels_keep_their_mean() -> None:
    np.testing.assert_allclose(made(match="offset").data, 102.0, atol=1e-5)
