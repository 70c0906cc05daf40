"""Every kernel and every combine function against `oracle`, on frames of every kind.

The frames are noise, the hardest thing to interpolate: a coordinate that is wrong by 1e-4 pixels
shows.  "Equal" is 1e-5 of the largest value, with the same NaN and the same coverage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import oracle
import sky
import zmrs
from sky import unmatched
from zmrs import _zmrs
from zmrs.config import COMBINES, KERNELS
from zmrs.coordinates import MAX_COORD_ERROR_PX, locate
from zmrs.simulate import FrameSpec, make_frame_wcs, write_frames

RELATIVE = 1e-5


@dataclass(frozen=True)
class Scene:
    """Inputs, an output grid, and where its pixels fall in them (asked once)."""

    inputs: Sequence[sky.Tile]
    wcs: WCS
    shape: tuple[int, int]
    weights: Sequence[Any] | None = None

    @cached_property
    def points(self) -> list[oracle.Points]:
        return [oracle.locate(self.wcs, self.shape, wcs) for _, wcs in self.inputs]

    def judged(self, kernel: str, how: str) -> oracle.Points:
        return oracle.mosaic(
            self.inputs, self.wcs, self.shape, kernel=kernel, how=how, weights=self.weights,
            points=self.points,
        )  # fmt: skip

    def made(self, kernel: str, how: str, inputs: Sequence[Any] | None = None) -> zmrs.Result:
        return unmatched(
            inputs or self.inputs, wcs=self.wcs, shape=self.shape, kernel=kernel, combine=how,
            weights=self.weights, threads=2, memory="1GiB",
        )  # fmt: skip

    def check(self, kernel: str, how: str, inputs: Sequence[Any] | None = None) -> None:
        """Make the mosaic and compare it with the oracle's."""
        result, want = self.made(kernel, how, inputs), self.judged(kernel, how)
        errors_px = [row.geometry_error_px for row in result.inputs]
        assert max(errors_px) <= MAX_COORD_ERROR_PX
        # It ends when values change by less than 5e-4, a round sooner or later where by just that.
        ends = 2e-4 if how == "winsorized-reference" else RELATIVE
        if max(errors_px) < 1e-6:
            assert_equal((result.data, result.coverage), want, ends)
            return
        # Where coordinates are interpolated to no better than the bound they may fall on the
        # other side of an edge of a pixel, and noise changes by its own size from pixel to pixel.
        fence = self.near_edges(2 * max(errors_px))
        assert fence.mean() < 0.01
        planes = [np.where(fence, np.nan, plane) for plane in (result.data, want[0])]
        counts = [np.where(fence, 0.0, plane) for plane in (result.coverage, want[1])]
        relative = ends + 2 * max(errors_px)
        assert_equal((planes[0], counts[0]), (planes[1], counts[1]), relative)

    def near_edges(self, distance_px: float) -> np.ndarray:
        """Output pixels that fall so close to a half or whole pixel coordinate in an input."""
        halves = 2.0 * np.stack([v for xy in self.points for v in xy])
        off = np.abs(halves - np.rint(np.nan_to_num(halves))) / 2.0
        return (off < distance_px).any(axis=0)


def assert_equal(got: oracle.Points, want: oracle.Points, relative: float = RELATIVE) -> None:
    (data, coverage), (true, true_coverage) = got, want
    scale = np.nanmax(np.abs(true))
    assert np.isfinite(true).any(), "the scene is empty"
    np.testing.assert_array_equal(np.isnan(data), np.isnan(true), "the NaN differ")
    np.testing.assert_allclose(coverage, true_coverage, rtol=relative, atol=0)
    worst = np.nanmax(np.abs(data - true)) / scale
    assert worst < relative, f"values differ by {worst:.2e} of the scale"


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.0, 1000.0, shape).astype(np.float32)


def output(rotation_deg: float = 7.3, shape: tuple[int, int] = (98, 117), **kw: Any) -> WCS:
    return sky.frame_wcs(shape, rotation_deg, **kw)


def turned(rotations: Sequence[float], shape: tuple[int, int] = (40, 52), **kw: Any) -> Any:
    """Frames about the common centre, one for each rotation, a few pixels apart."""
    frames = []
    for n, angle in enumerate(rotations):
        wcs = sky.frame_wcs(shape, angle, **kw)
        wcs.wcs.crpix += np.array([9.37 * n - 11.1, 6.71 * (n % 3) - 7.3])
        if wcs.sip is not None:
            wcs.sip = type(wcs.sip)(wcs.sip.a, wcs.sip.b, None, None, wcs.wcs.crpix)
        frames.append((noise(shape, n), wcs))
    return frames


def holed(inputs: Sequence[sky.Tile], fraction: float = 0.03) -> list[sky.Tile]:
    """The inputs with dead pixels, a dead column, a dead block and a dead border."""
    result = []
    for n, (image, wcs) in enumerate(inputs):
        spoilt = image.copy()
        spoilt[..., np.random.default_rng(90 + n).random(image.shape[-2:]) < fraction] = np.nan
        spoilt[..., 17] = spoilt[..., 20:25, 30:37] = np.nan
        spoilt[..., :2, :] = spoilt[..., -3:] = np.inf
        result.append((spoilt, wcs))
    return result


def weight_maps(inputs: Sequence[sky.Tile]) -> list[Any]:
    """Smooth maps with zeros, negatives and NaN; the second input has a number instead."""
    maps: list[Any] = []
    for n, (image, _) in enumerate(inputs):
        y, x = np.mgrid[: image.shape[-2], : image.shape[-1]]
        weights = 1.0 + 0.5 * np.sin(0.21 * x + n) * np.cos(0.13 * y)
        weights[5:8, 9:12], weights[12, ::7], weights[30:33, 4] = 0.0, -1.0, np.nan
        maps.append(weights)
    maps[1] = 2.5
    return maps


def galactic(shape: tuple[int, int]) -> WCS:
    """TAN in galactic coordinates about the common centre."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
    wcs.wcs.crval = [198.14212843, 52.46411778]  # (150, 30) ICRS
    wcs.wcs.crpix = [shape[1] / 2 + 0.3, shape[0] / 2 - 0.4]
    wcs.wcs.cdelt = [-sky.SCALE_ARCSEC / 3600, sky.SCALE_ARCSEC / 3600]
    wcs.wcs.set()
    return wcs


def latitude_first(wcs: WCS) -> WCS:
    """The same WCS with its world axes exchanged."""
    swapped = WCS(naxis=2)
    swapped.wcs.ctype = list(wcs.wcs.ctype)[::-1]
    swapped.wcs.crval, swapped.wcs.crpix = wcs.wcs.crval[::-1], wcs.wcs.crpix
    swapped.wcs.cd, swapped.wcs.radesys = wcs.wcs.cd[::-1], wcs.wcs.radesys
    swapped.wcs.set()
    return swapped


def plate_carree(shape: tuple[int, int], latitude: float) -> WCS:
    """CAR through the equator, at a high latitude: strongly stretched."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---CAR", "DEC--CAR"]
    wcs.wcs.crval, wcs.wcs.cdelt = [150.0, 0.0], [-0.25, 0.05]
    wcs.wcs.crpix = [shape[1] / 2, shape[0] / 2 - latitude / 0.05]
    wcs.wcs.set()
    return wcs


def polar(shape: tuple[int, int], scale_deg: float = 0.05) -> WCS:
    return make_frame_wcs((150.0, 90.0), scale_deg * 3600, 33.0, shape)


def all_sky() -> WCS:
    """Hammer-Aitoff, two degrees a pixel."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crpix = ["RA---AIT", "DEC--AIT"], [90.5, 45.5]
    wcs.wcs.crval, wcs.wcs.cdelt = [0.0, 0.0], [-2.0, 2.0]
    wcs.wcs.set()
    return wcs


SHAPE = (98, 117)


def weighted(inputs: Sequence[sky.Tile]) -> Scene:
    return Scene(inputs, output(), SHAPE, weight_maps(inputs))


SCENES: dict[str, Callable[[], Scene]] = {
    "turned a little": lambda: Scene(turned([3.1, -2.2, 8.4]), output(), SHAPE),
    "turned strongly": lambda: Scene(turned([90.0, 137.0, -178.6, 45.0]), output(), SHAPE),
    "turned exactly 90": lambda: Scene(turned([90.0, 180.0, 270.0]), output(0.0), SHAPE),
    "distorted": lambda: Scene(turned([3.0, 91.0], (120, 130), sip_strength=2.0), output(), SHAPE),
    "distorted, tiny": lambda: Scene(turned([3.0, 91.0], sip_strength=3.0), output(), SHAPE),
    "distorted output": lambda: Scene(turned([3.0, 91.0]), output(5.0, sip_strength=3.0), SHAPE),
    "holes and borders": lambda: Scene(holed(turned([3.1, -2.2, 90.0, 137.0])), output(), SHAPE),
    "on the same pixels": lambda: Scene(
        holed(sky.cut_tiles(noise(SHAPE, 4), output(), sky.overlapping_boxes(SHAPE))),
        output(),
        SHAPE,
    ),
    "same pixels, turned 90": lambda: Scene(
        holed([(noise((50, 61), 3), sky.frame_wcs((50, 61), 90.0))]),
        sky.frame_wcs((71, 80), 0.0),
        (71, 80),
    ),
    "float64": lambda: Scene(
        [(i.astype(float) + 1e5, w) for i, w in holed(turned([4.0, 77.0]))], output(), SHAPE
    ),
    "colour": lambda: Scene(
        holed([(noise((3, 40, 52), n), w) for n, (_, w) in enumerate(turned([5.0, 137.0]))]),
        output(),
        SHAPE,
    ),
    "galactic output": lambda: Scene(holed(turned([5.0, 137.0])), galactic(SHAPE), SHAPE),
    "galactic input": lambda: Scene([(noise((60, 70), 3), galactic((60, 70)))], output(), SHAPE),
    "latitude first": lambda: Scene(
        [(i, latitude_first(w)) for i, w in holed(turned([5.0, 137.0]))],
        latitude_first(output()),
        SHAPE,
    ),
    "one row, one column": lambda: Scene(
        [
            (noise((1, 40), 1), sky.frame_wcs((1, 40), 12.0)),
            (noise((40, 1), 2), sky.frame_wcs((40, 1), 12.0)),
            (noise((1, 1), 3), sky.frame_wcs((1, 1), 31.0)),
        ],
        output(),
        SHAPE,
    ),
    "tiny": lambda: Scene(
        turned([12.0], (2, 2)) + turned([50.0, 100.0], (5, 7)) + turned([0.3], (3, 2)),
        output(),
        SHAPE,
    ),
    "larger than the output": lambda: Scene(
        holed(turned([12.0, 92.0], (200, 230))), output(shape=(31, 43)), (31, 43)
    ),
    "finer output": lambda: Scene(
        holed(turned([12.0, 92.0], (40, 52))),
        make_frame_wcs(sky.CENTER_DEG, 0.61, 30.0, (150, 160)),
        (150, 160),
    ),
    "coarser output": lambda: Scene(
        holed(turned([12.0, 92.0], (120, 130))),
        make_frame_wcs(sky.CENTER_DEG, 7.7, 30.0, (40, 50)),
        (40, 50),
    ),
    "many cells": lambda: Scene(
        holed(turned([12.0, 92.0], (300, 180))), output(shape=(330, 290)), (330, 290)
    ),
    "stretched near the pole": lambda: Scene(
        [(noise((120, 160), 6), plate_carree((120, 160), 84.0))],
        polar((190, 200), 0.1),
        (190, 200),
    ),
    "pole in the frame": lambda: Scene(
        [(noise((160, 150), 6), polar((160, 150)))], plate_carree((150, 200), 85.0), (150, 200)
    ),
    "all the sky in few pixels": lambda: Scene(
        [(noise((60, 50), 2), make_frame_wcs((64.0, -32.0), 1200.0, 20.0, (60, 50)))],
        all_sky(),
        (90, 180),
    ),
    "weight maps": lambda: weighted(holed(turned([3.1, -2.2, 90.0, 137.0]))),
    "colour with weight maps": lambda: weighted(
        holed([(noise((3, 40, 52), n), w) for n, (_, w) in enumerate(turned([5.0, 137.0]))])
    ),
}


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    return {}


def scene_of(name: str, scenes: dict[str, Scene]) -> Scene:
    if name not in scenes:
        scenes[name] = SCENES[name]()
    return scenes[name]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", SCENES)
def test_mean_equals_the_oracle(name: str, kernel: str, scenes: dict[str, Scene]) -> None:
    scene = scene_of(name, scenes)
    scene.check(kernel, "mean")


@pytest.mark.parametrize("how", COMBINES)
@pytest.mark.parametrize(
    ("name", "kernel"),
    [("weight maps", kernel) for kernel in KERNELS]
    + [("colour", "lanczos2"), ("on the same pixels", "bilinear")],
)
def test_every_combine_equals_the_oracle(
    name: str, kernel: str, how: str, scenes: dict[str, Scene]
) -> None:
    scene = scene_of(name, scenes)
    scene.check(kernel, how)


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "u2", "i2", ">i2", "u4", "i4", ">i4", "i8", "u8", "f2", ">f4", "f8"]
)
def test_arrays_of_any_type_mean_their_values(dtype: str) -> None:
    scene = Scene([((i / 8).astype(dtype), w) for i, w in turned([5.0, 137.0])], output(), SHAPE)
    scene.check("bicubic", "mean")


def test_views_of_arrays_mean_their_values() -> None:
    inputs = [(i[::-1, ::-2].T, w) for i, w in turned([5.0, 137.0], (52, 80))]
    scene = Scene(inputs, output(), SHAPE)
    scene.check("bilinear", "mean")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bitpix", [8, 16, 32, -32, -64])
def test_stored_pixels_mean_what_their_cards_say(
    bitpix: int, channels: int, tmp_path: Path
) -> None:
    specs = [
        FrameSpec(w, (40, 52), noise_sigma=50.0, dead_fraction=0.02, channels=channels)
        for _, w in turned([5.0, 137.0, -3.0])
    ]
    paths = write_frames(tmp_path, sky.tiny_sky(), specs, bitpix=bitpix)
    inputs = []
    for path in paths:
        with fits.open(path, memmap=False, uint=False) as hdus:  # else BLANK is lost
            stored = hdus[0].header["BITPIX"]
            assert stored == bitpix
            inputs.append((hdus[0].data.astype(float), WCS(hdus[0].header).celestial))
    assert bitpix < 0 or any(np.isnan(image).any() for image, _ in inputs)
    scene = Scene(inputs, output(), SHAPE)
    for kernel in ("bilinear", "lanczos3"):
        scene.check(kernel, "mean", paths)


@pytest.mark.parametrize(
    ("dtype", "cards"),
    [
        (">i2", {"BSCALE": -0.25, "BZERO": 3.5, "BLANK": 17}),
        (">i4", {"BSCALE": 1e-3, "BZERO": 2147483648.0, "BLANK": -1}),
        (">i8", {"BLANK": 5}),
        ("u1", {"BZERO": -128.0, "BLANK": 0}),
        (">f4", {"BSCALE": 2.0, "BZERO": 7.0}),
        (">f8", {"BSCALE": 2.0, "BZERO": 7.0}),
    ],
)
def test_scaling_and_blank_of_every_type(
    dtype: str, cards: dict[str, float], tmp_path: Path
) -> None:
    """The file is written by hand; the oracle gets the values by the FITS formula."""
    inputs, paths = [], []
    for n, (image, wcs) in enumerate(turned([5.0, 137.0])):
        stored = (image / 4).astype(dtype)
        if "BLANK" in cards:
            stored[3:6, 4:9] = cards["BLANK"]
        value = cards.get("BZERO", 0.0) + cards.get("BSCALE", 1.0) * stored.astype(float)
        if "BLANK" in cards:
            value[stored == cards["BLANK"]] = np.nan
        header = fits.Header([("SIMPLE", True), ("BITPIX", _bitpix(dtype)), ("NAXIS", 2)])
        header["NAXIS1"], header["NAXIS2"] = stored.shape[::-1]
        header.update(wcs.to_header())
        header.update(cards)
        blob = header.tostring().encode() + stored.tobytes()
        paths.append(tmp_path / f"{n}.fits")
        paths[-1].write_bytes(blob + bytes(-len(blob) % 2880))
        inputs.append((value, wcs))
    scene = Scene(inputs, output(), SHAPE)
    scene.check("bilinear", "mean", paths)


def _bitpix(dtype: str) -> int:
    kind = np.dtype(dtype)
    return 8 * kind.itemsize * (-1 if kind.kind == "f" else 1)


@pytest.mark.parametrize("how", COMBINES)
def test_gains_and_offsets_apply_to_values_and_not_to_weights(how: str, tmp_path: Path) -> None:
    inputs, wcs = holed(turned([3.1, -2.2, 90.0])), output()
    gains = [(1.0, 0.0), (0.5, 30.0), (1.7, -400.0)]
    engine = []
    for n, ((image, image_wcs), (gain, offset)) in enumerate(zip(inputs, gains, strict=True)):
        place = locate((wcs, SHAPE), (image_wcs, image.shape), lambda: tmp_path / "scratch")
        source = _zmrs.Source.memory(image.reshape(-1).view(np.uint8), -32, (1, *image.shape))
        engine.append(
            _zmrs.Input(str(n), source, place.grid, weight=1.0 + n, gain=[gain], offset=[offset])
        )
    job = _zmrs.Job((1, *SHAPE), "bilinear", how, engine)
    plan = zmrs.Plan(name="test", cpu_workers=2)
    data, coverage = np.empty((1, *SHAPE), np.float32), np.empty(SHAPE, np.float32)
    counts = np.empty((2, *SHAPE), np.int16) if job.counts_rejected else None
    layout = _zmrs.fit(job, plan, 0, 0, 0, True)
    _zmrs.run_pass_into_arrays(job, layout, data, coverage, counts=counts)
    want = oracle.mosaic(inputs, wcs, SHAPE, how=how, weights=[1.0, 2.0, 3.0], gains=gains)
    assert_equal((data[0], coverage), want)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_scenes_equal_the_oracle(seed: int) -> None:
    rng = np.random.default_rng([seed, 77])
    inputs, weights = [], []
    for n in range(rng.integers(1, 6)):
        shape = tuple(int(v) for v in rng.integers(1, 90, 2))
        full = (3, *shape) if seed % 3 == 0 else shape
        wcs = make_frame_wcs(
            tuple(np.array(sky.CENTER_DEG) + rng.uniform(-0.03, 0.03, 2)),
            float(rng.uniform(0.7, 5.0)), float(rng.uniform(-180, 180)), shape,
            projection=str(rng.choice(["TAN", "SIN", "STG", "ZEA", "ARC"])),
        )  # fmt: skip
        image = noise(full, 1000 * seed + n)
        image[..., rng.random(shape) < rng.choice([0.0, 0.02, 0.3])] = np.nan
        inputs.append((image, wcs))
        weights.append([None, float(rng.uniform(0.1, 3)), rng.uniform(-0.05, 1, shape)][n % 3])
    shape = tuple(int(v) for v in rng.integers(1, 200, 2))
    scale, angle = float(rng.uniform(0.7, 5.0)), float(rng.uniform(-180, 180))
    scene = Scene(inputs, make_frame_wcs(sky.CENTER_DEG, scale, angle, shape), shape, weights)
    for kernel in KERNELS:
        how = str(rng.choice(COMBINES))
        want = scene.judged(kernel, how)
        if not np.isfinite(want[0]).any():
            with pytest.raises(zmrs.errors.InputError):
                scene.made(kernel, how)
            continue
        scene.check(kernel, how)
