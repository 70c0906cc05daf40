"""Cutting the outskirts off an output grid that next to no input covers.

One stray sub among thousands would stretch a mosaic for nothing.  How many inputs cover which part
of the grid follows from their outlines, before a pixel is read: so the cut is part of the plan, and
no finished image has to be copied.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs.grid import Grid, footprints
from zmrs.sky import frame_of, transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from astropy.wcs import WCS
    from numpy.typing import ArrayLike, NDArray

__all__ = ["cropped", "outlines", "well_covered_box"]

log = logging.getLogger("zmrs")

LEAST_COVERAGE = 1e-3
LEAST_PART = 0.0025
"""Less coverage than both, the second as a part of the greatest, is next to none (ZeMosaic 4.5)."""
MARGIN_PX = 128
"""What is left around the rest (ZeMosaic 4.5)."""

_CELL_PX = 16

Box = tuple[slice, slice]


def well_covered_box(coverage: ArrayLike, margin: tuple[int, int]) -> Box:
    """Rows and columns that hold all that is well covered.

    Parameters
    ----------
    coverage
        (H, W) inputs or weights; NaN is none.
    margin
        Rows and columns that are left on each side, as far as there are some.

    Returns
    -------
    tuple of slices
        All rows and columns where nothing is covered.
    """
    covered = np.nan_to_num(np.asarray(coverage, np.float64))
    well = covered > max(LEAST_COVERAGE, LEAST_PART * covered.max(initial=0.0))
    box = []
    for axis, size, more in zip((1, 0), covered.shape, margin, strict=True):
        (found,) = np.nonzero(well.any(axis=axis))
        first, last = (found[0], found[-1]) if found.size else (0, size - 1)
        box.append(slice(max(0, int(first) - more), min(size, int(last) + 1 + more)))
    return box[0], box[1]


def cropped(
    grid: Grid, images: Sequence[tuple[WCS, tuple[int, int]]], names: Sequence[str]
) -> Grid:
    """The grid without outskirts that next to no input covers.

    Parameters
    ----------
    grid
        One that holds all inputs.
    images, names
        WCS and (height, width) of the inputs, and what messages call them.

    Returns
    -------
    Grid
        The same WCS, as seen from another first pixel; `grid` itself if nothing is cut off.
    """
    if len(images) * LEAST_PART <= 1:
        # A single input is more than that anywhere.
        return grid
    counts = _counts(grid, images, names)
    rows, columns = well_covered_box(counts, (0, 0))
    y0, y1 = _widened(rows, grid.height)
    x0, x1 = _widened(columns, grid.width)
    if (y1 - y0, x1 - x0) == grid.shape:
        return grid
    wcs = grid.wcs.deepcopy()
    wcs.wcs.crpix = wcs.wcs.crpix - [x0, y0]
    wcs.pixel_shape = (x1 - x0, y1 - y0)
    wcs.wcs.set()
    log.info(
        "grid cropped from %d x %d px: next to nothing covers the rest (--no-autocrop keeps it)",
        grid.width,
        grid.height,
    )
    return Grid(wcs, y1 - y0, x1 - x0)


def _widened(cells: slice, size: int) -> tuple[int, int]:
    first, past = cells.start * _CELL_PX - MARGIN_PX, cells.stop * _CELL_PX + MARGIN_PX
    return max(0, first), min(size, past)


def outlines(
    grid: Grid, images: Sequence[tuple[WCS, tuple[int, int]]], names: Sequence[str]
) -> list[NDArray[np.float64]]:
    """Corners of each input in pixels of the grid, (4, 2) x and y, in turn.

    More points stand for an input whose corners are not on the sky.  NaN is what the grid's
    projection does not show.
    """
    from astropy.coordinates import ICRS  # noqa: PLC0415  (imported long before)

    prints = footprints(images, names)
    lon, lat = transform(prints.lon, prints.lat, ICRS(), frame_of(grid.wcs))
    corners = np.column_stack(grid.wcs.wcs_world2pix(lon, lat, 0))
    return np.split(corners, np.searchsorted(prints.owner, np.arange(1, len(images))))


def _counts(
    grid: Grid, images: Sequence[tuple[WCS, tuple[int, int]]], names: Sequence[str]
) -> NDArray[np.int64]:
    """Inputs whose outline holds the middle of each cell of the grid."""
    counts = np.zeros([-(-size // _CELL_PX) for size in grid.shape], np.int64)
    middles = [(np.arange(size) + 0.5) * _CELL_PX - 0.5 for size in counts.shape]
    for corners in outlines(grid, images, names):
        rows, columns = (
            slice(*np.searchsorted(middle, (along.min(), along.max())))
            for middle, along in zip(middles, corners.T[::-1], strict=True)
        )
        inside = np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
        if len(corners) == 4:
            inside = _within(corners, middles[0][rows], middles[1][columns])
        counts[rows, columns] += inside
    return counts


def _within(corners: NDArray[Any], y: NDArray[Any], x: NDArray[Any]) -> NDArray[np.bool_]:
    """Which points (y, x) lie within a convex outline (4, 2), whichever way round it goes."""
    left, right = np.ones((2, y.size, x.size), bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        side = (bx - ax) * (y[:, None] - ay) - (by - ay) * (x - ax)
        left &= side >= 0
        right &= side <= 0
    return left | right
