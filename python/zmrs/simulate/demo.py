"""The frames of the demo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zmrs.simulate.files import write_frames
from zmrs.simulate.frames import FrameSpec
from zmrs.simulate.sky import Sky
from zmrs.simulate.wcs import dither_pattern
from zmrs.sky import unit_vectors

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["demo_set"]

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
    heart = unit_vectors(*(np.array(v) for v in DEMO_CENTER_DEG))
    cosines = [unit_vectors(*wcs.all_pix2world(x, y, 0)) @ heart for wcs in frames]
    return math.degrees(math.acos(float(np.min(cosines)))) + 0.01
