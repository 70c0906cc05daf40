"""Everything that frames can show: stars of known fluxes and a nebula around a centre."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from zmrs.errors import InputError
from zmrs.simulate.nebula import Floats, Nebula

__all__ = ["Sky", "tangent_plane"]


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
        size, and frames of other scales see it changed by the ratio of the areas (see the package).
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
        rgb = self.nebula.evaluate(*tangent_plane(ra_deg, dec_deg, self.center_deg))
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


def tangent_plane(
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
