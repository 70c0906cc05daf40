"""Small skies and images with a known truth, for every test that needs pixels or files.

Nothing here draws unseeded random numbers.  Arrays are float32, (H, W) or (3, H, W); NaN means
that a pixel has no value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

import zmrs
from zmrs.simulate import FrameSpec, Nebula, Sky, dither_pattern, make_frame_wcs

CENTER_DEG = (150.0, 30.0)
SCALE_ARCSEC = 2.0

Tile = tuple[np.ndarray, WCS]


def frame_wcs(shape: tuple[int, int] = (64, 80), rotation_deg: float = 0.0, **kw: Any) -> WCS:
    """TAN at the common centre, 2 arcsec a pixel; keywords as in `make_frame_wcs`."""
    return make_frame_wcs(CENTER_DEG, SCALE_ARCSEC, rotation_deg, shape, **kw)


def tiny_sky(seed: int = 1, n_stars: int = 40, nebula_peak: float = 0.0) -> Sky:
    """Stars within 0.1 degrees of the common centre; no nebula unless asked for."""
    return Sky.random(seed, CENTER_DEG, 0.1, n_stars, nebula_peak=nebula_peak)


def single_star_sky(
    ra_deg: float = CENTER_DEG[0], dec_deg: float = CENTER_DEG[1], flux: float = 1e4
) -> Sky:
    """One white star, nothing else."""
    return Sky(
        CENTER_DEG, np.array([ra_deg]), np.array([dec_deg]), np.array([flux]), np.ones((3, 1))
    )


def smooth_sky(seed: int = 5, peak: float = 300.0, radius_deg: float = 0.3) -> Sky:
    """No stars, a few broad Gaussians: what every interpolation should reproduce closely."""
    nebula = Nebula.random(seed, radius_deg, peak)
    glow = replace(nebula.glow, sigma_deg=np.maximum(nebula.glow.sigma_deg, 0.2 * radius_deg))
    none = np.zeros(0)
    return Sky(CENTER_DEG, none, none, none, np.zeros((3, 0)), Nebula(glow))


def constant_frames(
    values: Sequence[float], shape: tuple[int, int] = (48, 60), channels: int = 1
) -> list[Tile]:
    """Frames of one value each, side by side with a third of their width in common."""
    full = shape if channels == 1 else (channels, *shape)
    base = frame_wcs(shape)
    step = round(shape[1] * 2 / 3)
    return [
        (np.full(full, value, np.float32), shifted_wcs(base, (0, i * step), shape))
        for i, value in enumerate(values)
    ]


def alive(tiles: Sequence[Tile]) -> list[Tile]:
    """The tiles with their middle column a little brighter: a file of one value is dead."""
    brighter = []
    for image, wcs in tiles:
        copy = image.copy()
        copy[..., image.shape[-1] // 2] *= 1.001
        brighter.append((copy, wcs))
    return brighter


def shifted_wcs(wcs: WCS, origin_yx: tuple[int, int], shape: tuple[int, int]) -> WCS:
    """The same projection seen from pixel (0, 0) at ``origin_yx`` (SIP's own origin included)."""
    moved = wcs.deepcopy()
    moved.wcs.crpix = moved.wcs.crpix - np.array([origin_yx[1], origin_yx[0]], float)
    if moved.sip is not None:
        sip = moved.sip
        moved.sip = type(sip)(sip.a, sip.b, sip.ap, sip.bp, moved.wcs.crpix)
    moved.pixel_shape = (shape[1], shape[0])
    return moved


def cut_tiles(
    image: np.ndarray, wcs: WCS, boxes: Sequence[tuple[int, int, int, int]]
) -> list[Tile]:
    """Cut boxes (y0, y1, x0, x1) out of one image: on its grid they coadd to exactly the image."""
    return [
        (image[..., y0:y1, x0:x1].copy(), shifted_wcs(wcs, (y0, x0), (y1 - y0, x1 - x0)))
        for y0, y1, x0, x1 in boxes
    ]


def overlapping_boxes(
    shape: tuple[int, int], n_yx: tuple[int, int] = (2, 3), overlap_px: int = 12
) -> list[tuple[int, int, int, int]]:
    """Boxes that cover ``shape`` completely and overlap by about ``overlap_px``."""
    edges = [
        np.linspace(0, length, n + 1).astype(int) for length, n in zip(shape, n_yx, strict=True)
    ]
    pad = (overlap_px + 1) // 2
    spans = [
        [(max(a - pad, 0), min(b + pad, length)) for a, b in pairwise(e)]
        for e, length in zip(edges, shape, strict=True)
    ]
    return [(y0, y1, x0, x1) for y0, y1 in spans[0] for x0, x1 in spans[1]]


def rotated_specs(
    n: int = 6,
    shape: tuple[int, int] = (64, 80),
    *,
    max_rotation_deg: float = 10.0,
    sip_strength: float = 0.0,
    seed: int = 1,
    **spec: Any,
) -> list[FrameSpec]:
    """Turned, overlapping panels around the common centre; keywords go to `FrameSpec`."""
    frames = dither_pattern(
        n, shape, SCALE_ARCSEC, center_deg=CENTER_DEG, overlap=0.4,
        max_rotation_deg=max_rotation_deg, sip_strength=sip_strength, seed=seed,
    )  # fmt: skip
    return [FrameSpec(wcs, shape, **spec) for wcs in frames]


def write_image(
    path: Path, image: np.ndarray, wcs: WCS | None = None, **cards: str | float
) -> Path:
    """Write one array as a primary HDU."""
    header = wcs.to_header(relax=True) if wcs is not None else fits.Header()
    header.update(cards)
    fits.PrimaryHDU(image, header).writeto(path, overwrite=True)
    return path


def write_tiles(folder: Path, tiles: Sequence[Tile], prefix: str = "tile") -> list[Path]:
    """Write tiles as files, numbered from 1."""
    return [
        write_image(folder / f"{prefix}_{i + 1:03d}.fits", image, wcs)
        for i, (image, wcs) in enumerate(tiles)
    ]


def write_mosaic(path: Path, image: np.ndarray, coverage: np.ndarray | None = None) -> Path:
    """Write a file laid out as zmrs's output: primary, REJLOW, COVERAGE and a table INPUTS."""
    if coverage is None:
        finite = np.isfinite(image)
        coverage = (finite if image.ndim == 2 else finite.all(axis=0)).astype(np.float32)
    table = fits.BinTableHDU.from_columns(
        [fits.Column("NAME", "8A", array=np.array(["a", "b"]))], name="INPUTS"
    )
    low = fits.ImageHDU(np.zeros(image.shape, np.int16), name="REJLOW")
    depth = fits.ImageHDU(coverage.astype(np.float32), name="COVERAGE")
    primary = fits.PrimaryHDU(image.astype(np.float32))
    fits.HDUList([primary, low, depth, table]).writeto(path, overwrite=True)
    return path


def unmatched(*args: Any, **more: Any) -> zmrs.Result:
    """`zmrs.mosaic` of inputs as they are, their sky levels left alone."""
    return zmrs.mosaic(*args, **{"match": "none"} | more)
