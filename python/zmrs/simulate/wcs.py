"""Where frames point: their WCS, one by one and as a pattern of panels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from zmrs.errors import InputError
from zmrs.simulate.nebula import Floats
from zmrs.simulate.sky import tangent_plane
from zmrs.sky import unit_vectors

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["direction_of_y", "dither_pattern", "make_frame_wcs", "pixel_area"]


def make_frame_wcs(
    center: tuple[float, float],
    scale_arcsec: float,
    rotation_deg: float,
    shape: tuple[int, int],
    *,
    projection: str = "TAN",
    sip_strength: float = 0.0,
) -> WCS:
    """Make the WCS of a frame whose reference point is its centre.

    Parameters
    ----------
    center
        Right ascension and declination (ICRS) of the frame's centre, degrees.
    scale_arcsec
        Pixel size at the centre, arcsec.
    rotation_deg
        Position angle of the frame's +y axis, from north through east.  East is to the left when
        north is up.
    shape
        (H, W) in pixels.
    projection
        A celestial projection code; ``-SIP`` is added when there is a distortion.
    sip_strength
        Greatest displacement in pixels, reached near the corners, by quadratic (tilt) and cubic
        (barrel) SIP terms.  No inverse polynomial is given: astropy inverts by iteration.

    Returns
    -------
    astropy.wcs.WCS
    """
    from astropy.wcs import WCS, Sip  # noqa: PLC0415

    height, width = shape
    scale, angle = scale_arcsec / 3600.0, math.radians(rotation_deg)
    code = f"{projection}-SIP" if sip_strength else projection
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{code}", f"DEC--{code}"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval = list(center)
    wcs.wcs.crpix = [(width + 1) / 2.0, (height + 1) / 2.0]
    wcs.wcs.cd = scale * np.array(
        [[-math.cos(angle), math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    wcs.wcs.radesys = "ICRS"
    wcs.pixel_shape = (width, height)
    if sip_strength:
        wcs.sip = Sip(*_sip_terms(shape, sip_strength), None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def _sip_terms(shape: tuple[int, int], strength_px: float) -> tuple[Floats, Floats]:
    """Return SIP matrices A, B (index [p, q] of u**p v**q) bounded by ``strength_px`` in all."""
    radius = math.hypot(*shape) / 2.0
    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    barrel, tilt = 0.7 * strength_px / radius**3, 0.2 * strength_px / radius**2
    a[3, 0] = a[1, 2] = b[2, 1] = b[0, 3] = -barrel
    a[2, 0], a[1, 1] = tilt, -0.6 * tilt
    b[0, 2], b[1, 1] = -0.8 * tilt, 0.5 * tilt
    return a, b


def pixel_area(wcs: WCS, x: Floats | float, y: Floats | float) -> Floats:
    """Return the area on the sky of the pixels around 0-based positions, arcsec**2.

    It is the cross product of the chords that are one pixel long along x and y, so it includes
    projection and distortion; accurate to 1e-9 relative for pixels of arcseconds.
    """
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    shape, x, y = x.shape, x.ravel(), y.ravel()

    def chord(dx: float, dy: float) -> Floats:
        ahead = unit_vectors(*wcs.all_pix2world(x + 0.5 * dx, y + 0.5 * dy, 0))
        behind = unit_vectors(*wcs.all_pix2world(x - 0.5 * dx, y - 0.5 * dy, 0))
        return ahead - behind

    area = np.linalg.norm(np.cross(chord(1.0, 0.0), chord(0.0, 1.0)), axis=-1)
    return np.asarray(area * np.degrees(1.0) ** 2 * 3600.0**2).reshape(shape)


def dither_pattern(
    panels: int | tuple[int, int],
    shape: tuple[int, int],
    scale_arcsec: float,
    *,
    center_deg: tuple[float, float] = (83.8, -5.4),
    overlap: float = 0.3,
    max_rotation_deg: float = 3.0,
    dither: float = 0.015,
    projection: str = "TAN",
    sip_strength: float = 0.0,
    seed: int = 0,
) -> list[WCS]:
    """Lay panels over a field, row by row and back again, as a telescope would take them.

    Parameters
    ----------
    panels
        (nx, ny), or a number of frames, which are spread over rows about as many as columns.
    shape, scale_arcsec
        (H, W) and pixel size of every frame.
    center_deg
        Centre of the field.
    overlap
        Share of a frame's side that neighbours have in common, before dither and rotation.
    max_rotation_deg
        Rotations are uniform within plus or minus this angle, about the direction of the field's
        own north (which makes fields at a pole work).
    dither
        Greatest random shift on each axis as a share of the frame's side.
    projection, sip_strength
        As in `make_frame_wcs`.
    seed
        Of shifts and rotations.

    Returns
    -------
    list of astropy.wcs.WCS
        In the order of exposure.
    """
    field_wcs = make_frame_wcs(center_deg, scale_arcsec, 0.0, shape)
    rng = np.random.default_rng([seed, 0x646974])
    height, width = shape
    frames = []
    for column, row in _panel_steps(panels):
        shift_x, shift_y = rng.uniform(-dither, dither, 2)
        turn = rng.uniform(-max_rotation_deg, max_rotation_deg)
        x = (width - 1) / 2.0 + (column * (1.0 - overlap) + shift_x) * width
        y = (height - 1) / 2.0 + (row * (1.0 - overlap) + shift_y) * height
        ra, dec = (float(v) for v in field_wcs.all_pix2world(x, y, 0))
        angle = turn + direction_of_y(field_wcs, x, y)
        frames.append(
            make_frame_wcs(
                (ra, dec),
                scale_arcsec,
                angle,
                shape,
                projection=projection,
                sip_strength=sip_strength,
            )
        )
    return frames


def _panel_steps(panels: int | tuple[int, int]) -> Iterator[tuple[float, float]]:
    """Yield (column, row) of panels relative to the field's centre, in boustrophedon order."""
    if isinstance(panels, int):
        if panels < 1:
            raise InputError(f"a pattern of {panels} frames is none; give at least 1")
        n_rows = max(1, round(math.sqrt(0.75 * panels)))
        counts = [panels // n_rows + (r < panels % n_rows) for r in range(n_rows)]
    else:
        if min(panels) < 1:
            raise InputError(f"a pattern of {panels} panels is empty; give at least 1 x 1")
        counts = [panels[0]] * panels[1]
    for row, count in enumerate(counts):
        columns = np.arange(count) - (count - 1) / 2.0
        for column in columns if row % 2 == 0 else columns[::-1]:
            yield float(column), row - (len(counts) - 1) / 2.0


def direction_of_y(wcs: WCS, x: float, y: float) -> float:
    """Return the position angle of +y at a pixel, degrees from north through east."""
    ra, dec = wcs.all_pix2world(np.array([x, x]), np.array([y - 0.5, y + 0.5]), 0)
    xi, eta = tangent_plane(ra[1:], dec[1:], (float(ra[0]), float(dec[0])))
    return math.degrees(math.atan2(float(xi[0]), float(eta[0])))
