"""What gets into single frames and is not the sky: satellites, planes, hot pixels, cosmic rays.

Rejecting combines are there to get rid of it, and since it is drawn from seeds it is known which
pixels of which frame it has hit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from zmrs.errors import InputError
from zmrs.simulate.nebula import Floats

__all__ = ["KINDS", "Contaminants"]

KINDS = ("satellites", "planes", "hot", "cosmic_rays")
"""What there is, in the order in which it is drawn."""

SATELLITE_SIGMA_PX = 1.3
PLANE_SIGMA_PX = 3.0
BLINK_SIGMA_PX = 4.0
WINGS_PX = 9.0
"""Distance of the lights of the wings from the one that blinks."""

TRACK_PX = 4.0
"""Mean length of a cosmic ray's track beyond its first pixel."""


@dataclass(frozen=True)
class Contaminants:
    """How much of it there is, and how bright it is.

    Brightness is drawn from ``peak_adu``, its logarithm uniformly, for every trail, hot pixel and
    track.

    Attributes
    ----------
    satellites
        Mean number of satellite trails in a frame: even lines through the whole of it.
    planes
        Mean number of planes: three parallel lines, wide ones, of which the middle one blinks.
    hot
        Part of the pixels that are hot: the same ones in all frames with this ``detector``, each
        in one channel.
    cosmic_rays
        Mean number of cosmic rays per million pixels: short sharp tracks, each in one channel.
    peak_adu
        Least and greatest brightness of a pixel, adu.
    blink_px
        Way of a plane between two blinks, pixels.
    detector
        Seed of the hot pixels.
    """

    satellites: float = 0.0
    planes: float = 0.0
    hot: float = 0.0
    cosmic_rays: float = 0.0
    peak_adu: tuple[float, float] = (100.0, 20000.0)
    blink_px: float = 60.0
    detector: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises
        ------
        InputError
            Naming the field.
        """
        for field in fields(self)[: len(KINDS)]:
            amount = getattr(self, field.name)
            if not 0.0 <= amount < math.inf:
                raise InputError(f"{field.name} is {amount}: it must be 0 or more")
        if self.hot > 1.0:
            raise InputError(f"hot is {self.hot}: it is a part of the pixels, at most 1")
        low, high = self.peak_adu
        if not (0.0 < low <= high < math.inf and self.blink_px > 0.0):
            raise InputError("contaminants need a positive peak_adu and blink_px")

    def light(
        self, shape: tuple[int, int], channels: int = 1, seed: int | Sequence[int] = 0
    ) -> dict[str, Floats]:
        """Draw what gets into one frame.

        Parameters
        ----------
        shape, channels
            Of the frame.
        seed
            Of all but the hot pixels.

        Returns
        -------
        dict
            For each of `KINDS` the light that it adds, float64 (channels, H, W), adu.
        """
        # Apart from the streams of `zmrs.simulate.render`, which has the same seed.
        root = np.random.SeedSequence(seed, spawn_key=(0x636F6E,))
        streams = root.spawn(len(KINDS))
        satellites, planes, _, rays = (np.random.default_rng(stream) for stream in streams)
        full = (channels, *shape)
        return {
            "satellites": np.broadcast_to(self._satellites(shape, satellites), full),
            "planes": np.broadcast_to(self._planes(shape, planes), full),
            "hot": self._hot(full),
            "cosmic_rays": self._rays(full, rays),
        }

    def _satellites(self, shape: tuple[int, int], rng: np.random.Generator) -> Floats:
        light = np.zeros(shape)
        for _ in range(rng.poisson(self.satellites)):
            _, across = _line(shape, rng)
            light += self._peaks(rng, 1) * _profile(across, SATELLITE_SIGMA_PX)
        return light

    def _planes(self, shape: tuple[int, int], rng: np.random.Generator) -> Floats:
        light = np.zeros(shape)
        for _ in range(rng.poisson(self.planes)):
            along, across = _line(shape, rng)
            since = along % self.blink_px - self.blink_px / 2.0
            blinks = _profile(across, BLINK_SIGMA_PX) * _profile(since, BLINK_SIGMA_PX)
            wings = sum(_profile(across + w, PLANE_SIGMA_PX) for w in (-WINGS_PX, WINGS_PX))
            light += self._peaks(rng, 1) * (blinks + 0.3 * wings)
        return light

    def _hot(self, full: tuple[int, int, int]) -> Floats:
        light = np.zeros(full)
        rng = np.random.default_rng([self.detector, 0x686F74])
        area = full[1] * full[2]
        n = round(self.hot * area)
        if n:
            where = rng.choice(area, n, replace=False, shuffle=False)
            light.reshape(full[0], area)[rng.integers(full[0], size=n), where] = self._peaks(rng, n)
        return light

    def _rays(self, full: tuple[int, int, int], rng: np.random.Generator) -> Floats:
        light = np.zeros(full)
        channels, height, width = full
        for _ in range(rng.poisson(self.cosmic_rays * height * width / 1e6)):
            n = 1 + rng.poisson(rng.exponential(TRACK_PX))
            x, y, angle = rng.random(3) * (width, height, 2.0 * math.pi)
            steps = np.arange(n)
            column = (x + steps * math.cos(angle)).astype(int)
            row = (y + steps * math.sin(angle)).astype(int)
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            where = (rng.integers(channels), row[inside], column[inside])
            light[where] += (self._peaks(rng, 1) * rng.uniform(0.3, 1.0, n))[inside]
        return light

    def _peaks(self, rng: np.random.Generator, n: int) -> Floats:
        low, high = np.log(self.peak_adu)
        return np.asarray(np.exp(rng.uniform(low, high, n)))


def _line(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Distances of all pixels along and across a line through a frame, (H, W), pixels."""
    height, width = shape
    x0, y0, angle = rng.random(3) * (width, height, math.pi)
    y, x = np.ogrid[:height, :width]
    dx, dy = x - x0, y - y0
    cos, sin = math.cos(angle), math.sin(angle)
    return np.asarray(dx * cos + dy * sin), np.asarray(dy * cos - dx * sin)


def _profile(distance: Floats, sigma_px: float) -> Floats:
    """A Gaussian of height 1; nothing beyond 6 sigma."""
    value = np.exp(-0.5 * (distance / sigma_px) ** 2)
    return np.where(np.abs(distance) < 6.0 * sigma_px, value, 0.0)
