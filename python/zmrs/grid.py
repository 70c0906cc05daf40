"""The output grid: a WCS and a shape that hold all inputs, or that the user prescribes.

Without options the grid is the one that ``reproject.mosaicking.find_optimal_celestial_wcs`` gives
with its defaults (the tests compare the two): the frame of the first input, the finest pixel scale
of all, tangent point at the mean direction of the inputs' CRPIXs, north up, and just as large as
the inputs' corners demand.  Where that recipe fails (a CRPIX on the far side of the sky, corners
off the sky) ours goes on with the image centres and with points inside the images.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zmrs.errors import GridError, UsageError
from zmrs.scan import scan_template
from zmrs.sky import (
    finest_scale_deg,
    frame_of,
    lon_lat,
    pixel_area_deg2,
    separation_deg,
    sky_positions,
    sky_system,
    transform,
    unit_vectors,
)

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = [
    "Footprints",
    "Grid",
    "footprints",
    "grid_from_template",
    "input_pixel_scale_arcsec",
    "make_grid",
    "optimal_grid",
]

Vector = npt.NDArray[np.float64]
WcsAndShape = tuple["WCS", tuple[int, int]]

# A grid up to this size is never refused unasked: 1 GB a float32 plane, which one may mean.
_UNSUSPICIOUS_PIXELS = 250_000_000
# Larger ones are when they hold this many times the area of all inputs. Overlapping fields stay
# below 1, a sparse survey is still below 4; a stray pointing leads to tens or thousands.
_ABSURD_AREA_RATIO = 4.0
# A grid this many times finer than the finest input is a mistake: degrees for arcseconds, say.
_FINEST_RATIO = 20.0
# Beyond this (80 GB a plane) a grid is refused unasked, whatever the inputs claim to be.
_LARGEST_PIXELS = 2e10
# A tangent point so near a pole (0.4 mas) is the pole.
_POLE_DEG = 1e-7
_FINITE = float(np.finfo(np.float64).max)
# Points a side inside an image whose corners do not lie on the sky (an all-sky map).
_INNER_POINTS = 33


# --------------------------------------------------------------------------------------- Grid


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Output WCS and shape.

    Attributes
    ----------
    wcs
        Two-dimensional celestial WCS.
    height, width
        Pixels.
    """

    wcs: WCS
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    def to_header(self) -> list[tuple[str, str | int | float, str]]:
        """WCS cards of the output file, as (keyword, value, comment), without NAXIS cards.

        Astropy prints WCS numbers with 12 digits; here they are the full values, so that the
        grid read back is the grid that was used, to the 15 digits that fit on a card.
        """
        exact = _exact_numbers(self.wcs)
        header = self.wcs.to_header(relax=True)
        # Times belong to exposures; a template's must not date the mosaic.
        timeless = (c for c in header.cards if not c.keyword.startswith(("DATE", "MJD")))
        return [(c.keyword, exact.get(c.keyword, c.value), c.comment) for c in timeless]

    def description(self) -> str:
        """One line: size, pixel scale, projection, centre."""
        wcs = self.wcs.wcs
        middle = np.array([[(self.width - 1) / 2], [(self.height - 1) / 2]])
        lon, lat = sky_positions(self.wcs, *middle)
        scale = input_pixel_scale_arcsec(self.wcs, self.shape)
        code = str(wcs.ctype[wcs.lng])[5:8]
        if str(wcs.ctype[wcs.lng]).startswith("GLON"):
            place = f"l {lon[0]:.5f} b {lat[0]:+.5f} deg (galactic)"
        else:
            place = f"RA {lon[0]:.5f} Dec {lat[0]:+.5f} deg ({wcs.radesys or 'ICRS'})"
        return f"{self.width} x {self.height} px, {scale:.4g} arcsec/px, {code}, centre {place}"


def _exact_numbers(wcs: WCS) -> dict[str, float]:
    """WCS numbers with all their digits, by the keywords under which astropy writes them."""
    numbers: dict[str, float] = {}
    matrix = wcs.wcs.get_pc()
    for i in range(2):
        numbers[f"CRPIX{i + 1}"] = float(wcs.wcs.crpix[i])
        numbers[f"CRVAL{i + 1}"] = float(wcs.wcs.crval[i])
        # With a CD matrix astropy writes PC = CD and CDELT = 1.
        numbers[f"CDELT{i + 1}"] = float(wcs.wcs.get_cdelt()[i])
        for j in range(2):
            numbers[f"PC{i + 1}_{j + 1}"] = float(matrix[i, j])
    return numbers


def input_pixel_scale_arcsec(wcs: WCS, shape: tuple[int, int]) -> float:
    """Pixel scale at the middle of an image, arcseconds.

    Parameters
    ----------
    wcs, shape
        Celestial WCS and (height, width).

    Returns
    -------
    float
        Square root of the sky area of the middle pixel, distortions included; from the matrix
        alone if the middle does not lie on the sky.
    """
    y, x = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    lon, lat = sky_positions(
        wcs, x + np.array([-0.5, 0.5, 0.0, 0.0]), y + np.array([0.0, 0.0, -0.5, 0.5])
    )
    left, right, low, high = unit_vectors(lon, lat)
    area = float(np.linalg.norm(np.cross(right - left, high - low)))
    if not math.isfinite(area) or area <= 0:
        return math.sqrt(pixel_area_deg2(wcs)) * 3600
    return math.degrees(math.sqrt(area)) * 3600


# ------------------------------------------------------------------------- the inputs' outlines


@dataclass(frozen=True, slots=True)
class Footprints:
    """Points of all inputs on the sky, ICRS degrees.

    ``lon, lat`` (n_points) are the points that the grid must hold, ``owner`` (n_points) says
    which input each belongs to; ``crpix`` and ``centre`` (n, 3) are the directions of the
    reference pixels and of the image middles, NaN where those are not on the sky.
    """

    lon: Vector
    lat: Vector
    owner: npt.NDArray[np.intp]
    crpix: Vector
    centre: Vector


def _image_points(wcs: WCS, shape: tuple[int, int]) -> tuple[Vector, Vector]:
    """Sky positions of an image: CRPIX, the middle, then the points that the grid must hold.

    CRPIX stands for CRVAL, from which a TPV distortion may shift it.  The corners are pixel
    corners.  If one of them is not on the sky, a lattice of points over the image stands in
    for all four.
    """
    height, width = shape
    ref_x, ref_y = wcs.wcs.crpix - 1
    x = np.array([ref_x, (width - 1) / 2, -0.5, width - 0.5, width - 0.5, -0.5])
    y = np.array([ref_y, (height - 1) / 2, -0.5, -0.5, height - 0.5, height - 0.5])
    lon, lat = sky_positions(wcs, x, y)
    if not np.isfinite(lon[2:] + lat[2:]).all():
        xs, ys = np.meshgrid(
            np.linspace(-0.5, width - 0.5, _INNER_POINTS),
            np.linspace(-0.5, height - 0.5, _INNER_POINTS),
        )
        inner_lon, inner_lat = sky_positions(wcs, xs.ravel(), ys.ravel())
        valid = np.isfinite(inner_lon + inner_lat)
        lon = np.concatenate([lon[:2], inner_lon[valid]])
        lat = np.concatenate([lat[:2], inner_lat[valid]])
    return lon, lat


def footprints(images: Sequence[WcsAndShape], names: Sequence[str]) -> Footprints:
    """Evaluate all inputs, then change frames once for each sky system."""
    from astropy.coordinates import ICRS  # noqa: PLC0415

    points = [_image_points(wcs, shape) for wcs, shape in images]
    counts = np.array([len(lon) for lon, _ in points])
    if counts.min() <= 2:
        name = names[int(np.argmin(counts))]
        raise GridError(f"{name}: no point of the image lies on the sky; leave it out.")
    lon = np.concatenate([p[0] for p in points])
    lat = np.concatenate([p[1] for p in points])
    systems = [sky_system(wcs) for wcs, _ in images]
    for system in dict.fromkeys(systems):
        members = np.repeat([s == system for s in systems], counts)
        frame = frame_of(images[systems.index(system)][0])
        lon[members], lat[members] = transform(lon[members], lat[members], frame, ICRS())
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    owner = np.repeat(np.arange(len(images)), counts)
    is_corner = np.ones(len(lon), dtype=bool)
    is_corner[first] = is_corner[first + 1] = False
    return Footprints(
        lon[is_corner],
        lat[is_corner],
        owner[is_corner],
        unit_vectors(lon[first], lat[first]),
        unit_vectors(lon[first + 1], lat[first + 1]),
    )


# --------------------------------------------------------------------------------- optimal grid


@dataclass(frozen=True, slots=True)
class _Extent:
    """Box around all points in pixels relative to the tangent point: right and up positive."""

    x_min: float
    x_max: float
    y_min: float
    y_max: float

    @property
    def is_finite(self) -> bool:
        """Whether all points fell on the grid's side of the sky."""
        return math.isfinite(self.x_min + self.x_max + self.y_min + self.y_max)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in whole pixels, at least 1."""
        return (
            max(1, round(self.x_max - self.x_min)),
            max(1, round(self.y_max - self.y_min)),
        )

    @property
    def n_pixels(self) -> float:
        """Size of the box, infinite if some point is not on the grid's side of the sky."""
        return float(math.prod(self.size)) if self.is_finite else math.inf


def _bare_wcs(frame: Any, projection: str, scale_deg: float, rotate_deg: float | None) -> WCS:
    """WCS of the grid, its tangent point still at (0, 0) and its CRPIX at 0."""
    from astropy.wcs.utils import celestial_frame_to_wcs  # noqa: PLC0415

    try:
        wcs = celestial_frame_to_wcs(frame, projection=projection)
    except (ValueError, TypeError) as error:
        raise GridError(
            "the sky system of the first input cannot be that of a grid; use --frame."
        ) from error
    wcs.wcs.cdelt = [-scale_deg, scale_deg]
    wcs.wcs.crpix = [0.0, 0.0]
    if rotate_deg:
        c, s = math.cos(math.radians(rotate_deg)), math.sin(math.radians(rotate_deg))
        wcs.wcs.pc = [[c, -s], [s, c]]
    return wcs


def _extent(wcs: WCS, lon: Vector, lat: Vector, crval: tuple[float, float]) -> _Extent:
    """Put the tangent point of ``wcs`` at ``crval`` and measure the box of the points."""
    wcs.wcs.crval = crval
    try:
        wcs.wcs.set()
    # wcslib has a class for each kind of bad parameter, all of them ValueErrors.
    except ValueError as error:
        code = str(wcs.wcs.ctype[0])[5:]
        raise UsageError(
            f"--projection {code} cannot be used for an output grid; use TAN, SIN, ZEA or CAR."
        ) from error
    x, y = wcs.wcs_world2pix(lon, lat, 0)
    # CRPIX 0 is pixel -1 when counted from 0.
    return _Extent(*(float(v) + 1 for v in (x.min(), x.max(), y.min(), y.max())))


def _mean_direction(directions: Vector) -> Vector | None:
    """Mean of unit vectors (n, 3), rows with NaN ignored; None if they cancel."""
    valid = directions[np.isfinite(directions).all(axis=1)]
    mean = valid.mean(axis=0) if len(valid) else np.zeros(3)
    return mean if float(np.linalg.norm(mean)) > 1e-9 else None


def _check_options(
    *,
    frame: str | None,
    scale_arcsec: float | None,
    projection: str,
    rotate_deg: float | None,
    center: tuple[float, float] | None,
    size: tuple[int, int] | None,
) -> None:
    """Refuse options that make no sense, by the names that the user typed."""
    if frame not in (None, "icrs", "galactic"):
        raise UsageError(f"--frame {frame}: not a known frame; use icrs or galactic.")
    if scale_arcsec is not None and not (math.isfinite(scale_arcsec) and scale_arcsec > 0):
        raise UsageError(f"--scale {scale_arcsec}: not a pixel scale; give arcseconds above 0.")
    if not re.fullmatch(r"[A-Z]{3}", projection):
        raise UsageError(f"--projection {projection}: not a projection code; use one like TAN.")
    if rotate_deg is not None and not math.isfinite(rotate_deg):
        raise UsageError(f"--rotate {rotate_deg}: not an angle; give degrees.")
    if center is not None and not (abs(center[0]) <= 360 and abs(center[1]) <= 90):
        raise UsageError(f"--center {center[0]},{center[1]}: not on the sky; give degrees.")
    if size is not None and min(size) < 1:
        raise UsageError(f"--size {size[0]}x{size[1]}: not a size; give WIDTHxHEIGHT above 0.")


def optimal_grid(
    images: Sequence[WcsAndShape],
    *,
    frame: str | None = None,
    scale_arcsec: float | None = None,
    projection: str = "TAN",
    rotate_deg: float | None = None,
    center: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    names: Sequence[str] | None = None,
    max_output_pixels: float | None = None,
) -> Grid:
    """Grid that holds all inputs.

    Parameters
    ----------
    images
        (wcs, (height, width)) of each input.
    frame
        ``icrs``, ``galactic``, or None for the frame of the first input.
    scale_arcsec
        Pixel scale; None takes the finest of the inputs.
    projection
        Three-letter FITS code.
    rotate_deg
        Position angle of the grid's y axis, degrees east of north.
    center
        ICRS RA and Dec, degrees, of the tangent point, which then also is the middle of the
        grid; without ``size`` the grid reaches equally far to both sides.
    size
        (width, height) in pixels; without ``center`` about the middle of the inputs.
    names
        Of the inputs, for messages.
    max_output_pixels
        Larger grids are refused.  None: 2.5e8, or 4 times the area of all inputs if that is
        more, and no limit where ``size`` is given.

    Returns
    -------
    Grid

    Raises
    ------
    zmrs.errors.UsageError
        A bad option.
    zmrs.errors.GridError
        An absurd extent; the message names the inputs that stretch it.
    """
    from astropy.coordinates import ICRS, Galactic  # noqa: PLC0415

    _check_options(
        frame=frame,
        scale_arcsec=scale_arcsec,
        projection=projection,
        rotate_deg=rotate_deg,
        center=center,
        size=size,
    )
    if not images:
        raise GridError("there is no input to make an output grid for; name some images.")
    names = names or [f"input {n}" for n in range(1, len(images) + 1)]
    named = {"icrs": ICRS(), "galactic": Galactic()}
    target = named[frame] if frame else frame_of(images[0][0])
    finest = min(finest_scale_deg(wcs) for wcs, _ in images)
    scale_deg = finest if scale_arcsec is None else scale_arcsec / 3600
    wcs = _bare_wcs(target, projection, scale_deg, rotate_deg)
    prints = footprints(images, names)
    limit = _limit_pixels(images, scale_deg) if max_output_pixels is None else max_output_pixels
    extent = _place(wcs, prints, target, center, limit)
    # With a size and a centre the inputs need not fit; with a size alone they need a middle.
    largest = limit if size is None else (math.inf if center else _FINITE)
    if extent is None or extent.n_pixels > largest:
        raise _stretched(prints, names, scale_deg, limit, extent)
    grid = _lay_out(wcs, extent, center is not None, size)
    if size is not None and max_output_pixels is not None:
        _check_prescribed(grid, max_output_pixels)
    return grid


def _limit_pixels(images: Sequence[WcsAndShape], scale_deg: float) -> float:
    """Default limit of the grid's size, from the area of the inputs in output pixels."""
    area = sum(math.prod(shape) * pixel_area_deg2(wcs) for wcs, shape in images)
    finest_deg = min(finest_scale_deg(wcs) for wcs, _ in images)
    if scale_deg < finest_deg / _FINEST_RATIO:
        raise UsageError(
            f"--scale {scale_deg * 3600:g}: the finest input has {finest_deg * 3600:.4g} arcsec a "
            "pixel; give arcseconds, or --max-output-pixels if that is meant."
        )
    wanted = max(_UNSUSPICIOUS_PIXELS, _ABSURD_AREA_RATIO * area / scale_deg**2)
    return min(wanted, _LARGEST_PIXELS)


def _place(
    wcs: WCS,
    prints: Footprints,
    target: Any,
    center: tuple[float, float] | None,
    limit: float,
) -> _Extent | None:
    """Choose the tangent point, set it in ``wcs``, and return the box of the inputs.

    First choice without ``center`` is the mean direction of the CRPIXs, as in reproject.  It may
    be far from the images (cut-outs of an all-sky map share a CRPIX): when the grid comes out
    impossible, the mean of the image centres is used.  None if the inputs have no mean.
    """
    from astropy.coordinates import ICRS  # noqa: PLC0415

    lon, lat = transform(prints.lon, prints.lat, ICRS(), target)
    if center is not None:
        candidates = [center]
    else:
        means = (_mean_direction(prints.crpix), _mean_direction(prints.centre))
        places = [lon_lat(m) for m in means if m is not None]
        candidates = [(float(lon), float(lat)) for lon, lat in places]
    extent: _Extent | None = None
    for candidate in candidates:
        ra, dec = (np.array([v]) for v in candidate)
        x, y = transform(ra, dec, ICRS(), target)
        # At a pole the longitude is rounding noise, yet it would turn the grid: 0 is as good.
        is_pole = abs(float(y[0])) > 90 - _POLE_DEG
        extent = _extent(wcs, lon, lat, (0.0 if is_pole else float(x[0]), float(y[0])))
        if extent.n_pixels <= limit:
            break
    return extent


def _lay_out(wcs: WCS, extent: _Extent, is_centred: bool, size: tuple[int, int] | None) -> Grid:
    """Set CRPIX and ``pixel_shape`` from the box of the inputs or from the prescribed size."""
    if is_centred:
        half_x = max(-extent.x_min, extent.x_max)
        half_y = max(-extent.y_min, extent.y_max)
        # The small allowance keeps rounding of an exact fit from adding a pixel.
        width, height = size or (
            max(1, math.ceil(2 * half_x - 1e-6)),
            max(1, math.ceil(2 * half_y - 1e-6)),
        )
        crpix = ((width + 1) / 2, (height + 1) / 2)
    elif size is not None:
        width, height = size
        middle = ((extent.x_min + extent.x_max) / 2, (extent.y_min + extent.y_max) / 2)
        crpix = ((width + 1) / 2 - middle[0], (height + 1) / 2 - middle[1])
    else:
        width, height = extent.size
        # The lower left corner of the box is the corner of the first pixel, at FITS 0.5.
        crpix = (0.5 - extent.x_min, 0.5 - extent.y_min)
    wcs.wcs.crpix = crpix
    wcs.wcs.set()
    wcs.pixel_shape = (width, height)
    return Grid(wcs, height, width)


# -------------------------------------------------------------------------------- absurd extents


def _stretched(
    prints: Footprints,
    names: Sequence[str],
    scale_deg: float,
    limit: float,
    extent: _Extent | None,
) -> GridError:
    """Error for an absurd extent, naming up to three inputs that cause it.

    Greedy: take out the input without which the box is smallest, until what is left would do.
    """
    middle, centres = _robust_middle(prints)
    corners = _flat(unit_vectors(prints.lon, prints.lat), middle) / scale_deg
    boxes = np.array([_box(corners[prints.owner == n]) for n in range(len(names))])
    left = np.ones(len(names), dtype=bool)
    blamed: list[int] = []
    while len(blamed) < min(3, len(names) - 1) and _box_pixels(boxes[left]) > limit:
        blamed.append(_worst(boxes, left, separation_deg(centres, middle)))
        left[blamed[-1]] = False
    if _box_pixels(boxes) <= limit or not blamed:
        blamed = list(np.argsort(-separation_deg(centres, middle), kind="stable")[:3])
    far = ", ".join(
        f"{names[n]} ({float(separation_deg(centres[n], middle)):.4g} deg away)" for n in blamed
    )
    if extent is not None and extent.is_finite:
        wide = f"would be {extent.size[0]} x {extent.size[1]} pixels (limit {limit:.3g})"
    else:
        wide = "would reach around the sky"
    if len(names) == 1:
        return GridError(f"the output grid {wide}; set --scale, --center, --size or the limit.")
    return GridError(
        f"the output grid {wide}, stretched by {far} from the middle of the inputs; leave those "
        "out, or use --center with --size, --scale or --max-output-pixels."
    )


def _robust_middle(prints: Footprints) -> tuple[Vector, Vector]:
    """Median direction (3) of the inputs, and their own directions (n, 3).

    A stray pointing moves a mean but not a median.  Inputs on opposite sides of the sky have
    no middle; the first then stands for it.
    """
    corners = unit_vectors(prints.lon, prints.lat)
    centres = prints.centre.copy()
    for n in np.flatnonzero(~np.isfinite(centres).all(axis=1)):
        centres[n] = corners[prints.owner == n][0]
    middle = np.median(centres, axis=0)
    length = float(np.linalg.norm(middle))
    return (middle / length if length > 1e-3 else centres[0]), centres


def _flat(directions: Vector, middle: Vector) -> Vector:
    """Azimuthal equidistant plane (…, 2) about ``middle``, degrees: finite for the whole sky."""
    pole = np.array([0.0, 0.0, 1.0]) if abs(middle[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    east = np.cross(pole, middle)
    east /= np.linalg.norm(east)
    axes = np.stack([east, np.cross(middle, east)], axis=-1)
    plane = directions @ axes
    radius = np.linalg.norm(plane, axis=-1, keepdims=True)
    angle = separation_deg(directions, middle)[..., np.newaxis]
    # At the antipode the direction is undefined; any one will do, its distance counts.
    unit = np.where(radius > 1e-12, plane / np.maximum(radius, 1e-300), np.array([1.0, 0.0]))
    return np.asarray(unit * angle, dtype=np.float64)


def _box(points: Vector) -> Vector:
    """(x_min, y_min, x_max, y_max) of points (n, 2)."""
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _box_pixels(boxes: Vector) -> float:
    """Pixels of the box around boxes (n, 4)."""
    width, height = boxes[:, 2:].max(axis=0) - boxes[:, :2].min(axis=0)
    return float(width * height)


def _worst(boxes: Vector, left: npt.NDArray[np.bool_], distance_deg: Vector) -> int:
    """Of the inputs left, the one without which their box is smallest; of equals, the farthest."""
    members = np.flatnonzero(left)
    inner = boxes[members]
    # Only an input that touches a side of the box can shrink it.
    touching = {
        *(int(members[k]) for k in inner[:, :2].argmin(axis=0)),
        *(int(members[k]) for k in inner[:, 2:].argmax(axis=0)),
    }
    return min(
        sorted(touching),
        key=lambda n: (_box_pixels(boxes[members[members != n]]), -float(distance_deg[n])),
    )


# ------------------------------------------------------------------------------ prescribed grids


def grid_from_template(path: str | os.PathLike[str]) -> Grid:
    """Grid of a template: a FITS file, or a header as plain text (``.hdr``).

    Parameters
    ----------
    path
        The first 2-D or 3-D image with a celestial WCS in it counts; its pixels may be missing.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    zmrs.errors.InputError
        It holds no image size or no celestial WCS.
    """
    wcs, (height, width) = scan_template(path)
    return Grid(wcs, height, width)


def _check_prescribed(grid: Grid, max_output_pixels: float) -> None:
    """Refuse a prescribed grid only for a limit that the user gave, too."""
    if grid.height * grid.width > max_output_pixels:
        raise GridError(
            f"the output grid has {grid.width} x {grid.height} pixels, more than "
            f"--max-output-pixels {max_output_pixels:g}; choose a smaller grid or a larger limit."
        )


def make_grid(
    images: Sequence[WcsAndShape],
    *,
    names: Sequence[str] | None = None,
    template: str | os.PathLike[str] | None = None,
    scale_arcsec: float | None = None,
    center: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    projection: str | None = None,
    frame: str | None = None,
    rotate_deg: float | None = None,
    max_output_pixels: float | None = None,
) -> Grid:
    """Output grid for the options ``--wcs --scale --center --size --projection --frame --rotate``.

    Parameters
    ----------
    images, names, scale_arcsec, center, size, frame, rotate_deg, max_output_pixels
        As for `optimal_grid`.
    template
        File whose WCS and size are taken as they are (``--wcs``); excludes the options that
        shape a grid.
    projection
        Three-letter FITS code, any case; None is ``TAN``.

    Raises
    ------
    zmrs.errors.UsageError
        Options that exclude each other, or a bad one.
    zmrs.errors.GridError
        An absurd extent.
    """
    if template is None:
        return optimal_grid(
            images,
            frame=frame,
            scale_arcsec=scale_arcsec,
            projection=(projection or "TAN").upper(),
            rotate_deg=rotate_deg,
            center=center,
            size=size,
            names=names,
            max_output_pixels=max_output_pixels,
        )
    shaping = {
        "--scale": scale_arcsec,
        "--center": center,
        "--size": size,
        "--projection": projection,
        "--frame": frame,
        "--rotate": rotate_deg,
    }
    given = [flag for flag, value in shaping.items() if value is not None]
    if given:
        raise UsageError(f"--wcs already says the whole grid; drop it or {', '.join(given)}.")
    grid = grid_from_template(template)
    if max_output_pixels is not None:
        _check_prescribed(grid, max_output_pixels)
    return grid
