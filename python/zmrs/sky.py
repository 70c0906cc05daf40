"""The sphere and its coordinate systems: what output grids and coordinate grids both need.

Positions are degrees; directions are unit vectors (…, 3).  NaN means "not on the sky" and stays
NaN.  ``astropy.coordinates`` costs 0.2 s to import, so it is asked only where two systems differ,
and then once: between ICRS, FK5 and galactic coordinates all it does is turn the sphere.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zmrs.errors import GridError

if TYPE_CHECKING:
    from collections.abc import Callable

    from astropy.wcs import WCS
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]
    Points = tuple[Vector, Vector]

__all__ = [
    "SkySystem",
    "finest_scale_deg",
    "frame_change",
    "frame_of",
    "lon_lat",
    "pixel_area_deg2",
    "separation_deg",
    "sky_positions",
    "sky_system",
    "transform",
    "unit_vectors",
]

# Greatest departure from a rotation, radians, that counts as rounding.
_RIGID_RAD = 1e-12


# -------------------------------------------------------------------------------------- the sphere


def unit_vectors(lon_deg: Vector, lat_deg: Vector) -> Vector:
    """Directions (…, 3) of positions."""
    lon, lat = np.radians(lon_deg), np.radians(lat_deg)
    cos_lat = np.cos(lat)
    xyz = np.stack([cos_lat * np.cos(lon), cos_lat * np.sin(lon), np.sin(lat)], axis=-1)
    return np.asarray(xyz, dtype=np.float64)


def lon_lat(directions: Vector) -> Points:
    """Longitude in [0, 360) and latitude of directions (…, 3) of any length."""
    x, y, z = np.moveaxis(directions, -1, 0)
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arctan2(z, np.hypot(x, y)))


def separation_deg(a: Vector, b: Vector) -> Vector:
    """Angles between unit vectors (…, 3), exact for small and for large ones."""
    cross = np.linalg.norm(np.cross(a, b), axis=-1)
    return np.asarray(np.degrees(np.arctan2(cross, np.sum(a * b, axis=-1))), dtype=np.float64)


# -------------------------------------------------------------------------------- what a WCS says


def sky_positions(wcs: WCS, x: Vector, y: Vector) -> Points:
    """Longitude and latitude of 0-based pixel positions (n,), in the system of the WCS."""
    world = wcs.all_pix2world(np.column_stack([x, y]), 0)
    return world[:, wcs.wcs.lng], world[:, wcs.wcs.lat]


def pixel_area_deg2(wcs: WCS) -> float:
    """Area of a pixel from the matrix alone, square degrees."""
    return abs(float(np.linalg.det(wcs.pixel_scale_matrix)))


def finest_scale_deg(wcs: WCS) -> float:
    """Smaller of the two pixel scales: lengths of the columns of the matrix, degrees."""
    return float(np.sqrt(np.sum(wcs.pixel_scale_matrix**2, axis=0)).min())


class SkySystem(NamedTuple):
    """The celestial coordinate system of a WCS; equal systems need no transformation.

    Attributes
    ----------
    name
        ``GALACTIC``, an equatorial RADESYS (``ICRS``, ``FK5``, ``FK4``, ``FK4-NO-E``), or the
        type of the longitude where it is something else.
    equinox
        Year, where the system has one.
    detail
        What else tells apart the systems that only astropy knows.
    """

    name: str
    equinox: float | None = None
    detail: tuple[str, ...] = ()


def sky_system(wcs: WCS) -> SkySystem:
    """Coordinate system of a WCS, by the rules and defaults of FITS WCS Paper II, section 3.1.

    RADESYS belongs to equatorial axes: on a galactic image it means nothing.  (Astropy's own
    `wcs_to_celestial_frame` takes such an image for an equatorial one.)
    """
    w = wcs.wcs
    if (w.lngtyp, w.lattyp) == ("GLON", "GLAT"):
        return SkySystem("GALACTIC")
    equinox = None if math.isnan(w.equinox) else float(w.equinox)
    if (w.lngtyp, w.lattyp) != ("RA", "DEC"):
        return SkySystem(w.lngtyp, equinox, (w.lattyp, w.radesys, w.dateobs, w.name))
    if w.radesys:
        name = w.radesys
    elif equinox is None:
        name = "ICRS"
    else:
        name = "FK4" if equinox < 1984.0 else "FK5"
    default = {"FK5": 2000.0, "FK4": 1950.0, "FK4-NO-E": 1950.0}
    return SkySystem(name, (equinox or default[name]) if name in default else None)


def is_known_sky(wcs: WCS) -> bool:
    """Whether the axes are equatorial or galactic: those systems that can be turned into others."""
    return (wcs.wcs.lngtyp, wcs.wcs.lattyp) in {("RA", "DEC"), ("GLON", "GLAT")}


# ------------------------------------------------------------------------------ changes of system


@lru_cache(maxsize=256)
def _common_frame(system: SkySystem) -> Any:
    """Astropy's frame of a system of Paper II, None for the others."""
    from astropy import coordinates  # noqa: PLC0415
    from astropy.time import Time  # noqa: PLC0415

    if system.name == "GALACTIC":
        return coordinates.Galactic()
    if system.name == "ICRS":
        return coordinates.ICRS()
    if system.name == "FK5":
        return coordinates.FK5(equinox=Time(system.equinox, format="jyear"))
    if system.name == "FK4":
        return coordinates.FK4(equinox=Time(system.equinox, format="byear"))
    if system.name == "FK4-NO-E":
        return coordinates.FK4NoETerms(equinox=Time(system.equinox, format="byear"))
    return None


def frame_of(wcs: WCS) -> Any:
    """Astropy's frame of a WCS, one object for all that share a system of Paper II.

    Raises
    ------
    zmrs.errors.GridError
        Astropy does not know the system.
    """
    system = sky_system(wcs)
    frame = _common_frame(system)
    if frame is not None:
        return frame
    from astropy.wcs.utils import wcs_to_celestial_frame  # noqa: PLC0415

    try:
        return wcs_to_celestial_frame(wcs)
    except (ValueError, TypeError) as error:
        raise GridError(
            f"an input's sky system {wcs.wcs.lngtyp} {wcs.wcs.radesys} is not known; reproject it "
            "to ICRS."
        ) from error


def transform(lon_deg: Vector, lat_deg: Vector, source: Any, target: Any) -> Points:
    """Positions from one astropy frame to another, point by point."""
    if source.is_equivalent_frame(target):
        return lon_deg, lat_deg
    from astropy import units  # noqa: PLC0415
    from astropy.coordinates import UnitSphericalRepresentation  # noqa: PLC0415

    place = UnitSphericalRepresentation(lon_deg * units.deg, lat_deg * units.deg)
    moved = source.realize_frame(place).transform_to(target).represent_as("unitspherical")
    return moved.lon.deg, moved.lat.deg


def frame_change(source: WCS, target: WCS) -> Callable[[Vector, Vector], Points] | None:
    """Find the change from the system of one WCS to that of another.

    Parameters
    ----------
    source, target
        Celestial WCS.

    Returns
    -------
    callable or None
        Takes and gives longitudes and latitudes (n,) in degrees; None when the systems are equal.
    """
    here, there = sky_system(source), sky_system(target)
    if here == there:
        return None
    matrix = _rotation(here, there)
    if matrix is not None:
        return partial(_turn, matrix)
    return partial(transform, source=frame_of(source), target=frame_of(target))


@lru_cache(maxsize=256)
def _rotation(here: SkySystem, there: SkySystem) -> Vector | None:
    """Matrix between systems that differ by a rotation; None for others (FK4 has E-terms).

    Its columns are the turned axes; three other directions show whether it is all.
    """
    source, target = _common_frame(here), _common_frame(there)
    if source is None or target is None:
        return None

    def turned(lon: list[float], lat: list[float]) -> Vector:
        return unit_vectors(*transform(np.array(lon), np.array(lat), source, target))

    matrix = turned([0.0, 90.0, 0.0], [0.0, 0.0, 90.0]).T
    probe = [10.0, 123.0, 250.0], [-70.0, 5.0, 40.0]
    straight = unit_vectors(*map(np.array, probe)) @ matrix.T
    return matrix if np.abs(straight - turned(*probe)).max() < _RIGID_RAD else None


def _turn(matrix: Vector, lon_deg: Vector, lat_deg: Vector) -> Points:
    """Positions after a rotation; einsum, unlike BLAS, gives a point the same bits in any batch."""
    return lon_lat(np.einsum("ij,nj->ni", matrix, unit_vectors(lon_deg, lat_deg)))
