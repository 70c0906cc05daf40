"""Where the pixels of the output fall in an input: from two WCS to a grid that Rust interpolates.

``astropy.wcs`` is asked only at the nodes of a coarse grid over the input's footprint; between
them the engine interpolates.  The error of that is *measured* here, at cell centres and at seeded
random points, and the spacing halved until it is within the bound.  Cells for which no spacing
does (the edge of a projection, look-up tables) keep exact coordinates, pixel by pixel, in a
scratch file, so that the bound holds for every pixel and no memory is needed for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs import _zmrs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Points = tuple[NDArray[np.float64], NDArray[np.float64]]

__all__ = ["MAX_COORD_ERROR_PX", "Geometry", "PixelMap", "locate"]

MAX_COORD_ERROR_PX = 1e-4
"""Bound on the error of interpolated coordinates, in input pixels."""

SPACINGS_PX = (128, 64, 32, 16, 8)
"""Grid spacings that are tried, in output pixels."""

EXACT_CHUNK_PX = 1 << 16
"""Pixels whose exact coordinates are computed at once (a few MiB in wcslib)."""

ROUND_TRIP_PX = 1e-3
"""A point whose way back misses its origin by more is invalid: the far side of the sky, or a
distortion that cannot be inverted there."""

_EDGE_STEP_PX = 64
_CHECK_SEED = 20260101


class PixelMap:
    """Pixel coordinates of one WCS to those of another, by way of the sky.

    Parameters
    ----------
    source, target
        Two-dimensional celestial `astropy.wcs.WCS`.

    Notes
    -----
    Coordinates are 0-based with pixel centres at integers.  Points that do not exist in the
    target, or do not come back to the same place of the sky, are NaN.
    """

    def __init__(self, source: Any, target: Any) -> None:
        self._source, self._target = source, target
        self._rotation = _frame_rotation(source, target)
        self._tolerance = np.radians(ROUND_TRIP_PX * _scale_deg(target))
        self._iterates = any(
            getattr(target, name) is not None
            for name in ("sip", "cpdis1", "cpdis2", "det2im1", "det2im2")
        )

    def __call__(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Points:
        """Map points; both arrays (n,) float64, in and out."""
        with np.errstate(all="ignore"):
            lon, lat = _to_sky(self._source, x, y)
            if self._rotation is not None:
                lon, lat = self._rotation(lon, lat)
            u, v = self._from_sky(lon, lat)
            back = _to_sky(self._target, u, v)
            astray = ~(_separation(lon, lat, *back) <= self._tolerance)
        u[astray] = np.nan
        v[astray] = np.nan
        return u, v

    def _from_sky(self, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> Points:
        wcs = self._target
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


def _to_sky(wcs: Any, x: NDArray[np.float64], y: NDArray[np.float64]) -> Points:
    world = wcs.all_pix2world(np.column_stack([x, y]), 0)
    return world[:, wcs.wcs.lng], world[:, wcs.wcs.lat]


def _scale_deg(wcs: Any) -> float:
    """Edge of the square whose area is that of a pixel, in degrees."""
    return float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))


def _unit(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors (3, n) of positions in degrees."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def _separation(
    lon: NDArray[np.float64],
    lat: NDArray[np.float64],
    other_lon: NDArray[np.float64],
    other_lat: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Chord between positions in degrees, in radians for small ones; NaN where either is."""
    chord = _unit(lon, lat) - _unit(other_lon, other_lat)
    return np.asarray(np.sqrt((chord**2).sum(axis=0)))


def _frame_rotation(source: Any, target: Any) -> Callable[..., Points] | None:
    """The change of sky frame between two WCS, or None when they share one.

    Between ICRS, FK5 and galactic it is one rotation, found by turning three axes; for frames
    that are related otherwise (FK4) astropy is asked for every point.
    """
    here, there = (source.wcs.radesys, source.wcs.equinox), (target.wcs.radesys, target.wcs.equinox)
    kinds = source.wcs.ctype[source.wcs.lng][:4], target.wcs.ctype[target.wcs.lng][:4]
    if kinds[0] == kinds[1] and str(here) == str(there):
        return None
    from astropy.coordinates import SkyCoord  # noqa: PLC0415  (0.2 s, rarely needed)
    from astropy.wcs.utils import wcs_to_celestial_frame  # noqa: PLC0415

    frames = wcs_to_celestial_frame(source), wcs_to_celestial_frame(target)
    if frames[0].is_equivalent_frame(frames[1]):
        return None

    def by_astropy(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> Points:
        turned = SkyCoord(lon, lat, unit="deg", frame=frames[0]).transform_to(frames[1])
        sphere = turned.spherical
        return sphere.lon.deg, sphere.lat.deg

    axes = _unit(*by_astropy(np.array([0.0, 90.0, 0.0]), np.array([0.0, 0.0, 90.0])))

    def by_matrix(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> Points:
        x, y, z = axes @ _unit(lon, lat)
        return np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y)))

    probe = np.array([10.0, 123.0, 250.0]), np.array([-70.0, 5.0, 40.0])
    rigid = _separation(*by_matrix(*probe), *by_astropy(*probe)).max() < 1e-12
    return by_matrix if rigid else by_astropy


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


def locate(
    output: tuple[Any, tuple[int, int]],
    image: tuple[Any, tuple[int, int]],
    scratch: Callable[[], Path],
    max_error_px: float = MAX_COORD_ERROR_PX,
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

    Returns
    -------
    Geometry or None
        None when the input does not touch the output.
    """
    forward = PixelMap(output[0], image[0])
    box = footprint_box(PixelMap(image[0], output[0]), image[1], output[1])
    if box is None:
        return None
    lattice = _Lattice(box, SPACINGS_PX[0], image[1])
    for spacing in SPACINGS_PX:
        lattice = _Lattice(box, spacing, image[1])
        grid = lattice.sample(forward)
        error_px, failing = lattice.check(grid, forward, max_error_px)
        if failing.size * spacing**2 <= max(EXACT_CHUNK_PX // 4, 0.02 * lattice.area):
            break
    touched = grid.cells() > 0
    if failing.size:
        grid = lattice.with_exact(grid, failing, forward, scratch())
        touched |= grid.cells() > 0
    if not touched.any():
        return None
    exact = float((grid.cells() == 2).sum() / touched.sum())
    return Geometry(grid, error_px, exact)


def footprint_box(
    inverse: PixelMap, shape: tuple[int, int], canvas: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Output pixels (x0, y0, x1, y1), half-open, that hold the footprint of an input.

    The border of the frame decides, when all of it exists on the output and no step along it
    jumps; else the whole canvas does.
    """
    height, width = shape
    x, y = _border(width, height)
    u, v = inverse(x, y)
    whole = (0, 0, canvas[1], canvas[0])
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        return whole
    steps = np.hypot(np.diff(u), np.diff(v))
    if steps.max() > 8 * max(np.median(steps), 1.0):
        return whole
    # Between two samples a curved border may bulge by a fraction of a step.
    margin = 2 + int(0.02 * steps.max())
    inner_x, inner_y = np.meshgrid(np.linspace(0, width - 1, 5), np.linspace(0, height - 1, 5))
    inner = inverse(inner_x.ravel(), inner_y.ravel())
    u, v = np.concatenate([u, inner[0]]), np.concatenate([v, inner[1]])
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        return whole
    x0, y0 = max(int(u.min()) - margin, 0), max(int(v.min()) - margin, 0)
    x1, y1 = min(int(u.max()) + margin + 1, canvas[1]), min(int(v.max()) + margin + 1, canvas[0])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _border(width: int, height: int) -> Points:
    """Points once around the outer edge of a frame, the first one again at the end."""
    across = np.linspace(-0.5, width - 0.5, max(width // _EDGE_STEP_PX, 4) + 1)
    down = np.linspace(-0.5, height - 0.5, max(height // _EDGE_STEP_PX, 4) + 1)
    x = np.concatenate([across, np.full(down.size, width - 0.5), across[::-1], 0 * down - 0.5])
    y = np.concatenate([0 * across - 0.5, down, np.full(across.size, height - 0.5), down[::-1]])
    return x, y


class _Lattice:
    """Cells of one spacing over a box, anchored to absolute output pixels."""

    def __init__(self, box: tuple[int, int, int, int], spacing: int, shape: tuple[int, int]):
        x0, y0, x1, y1 = box
        self.spacing = spacing
        self.origin = (x0 // spacing * spacing, y0 // spacing * spacing)
        self.across = -(-(x1 - self.origin[0]) // spacing)
        self.down = -(-(y1 - self.origin[1]) // spacing)
        self.frame = (shape[1], shape[0])

    @property
    def area(self) -> int:
        return self.across * self.down * self.spacing**2

    def sample(self, forward: PixelMap) -> _zmrs.CoordGrid:
        """The grid with its nodes, one ring more than the cells need on each side."""
        i = np.arange(-1, self.across + 2) * self.spacing + self.origin[0]
        j = np.arange(-1, self.down + 2) * self.spacing + self.origin[1]
        x, y = np.meshgrid(i.astype(float), j.astype(float))
        u, v = forward(x.ravel(), y.ravel())
        nodes = np.stack([u, v], axis=-1).reshape(self.down + 3, self.across + 3, 2)
        self._finite = np.isfinite(nodes).all(axis=2)
        cells = (self.across, self.down)
        return _zmrs.CoordGrid(self.origin, self.spacing, cells, self.frame, nodes)

    def check(
        self, grid: _zmrs.CoordGrid, forward: PixelMap, max_error_px: float
    ) -> tuple[float, NDArray[np.uint32]]:
        """Largest error within the bound, and the cells (row · across + column) beyond it."""
        number = np.arange(self.across * self.down)
        smooth = grid.cells() == 1
        broken = self._broken().ravel()
        looked_at = number[smooth | broken]
        column, row = looked_at % self.across, looked_at // self.across
        within = np.random.default_rng(_CHECK_SEED).random((2, looked_at.size))
        worst = np.zeros(looked_at.size)
        for u, v in ((0.5, 0.5), within):
            x = self.origin[0] + (column + u) * self.spacing
            y = self.origin[1] + (row + v) * self.spacing
            true = forward(x, y)
            near = self._in_frame(*true)
            got = grid.at(x, y)
            error = np.hypot(got[0] - true[0], got[1] - true[1])
            # A point that exists in only one of both ways is as wrong as can be.
            error[np.isnan(error)] = np.inf
            error[np.isnan(true[0]) & np.isnan(got[0])] = 0.0
            error[~near & np.isnan(got[0])] = 0.0
            worst = np.maximum(worst, error)
        # Where nodes are missing two points say too little: such a cell is exact if any of its
        # surroundings falls into the frame.
        worst[broken[looked_at]] = np.inf
        good = worst <= max_error_px
        error_px = float(worst[good].max(initial=0.0))
        return error_px, looked_at[~good].astype(np.uint32)

    def _broken(self) -> NDArray[np.bool_]:
        """Cells (down, across) with some, but not all, of their sixteen nodes missing."""
        finite = np.lib.stride_tricks.sliding_window_view(self._finite, (4, 4))
        return np.asarray(finite.any(axis=(2, 3)) & ~finite.all(axis=(2, 3)))

    def _in_frame(self, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
        width, height = self.frame
        return (u >= -0.5) & (u <= width - 0.5) & (v >= -0.5) & (v <= height - 0.5)

    def with_exact(
        self,
        grid: _zmrs.CoordGrid,
        numbers: NDArray[np.uint32],
        forward: PixelMap,
        path: Path,
    ) -> _zmrs.CoordGrid:
        """The grid with the cells `numbers` kept pixel by pixel in the file `path`."""
        edge = self.spacing
        bounds = np.full((numbers.size, 4), np.nan)
        dy, dx = np.mgrid[0:edge, 0:edge]
        at_once = max(EXACT_CHUNK_PX // edge**2, 1)
        with path.open("wb") as file:
            for start in range(0, numbers.size, at_once):
                part = numbers[start : start + at_once].astype(np.int64)
                x = self.origin[0] + (part % self.across * edge)[:, None] + dx.ravel()
                y = self.origin[1] + (part // self.across * edge)[:, None] + dy.ravel()
                u, v = forward(x.ravel().astype(float), y.ravel().astype(float))
                outside = ~self._in_frame(u, v)
                u[outside] = v[outside] = np.nan
                np.stack([u, v], axis=-1).tofile(file)
                bounds[start : start + part.size] = _bounds(u, v, part.size)
        return grid.with_exact(numbers, path, bounds)


def _bounds(
    u: NDArray[np.float64], v: NDArray[np.float64], cells: int
) -> NDArray[np.float64]:
    """Smallest boxes (cells, 4) around the valid coordinates of each cell; NaN without any."""
    u, v = u.reshape(cells, -1), v.reshape(cells, -1)
    low, high = np.fmin.reduce, np.fmax.reduce
    return np.stack([low(u, axis=1), low(v, axis=1), high(u, axis=1), high(v, axis=1)], axis=1)
