"""Contaminants are where they are said to be, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import sky
from zmrs.errors import InputError
from zmrs.simulate import Contaminants, FrameSpec, render
from zmrs.simulate.contaminants import KINDS

SHAPE = (120, 160)
ALL = Contaminants(satellites=2.0, planes=1.0, hot=0.002, cosmic_rays=2000.0)
SHOWS_ALL = 10


def of_one_kind(kind: str, amount: float, seed: Any = 1, channels: int = 1, **more: Any) -> Any:
    return Contaminants(**{kind: amount}, **more).light(SHAPE, channels, seed)[kind]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_frame_differs_by_their_light_only(channels: int) -> None:
    clean = FrameSpec(sky.frame_wcs(SHAPE), SHAPE, noise_sigma=5.0, channels=channels,
                      dead_fraction=0.01)  # fmt: skip
    hit = replace(clean, contaminants=ALL)
    frames = [render(sky.tiny_sky(), spec, (7, 2)) for spec in (clean, hit)]
    light = sum(ALL.light(SHAPE, channels, (7, 2)).values())
    np.testing.assert_array_equal(*map(np.isnan, frames))
    off = (frames[1] - frames[0]).reshape(light.shape) - light
    assert np.nanmax(np.abs(off)) < 0.01
    assert light.max() > 100.0


def test_seeds() -> None:
    first, again, other = (ALL.light(SHAPE, 1, seed) for seed in (SHOWS_ALL, SHOWS_ALL, 4))
    elsewhere = replace(ALL, detector=1).light(SHAPE, 1, SHOWS_ALL)
    for kind in KINDS:
        np.testing.assert_array_equal(first[kind], again[kind])
        assert first[kind].any(), f"{kind}: choose a seed that shows it"
        # Hot pixels belong to the detector, the rest to the night.
        assert np.array_equal(first[kind], other[kind]) == (kind == "hot")
        assert np.array_equal(first[kind], elsewhere[kind]) == (kind != "hot")


def test_one_kind_does_not_move_another() -> None:
    alone = Contaminants(cosmic_rays=2000.0).light(SHAPE, 1, 5)["cosmic_rays"]
    np.testing.assert_array_equal(alone, ALL.light(SHAPE, 1, 5)["cosmic_rays"])


def test_a_satellite_leaves_an_even_line() -> None:
    rare = Contaminants(satellites=0.1, peak_adu=(500.0, 500.0))
    lights = [rare.light(SHAPE, 1, seed)["satellites"][0] for seed in range(120)]
    points = [np.argwhere(light > 250.0) for light in lights if light.max() > 490.0]
    assert 5 <= len(points) <= 25
    spreads = [np.linalg.eigvalsh(np.cov(places.T)) for places in points]
    # Two in one frame are seldom.
    assert sum(low < 1.0 < 100.0 < high for low, high in spreads) > 0.7 * len(points)


def test_a_plane_blinks() -> None:
    contaminants = Contaminants(planes=1.0, peak_adu=(1000.0, 1000.0), blink_px=30.0)
    seed = next(s for s in range(50) if contaminants.light(SHAPE, 1, s)["planes"].max() > 900)
    light = contaminants.light(SHAPE, 1, seed)["planes"][0]
    hit = light > 100.0
    assert 0.1 < hit.mean() < 0.6, "it is wide"
    assert 0.0 < (light > 700.0).mean() < 0.2 * hit.mean(), "and bright where it blinks"


def test_hot_pixels_are_as_many_as_said() -> None:
    light = of_one_kind("hot", 0.01, channels=3, peak_adu=(50.0, 60.0))
    assert (light > 0).sum() == round(0.01 * SHAPE[0] * SHAPE[1])
    assert ((light > 0).sum(axis=0) <= 1).all(), "each is hot in one channel"
    assert light[light > 0].min() >= 50.0
    assert light.max() <= 60.0


def test_cosmic_rays_are_short() -> None:
    light = of_one_kind("cosmic_rays", 5000.0)
    expected = 5000.0 * SHAPE[0] * SHAPE[1] / 1e6
    # Each leaves its first pixel, and four more on average.
    assert 2.0 * expected < (light > 0).sum() < 6.0 * expected
    assert np.isin((light > 0).sum(axis=0), (0, 1)).all()


@pytest.mark.parametrize(
    "nonsense",
    [
        {"satellites": -1.0},
        {"planes": float("nan")},
        {"cosmic_rays": float("inf")},
        {"hot": 1.5},
        {"peak_adu": (0.0, 1.0)},
        {"peak_adu": (2.0, 1.0)},
        {"blink_px": 0.0},
    ],
)
def test_nonsense_is_refused(nonsense: Any) -> None:
    with pytest.raises(InputError, match=next(iter(nonsense))):
        Contaminants(**nonsense)
