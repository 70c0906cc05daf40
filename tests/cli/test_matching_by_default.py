"""Commands as users type them: sky levels are matched though nobody asks for it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import sky
import zmrs
from child import MIB, Outcome, bare_env, clean_env, run, run_witnessed

Array = np.ndarray[Any, Any]

SHAPE, TILE = (240, 300), (130, 150)
ORIGINS = [(0, 0), (5, 60), (0, 150), (40, 10), (60, 90), (70, 140), (110, 0), (90, 75), (110, 150)]
LEVELS = np.array([0.0, 31.0, -12.5, 100.0, 3.0, -40.0, 8.25, 0.0, 64.0])
COLOURS = np.stack([LEVELS, -LEVELS, 0.5 * LEVELS[::-1]], axis=1)
SKY = 500.0
GRID = sky.frame_wcs(SHAPE)


def truth(channels: int) -> Array:
    """What all frames show but for their levels."""
    shape = SHAPE if channels == 1 else (channels, *SHAPE)
    return np.random.default_rng(channels).normal(SKY, 5.0, shape).astype(np.float32)


def raised(image: Array, level: Any) -> Array:
    """An image with its level, or one a channel, added."""
    return image + np.reshape(level, (*np.shape(level), 1, 1))


def write_frames(folder: Path, levels: Array) -> Path:
    """Frames cut out of one image, each with a level of its own, one a channel."""
    folder.mkdir()
    boxes = [(y, y + TILE[0], x, x + TILE[1]) for y, x in ORIGINS]
    tiles = sky.cut_tiles(truth(levels[0].size), GRID, boxes)
    for number, ((image, wcs), level) in enumerate(zip(tiles, levels, strict=True)):
        sky.write_image(folder / f"{number}.fits", raised(image, level).astype(np.float32), wcs)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_frames(folder / "mono", LEVELS)
    write_frames(folder / "colour", COLOURS)
    sky.write_image(folder / "grid.fits", np.zeros(SHAPE, np.float32), GRID)
    return folder


def mosaic(folder: Path, *words: object, **more: Any) -> tuple[Outcome, Path]:
    """Run the command in `folder`, without anything in the environment."""
    out, report = folder / "out.fits", folder / "stats"
    more.setdefault("env", bare_env())
    done = run_witnessed(report, "mosaic", *words, "-o", out, "--overwrite", **more)
    assert done.status == 0, done.err
    return done, out


def planes(path: Path) -> list[bytes]:
    return [fits.getdata(path, hdu).tobytes() for hdu in (0, "COVERAGE")]


def assert_offsets(table: Any, levels: Array) -> None:
    np.testing.assert_allclose(table["OFFSET"], levels.mean(axis=0) - levels, rtol=0, atol=1e-3)


# ---------------------------------------------------------------------------------- what is made


def test_a_plain_run(work: Path, tmp_path: Path) -> None:
    done, out = mosaic(tmp_path, work / "mono")
    assert done.out == f"{out}\n"
    (remark,) = done.remarks
    assert remark.startswith("matched 9 inputs by ")
    with fits.open(out) as hdus:
        assert hdus[0].header["ZMMATCH"] == "offset"
        table = hdus["INPUTS"].data
        assert_offsets(table, LEVELS)
        assert np.all(table["GAIN"] == 1)
        assert set(table["STATUS"]) == {"used"}
        assert np.ptp(hdus["COVERAGE"].data) >= 3
    assert done.stats["match"]["components"] == 1
    assert done.stats["match"]["rms"] < 1e-3


@pytest.mark.parametrize("kind", ["mono", "colour"])
def test_the_levels_are_gone(kind: str, work: Path, tmp_path: Path) -> None:
    """On the grid that the frames were cut from, their mosaic is what they were cut from."""
    levels = LEVELS if kind == "mono" else COLOURS
    _, out = mosaic(tmp_path, work / kind, "--wcs", work / "grid.fits")
    image = fits.getdata(out)
    wanted = raised(truth(levels[0].size), levels.mean(axis=0))
    np.testing.assert_allclose(image, wanted, rtol=0, atol=2e-3)
    table = fits.getdata(out, "INPUTS")
    assert table["OFFSET"].shape == levels.shape
    assert_offsets(table, levels)
    _, out = mosaic(tmp_path, work / kind, "--wcs", work / "grid.fits", "--match", "none")
    assert np.abs(fits.getdata(out) - wanted).max() > 30


@pytest.mark.parametrize("kind", ["mono", "colour"])
def test_with_a_second_pass(kind: str, work: Path, tmp_path: Path) -> None:
    """It is matched once more, after its gains; the table tells the offsets that count."""
    levels = LEVELS if kind == "mono" else COLOURS
    words = ("--two-pass", "--two-pass-sigma", "20", "--threads", "2", "--memory", "250MiB")
    done, out = mosaic(tmp_path, work / kind, "--wcs", work / "grid.fits", *words)
    starts = ("matched 9 inputs by ", "[TwoPass] Second pass requested ", "[TwoPass] plan=phase5 ")
    assert len(done.remarks) == len(starts)
    assert all(line.startswith(start) for line, start in zip(done.remarks, starts, strict=True))
    with fits.open(out) as hdus:
        header, table = hdus[0].header, hdus["INPUTS"].data
        image, coverage = np.array(hdus[0].data), np.array(hdus["COVERAGE"].data)
        gains, offsets = table["TWOPGAIN"], table["OFFSET"]
    assert (header["ZMMATCH"], header["ZMTWOP"]) == ("offset", True)
    assert list(gains) == done.stats["two_pass"]["gains"]
    assert len(set(gains)) > 3
    # The mean of frames that are multiplied and shifted as the table says.
    total = np.zeros(image.shape)
    for (y, x), level, gain, offset in zip(ORIGINS, levels, gains, offsets, strict=True):
        box = (..., slice(y, y + TILE[0]), slice(x, x + TILE[1]))
        total[box] += raised(gain * raised(truth(levels[0].size)[box], level), offset)
    np.testing.assert_allclose(image, total / coverage, rtol=0, atol=2e-3)
    # The gains move the sky apart; matched once more, it is level.
    sky_levels = gains.reshape(-1, *[1] * (levels.ndim - 1)) * (SKY + levels) + offsets
    assert SKY * np.ptp(gains) > 2.5
    assert np.ptp(sky_levels, axis=0).max() < 0.05
    stats = done.stats
    assert stats["hwm_bytes"] <= stats["projected_bytes"] <= stats["allowed_bytes"] == 250 * MIB


def test_inputs_of_all_kinds(work: Path, tmp_path: Path) -> None:
    """Compressed ones are matched too, and those left out do not shift the table."""
    folder = write_frames(tmp_path / "in", LEVELS)
    (folder / "1a.fits").write_bytes(b"no FITS")
    plain = folder / "3.fits"
    (folder / "3.fits.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    with fits.open(folder / "5.fits") as hdus:
        packed = fits.CompImageHDU(
            hdus[0].data, hdus[0].header, compression_type="GZIP_2", quantize_level=0
        )
        packed.writeto(folder / "5.fits.fz")
    (folder / "5.fits").unlink()
    _, out = mosaic(tmp_path, folder, "--wcs", work / "grid.fits")
    table = fits.getdata(out, "INPUTS")
    endings = {3: ".fits.gz", 5: ".fits.fz"}
    names = [Path(name).name for name in table["NAME"]]
    assert names == [*(f"{n}{endings.get(n, '.fits')}" for n in range(9)), "1a.fits"]
    assert_offsets(table[:-1], LEVELS)
    assert (table["STATUS"][-1], table["OFFSET"][-1]) == ("left_out", 0)


def test_one_input_alone(work: Path, tmp_path: Path) -> None:
    _, out = mosaic(tmp_path, work / "mono" / "1.fits")
    assert fits.getdata(out, "INPUTS")["OFFSET"] == [0.0]
    assert planes(out) == planes(mosaic(tmp_path, work / "mono" / "1.fits", "--match", "none")[1])


# ------------------------------------------------------------------------------ who decides on it


def test_left_alone(work: Path, tmp_path: Path) -> None:
    """However it is said, the bits are those of inputs that nobody touches."""
    settings = tmp_path / "zmrs.toml"
    settings.write_text('match = "none"\n')
    unmatched = zmrs.mosaic(work / "mono", match="none")
    wanted = [np.asarray(plane, ">f4").tobytes() for plane in (unmatched.data, unmatched.coverage)]
    ways: list[tuple[tuple[object, ...], dict[str, str]]] = [
        (("--match", "none"), bare_env()),
        ((), bare_env(ZMRS_MATCH="none")),
        (("--config", settings), bare_env()),
        (("--match", "none"), bare_env(ZMRS_MATCH="offset")),
    ]
    for words, env in ways:
        done, out = mosaic(tmp_path, work / "mono", *words, env=env)
        assert done.remarks == []
        assert "match" not in done.stats
        assert planes(out) == wanted
        assert fits.getheader(out)["ZMMATCH"] == "none"
        assert not fits.getdata(out, "INPUTS")["OFFSET"].any()


def test_the_default_however_it_is_said(work: Path, tmp_path: Path) -> None:
    """A flag goes before the environment, and neither threads nor memory change a bit."""
    wanted = planes(mosaic(tmp_path, work / "mono")[1])
    result = zmrs.mosaic(work / "mono")
    assert wanted == [np.asarray(p, ">f4").tobytes() for p in (result.data, result.coverage)]
    for words, env in (
        (("--match", "offset"), clean_env()),
        (("--threads", "5", "--memory", "130MiB"), bare_env()),
        (("--threads", "1"), bare_env()),
    ):
        assert planes(mosaic(tmp_path, work / "mono", *words, env=env)[1]) == wanted
    assert wanted != planes(mosaic(tmp_path, work / "mono", "--match", "none")[1])


def test_what_matching_takes_is_foretold(work: Path, tmp_path: Path) -> None:
    told, without = (
        json.loads(run("plan", work / "mono", "--json", *words, env=bare_env()).out)
        for words in (("--memory", "200MiB"), ("--memory", "200MiB", "--match", "none"))
    )
    done, _ = mosaic(tmp_path, work / "mono", "--memory", "200MiB")
    stored = 4 * TILE[0] * TILE[1] * len(ORIGINS)
    assert done.stats["read_bytes"] == told["read_bytes"] == without["read_bytes"] + stored
    assert done.stats["hwm_bytes"] <= done.stats["projected_bytes"] <= 200 * MIB
