"""measured ≤ projected ≤ allowed when frames are added to a finished mosaic."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from test_limits import Case, smallest_limit, write_set

import sky
from child import run, run_witnessed
from zmrs.io.cards import InputRow, inputs_table

pytestmark = [
    pytest.mark.memory,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: peaks are read from /proc"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("updates")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def mosaic(work: Path) -> Path:
    """300 MiB of mosaic, with its coverage; 8 of its 16 panels are in it."""
    panels = write_set(work / "panels", (4, 4), (2048, 2048), overlap=0.3, max_rotation_deg=3.0)
    template = work / "template.fits"
    assert run("mosaic", panels, "-o", template, "--threads", 2).status == 0
    old = sorted(panels.iterdir())[:8]
    out = work / "mosaic.fits"
    assert run("mosaic", *old, "-o", out, "--wcs", template).status == 0
    template.unlink()
    return out


def update(mosaic: Path, *words: object) -> Case:
    """Add the other panels in a process of its own, and throw the result away."""
    work = mosaic.parent
    out, report = work / "out.fits", work / "report.json"
    try:
        words = ("update", mosaic, work / "panels", "-o", out, *words)
        return Case(run_witnessed(report, *words, timeout=280))
    finally:
        out.unlink(missing_ok=True)
        report.unlink(missing_ok=True)


@pytest.mark.parametrize("words", [(), ("--match", "gain"), ("--kernel", "lanczos3")])
@pytest.mark.parametrize("limit_mib", [0, 256, 1024], ids=["least", "256", "1024"])
def test_a_large_mosaic(limit_mib: int, words: tuple[str, ...], mosaic: Path) -> None:
    """With the least limit, too, which depends on the libraries of the machine's processor."""
    if not limit_mib:
        limit_mib = smallest_limit(update(mosaic, "--memory", "50MiB", *words).outcome)
        assert limit_mib < 128
    case = update(mosaic, "--memory", f"{limit_mib}MiB", *words)
    case.assert_kept(f"8 panels to 8, {limit_mib} MiB {' '.join(words)}", limit_mib)


def test_a_long_table(work: Path) -> None:
    """A mosaic of very many frames: what they take in its table is foretold."""
    folder = work / "long"
    folder.mkdir()
    rng = np.random.default_rng(0)
    wcs = sky.frame_wcs((300, 300))
    frames = [
        sky.write_image(folder / f"{k}.fits", rng.normal(100, 1, (300, 300)).astype("f4"), wcs)
        for k in range(2)
    ]
    out = folder / "mosaic.fits"
    assert run("mosaic", frames[0], "-o", out).status == 0
    names = [
        f"/archive/of/an/observatory/that/has/seen/much/{k:06}_light.fits" for k in range(40_000)
    ]
    with fits.open(out) as hdus:
        table = inputs_table([InputRow.of(name, 1) for name in names], 1)
        planes = [hdu.copy() for hdu in hdus[:2]]
        fits.HDUList([*planes, table]).writeto(out, overwrite=True)
    words = ("update", out, frames[1], "-o", folder / "out.fits", "--memory")
    case = Case(run_witnessed(work / "report.json", *words, "400MiB"))
    case.assert_kept("a frame to 40,000", 400)
    refused = run(*words, "50MiB", "--overwrite")
    limit = smallest_limit(refused)
    case = Case(run_witnessed(work / "report.json", *words, f"{limit}MiB", "--overwrite"))
    case.assert_kept("a frame to 40,000, the smallest limit", limit)
    assert fits.getdata(folder / "out.fits", "INPUTS").shape == (40_001,)
