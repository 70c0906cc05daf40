"""Where the pixels of the output fall in an input: from two WCS to a grid that Rust interpolates.

``astropy.wcs`` is asked only at the nodes of a coarse grid over the input's footprint; between
them the engine interpolates.  The error of that is *measured* here, at cell centres and at seeded
random points, more closely where it is not negligible, and the spacing halved until it is within
the bound.  Cells for which no spacing does (the edge of a projection, a seam, look-up tables) keep
exact coordinates, pixel by pixel, in a scratch file, so that the bound holds for every pixel and
no memory is needed for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zmrs import _zmrs
from zmrs.sky import frame_change, pixel_area_deg2, sky_positions, unit_vectors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from astropy.wcs import WCS
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]
    Points = tuple[Vector, Vector]
    Numbers = NDArray[np.intp]

__all__ = ["MAX_COORD_ERROR_PX", "Geometry", "PixelMap", "footprint_box", "locate", "shifted_by"]

MAX_COORD_ERROR_PX = 1e-4
"""Bound on the error of interpolated coordinates, in input pixels."""

SPACINGS_PX = (128, 64, 32, 16, 8)
"""Grid spacings that are tried, in output pixels."""

CHUNK_POINTS = 1 << 16
"""Points that are given to wcslib at once: more would take many MiB and no less time."""

ROUND_TRIP_PX = 1e-3
"""A point whose way back misses its origin by more is invalid: the far side of the sky, or a
distortion that cannot be inverted there."""

CSC_ROUND_TRIP_DEG = 0.02
"""The COBE cube's own formulas for the way back are off by some 40 arcsec."""

# Failing cells become exact, instead of the spacing being halved again, if their pixels are few.
_FEW_PX = 1 << 14
_FEW = 0.02

# Smooth mappings are mostly wrong by 1e-7 px; with this share of the bound there may be a kink.
_NEGLIGIBLE = 0.1
# Where there may be one, this many points across a cell are looked at. Between two of them the
# error peaks at most a third higher, hence the margin.
_CLOSE_POINTS = 7
_KINK_MARGIN = 0.75
_ROUGH_MARGIN = 0.5

_IDENTITY_SPACING_PX = 256

_EDGE_STEP_PX = 64
_EDGE_STEPS = 16
# Frames that reach further than this from their middle may surround an edge of the output's sky.
_WIDE_DEG = 45.0
_CHECK_SEED = 20260101

Box = tuple[int, int, int, int]


class PixelMap:
    """Pixel coordinates of one WCS to those of another, by way of the sky.

    Parameters
    ----------
    source, target
        Two-dimensional celestial `astropy.wcs.WCS`.

    Attributes
    ----------
    finest_px
        Nothing in either is finer than so many pixels: the pitch of look-up tables, else infinite.
    is_rough
        One of them is not smooth anywhere: look-up tables have kinks, and wcslib computes the COBE
        cube in single precision.

    Notes
    -----
    Coordinates are 0-based with pixel centres at integers.  Points that do not exist in the
    target, or do not come back to the same place of the sky, are NaN.
    """

    def __init__(self, source: WCS, target: WCS) -> None:
        self.source, self.target = source, target
        self.is_rough = any(_has_tables(wcs) or _is_csc(wcs) for wcs in (source, target))
        self.finest_px = min(_table_pitch_px(wcs) for wcs in (source, target))
        self._change = frame_change(source, target)
        tolerance_deg = ROUND_TRIP_PX * np.sqrt(pixel_area_deg2(target))
        if _is_csc(target):
            tolerance_deg = max(tolerance_deg, CSC_ROUND_TRIP_DEG)
        self._tolerance_rad = np.radians(tolerance_deg)
        # wcslib inverts the projection and TPV; SIP and tables are astropy's, by iteration.
        self._iterates = target.sip is not None or _has_tables(target)

    def __call__(self, x: Vector, y: Vector) -> Points:
        """Map points; both arrays (n,) float64, in and out."""
        u, v = np.empty(x.size), np.empty(x.size)
        for start in range(0, x.size, CHUNK_POINTS):
            part = slice(start, start + CHUNK_POINTS)
            u[part], v[part] = self._chunk(x[part], y[part])
        return u, v

    def _chunk(self, x: Vector, y: Vector) -> Points:
        with np.errstate(all="ignore"):
            lon, lat = sky_positions(self.source, x, y)
            if self._change is not None:
                lon, lat = self._change(lon, lat)
            u, v = self._from_sky(lon, lat)
            missed = unit_vectors(lon, lat) - unit_vectors(*sky_positions(self.target, u, v))
            # For small angles chord and arc are the same; NaN is astray too.
            astray = ~(np.einsum("ni,ni->n", missed, missed) <= self._tolerance_rad**2)
        u[astray] = v[astray] = np.nan
        return u, v

    def _from_sky(self, lon: Vector, lat: Vector) -> Points:
        wcs = self.target
        world = np.empty((lon.size, 2))
        world[:, wcs.wcs.lng], world[:, wcs.wcs.lat] = lon, lat
        if self._iterates:
            finite = np.isfinite(lon)
            pixel = np.full_like(world, np.nan)
            pixel[finite] = wcs.all_world2pix(
                world[finite], 0, tolerance=1e-7, maxiter=30, quiet=True
            )
        else:
            pixel = wcs.wcs_world2pix(world, 0)
        return pixel[:, 0].copy(), pixel[:, 1].copy()


def _has_tables(wcs: WCS) -> bool:
    names = ("cpdis1", "cpdis2", "det2im1", "det2im2")
    return any(getattr(wcs, name) is not None for name in names)


def _table_pitch_px(wcs: WCS) -> float:
    """Distance of the nodes of the finest look-up table, in pixels; infinite without any."""
    tables = (wcs.cpdis1, wcs.cpdis2, wcs.det2im1, wcs.det2im2)
    pitches = [abs(step) for table in tables if table is not None for step in table.cdelt]
    return float(min(pitches, default=np.inf))


def _is_csc(wcs: WCS) -> bool:
    return bool(wcs.wcs.ctype[wcs.wcs.lng][5:8] == "CSC")


@dataclass(frozen=True)
class Geometry:
    """Where output pixels fall in one input.

    Attributes
    ----------
    grid
        What the engine interpolates.
    error_px
        Largest measured error of an interpolated coordinate, in input pixels.
    exact_fraction
        Fraction of the touched cells that keep exact coordinates.
    """

    grid: _zmrs.CoordGrid
    error_px: float
    exact_fraction: float


NODE_BYTES = 200
"""Memory that a node takes while its grid is made and checked (measured: 130 to 190)."""


class TooManyNodesError(Exception):
    """A coordinate grid would have `n_nodes` nodes, more than there is memory for."""

    def __init__(self, n_nodes: int) -> None:
        super().__init__(f"{n_nodes} nodes")
        self.n_nodes = n_nodes


def locate(
    output: tuple[WCS, tuple[int, int]],
    image: tuple[WCS, tuple[int, int]],
    scratch: Callable[[], Path],
    max_error_px: float = MAX_COORD_ERROR_PX,
    most_nodes: int | None = None,
) -> Geometry | None:
    """Find where the pixels of the output fall in an input.

    Parameters
    ----------
    output, image
        The WCS and the shape (H, W) of each.
    scratch
        Called when exact cells are needed: gives the path of a file to make.
    max_error_px
        Bound on the error of coordinates, in input pixels.
    most_nodes
        Nodes that there is memory for.

    Raises
    ------
    TooManyNodesError
        The grid would have more.

    Returns
    -------
    Geometry or None
        None when the input does not touch the output.
    """
    forward = PixelMap(output[0], image[0])
    box = footprint_box(PixelMap(image[0], output[0]), image[1], output[1])
    if box is None:
        return None
    # Points that are looked at must not be further apart than the nodes of a look-up table: what
    # lies between them would be stepped over.
    finest_px = _CLOSE_POINTS * forward.finest_px
    for spacing in [s for s in SPACINGS_PX if s <= finest_px] or SPACINGS_PX[-1:]:
        n_nodes = ((box[2] - box[0]) // spacing + 4) * ((box[3] - box[1]) // spacing + 4)
        if most_nodes is not None and n_nodes > most_nodes:
            raise TooManyNodesError(n_nodes)
        lattice = _Lattice(box, spacing, image[1], forward)
        error_px, failing = lattice.check(max_error_px)
        if spacing > finest_px:
            error_px, failing = 0.0, np.flatnonzero(lattice.grid.cells())
        if failing.size * spacing**2 <= max(_FEW_PX, _FEW * lattice.area):
            break
        box = lattice.busy_box(failing, box)
    grid = lattice.with_exact(failing, scratch) if failing.size else lattice.grid
    cells = grid.cells()
    touched = int((cells > 0).sum())
    return Geometry(grid, error_px, float((cells == 2).sum() / touched)) if touched else None


def shifted_by(x0: int, y0: int, shape: tuple[int, int]) -> Geometry:
    """Coordinates of a frame (H, W) on the output's own grid, its first pixel at (x0, y0) there.

    All are whole numbers, at which every kernel gives the pixel itself, bit for bit.
    """
    step = _IDENTITY_SPACING_PX
    down, across = (-(-size // step) for size in shape)
    y, x = (step * np.arange(-1.0, count + 2) for count in (down, across))
    nodes: Vector = np.stack(np.meshgrid(x, y), axis=-1)
    height, width = shape
    grid = _zmrs.CoordGrid((x0, y0), step, (across, down), (width, height), nodes)
    return Geometry(grid, 0.0, 0.0)


# ----------------------------------------------------------------------------------- the footprint


def footprint_box(inverse: PixelMap, shape: tuple[int, int], canvas: tuple[int, int]) -> Box | None:
    """Output pixels (x0, y0, x1, y1), half-open, that hold the footprint of an input.

    Parameters
    ----------
    inverse
        From the input to the output.
    shape, canvas
        (H, W) of the input and of the output.

    Returns
    -------
    box or None
        Points on the border of the frame and a lattice within decide, when all of them exist on
        the output and no step between neighbours jumps; else it is the whole canvas.  None if
        nothing of the footprint is on the canvas.
    """
    height, width = shape
    whole = (0, 0, canvas[1], canvas[0])
    inner_x, inner_y = np.meshgrid(_span(width, _EDGE_STEPS), _span(height, _EDGE_STEPS))
    if _reach_deg(inverse.source, inner_x, inner_y) > _WIDE_DEG:
        return whole
    x, y = _border(width, height)
    u, v = inverse(np.concatenate([x, inner_x.ravel()]), np.concatenate([y, inner_y.ravel()]))
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        return whole
    border = np.hypot(np.diff(u[: x.size]), np.diff(v[: x.size]))
    inner = np.stack([u[x.size :], v[x.size :]]).reshape(2, *inner_x.shape)
    steps = [border, *(np.hypot(*np.diff(inner, axis=axis)) for axis in (1, 2))]
    if any(s.max() > 8 * max(float(np.median(s)), 1.0) for s in steps):
        return whole
    # Between two samples a curved border may bulge by a fraction of a step.
    margin = 2 + int(0.02 * border.max())
    x0, y0 = max(int(u.min()) - margin, 0), max(int(v.min()) - margin, 0)
    x1, y1 = min(int(u.max()) + margin + 1, canvas[1]), min(int(v.max()) + margin + 1, canvas[0])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _span(length: int, steps: int) -> Vector:
    """Points from edge to edge of `length` pixels."""
    return np.linspace(-0.5, length - 0.5, steps + 1)


def _border(width: int, height: int) -> Points:
    """Points once around the outer edge of a frame, the first one again at the end."""
    across = _span(width, max(width // _EDGE_STEP_PX, _EDGE_STEPS))
    down = _span(height, max(height // _EDGE_STEP_PX, _EDGE_STEPS))
    x = np.concatenate([across, np.full(down.size, width - 0.5), across[::-1], 0 * down - 0.5])
    y = np.concatenate([0 * across - 0.5, down, np.full(across.size, height - 0.5), down[::-1]])
    return x, y


def _reach_deg(wcs: WCS, x: Vector, y: Vector) -> float:
    """Largest angle between the middle one of the points (n, n), n odd, and the others."""
    directions = unit_vectors(*sky_positions(wcs, x.ravel(), y.ravel()))
    cosines = directions @ directions[len(directions) // 2]
    return float(np.degrees(np.arccos(np.clip(cosines.min(), -1.0, 1.0))))


# -------------------------------------------------------------------------------------- the lattice


class _Lattice:
    """Cells of one spacing over a box, anchored to absolute output pixels.

    Attributes
    ----------
    grid
        The coordinate grid through the nodes, one ring more than the cells need on each side.
    """

    def __init__(self, box: Box, spacing: int, shape: tuple[int, int], forward: PixelMap) -> None:
        x0, y0, x1, y1 = box
        self.spacing = spacing
        self.origin = (x0 // spacing * spacing, y0 // spacing * spacing)
        self.across = -(-(x1 - self.origin[0]) // spacing)
        self.down = -(-(y1 - self.origin[1]) // spacing)
        self.frame = (shape[1], shape[0])
        self._forward = forward
        i = np.arange(-1.0, self.across + 2) * spacing + self.origin[0]
        j = np.arange(-1.0, self.down + 2) * spacing + self.origin[1]
        x, y = np.meshgrid(i, j)
        nodes = np.stack(forward(x.ravel(), y.ravel()), axis=-1).reshape(*x.shape, 2)
        self._finite = np.isfinite(nodes).all(axis=2)
        cells = (self.across, self.down)
        self.grid = _zmrs.CoordGrid(self.origin, spacing, cells, self.frame, nodes)

    @property
    def area(self) -> int:
        """Output pixels of all cells."""
        return self.across * self.down * self.spacing**2

    def check(self, max_error_px: float) -> tuple[float, Numbers]:
        """Largest error within the bound, and the cells (row · across + column) beyond it.

        At a cell's centre the error of cubic interpolation is largest.
        """
        smooth = np.flatnonzero(self.grid.cells() == 1)
        random = np.random.default_rng(_CHECK_SEED).random((2, smooth.size, 1))
        centre = np.full((smooth.size, 1), 0.5)
        u, v = (np.concatenate([centre, offsets], axis=1) for offsets in random)
        worst = self._errors(smooth, u, v)
        limit = np.full(smooth.size, max_error_px)
        is_rough = self._forward.is_rough
        doubtful = worst > (0.0 if is_rough else _NEGLIGIBLE * max_error_px)
        doubtful &= worst <= limit
        limit[doubtful] *= _ROUGH_MARGIN if is_rough else _KINK_MARGIN
        worst[doubtful] = np.maximum(
            worst[doubtful], self._errors(smooth[doubtful], *_close_points())
        )
        good = worst <= limit
        failing = np.concatenate([smooth[~good], self._torn()])
        return float(worst[good].max(initial=0.0)), np.sort(failing)

    def _errors(self, numbers: Numbers, u: Vector, v: Vector) -> Vector:
        """Largest distance of true and interpolated coordinates at points of each cell.

        ``u, v`` (cells or 1, points) are fractions of the spacing.
        """
        worst = np.empty(numbers.size)
        at_once = max(CHUNK_POINTS // u.shape[1], 1)
        for start in range(0, numbers.size, at_once):
            part = slice(start, start + at_once)
            rows = part if len(u) > 1 else slice(None)
            x, y = self._positions(numbers[part], u[rows], v[rows])
            true, got = self._forward(x, y), self.grid.at(x, y)
            error = np.hypot(got[0] - true[0], got[1] - true[1])
            # Coordinates where there are none are as wrong as can be.
            error[np.isnan(error)] = np.inf
            worst[part] = error.reshape(-1, u.shape[1]).max(axis=1)
        return worst

    def _positions(self, numbers: Numbers, u: Vector, v: Vector) -> Points:
        """Output positions, flat, of points of cells."""
        x = self.origin[0] + (numbers[:, None] % self.across + u) * self.spacing
        y = self.origin[1] + (numbers[:, None] // self.across + v) * self.spacing
        return x.ravel(), y.ravel()

    def _torn(self) -> Numbers:
        """Cells of whose sixteen nodes some are missing, and the frame near.

        Without any node they matter too: a whole sky may lie between four nodes.  So many of them
        that it would take long are looked at with the widest spacing only, which finds the skies.
        """
        finite = np.lib.stride_tricks.sliding_window_view(self._finite, (4, 4))
        n_nodes = finite.sum(axis=(2, 3))
        is_quick = int((n_nodes == 0).sum()) * _CLOSE_POINTS**2 < CHUNK_POINTS
        least = 0 if is_quick or self.spacing == SPACINGS_PX[0] else 1
        torn = np.flatnonzero((n_nodes >= least) & (n_nodes < 16))
        if not torn.size:
            return torn
        u, v = _close_points()
        # In input pixels: what may hide between two points, even if the scale grows fourfold.
        areas = pixel_area_deg2(self._forward.source), pixel_area_deg2(self._forward.target)
        reach = 4 * self.spacing / _CLOSE_POINTS * np.sqrt(areas[0] / areas[1])
        near = np.empty(torn.size, dtype=np.bool_)
        at_once = max(CHUNK_POINTS // u.size, 1)
        for start in range(0, torn.size, at_once):
            part = slice(start, start + at_once)
            seen = self._forward(*self._positions(torn[part], u, v))
            near[part] = self._in_frame(*seen, reach).reshape(-1, u.size).any(axis=1)
        return torn[near]

    def _in_frame(self, u: Vector, v: Vector, margin: float = 0.0) -> NDArray[np.bool_]:
        """Whether input positions lie in the frame or within ``margin`` of it; NaN does not."""
        width, height = self.frame
        low = -0.5 - margin
        return (u >= low) & (u <= width - 1 - low) & (v >= low) & (v <= height - 1 - low)

    def _around(self, numbers: Numbers) -> Numbers:
        """Add the empty cells beside some cells, about which their nodes say as little."""
        mask = np.zeros((self.down + 2, self.across + 2), dtype=np.bool_)
        rows, columns = np.divmod(numbers, self.across)
        for shift in np.ndindex(3, 3):
            mask[rows + shift[0], columns + shift[1]] = True
        beside = mask[1:-1, 1:-1].ravel() & (self.grid.cells() == 0)
        return np.union1d(numbers, np.flatnonzero(beside))

    def busy_box(self, failing: Numbers, box: Box) -> Box:
        """Reduce a box to what touches the frame, one cell more on each side."""
        busy = self.grid.cells() > 0
        busy[failing] = True
        rows, columns = np.divmod(np.flatnonzero(busy), self.across)
        s = self.spacing
        return (
            max(int(columns.min() - 1) * s + self.origin[0], box[0]),
            max(int(rows.min() - 1) * s + self.origin[1], box[1]),
            min(int(columns.max() + 2) * s + self.origin[0], box[2]),
            min(int(rows.max() + 2) * s + self.origin[1], box[3]),
        )

    def with_exact(self, failing: Numbers, scratch: Callable[[], Path]) -> _zmrs.CoordGrid:
        """Make the grid with failing cells kept pixel by pixel in the file of ``scratch``."""
        numbers = self._around(failing)
        edge = self.spacing
        bounds = np.full((numbers.size, 4), np.nan)
        v, u = (offsets.reshape(1, -1) / edge for offsets in np.mgrid[0:edge, 0:edge])
        at_once = max(CHUNK_POINTS // edge**2, 1)
        path = scratch()
        with path.open("wb") as file:
            for start in range(0, numbers.size, at_once):
                part = numbers[start : start + at_once]
                x, y = self._forward(*self._positions(part, u, v))
                outside = ~self._in_frame(x, y)
                x[outside] = y[outside] = np.nan
                file.write(np.stack([x, y], axis=-1).data)
                bounds[start : start + part.size] = _bounds(x, y, part.size)
        return self.grid.with_exact(numbers.astype(np.uint32), path, bounds)


def _close_points() -> Points:
    """Points (1, n) all over a cell, as fractions of its edge, no two further than 1/7 apart."""
    steps = (np.arange(_CLOSE_POINTS) + 0.5) / _CLOSE_POINTS
    u, v = np.meshgrid(steps, steps)
    return u.reshape(1, -1), v.reshape(1, -1)


def _bounds(u: Vector, v: Vector, cells: int) -> Vector:
    """Smallest boxes (cells, 4) around the valid coordinates of each cell; NaN without any."""
    u, v = u.reshape(cells, -1), v.reshape(cells, -1)
    low, high = np.fmin.reduce, np.fmax.reduce
    return np.stack([low(u, axis=1), low(v, axis=1), high(u, axis=1), high(v, axis=1)], axis=1)
