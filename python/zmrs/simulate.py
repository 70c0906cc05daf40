"""A simulated sky whose truth is known, and frames of it: for the demo, the tests, the benchmarks.

The photometric model of a frame, pixel by pixel, in adu:

    value = gain * (stars + nebula) + sky_level + gradient . (pixel - frame centre) + noise

*Stars.*  The PSF is a circular Gaussian in the pixels of the frame, integrated over each pixel
(differences of the error function), so that the pixels of one star add up to ``gain * flux`` and
not to a sampled approximation of it.  Stamps end at 5.5 sigma, outside of which lie 8e-8 of the
light.

*Surface brightness.*  The nebula is a surface brightness: its value in a frame is the same whatever
the pixel scale.  zmrs treats all values so and applies no Jacobian.  A star of flux ``F``, summed
over the pixels of a frame, therefore sums to ``F * a_frame / a_grid`` over the pixels of a mosaic,
where ``a`` are the pixel areas *at the star* (`pixel_area`; within one TAN frame they change by
1e-4 at half a degree from the centre).  By default ``F`` is the sum in every frame, whatever its
scale, as for one camera.  For sets of mixed scales give the sky a ``reference_scale_arcsec``: ``F``
is then the sum over pixels of that size, every frame sees one and the same sky, and over a grid of
pixel area ``a_grid`` a star sums to ``F * reference_scale_arcsec**2 / a_grid``.

All randomness comes from the seeds: equal arguments give equal bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zmrs.errors import InputError

if TYPE_CHECKING:
    from astropy.io.fits import Header
    from astropy.wcs import WCS

__all__ = [
    "FrameSpec",
    "GaussianSum",
    "Nebula",
    "Sky",
    "demo_set",
    "dither_pattern",
    "make_frame_wcs",
    "pixel_area",
    "render",
    "write_frames",
    "write_truth",
]

Floats = NDArray[np.float64]
Image = NDArray[np.float32]

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
STAMP_SIGMAS = 5.5
"""Half width of a star's stamp in PSF sigmas; 1 - erf(5.5 / sqrt(2)) = 4e-8 on each axis."""

NODES_PER_SIGMA = 2.5
"""Nebula nodes per sigma of its finest detail; the cubic spline is then within 2e-4 of *that*
detail's peak, which is a small part of the whole (measured: 2e-5 of the brightest part)."""

MAX_NODE_STEP_PX = 16
"""Broad nebulae get nodes this close, for next to nothing, and are exact to 1e-6."""

POINTS_PER_CHUNK = 2048
"""Points at which Gaussians are evaluated at a time: 100 Gaussians then stay in the cache."""

FIRST_EXPOSURE = datetime(2026, 1, 15, 20, 0, 0, tzinfo=UTC)


# --------------------------------------------------------------------------------------- the sky


@dataclass(frozen=True, eq=False)
class GaussianSum:
    """A sum of anisotropic Gaussians on the tangent plane of a sky.

    Attributes
    ----------
    xi_deg, eta_deg
        Centres, shape (n,), standard coordinates (east, north) in degrees.
    sigma_deg
        Standard deviations along the major and the minor axis, shape (2, n), degrees.
    angle_deg
        Direction of the major axis, shape (n,), degrees from north through east.
    peak
        Value at the centre in red, green and blue, shape (3, n).
    """

    xi_deg: Floats
    eta_deg: Floats
    sigma_deg: Floats
    angle_deg: Floats
    peak: Floats

    @classmethod
    def empty(cls) -> GaussianSum:
        """Return the sum of no Gaussians, zero everywhere."""
        none = np.zeros(0)
        return cls(none, none, np.zeros((2, 0)), none, np.zeros((3, 0)))

    def __len__(self) -> int:
        return int(self.xi_deg.size)

    def evaluate(self, xi_deg: Floats, eta_deg: Floats) -> Floats:
        """Return the sum at points of the tangent plane, shape (3, *points), unit of ``peak``."""
        xi, eta = xi_deg.ravel(), eta_deg.ravel()
        exponents = self._exponents()
        total = np.empty((3, xi.size))
        for start in range(0, xi.size, POINTS_PER_CHUNK):
            part = slice(start, start + POINTS_PER_CHUNK)
            x, y = xi[part], eta[part]
            bells = exponents @ np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])
            # Most are far from most chunks: exp(-30) = 1e-13.  Written so that NaN counts as near.
            near = ~(bells.max(axis=1) < -30.0)
            total[:, part] = self.peak[:, near] @ np.exp(bells[near])
        return total.reshape(3, *xi_deg.shape)

    def _exponents(self) -> Floats:
        """Return each Gaussian's logarithm as coefficients of 1, x, y, x^2, xy, y^2: (n, 6)."""
        angle = np.radians(self.angle_deg)
        # Squared unit distances along and across the axis, summed into one quadratic form.
        along, across = 1.0 / self.sigma_deg**2
        xx = along * np.sin(angle) ** 2 + across * np.cos(angle) ** 2
        yy = along * np.cos(angle) ** 2 + across * np.sin(angle) ** 2
        xy = (along - across) * np.sin(2.0 * angle)
        x0, y0 = self.xi_deg, self.eta_deg
        constant = xx * x0**2 + xy * x0 * y0 + yy * y0**2
        linear_x, linear_y = -2.0 * xx * x0 - xy * y0, -2.0 * yy * y0 - xy * x0
        return -0.5 * np.stack([constant, linear_x, linear_y, xx, xy, yy], axis=1)


@dataclass(frozen=True, eq=False)
class Nebula:
    """Glowing, rippled gas behind dust, all bent by a few sine waves: smooth and analytic.

    ``brightness = glow(p') * exp(ripples(p') - dust(p'))`` at ``p' = p + sum_k a_k sin(k . p +
    phase_k)``.  With the glow alone it is a plain sum of Gaussians.

    Attributes
    ----------
    glow
        Emission, adu per pixel (a surface brightness: independent of the pixel scale).
    dust
        Optical depth.
    waves
        The bending, shape (m, 5): wave vector k (xi, eta) in rad/deg, phase in rad, displacement
        a (xi, eta) in degrees.
    ripples
        Sine waves in the logarithm of the brightness, shape (r, 6): wave vector and phase as
        above, amplitude in red, green and blue.
    """

    glow: GaussianSum = field(default_factory=GaussianSum.empty)
    dust: GaussianSum = field(default_factory=GaussianSum.empty)
    waves: Floats = field(default_factory=lambda: np.zeros((0, 5)))
    ripples: Floats = field(default_factory=lambda: np.zeros((0, 6)))

    def finest_deg(self) -> float:
        """Return the size of the finest detail, as the sigma of a Gaussian, in degrees.

        It is inf where there is no nebula.
        """
        if not len(self.glow):
            return math.inf
        sizes = [self.glow.sigma_deg.ravel(), self.dust.sigma_deg.ravel()]
        sizes.append(1.0 / np.hypot(self.ripples[:, 0], self.ripples[:, 1]))
        k, a = self.waves[:, :2], self.waves[:, 3:]
        # Waves of different directions and phases add up like noise, hence the quadratic sum.
        squeeze = math.sqrt(float(np.sum(np.sum(k * k, axis=1) * np.sum(a * a, axis=1))))
        return float(np.concatenate(sizes).min()) / (1.0 + squeeze)

    def evaluate(self, xi_deg: Floats, eta_deg: Floats) -> Floats:
        """Return the brightness at points of the tangent plane, shape (3, *points), in adu.

        NaN coordinates (beyond the tangent plane's horizon) give NaN.
        """
        points = np.stack([xi_deg.ravel(), eta_deg.ravel()])
        bent = points + _sum_of_sines(self.waves, points)
        brightness = self.glow.evaluate(*bent)
        if len(self.dust) or len(self.ripples):
            brightness *= np.exp(_sum_of_sines(self.ripples, bent) - self.dust.evaluate(*bent))
        return brightness.reshape(3, *xi_deg.shape)

    @classmethod
    def random(cls, seed: int, radius_deg: float, peak: float = 400.0) -> Nebula:
        """Make a nebula that fills a field: clouds of coloured gas with dark lanes across.

        Parameters
        ----------
        seed
            Of the random numbers.
        radius_deg
            Of the field; every length scales with it.
        peak
            Mean of the three colours where the nebula is brightest, adu per pixel.
        """
        rng = np.random.default_rng([seed, 0x6E6562])
        glow = [_cloud(rng, radius_deg, kind) for kind in (0, 0, 1, 2, 3)]
        dust = [_dust_lane(rng, radius_deg) for _ in range(3)]
        waves, ripples = _waves(rng, radius_deg), _ripples(rng, radius_deg)
        nebula = cls(_joined(glow), _joined(dust), waves, ripples)
        axis = np.linspace(-radius_deg, radius_deg, 97)
        found = nebula.evaluate(*np.meshgrid(axis, axis)).mean(axis=0).max()
        scaled = replace(nebula.glow, peak=nebula.glow.peak * (peak / found))
        return replace(nebula, glow=scaled)


def _sum_of_sines(waves: Floats, points: Floats) -> Floats:
    """Sum sine waves (m, 3 + d) of k_x, k_y, phase, d amplitudes at points (2, n): (d, n)."""
    total = np.empty((waves.shape[1] - 3, points.shape[1]))
    # Phases of some 100 rad are good to 1e-5 in single precision, whose sine is ten times faster.
    single = waves.astype(np.float32)
    for start in range(0, points.shape[1], POINTS_PER_CHUNK):
        part = slice(start, start + POINTS_PER_CHUNK)
        phases = single[:, :2] @ points[:, part].astype(np.float32)
        phases += single[:, 2:3]
        total[:, part] = single[:, 3:].T @ np.sin(phases, out=phases)
    return total


GAS_COLOURS = np.array(
    [
        [1.00, 0.40, 0.46],  # hydrogen, red
        [0.42, 0.60, 1.00],  # starlight on dust, blue
        [0.36, 0.78, 0.86],  # oxygen, teal
        [1.00, 0.72, 0.46],  # sulphur and warm dust, amber
    ]
)


def _joined(parts: Sequence[GaussianSum]) -> GaussianSum:
    names = ("xi_deg", "eta_deg", "sigma_deg", "angle_deg", "peak")
    return GaussianSum(*(np.concatenate([getattr(p, n) for p in parts], axis=-1) for n in names))


def _cloud(rng: np.random.Generator, radius_deg: float, kind: int) -> GaussianSum:
    """Return a glow of one colour: a wide envelope, lobes in it, bright knots in the lobes."""
    xi, eta = (np.array([v]) for v in rng.normal(0.0, 0.25 * radius_deg, 2))
    size = radius_deg * 0.30
    parts = []
    for n, share in ((1, 0.12), (4, 0.16), (9, 0.30)):
        parent = rng.integers(xi.size, size=n)
        xi = xi[parent] + rng.normal(0.0, size, n)
        eta = eta[parent] + rng.normal(0.0, 0.7 * size, n)
        sigma = size * rng.uniform(0.8, 1.3, n)
        brightness = share * rng.uniform(0.4, 1.0, n)
        parts.append(
            GaussianSum(
                xi,
                eta,
                np.stack([sigma, sigma * rng.uniform(0.4, 0.8, n)]),
                rng.uniform(0.0, 180.0, n),
                np.outer(GAS_COLOURS[kind], brightness),
            )
        )
        size *= 0.48
    return _joined(parts)


def _dust_lane(rng: np.random.Generator, radius_deg: float) -> GaussianSum:
    """Return the optical depth of a meandering dark lane, a little deeper in the blue."""
    n = 10
    heading = rng.uniform(0.0, 360.0) + np.cumsum(rng.normal(0.0, 12.0, n))
    xi = np.cumsum(0.08 * radius_deg * np.sin(np.radians(heading)))
    eta = np.cumsum(0.08 * radius_deg * np.cos(np.radians(heading)))
    start = rng.normal(0.0, 0.3 * radius_deg, 2)
    minor = radius_deg * rng.uniform(0.02, 0.05) * rng.uniform(0.7, 1.4, n)
    depth = rng.uniform(0.3, 0.8) * np.sin(np.linspace(0.3, math.pi - 0.3, n))
    return GaussianSum(
        xi - xi.mean() + start[0],
        eta - eta.mean() + start[1],
        np.stack([np.full(n, 0.09 * radius_deg), minor]),
        heading,
        np.outer([0.8, 1.0, 1.15], depth * rng.uniform(0.6, 1.2, n)),
    )


def _wave_vectors(rng: np.random.Generator, wavelength_deg: Floats) -> Floats:
    """Return wave vectors in random directions and phases, shape (n, 3)."""
    direction = rng.uniform(0.0, 2.0 * math.pi, wavelength_deg.size)
    phase = rng.uniform(0.0, 2.0 * math.pi, wavelength_deg.size)
    k = 2.0 * math.pi / wavelength_deg
    return np.stack([k * np.cos(direction), k * np.sin(direction), phase], axis=1)


def _waves(rng: np.random.Generator, radius_deg: float) -> Floats:
    """Return bending waves from the size of the field downwards, each about as strong."""
    wavelength = radius_deg * np.geomspace(1.5, 0.12, 12)
    waves = _wave_vectors(rng, wavelength)
    strength = wavelength**2 * rng.uniform(0.03, 0.05, wavelength.size) / (2.0 * math.pi)
    # Displacement at right angles to the wave vector shears and curls, and bunches nothing.
    across = waves[:, 1::-1] * np.array([-1.0, 1.0])
    return np.column_stack([waves, across * strength[:, np.newaxis]])


def _ripples(rng: np.random.Generator, radius_deg: float) -> Floats:
    """Return ripples with the spectrum of turbulence, nearly but not quite equal in colour."""
    wavelength = radius_deg * np.geomspace(0.9, 0.07, 44)
    amplitude = 0.26 * (wavelength / wavelength[0]) ** 0.45
    tint = rng.normal(0.0, 0.16, (wavelength.size, 3))
    return np.column_stack(
        [_wave_vectors(rng, wavelength), amplitude[:, np.newaxis] * (1.0 + tint)]
    )


@dataclass(frozen=True, eq=False)
class Sky:
    """Stars and a nebula around a centre: everything that frames of it can show.

    Attributes
    ----------
    center_deg
        Right ascension and declination (ICRS) of the tangent point of the nebula, degrees.
    star_ra_deg, star_dec_deg
        Positions, shape (n,), ICRS degrees.
    star_flux
        Flux, shape (n,), adu: the sum over the pixels of a frame with gain 1.
    star_colour
        Response of red, green and blue relative to the flux, shape (3, n), mean over the
        channels 1; so the mean of an RGB frame's channels is the mono frame.
    nebula
        The smooth light.
    reference_scale_arcsec
        None: ``star_flux`` is the sum in every frame.  A scale: it is the sum over pixels of this
        size, and frames of other scales see it changed by the ratio of the areas (module page).
    """

    center_deg: tuple[float, float]
    star_ra_deg: Floats
    star_dec_deg: Floats
    star_flux: Floats
    star_colour: Floats
    nebula: Nebula = field(default_factory=Nebula)
    reference_scale_arcsec: float | None = None

    @classmethod
    def random(
        cls,
        seed: int,
        center_deg: tuple[float, float] = (83.8, -5.4),
        radius_deg: float = 1.0,
        n_stars: int = 3000,
        *,
        slope: float = 1.0,
        flux_range: tuple[float, float] = (150.0, 3.0e5),
        nebula_peak: float = 400.0,
        reference_scale_arcsec: float | None = None,
    ) -> Sky:
        """Make a sky of randomly placed stars and, unless ``nebula_peak`` is 0, a nebula.

        Parameters
        ----------
        seed
            Of the random numbers.
        center_deg, radius_deg
            The spherical cap that the stars fill uniformly (equal areas get equal numbers).
        n_stars
            How many.
        slope
            Of the cumulative counts: N(> flux) is proportional to flux ** -slope within
            ``flux_range``.  1.0 is what crowded Milky Way fields show; 1.5 is a uniform universe.
        flux_range
            Least and greatest flux, adu.
        nebula_peak
            Brightest part of the nebula, adu per pixel.
        reference_scale_arcsec
            As the attribute.

        Raises
        ------
        InputError
            For a radius, a slope or fluxes that are not positive.
        """
        low, high = flux_range
        if not (0.0 < radius_deg <= 180.0 and slope > 0.0 and 0.0 < low <= high):
            raise InputError("a simulated sky needs a positive radius, slope and flux range")
        rng = np.random.default_rng([seed, 0x737461])
        ra, dec = _uniform_cap(rng, center_deg, radius_deg, n_stars)
        u = rng.random(n_stars)
        flux = (low**-slope - u * (low**-slope - high**-slope)) ** (-1.0 / slope)
        nebula = Nebula.random(seed, radius_deg, nebula_peak) if nebula_peak else Nebula()
        colour = _star_colours(rng, n_stars)
        return cls(center_deg, ra, dec, flux, colour, nebula, reference_scale_arcsec)

    def channel_flux(self, channels: int) -> Floats:
        """Return the true fluxes in a frame of 1 or 3 channels, shape (channels, n), adu."""
        if channels == 1:
            return self.star_flux[np.newaxis]
        return self.star_flux * self.star_colour

    def surface_brightness(self, ra_deg: Floats, dec_deg: Floats, channels: int) -> Floats:
        """Return the true nebula at positions, shape (channels, *positions), adu per pixel."""
        rgb = self.nebula.evaluate(*_tangent_plane(ra_deg, dec_deg, self.center_deg))
        return rgb if channels == 3 else rgb.mean(axis=0, keepdims=True)


def _star_colours(rng: np.random.Generator, n: int) -> Floats:
    """Return RGB responses of mean 1: most stars near white, a tail to orange, some blue."""
    index = rng.gumbel(-0.05, 0.17, n).clip(-0.4, 0.75)
    rgb = np.stack([np.exp(0.9 * index), np.ones(n), np.exp(-1.2 * index)])
    return np.asarray(rgb / rgb.mean(axis=0))


def _uniform_cap(
    rng: np.random.Generator, center_deg: tuple[float, float], radius_deg: float, n: int
) -> tuple[Floats, Floats]:
    """Return n positions uniform on a spherical cap: RA in [0, 360) and Dec, degrees."""
    distance = np.arccos(1.0 - rng.random(n) * (1.0 - math.cos(math.radians(radius_deg))))
    angle = rng.uniform(0.0, 2.0 * math.pi, n)
    dec0 = math.radians(center_deg[1])
    sin_dec = math.sin(dec0) * np.cos(distance) + math.cos(dec0) * np.sin(distance) * np.cos(angle)
    dec = np.arcsin(np.clip(sin_dec, -1.0, 1.0))
    d_ra = np.arctan2(
        np.sin(angle) * np.sin(distance) * math.cos(dec0),
        np.cos(distance) - math.sin(dec0) * sin_dec,
    )
    return (center_deg[0] + np.degrees(d_ra)) % 360.0, np.degrees(dec)


def _tangent_plane(
    ra_deg: Floats, dec_deg: Floats, center_deg: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Project onto the tangent plane: (xi east, eta north) in degrees; NaN behind the horizon."""
    d_ra, dec = np.radians(ra_deg - center_deg[0]), np.radians(dec_deg)
    dec0 = math.radians(center_deg[1])
    depth = math.sin(dec0) * np.sin(dec) + math.cos(dec0) * np.cos(dec) * np.cos(d_ra)
    depth = np.where(depth > 1e-6, depth, np.nan)
    xi = np.cos(dec) * np.sin(d_ra) / depth
    eta = (math.cos(dec0) * np.sin(dec) - math.sin(dec0) * np.cos(dec) * np.cos(d_ra)) / depth
    return np.degrees(xi), np.degrees(eta)


# ------------------------------------------------------------------------------------ the frames


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
        How the frame looks at it; the module page gives the formula.
    seed
        Of the noise and of the places of dead pixels, which are drawn independently.

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
    corners = _unit_vectors(ra, dec)
    half_angle = np.arccos(np.clip(corners[1:] @ corners[0], -1.0, 1.0)).max()
    return np.asarray(_unit_vectors(ra_deg, dec_deg) @ corners[0] > math.cos(1.2 * half_angle))


def _unit_vectors(ra_deg: Floats, dec_deg: Floats) -> Floats:
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


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


# ---------------------------------------------------------------------------------------- WCS


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
        ahead = _unit_vectors(*wcs.all_pix2world(x + 0.5 * dx, y + 0.5 * dy, 0))
        behind = _unit_vectors(*wcs.all_pix2world(x - 0.5 * dx, y - 0.5 * dy, 0))
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
        angle = turn + _direction_of_y(field_wcs, x, y)
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


def _direction_of_y(wcs: WCS, x: float, y: float) -> float:
    """Return the position angle of +y at a pixel, degrees from north through east."""
    ra, dec = wcs.all_pix2world(np.array([x, x]), np.array([y - 0.5, y + 0.5]), 0)
    xi, eta = _tangent_plane(ra[1:], dec[1:], (float(ra[0]), float(dec[0])))
    return math.degrees(math.atan2(float(xi[0]), float(eta[0])))


# -------------------------------------------------------------------------------------- files


def write_frames(
    folder: str | Path,
    sky: Sky,
    specs: Sequence[FrameSpec],
    *,
    bitpix: int = -32,
    prefix: str = "frame",
    seed: int = 0,
    object_name: str = "SIMULATED",
    truth: bool = True,
) -> list[Path]:
    """Expose the frames one after the other and write each as a FITS file.

    Parameters
    ----------
    folder
        Is made if it does not exist; files of the same names are replaced.
    sky, specs
        What is seen, and how by each frame.
    bitpix
        -32, -64: floating point, dead pixels NaN.  16: unsigned camera counts (BZERO 32768),
        clipped to 1..65535 adu, dead pixels BLANK.  32: steps of 1/256 adu (BSCALE), BLANK.
        8: the frame's own range in 254 steps (BSCALE and BZERO), BLANK.
    prefix
        Files are ``<prefix>_0001.fits`` and so on.
    seed
        Frame i is rendered with the seed (seed, i).
    object_name
        Value of OBJECT.
    truth
        Also write the truth tables (`write_truth`).

    Returns
    -------
    list of Path
        The frames, in order.  At most one of them is in memory at a time.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    start = FIRST_EXPOSURE
    for i, spec in enumerate(specs):
        stored, scaling = _stored(render(sky, spec, (seed, i)), bitpix)
        header = _frame_header(spec, stored, bitpix, scaling)
        header["OBJECT"] = object_name
        header["DATE-OBS"] = start.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        paths.append(folder / f"{prefix}_{i + 1:04d}.fits")
        _write_fits(paths[-1], header, stored)
        start += timedelta(seconds=spec.exptime_s + 5.0)
    if truth:
        write_truth(folder, sky, specs, [p.name for p in paths])
    return paths


def _stored(image: Image, bitpix: int) -> tuple[NDArray[Any], dict[str, float]]:
    """Return the array as FITS stores it (big-endian) and the cards that decode it."""
    if bitpix in (-32, -64):
        return image.astype(">f4" if bitpix == -32 else ">f8"), {}
    dead = np.isnan(image)
    if bitpix == 16:
        zero, step, low, high, blank, kind = 32768.0, 1.0, -32767, 32767, -32768, ">i2"
    elif bitpix == 32:
        zero, step, low, high, blank, kind = 0.0, 2.0**-8, -(2**31) + 1, 2**31 - 1, -(2**31), ">i4"
    elif bitpix == 8:
        least, greatest = (0.0, 0.0) if dead.all() else (np.nanmin(image), np.nanmax(image))
        zero, step = float(least), max(float(greatest - least) / 254.0, 1e-6)
        low, high, blank, kind = 0, 254, 255, "u1"
    else:
        raise InputError(f"BITPIX {bitpix} is not written here; choose 8, 16, 32, -32 or -64")
    counts = np.rint((image.astype(np.float64) - zero) / step)
    np.clip(counts, low, high, out=counts)
    counts[dead] = blank
    return counts.astype(kind), {"BZERO": zero, "BSCALE": step, "BLANK": blank}


def _frame_header(
    spec: FrameSpec, stored: NDArray[Any], bitpix: int, scaling: dict[str, float]
) -> Header:
    from astropy.io.fits import Header  # noqa: PLC0415

    header = Header()
    header["SIMPLE"], header["BITPIX"], header["NAXIS"] = True, bitpix, stored.ndim
    for axis, length in enumerate(reversed(stored.shape), start=1):
        header[f"NAXIS{axis}"] = length
    header.update(scaling)
    header["BUNIT"] = "adu"
    header["FILTER"] = "RGB" if spec.channels == 3 else "L"
    header["EXPTIME"] = (spec.exptime_s, "[s]")
    header["INSTRUME"], header["TELESCOP"] = "zmrs-sim", "simulated"
    header["GAIN"] = (spec.gain, "factor on celestial light")
    header["FWHM"] = (spec.psf_fwhm_px, "[px]")
    header["ORIGIN"] = "zmrs.simulate"
    # The WCS goes last and keeps every digit of its own; relax lets the SIP cards through.
    header.extend(spec.wcs.to_header(relax=True), update=True)
    return header


def _write_fits(path: Path, header: Header, stored: NDArray[Any]) -> None:
    """Write header and data as they are: astropy would rescale integers with BZERO on its way."""
    with path.open("wb") as file:
        file.write(header.tostring(padding=True).encode("ascii"))
        stored.tofile(file)
        file.write(b"\0" * (-stored.nbytes % 2880))


def write_truth(
    folder: str | Path, sky: Sky, specs: Sequence[FrameSpec], names: Sequence[str] | None = None
) -> tuple[Path, Path]:
    """Write what is true: ``truth_stars.ecsv`` and ``truth_frames.ecsv``.

    Parameters
    ----------
    folder
        An existing folder.
    sky, specs
        As rendered.
    names
        File names of the frames.

    Returns
    -------
    tuple of Path
        Stars: ``ra, dec`` (deg), ``flux, flux_r, flux_g, flux_b`` (adu).  Frames: ``name, ra, dec,
        rotation`` (deg, of +y), ``gain``, ``sky_0..`` (adu), ``grad_x, grad_y`` (adu/px), ``noise``
        (adu), ``fwhm`` (px).
    """
    from astropy.table import Table  # noqa: PLC0415

    red, green, blue = sky.channel_flux(3)
    stars = Table(
        [sky.star_ra_deg, sky.star_dec_deg, sky.star_flux, red, green, blue],
        names=("ra", "dec", "flux", "flux_r", "flux_g", "flux_b"),
        units=("deg", "deg", "adu", "adu", "adu", "adu"),
    )
    n_channels = max((s.channels for s in specs), default=1)
    columns = ["name", "ra", "dec", "rotation", "gain"]
    columns += [f"sky_{c}" for c in range(n_channels)] + ["grad_x", "grad_y", "noise", "fwhm"]
    units = ["", "deg", "deg", "deg", ""] + ["adu"] * n_channels + ["adu/pix"] * 2 + ["adu", "pix"]
    labels = names if names is not None else [str(i) for i in range(len(specs))]
    rows = [_truth_row(n, s, n_channels) for n, s in zip(labels, specs, strict=True)]
    frames = Table(rows=rows or None, names=columns)
    for column, unit in zip(columns, units, strict=True):
        frames[column].unit = unit or None
    paths = Path(folder) / "truth_stars.ecsv", Path(folder) / "truth_frames.ecsv"
    for table, path in zip((stars, frames), paths, strict=True):
        table.write(path, format="ascii.ecsv", overwrite=True)
    return paths


def _truth_row(name: str, spec: FrameSpec, n_channels: int) -> tuple[Any, ...]:
    height, width = spec.shape
    x, y = (width - 1) / 2.0, (height - 1) / 2.0
    ra, dec = (float(v) for v in spec.wcs.all_pix2world(x, y, 0))
    levels = itertools.islice(itertools.cycle(spec.sky_levels().tolist()), n_channels)
    pointing = (name, ra, dec, _direction_of_y(spec.wcs, x, y), spec.gain)
    return (*pointing, *levels, *spec.sky_gradient, spec.noise_sigma, spec.psf_fwhm_px)


DEMO_CENTER_DEG = (271.1, -24.4)


def demo_set(
    folder: str | Path,
    n_frames: int = 12,
    seed: int = 2,
    *,
    shape: tuple[int, int] = (768, 1024),
    scale_arcsec: float = 3.0,
    channels: int = 3,
    overlap: float = 0.28,
    bitpix: int = 16,
) -> list[Path]:
    """Write the frames of the demo: a nebula among coloured stars, in slightly turned panels.

    Parameters
    ----------
    folder
        Is made if it does not exist.
    n_frames
        How many panels; the sky is as large as they need.
    seed
        Of everything; each number is another sky.
    shape, scale_arcsec
        (H, W) of a frame and its pixel size; (1080, 1920) makes a set of 12 MB frames.
    channels
        3 for colour, 1 for mono.
    overlap
        Share of a frame's side that neighbours have in common; 0.6 suits SDS mode.
    bitpix
        As in `write_frames`.

    Returns
    -------
    list of Path
        The frames; the truth tables lie beside them.
    """
    frames = dither_pattern(
        n_frames, shape, scale_arcsec, center_deg=DEMO_CENTER_DEG, overlap=overlap,
        max_rotation_deg=4.0, seed=seed,
    )  # fmt: skip
    radius = _field_radius_deg(frames, shape)
    stars_per_deg2 = 1500.0 * (3.0 / scale_arcsec) ** 2
    sky = Sky.random(
        seed, DEMO_CENTER_DEG, radius, int(stars_per_deg2 * math.pi * radius**2),
        slope=0.8, flux_range=(200.0, 6.0e5), nebula_peak=600.0,
    )  # fmt: skip
    rng = np.random.default_rng([seed, 0x64656D])
    specs = [_demo_spec(rng, wcs, shape, channels) for wcs in frames]
    return write_frames(folder, sky, specs, bitpix=bitpix, seed=seed, object_name="Demo Nebula")


def _demo_spec(
    rng: np.random.Generator, wcs: WCS, shape: tuple[int, int], channels: int
) -> FrameSpec:
    """Draw the night of one panel: its own sky level in each colour, slight gradient, seeing."""
    levels = 900.0 + rng.uniform(-60.0, 60.0) + rng.uniform(-12.0, 12.0, 3)
    gradient = rng.uniform(-1.0, 1.0, 2) * 4.0 / max(shape)
    return FrameSpec(
        wcs,
        shape,
        psf_fwhm_px=float(rng.uniform(2.8, 3.4)),
        sky_level=(levels[0], levels[1], levels[2]) if channels == 3 else float(levels[0]),
        sky_gradient=(float(gradient[0]), float(gradient[1])),
        noise_sigma=6.0,
        dead_fraction=2e-4,
        channels=channels,
        exptime_s=120.0,
    )


def _field_radius_deg(frames: Sequence[WCS], shape: tuple[int, int]) -> float:
    """Return the angle from the demo's centre that holds every corner of every frame."""
    height, width = shape
    x, y = np.array([0, width - 1, 0, width - 1]), np.array([0, 0, height - 1, height - 1])
    heart = _unit_vectors(*(np.array(v) for v in DEMO_CENTER_DEG))
    cosines = [_unit_vectors(*wcs.all_pix2world(x, y, 0)) @ heart for wcs in frames]
    return math.degrees(math.acos(float(np.min(cosines)))) + 0.01
