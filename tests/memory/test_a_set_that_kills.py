"""The set that killed: more tiles and canvas than a Two-Pass without a plan of its own could bear.

Run in a control group that has 512 MiB and no more; the kernel kills whoever takes more.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import sky
from cgroups import confined
from child import MIB, bare_env, run_code, run_witnessed
from zmrs.memory import AUTO_FRACTION
from zmrs.simulate import dither_pattern

pytestmark = [
    pytest.mark.memory,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: there are no control groups"),
]

LIMIT = 512 * MIB
PANELS, TILE = (8, 8), (1024, 1024)
LEVELS = {f"tile_{number:02d}.fits": 100 + number % 7 for number in range(64)}
REFERENCE_BYTES_PER_PIXEL = 148
"""What ZeMosaic 4.5 takes for each pixel of the mosaic, and each worker, to find a tile's gain."""


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """64 colour tiles, turned a little, each with a sky level of its own."""
    folder = tmp_path_factory.mktemp("tiles")
    noise = np.random.default_rng(3).standard_normal((3, *TILE), dtype=np.float32)
    frames = dither_pattern(PANELS, TILE, 1.0, overlap=0.3, max_rotation_deg=3.0)
    for (name, level), wcs in zip(LEVELS.items(), frames, strict=True):
        sky.write_image(folder / name, noise + np.float32(level), wcs)
    yield folder
    shutil.rmtree(folder)


def assert_it_would_kill(tiles: Path, canvas: int) -> None:
    """Under the reference's plan, for one worker already; so would the tiles alone."""
    assert REFERENCE_BYTES_PER_PIXEL * canvas > 8 * LIMIT
    assert sum(path.stat().st_size for path in tiles.iterdir()) > 1.4 * LIMIT


def plan_line(log: str) -> dict[str, str]:
    """The figures of the one line that tells the plan of the Two-Pass."""
    (line,) = [text for text in log.splitlines() if text.startswith("[TwoPass] plan=")]
    return dict(re.findall(r"(\w+)=(\S+)", line))


def test_the_group_does_kill() -> None:
    """Otherwise nothing would be shown here."""
    with confined(LIMIT) as enter:
        done = run_code("print(len(b'x' * (600 << 20)))", preexec_fn=enter)
    assert (done.status, done.out) == (-signal.SIGKILL, "")


def test_without_any_option(tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    with confined(LIMIT) as enter:
        done = run_witnessed(
            tmp_path / "stats", "mosaic", tiles, "-o", out, "--two-pass",
            env=bare_env(), preexec_fn=enter,
        )  # fmt: skip
    assert done.status == 0, done.err
    stats, again = done.stats, done.stats["two_pass"]
    with fits.open(out, memmap=True) as hdus:
        header = hdus[0].header
        height, width = header["NAXIS2"], header["NAXIS1"]
        assert_it_would_kill(tiles, height * width)
        levels = [float(LEVELS[path.name]) for path in map(Path, hdus["INPUTS"].data["NAME"])]
        sky_level = np.mean(np.multiply(hdus["INPUTS"].data["TWOPGAIN"], levels))
        uncovered = hdus["COVERAGE"].data == 0
        for plane in hdus[0].data:
            assert np.array_equal(np.isnan(plane), uncovered)
            # The tiles' noise was 1, their levels, which are gone, 100 to 106.
            shown = plane[~uncovered]
            assert abs(shown.mean(dtype=float) - sky_level) < 0.05
            assert shown.std(dtype=float) < 1
        assert set(hdus["INPUTS"].data["STATUS"]) == {"used"}
        assert len(hdus["INPUTS"].data) == 64
    out.unlink()

    assert again["applied"]
    assert len(set(again["gains"])) > 10
    figures = plan_line(done.err)
    assert figures["plan"] == "phase5"
    assert header["ZMPLAN"].startswith(" ".join(f"{k}={v}" for k, v in figures.items())[5:])
    assert int(figures["cpu_workers"]) == stats["workers"] == again["workers"]
    assert stats["bands"] == -(-height // int(figures["rows"])) > 10
    assert figures["max_chunk_mb"] == f"{stats['chunk_peak_bytes'] / MIB:.2f}"
    assert again["chunk_peak_bytes"] <= stats["chunk_peak_bytes"]

    assert stats["allowed_bytes"] == int(LIMIT * AUTO_FRACTION)
    assert stats["hwm_bytes"] <= stats["projected_bytes"] <= stats["allowed_bytes"]
    print(
        f"{width} x {height} px: {stats['hwm_bytes'] / MIB:.0f} MiB where the reference takes"
        f" {REFERENCE_BYTES_PER_PIXEL * height * width / MIB:.0f} a worker"
    )


_GIVEN = """
import json, logging, sys
from pathlib import Path
from types import SimpleNamespace
logging.basicConfig(level=logging.INFO, format="%(message)s")
import zmrs
given, out, fields = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
result = zmrs.mosaic(given, out, plan=SimpleNamespace(**fields), two_pass=True)
status = Path("/proc/self/status").read_text()
hwm = int(status.split("VmHWM:")[1].split()[0]) << 10
print(json.dumps({"plan": result.plan.to_dict(), "hwm_bytes": hwm} | result.stats))
"""


def test_with_a_plan_that_knows_no_limit(tiles: Path, tmp_path: Path) -> None:
    """A plan made for a machine of 64 GiB is cut to this one, and the log shows what is left."""
    plan = {
        "name": "global", "cpu_workers": 16, "max_chunk_bytes": 3 << 30, "rows_per_chunk": 4096,
        "use_gpu": False, "gpu_max_chunk_bytes": None, "gpu_rows_per_chunk": None,
    }  # fmt: skip
    with confined(LIMIT) as enter:
        out = tmp_path / "out.fits"
        done = run_code(_GIVEN, tiles, out, json.dumps(plan), env=bare_env(), preexec_fn=enter)
    assert done.status == 0, done.err
    header = fits.getheader(out)
    assert_it_would_kill(tiles, header["NAXIS1"] * header["NAXIS2"])
    out.unlink()
    stats = json.loads(done.out)
    figures = plan_line(done.err)
    assert figures["plan"] == "global"
    assert int(figures["cpu_workers"]) == stats["workers"] == stats["two_pass"]["workers"] <= 16
    assert int(figures["rows"]) == stats["plan"]["rows_per_chunk"] < 4096
    assert stats["two_pass"]["chunk_peak_bytes"] <= stats["chunk_peak_bytes"]
    assert stats["chunk_peak_bytes"] == stats["plan"]["max_chunk_bytes"] < LIMIT / 2
    assert stats["two_pass"]["applied"]
    assert stats["hwm_bytes"] <= stats["projected_bytes"] <= stats["allowed_bytes"] < LIMIT
