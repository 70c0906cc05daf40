"""The promise of memory for subs: in batches, in colour, compressed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from test_limits import mosaic, smallest_limit

from child import run
from zmrs.simulate import make_frame_wcs

pytestmark = [pytest.mark.memory, pytest.mark.slow]

N, SHAPE = 48, (1920, 1080)
CENTER = (192.7, 41.1)
CASES = {
    "batches": ("--debayer", "none"),
    "batches, two passes": ("--two-pass", "--debayer", "none"),
    "batches in colour": (),
    "batches in colour, two passes": ("--two-pass", "--sds-min-coverage-keep", "0.1"),
    "means in colour": ("--combine", "mean", "--sds-combine", "mean", "--kernel", "lanczos3"),
    "all at once, in colour": ("--batch", "0", "--combine", "winsorized"),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("limits_of_subs")
    yield folder
    shutil.rmtree(folder)


def write_subs(folder: Path, *, packed: bool = False) -> Path:
    """Raw colour frames about one place, some pixels apart and turned a little."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    noise = rng.normal(1000, 20, SHAPE).astype(np.uint16)
    for number in range(N):
        wcs = make_frame_wcs(CENTER, 2.37, float(rng.uniform(-3, 3)), SHAPE)
        wcs.wcs.crpix += rng.uniform(-200, 200, 2)
        header = wcs.to_header()
        header["BAYERPAT"] = "GRBG"
        raw = np.roll(noise, (2 * number, 6 * number), (0, 1))
        name = folder / f"sub_{number:04d}.fits"
        if packed:
            image = fits.CompImageHDU(raw, header, compression_type="RICE_1")
            fits.HDUList([fits.PrimaryHDU(), image]).writeto(f"{name}.fz")
        else:
            fits.PrimaryHDU(raw, header).writeto(name)
    return folder


@pytest.fixture(scope="module")
def subs(work: Path) -> Path:
    return write_subs(work / "subs")


@pytest.mark.parametrize("name", CASES)
def test_subs(name: str, subs: Path, work: Path) -> None:
    words = ("--mode", "sds", *CASES[name])
    mosaic(subs, work, "--memory", "400MiB", *words).assert_kept(f"{N} subs, {name}", 400)
    limit = smallest_limit(run("plan", subs, "--memory", "50MiB", *words))
    case = mosaic(subs, work, "--memory", f"{limit}MiB", *words)
    case.assert_kept(f"{N} subs, {name}, the smallest limit", limit)


def test_compressed_subs(subs: Path, work: Path) -> None:
    """What does not fit into memory is decompressed into scratch, and comes to the same."""
    packed = write_subs(work / "packed", packed=True)
    limit = smallest_limit(run("plan", packed, "--memory", "50MiB"))
    stored_mib = N * SHAPE[0] * SHAPE[1] * 2 >> 20
    assert limit < stored_mib
    case = mosaic(packed, work, "--memory", f"{limit}MiB")
    case.assert_kept(f"{N} compressed subs of {stored_mib} MiB, the smallest limit", limit)
    assert case.scratch_bytes >= N * SHAPE[0] * SHAPE[1] * 2
    results = []
    for given in (packed, subs):
        out = work / "kept.fits"
        done = run("mosaic", given, "-o", out, "--overwrite", "--memory", "300MiB")
        assert done.status == 0, done.err
        with fits.open(out) as hdus:
            results.append([hdus[name].data.tobytes() for name in (0, "COVERAGE")])
        out.unlink()
    assert results[0] == results[1]
    refused = run("plan", packed, "--scratch-max", "100MiB")
    assert refused.status == 3
    assert "scratch files would take" in refused.err
