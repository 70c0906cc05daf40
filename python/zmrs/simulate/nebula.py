"""The smooth light: gas and dust as sums of Gaussians, bent and rippled by sine waves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "GaussianSum", "Nebula"]

Floats = NDArray[np.float64]

POINTS_PER_CHUNK = 2048
"""Points at which Gaussians are evaluated at a time: 100 Gaussians then stay in the cache."""


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
