"""Five thousand inputs are matched in a minute and half a gigabyte, as whole commands.

Headers are as long as those of cameras; frames are small, since it is their number that matters.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from child import MIB, bare_env, run_witnessed

pytestmark = [pytest.mark.memory, pytest.mark.slow]

N = 5000
LIMIT, LIMIT_S = 512 * MIB, 60.0
SIGMA, SKY_LEVEL = 5.0, 1000.0
SCALE_DEG = 3.0 / 3600.0

Array = np.ndarray[Any, Any]


def clouds(x: Array, y: Array) -> Array:
    """The sky over pixels of the canvas: -180 to 180, a few dozen pixels wide."""
    narrow = 60 * np.sin(x / 23) * np.cos(y / 19) + 40 * np.sin((x + y) / 35)
    return np.asarray(narrow + 80 * np.sin(x / 61 + 1) * np.cos(y / 47))


def card(key: str, value: object) -> str:
    text = f"'{value}'" if isinstance(value, str) else f"{value!r:>20}"
    return f"{key:8}= {text}".ljust(80)


def header(side: int, crpix: Sequence[float], turn_rad: float) -> bytes:
    """Four blocks, as a camera's software writes them."""
    cos, sin = SCALE_DEG * np.cos(turn_rad), SCALE_DEG * np.sin(turn_rad)
    numbers = {
        "BITPIX": 16, "NAXIS": 2, "NAXIS1": side, "NAXIS2": side,
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 30.0,
        "CRPIX1": float(crpix[0]), "CRPIX2": float(crpix[1]), "CD1_1": float(-cos),
        "CD1_2": float(sin), "CD2_1": float(sin), "CD2_2": float(cos), "EXPTIME": 30.0,
    }  # fmt: skip
    cards = ["SIMPLE  =                    T".ljust(80), *(card(*pair) for pair in numbers.items())]
    cards += [card(f"CAM{n:05d}", 0.5 * n) for n in range(110)] + ["END".ljust(80)]
    text = "".join(cards)
    return text.ljust(-(-len(text) // 2880) * 2880).encode("ascii")


def write_frames(folder: Path, places: Array, side: int) -> tuple[Array, Array]:
    """Frames with their middles there, turned a little; returns their factors and levels."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    factors, levels = rng.uniform(0.85, 1.15, len(places)), rng.uniform(-60, 60, len(places))
    turns = np.radians(rng.uniform(-3, 3, len(places)))
    middle = (side - 1) / 2
    y, x = np.mgrid[0:side, 0:side] - middle
    noise = rng.normal(0, SIGMA, (side, 8 * side))
    for number, (cx, cy) in enumerate(places):
        cos, sin = np.cos(turns[number]), np.sin(turns[number])
        # +y of the frame is +y of the canvas, turned; its x grows where that of the canvas does.
        sky = SKY_LEVEL + clouds(cx + cos * x - sin * y, cy + sin * x + cos * y)
        shift = int(rng.integers(0, 7 * side))
        image = factors[number] * sky + levels[number] + noise[:, shift : shift + side]
        crpix = (middle + 1 - cos * cx - sin * cy, middle + 1 + sin * cx - cos * cy)
        with (folder / f"frame_{number:04d}.fits").open("wb") as file:
            file.write(header(side, crpix, turns[number]))
            pixels = np.rint(image).astype(">i2").tobytes()
            file.write(pixels + bytes(-len(pixels) % 2880))
    return factors, levels


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("thousands")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["a wide field", "one small field"])
def test_five_thousand(kind: str, work: Path) -> None:
    rng, side = np.random.default_rng(2), 160
    if kind == "a wide field":
        places = np.mgrid[0:100, 0:50].reshape(2, -1).T * 96.0 + rng.uniform(-3, 3, (N, 2))
    else:
        places = rng.uniform(0, 300, (N, 2))
    folder, out = work / kind, work / "out.fits"
    factors, levels = write_frames(folder, places, side)
    rms = {}
    for match in ("offset", "gain"):
        words = (folder, "-o", out, "--overwrite", "--match", match, "--memory", "512MiB")
        began = time.perf_counter()
        done = run_witnessed(work / "stats", "mosaic", *words, env=bare_env(), timeout=250)
        wall_s = time.perf_counter() - began
        assert done.status == 0, done.err
        told, stats = done.stats["match"], done.stats
        figures = [stats[name] / MIB for name in ("hwm_bytes", "projected_bytes", "allowed_bytes")]
        print(
            f"{kind}, {match}: {wall_s:.1f} s, matching {told['seconds']:.1f} s;",
            "measured {:.0f} ≤ projected {:.0f} ≤ allowed {:.0f} MiB".format(*figures),
            f"; {told['pairs']} pairs",
        )
        assert wall_s <= LIMIT_S
        assert figures == sorted(figures)
        assert stats["hwm_bytes"] <= LIMIT
        assert told["components"] == 1
        assert N <= told["pairs"] <= 13 * N
        rms[match] = told["rms"]
    table = fits.getdata(out, "INPUTS")
    gains, offsets = np.ravel(table["GAIN"]), np.ravel(table["OFFSET"])
    seen = gains * factors
    errors = np.abs(seen / seen.mean() - 1)
    found = gains * (SKY_LEVEL * factors + levels) + offsets
    print(f"gains are off by {np.median(errors):.2%} typically, levels by {np.std(found):.2f} adu")
    assert np.median(errors) < 0.015
    assert np.median(np.abs(found - np.median(found))) < 0.2 * SIGMA
    assert rms["gain"] < 0.75 * rms["offset"]
    shutil.rmtree(folder)
