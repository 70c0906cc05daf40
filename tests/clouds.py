"""Overlapping frames of a cloudy sky, each with a gain and a level of its own that are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.wcs import WCS

import sky
from zmrs.simulate import Contaminants, FrameSpec, Sky, dither_pattern, render

Array = np.ndarray[Any, Any]

SIGMA = 5.0
SKY_LEVEL = 1000.0
COLOURS = (1.0, 0.7, 1.3)


def glow(wcs: WCS, shape: tuple[int, int]) -> Array:
    """Clouds as a frame sees them: (H, W), -300 to 300 or so, a few dozen pixels wide."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    world = wcs.all_pix2world(x.ravel(), y.ravel(), 0)
    base = sky.frame_wcs((2, 2))
    x, y = (v.reshape(shape) for v in base.all_world2pix(*world, 0))
    wide = np.sin(x / 61.0 + 1.0) * np.cos(y / 47.0) + np.sin((x - 2.0 * y) / 90.0)
    narrow = np.sin(x / 23.0) * np.cos(y / 19.0) + np.sin((x + y) / 35.0)
    return 90.0 * wide + 60.0 * narrow


@dataclass(frozen=True)
class Scene:
    """Frames and what is true of them.

    `clean` has neither noise nor gains nor levels of its own.  Frame n is `clean` times
    ``factors[n]`` plus ``levels[n]``, both (N, C), and noise.
    """

    wcs: list[WCS]
    clean: list[Array]
    factors: Array
    levels: Array
    noise: list[Array]

    @property
    def n_channels(self) -> int:
        return int(self.factors.shape[1])

    def raw(self, *, noisy: bool = True) -> list[sky.Tile]:
        """As the telescope gives them."""
        return self.corrected(np.ones_like(self.factors), np.zeros_like(self.levels), noisy=noisy)

    def corrected(self, gains: Any, offsets: Any, *, noisy: bool = False) -> list[sky.Tile]:
        """Frames with gains and offsets applied, both (N, C)."""
        tiles = []
        parts = zip(
            self.wcs, self.clean, self.noise, self.factors, self.levels,
            np.asarray(gains, float), np.asarray(offsets, float), strict=True,
        )  # fmt: skip
        for wcs, clean, noise, *numbers in parts:
            factor, level, gain, offset = (n[:, None, None] for n in numbers)
            image = gain * (factor * clean + level + (noise if noisy else 0.0)) + offset
            tiles.append((image.astype(np.float32)[0 if len(image) == 1 else slice(None)], wcs))
        return tiles

    def truth(self) -> list[sky.Tile]:
        """As they should be, but for one gain and level of all, a channel."""
        gain = 1.0 / self.factors
        return self.corrected(gain, -gain * self.levels)

    def gain_errors(self, gains: Any) -> Array:
        """By how much gains, (N, C), are off, as a part; what all have in common is left out."""
        products = np.asarray(gains) * self.factors
        return np.asarray(products / products.mean(axis=0) - 1.0)

    def level_errors(self, gains: Any, offsets: Any) -> Array:
        """By how much the sky's level in corrected frames is off, in sigmas of the noise."""
        found = np.asarray(gains) * (self.factors * SKY_LEVEL + self.levels) + np.asarray(offsets)
        return np.asarray((found - found.mean(axis=0)) / SIGMA)


def make(
    panels: tuple[int, int] = (3, 3),
    shape: tuple[int, int] = (512, 640),
    *,
    channels: int = 1,
    seed: int = 1,
    overlap: float = 0.3,
    stars: int = 3000,
    slope: float = 0.0,
    contaminants: Contaminants | None = None,
    spread: float = 0.15,
    cloudy: bool = True,
) -> Scene:
    """Panels of frames with clouds, stars of each frame's own width, gains and levels.

    `slope` is the greatest gradient of each exposure's own sky in adu a pixel, `spread` the
    greatest deviation of factors from 1.
    """
    rng = np.random.default_rng([seed, 17])
    frames = dither_pattern(
        panels, shape, sky.SCALE_ARCSEC, center_deg=sky.CENTER_DEG, overlap=overlap, seed=seed
    )
    field = Sky.random(seed, sky.CENTER_DEG, 0.6, stars, nebula_peak=0.0)
    size = (len(frames), channels)
    factors, levels = rng.uniform(1 - spread, 1 + spread, size), rng.uniform(-60.0, 60.0, size)
    colours = np.asarray(COLOURS if channels == 3 else (1.0,))[:, None, None]
    clean, noise = [], []
    for number, wcs in enumerate(frames):
        spec = FrameSpec(
            wcs, shape, psf_fwhm_px=rng.uniform(2.4, 3.4), sky_level=SKY_LEVEL, channels=channels,
            sky_gradient=tuple(rng.uniform(-slope, slope, 2)), contaminants=contaminants,
        )  # fmt: skip
        image = np.reshape(render(field, spec, number), (channels, *shape)).astype(float)
        clean.append(image + colours * glow(wcs, shape) if cloudy else image)
        noise.append(rng.normal(0.0, SIGMA, image.shape))
    return Scene(frames, clean, factors, levels, noise)
