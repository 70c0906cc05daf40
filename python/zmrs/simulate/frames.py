"""How one frame looks at the sky, and its pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zmrs.errors import InputError
from zmrs.simulate.contaminants import Contaminants
from zmrs.simulate.nebula import Floats
from zmrs.simulate.sky import Sky
from zmrs.simulate.wcs import pixel_area
from zmrs.sky import unit_vectors

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["FrameSpec", "Image", "render"]

Image = NDArray[np.float32]

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
STAMP_SIGMAS = 5.5
"""Half width of a star's stamp in PSF sigmas; 1 - erf(5.5 / sqrt(2)) = 4e-8 on each axis."""

NODES_PER_SIGMA = 2.5
"""Nebula nodes per sigma of its finest detail; the cubic spline is then within 2e-4 of *that*
detail's peak, which is a small part of the whole (measured: 2e-5 of the brightest part)."""

MAX_NODE_STEP_PX = 16
"""Broad nebulae get nodes this close, for next to nothing, and are exact to 1e-6."""


@dataclass(frozen=True, eq=False)
class FrameSpec:
    """How one frame looks at the sky.

    Attributes
    ----------
    wcs
        Celestial WCS of the frame.
    shape
        (H, W) in pixels.
    psf_fwhm_px
        Full width at half maximum of the PSF before pixel integration, pixels.
    sky_level
        Level at the frame's centre, adu; one value, or one for each channel.
    sky_gradient
        Change of the level per pixel along x and y, adu/px.
    noise_sigma
        Standard deviation of the Gaussian noise, adu, independent in each pixel and channel.
    gain
        Factor on everything celestial (transparency), not on the sky level or the noise.
    dead_fraction
        Fraction of pixels without a value (the same in all channels): NaN, or BLANK in integers.
    border_nan_px
        Width of a frame of pixels without a value around the image.
    channels
        1 or 3.
    exptime_s
        Exposure time for the header; it does not change the pixels.
    contaminants
        What gets into the frame and is not the sky.
    """

    wcs: WCS
    shape: tuple[int, int]
    psf_fwhm_px: float = 3.0
    sky_level: float | tuple[float, float, float] = 1000.0
    sky_gradient: tuple[float, float] = (0.0, 0.0)
    noise_sigma: float = 0.0
    gain: float = 1.0
    dead_fraction: float = 0.0
    border_nan_px: int = 0
    channels: int = 1
    exptime_s: float = 60.0
    contaminants: Contaminants | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered.

        Raises
        ------
        InputError
            Naming the field.
        """
        if self.channels not in (1, 3):
            raise InputError(f"channels is {self.channels}: a frame has 1 or 3")
        if min(self.shape) < 1 or len(self.shape) != 2:
            raise InputError(f"shape is {self.shape}: a frame needs (H, W) of at least 1 x 1")
        if not self.psf_fwhm_px > 0.0:
            raise InputError(f"psf_fwhm_px is {self.psf_fwhm_px}: it must be positive")
        if not 0.0 <= self.dead_fraction <= 1.0:
            raise InputError(f"dead_fraction is {self.dead_fraction}: it must lie in 0..1")

    def sky_levels(self) -> Floats:
        """Return the sky level of each channel, shape (channels,), adu."""
        return np.broadcast_to(np.asarray(self.sky_level, np.float64), (self.channels,))


def render(sky: Sky, spec: FrameSpec, seed: int | Sequence[int] = 0) -> Image:
    """Expose one frame.

    Parameters
    ----------
    sky
        What there is.
    spec
        How the frame looks at it; `zmrs.simulate` gives the formula.
    seed
        Of the noise, of the places of dead pixels and of contaminants, which are drawn
        independently: without contaminants the same seed gives the same frame less their light.

    Returns
    -------
    ndarray, float32, (H, W) or (3, H, W), adu
        NaN in dead pixels and in the border.
    """
    image = np.zeros((spec.channels, *spec.shape), np.float32)
    _add_nebula(image, sky, spec)
    _add_stars(image, sky, spec)
    image *= np.float32(spec.gain)
    _add_background(image, spec)
    noise_seed, dead_seed = np.random.SeedSequence(seed).spawn(2)
    if spec.contaminants is not None:
        for light in spec.contaminants.light(spec.shape, spec.channels, seed).values():
            image += light.astype(np.float32)
    if spec.noise_sigma > 0.0:
        rng = np.random.Generator(np.random.SFC64(noise_seed))
        for channel in range(spec.channels):
            noise = rng.standard_normal(spec.shape, np.float32)
            noise *= np.float32(spec.noise_sigma)
            image[channel] += noise
    image[:, _dead_pixels(spec, dead_seed)] = np.nan
    return image if spec.channels == 3 else image[0]


def _add_background(image: Image, spec: FrameSpec) -> None:
    height, width = spec.shape
    slope_x, slope_y = spec.sky_gradient
    along_x = slope_x * (np.arange(width) - (width - 1) / 2.0)
    along_y = slope_y * (np.arange(height) - (height - 1) / 2.0)
    image += along_x.astype(np.float32)
    image += (spec.sky_levels()[:, np.newaxis] + along_y).astype(np.float32)[:, :, np.newaxis]


def _dead_pixels(spec: FrameSpec, seed: np.random.SeedSequence) -> NDArray[np.bool_]:
    """Return the pixels without a value, bool (H, W): border and an exact number of dead ones."""
    dead = np.zeros(spec.shape, np.bool_)
    n_dead = round(spec.dead_fraction * dead.size)
    if n_dead:
        rng = np.random.default_rng(seed)
        dead.flat[rng.choice(dead.size, n_dead, replace=False, shuffle=False)] = True
    border = spec.border_nan_px
    if border > 0:
        dead[:border] = dead[-border:] = True
        dead[:, :border] = dead[:, -border:] = True
    return dead


def _add_stars(image: Image, sky: Sky, spec: FrameSpec) -> None:
    """Add the pixel-integrated PSF of every star that reaches the frame, in place."""
    x, y, flux = _stars_in_frame(sky, spec)
    sigma = spec.psf_fwhm_px / FWHM_PER_SIGMA
    half = math.ceil(STAMP_SIGMAS * sigma + 0.5)
    column, row = np.rint(x).astype(np.intp) - half, np.rint(y).astype(np.intp) - half
    profile_x = _pixel_integrals(x - column, 2 * half + 1, sigma)
    profile_y = _pixel_integrals(y - row, 2 * half + 1, sigma)
    height, width = spec.shape
    for i in range(x.size):
        r0, r1 = max(row[i], 0), min(row[i] + 2 * half + 1, height)
        c0, c1 = max(column[i], 0), min(column[i] + 2 * half + 1, width)
        if r0 >= r1 or c0 >= c1:
            continue
        stamp = np.outer(
            profile_y[i, r0 - row[i] : r1 - row[i]], profile_x[i, c0 - column[i] : c1 - column[i]]
        )
        for plane, light in zip(image, flux[:, i], strict=True):
            plane[r0:r1, c0:c1] += light * stamp


def _pixel_integrals(center: Floats, n: int, sigma: float) -> Floats:
    """Integrate unit Gaussians over pixels 0..n-1 (pixel k spans k +- 0.5), shape (stars, n)."""
    from scipy.special import erf  # noqa: PLC0415

    edges = np.arange(n + 1) - 0.5
    cumulative = 0.5 * erf((edges - center[:, np.newaxis]) / (sigma * math.sqrt(2.0)))
    return np.asarray(np.diff(cumulative, axis=1))


def _stars_in_frame(sky: Sky, spec: FrameSpec) -> tuple[Floats, Floats, Floats]:
    """Return 0-based x, y (n,) and flux (channels, n) of the stars in and just around a frame."""
    height, width = spec.shape
    # Distortions are only inverted near the frame: far outside the iteration need not converge.
    near = _near_frame(sky.star_ra_deg, sky.star_dec_deg, spec)
    ra, dec = sky.star_ra_deg[near], sky.star_dec_deg[near]
    x, y = spec.wcs.wcs_world2pix(ra, dec, 0) if ra.size else (ra, dec)
    margin = 8.0 * spec.psf_fwhm_px + 0.02 * max(height, width)
    inside = (np.abs(x - width / 2) < width / 2 + margin) & (
        np.abs(y - height / 2) < height / 2 + margin
    )
    ra, dec, kept = ra[inside], dec[inside], np.flatnonzero(near)[inside]
    flux = sky.channel_flux(spec.channels)[:, kept]
    if not ra.size:
        return ra, dec, flux
    x, y = spec.wcs.all_world2pix(ra, dec, 0, tolerance=1e-8, maxiter=50)
    if sky.reference_scale_arcsec is not None:
        flux = flux * sky.reference_scale_arcsec**2 / pixel_area(spec.wcs, x, y)
    return x, y, flux


def _near_frame(ra_deg: Floats, dec_deg: Floats, spec: FrameSpec) -> NDArray[np.bool_]:
    """Tell which positions lie within 1.2 half diagonals of the frame's centre."""
    height, width = spec.shape
    corner_x = np.array([(width - 1) / 2.0, -0.5, width - 0.5, -0.5, width - 0.5])
    corner_y = np.array([(height - 1) / 2.0, -0.5, -0.5, height - 0.5, height - 0.5])
    ra, dec = spec.wcs.all_pix2world(corner_x, corner_y, 0)
    corners = unit_vectors(ra, dec)
    half_angle = np.arccos(np.clip(corners[1:] @ corners[0], -1.0, 1.0)).max()
    return np.asarray(unit_vectors(ra_deg, dec_deg) @ corners[0] > math.cos(1.2 * half_angle))


def _add_nebula(image: Image, sky: Sky, spec: FrameSpec) -> None:
    """Add the nebula in place, from a spline through nodes as dense as its detail demands.

    The value is taken at the pixel's centre; details are wide compared with pixels and PSF, so
    neither the integration over the pixel nor the seeing is applied to it.
    """
    if not len(sky.nebula.glow):
        return
    height, width = spec.shape
    scale_deg = math.sqrt(float(pixel_area(spec.wcs, (width - 1) / 2, (height - 1) / 2))) / 3600.0
    step = int(np.clip(sky.nebula.finest_deg() / scale_deg / NODES_PER_SIGMA, 1, MAX_NODE_STEP_PX))
    nodes_x, nodes_y = _nodes(width, step), _nodes(height, step)
    grid_y, grid_x = np.meshgrid(nodes_y, nodes_x, indexing="ij")
    ra, dec = spec.wcs.all_pix2world(grid_x.ravel(), grid_y.ravel(), 0)
    values = sky.surface_brightness(ra, dec, spec.channels).reshape(-1, *grid_x.shape)
    values = np.nan_to_num(values, nan=0.0)
    if step == 1:
        image += values[:, 3 : 3 + height, 3 : 3 + width].astype(np.float32)
        return
    from scipy.interpolate import RectBivariateSpline  # noqa: PLC0415

    for channel, nodes in enumerate(values):
        spline = RectBivariateSpline(nodes_y, nodes_x, nodes)
        image[channel] += spline(np.arange(height), np.arange(width)).astype(np.float32)


def _nodes(length: int, step: int) -> Floats:
    """Return node coordinates: multiples of step, three beyond the image on either side.

    A spline is worse near its ends, by a factor that falls fourfold with each node.
    """
    return step * np.arange(-3.0, -(-(length - 1) // step) + 4.0)
