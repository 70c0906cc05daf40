"""Raw colour frames: three channels from one, on the way from the file to the mosaic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import convolve

import child
import sky
import zmrs
from zmrs.errors import InputError
from zmrs.scan import InputImage, scan_image

NAMES = ("RGGB", "GRBG", "GBRG", "BGGR")
SHAPE = (70, 91)
CANVAS = (120, 150)


def filters(name: str, shape: tuple[int, int]) -> np.ndarray:
    """(3, H, W): which pixels have seen red, green and blue."""
    y, x = np.indices(shape)
    seen = np.array(list(name))[2 * (y % 2) + x % 2]
    return np.stack([seen == colour for colour in "RGB"])


def colours(raw: np.ndarray, name: str) -> np.ndarray:
    """(3, H, W) float32: means of the nearest pixels of a colour, by convolution."""
    cross = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    square = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    seen = filters(name, raw.shape)
    planes = [
        convolve(np.where(own, raw, 0.0), kernel, mode="mirror")
        for own, kernel in zip(seen, (square, cross, square), strict=True)
    ]
    return np.asarray(planes, np.float32)


def raw_frames(number: int = 3) -> list[tuple[np.ndarray, Any]]:
    """Frames of camera counts, each turned and shifted on one small canvas."""
    frames = []
    for k in range(number):
        rng = np.random.default_rng(k)
        wcs = sky.frame_wcs(SHAPE, 40.0 * k - 3.0)
        wcs.wcs.crpix += rng.uniform(-9, 9, 2)
        # As a file says it.
        wcs = WCS(wcs.to_header())
        frames.append((rng.integers(1, 60_000, SHAPE).astype(np.uint16), wcs))
    return frames


def write(path: Path, raw: np.ndarray, wcs: Any, **cards: Any) -> Path:
    header = wcs.to_header(relax=True)
    header.update(cards)
    fits.PrimaryHDU(raw, header).writeto(path)
    return path


def make(inputs: Any, **options: Any) -> zmrs.Result:
    return zmrs.mosaic(inputs, wcs=sky.frame_wcs(CANVAS), shape=CANVAS, **options)


def same(a: zmrs.Result, b: zmrs.Result) -> bool:
    return np.array_equal(a.data, b.data, equal_nan=True) and np.array_equal(a.coverage, b.coverage)


@pytest.mark.parametrize("kernel", ["nearest", "bilinear", "lanczos3"])
@pytest.mark.parametrize("name", NAMES)
def test_a_raw_frame_is_its_colours(name: str, kernel: str, tmp_path: Path) -> None:
    """The mosaic of raw files is, bit for bit, that of frames debayered before."""
    frames = raw_frames()
    files = [
        write(tmp_path / f"{k}.fits", raw, wcs, BAYERPAT=name)
        for k, (raw, wcs) in enumerate(frames)
    ]
    before = [(colours(raw, name), wcs) for raw, wcs in frames]
    made = make(files, kernel=kernel)
    assert made.data.shape == (3, *CANVAS)
    assert np.isfinite(made.data).mean() > 0.3
    assert same(made, make(before, kernel=kernel))


def test_compressed_raw_frames(tmp_path: Path) -> None:
    frames = raw_frames()
    for k, (raw, wcs) in enumerate(frames):
        header = wcs.to_header()
        header["BAYERPAT"] = "GBRG"
        fits.HDUList(
            [fits.PrimaryHDU(), fits.CompImageHDU(raw, header, compression_type="RICE_1")]
        ).writeto(tmp_path / f"{k}.fits.fz")
    assert same(make([tmp_path]), make([(colours(raw, "GBRG"), wcs) for raw, wcs in frames]))


@pytest.mark.parametrize("height", [70, 71])
def test_order_of_rows_and_offsets(height: int, tmp_path: Path) -> None:
    """The same frame, described in other ways."""
    raw = np.zeros((height, 91), np.uint16)
    wcs = sky.frame_wcs(raw.shape)

    def stored(**cards: Any) -> str | None:
        path = write(tmp_path / "raw.fits", raw, wcs, **cards)
        found = scan_image(path)
        path.unlink()
        assert isinstance(found, InputImage)
        return found.storage.bayer

    assert stored(BAYERPAT="GRBG") == "GRBG"
    assert stored(BAYERPAT="grbg", ROWORDER="TOP-DOWN") == "GRBG"
    # Seen from the last row, the pattern begins with the row that is there.
    assert stored(BAYERPAT="GRBG", ROWORDER="BOTTOM-UP") == ("BGGR" if height == 70 else "GRBG")
    assert stored(BAYERPAT="GRBG", XBAYROFF=1) == "RGGB"
    assert stored(BAYERPAT="GRBG", YBAYROFF=1) == "BGGR"
    assert stored(BAYERPAT="GRBG", XBAYROFF=1, YBAYROFF=1) == "GBRG"
    assert stored() is None


def test_a_turned_frame_is_the_same_sky(tmp_path: Path) -> None:
    """Stored upside down, with its WCS and its filters, a frame gives the same mosaic."""
    ((raw, wcs),) = raw_frames(1)
    upright = write(tmp_path / "a.fits", raw, wcs, BAYERPAT="GRBG")
    turned = wcs.deepcopy()
    turned.wcs.crpix = [wcs.wcs.crpix[0], SHAPE[0] + 1 - wcs.wcs.crpix[1]]
    turned.wcs.pc = wcs.wcs.get_pc() @ np.diag([1.0, -1.0])
    flipped = write(tmp_path / "b.fits", raw[::-1], turned, BAYERPAT="GRBG", ROWORDER="BOTTOM-UP")
    a, b = make([upright]), make([flipped])
    np.testing.assert_allclose(a.data, b.data, rtol=2e-5)


def test_raw_frames_as_they_are(tmp_path: Path) -> None:
    frames = raw_frames()
    files = [
        write(tmp_path / f"{k}.fits", raw, wcs, BAYERPAT="RGGB")
        for k, (raw, wcs) in enumerate(frames)
    ]
    made = make(files, debayer="none")
    assert made.data.shape == CANVAS
    assert same(made, make([(raw.astype(np.float32), wcs) for raw, wcs in frames]))


def test_saturated_pixels_give_way_with_what_they_are_mixed_into(tmp_path: Path) -> None:
    wcs = sky.frame_wcs(SHAPE)
    bright = np.full(SHAPE, 1000, np.uint16)
    bright[30:33, 40:43] = 65_000
    files = [
        write(tmp_path / "a.fits", bright, wcs, BAYERPAT="GRBG", SATURATE=60_000),
        write(tmp_path / "b.fits", np.full(SHAPE, 1400, np.uint16), wcs, BAYERPAT="GRBG"),
    ]
    here = {"wcs": wcs, "shape": SHAPE, "match": "none", "zero_is_blank": "off"}
    made = zmrs.mosaic(files, **here)
    around = np.zeros(SHAPE, bool)
    around[29:34, 39:44] = True
    # Nothing of the star is left, not even mixed with its neighbours.
    assert set(np.unique(made.data)) == {1200.0, 1400.0}
    assert (made.data[:, ~around] == 1200.0).all()
    assert (made.data[:, 30:33, 40:43] == 1400.0).all()
    # Where nothing else covers it stays.
    alone = zmrs.mosaic(files[:1], **here)
    assert (alone.data[:, 30:33, 40:43] == 65_000.0).all()


@pytest.mark.parametrize("how", ["on", "auto"])
def test_blank_zeros_mix_into_nothing(how: str, tmp_path: Path) -> None:
    ((raw, wcs),) = raw_frames(1)
    raw[20:40] = 0
    made = zmrs.mosaic(
        [write(tmp_path / "a.fits", raw, wcs, BAYERPAT="GRBG")],
        wcs=wcs, shape=SHAPE, kernel="nearest", match="none", zero_is_blank=how,
    )  # fmt: skip
    expected = colours(raw, "GRBG")
    # A row beside them mixes its colours with zeros.
    expected[:, 19:41] = np.nan
    np.testing.assert_array_equal(made.data, expected)


def test_mono_among_colour_is_refused(tmp_path: Path) -> None:
    (raw, wcs), (other, _) = raw_frames(2)
    write(tmp_path / "colour.fits", raw, wcs, BAYERPAT="RGGB")
    write(tmp_path / "mono.fits", other, wcs)
    with pytest.raises(InputError, match=r"mono.fits has 1, .*colour.fits has 3"):
        make([tmp_path])
    assert make([tmp_path], debayer="none").data.shape == CANVAS


def test_an_unknown_order_of_filters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ((raw, wcs),) = raw_frames(1)
    write(tmp_path / "a.fits", raw, wcs, BAYERPAT="RGBW")
    assert make([tmp_path]).data.shape == CANVAS
    assert "a.fits: BAYERPAT 'RGBW' is no order of filters; read as one without colour" in (
        caplog.text
    )


@pytest.mark.parametrize("combine", ["mean", "winsorized", "kappa-sigma-stream"])
def test_bits(combine: str, tmp_path: Path) -> None:
    """Neither threads nor bands change a bit, and no memory limit."""
    for k, (raw, wcs) in enumerate(raw_frames(6)):
        write(tmp_path / f"{k}.fits", raw, wcs, BAYERPAT="GBRG", SATURATE=59_000)
    wide = make([tmp_path], combine=combine, threads=2, memory="2GiB")
    for threads in (1, 3):
        assert same(make([tmp_path], combine=combine, threads=threads, memory="2GiB"), wide)
    for rows in (1, 3, 17):
        plan = {"rows_per_chunk": rows, "cpu_workers": 2}
        narrow = make([tmp_path], combine=combine, plan=plan)
        assert narrow.stats["bands"] > wide.stats["bands"]
        assert same(narrow, wide)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["1GiB", "160MiB"])
def test_bytes_are_foretold(memory: str, tmp_path: Path) -> None:
    """Rows beside those that are wanted are read too; the plan knows of them."""
    rng = np.random.default_rng(3)
    for k in range(4):
        wcs = sky.frame_wcs((1000, 1500), 3.0 * k)
        raw = rng.integers(500, 3000, (1000, 1500)).astype(np.uint16)
        write(tmp_path / f"{k}.fits", raw, wcs, BAYERPAT="RGGB")
    words = ["--memory", memory, "--two-pass"]
    told = json.loads(child.run("plan", tmp_path, *words, "--json").out)
    report = tmp_path / "report.json"
    done = child.run_witnessed(report, "mosaic", tmp_path, "-o", tmp_path / "out.fits", *words)
    assert done.status == 0, done.err
    assert done.stats["read_bytes"] == told["read_bytes"]
    assert done.stats["read_amplification"] < 1.2
    assert done.stats["peak_bytes"] <= done.stats["projected_bytes"] <= done.stats["allowed_bytes"]
