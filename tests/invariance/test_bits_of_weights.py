"""The bytes do not depend on how a job is run, however its pixels are weighed.

Frames in files with opacities, levels of saturation and borders of zeros; a ramp; maps of variance,
and the variance of the mosaic.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from test_bits import SHAPE, assert_same_bits, frames, planes

import child
import sky
import zmrs
from zmrs.errors import BudgetError

LEVEL = 20_000.0
HOW: dict[str, dict[str, Any]] = {
    "alpha, ramp": {"feather": 31.0, "kernel": "bilinear"},
    "variances, ramp, ivar": {
        "feather": 8.5, "weights": "VAR", "weight_type": "variance", "weight_by": "ivar",
        "kernel": "lanczos3",
    },
    "saturated": {"weights": "none", "combine": "max", "kernel": "bicubic"},
    "two passes": {"feather": 20.0, "two_pass": True, "two_pass_sigma": 9, "kernel": "nearest"},
    "variance of maps": {
        "feather": 8.5, "weights": "VAR", "weight_type": "variance", "variance": True,
        "kernel": "lanczos2",
    },
    "variance of a stack": {"variance": True, "combine": "median", "kernel": "bilinear"},
    "variance in two sweeps": {
        "variance": True, "combine": "kappa-sigma-stream", "kappa": (1.1, 1.1),
        "reject_together": True, "kernel": "bicubic", "feather": 5.0,
    },
    "variance in two passes": {
        "variance": True, "combine": "min", "two_pass": True, "two_pass_sigma": 9,
        "kernel": "lanczos3",
    },
}  # fmt: skip


def write_inputs(folder: Path, channels: int) -> None:
    for n, (image, wcs) in enumerate(frames(channels)):
        rng = np.random.default_rng([n, 77])
        full = image.copy()
        full[..., 60:75, 100:130] = np.float32(1.2 * LEVEL)
        full[..., :, : 30 * (n % 2)] = 0.0
        header = wcs.to_header(relax=True)
        header["SATURATE"] = LEVEL
        alpha = rng.integers(0, 256, image.shape[-2:]).astype(np.uint8)
        variance = rng.uniform(-0.1, 9.0, image.shape[-2:]).astype(np.float32)
        fits.HDUList(
            [
                fits.PrimaryHDU(full, header),
                fits.ImageHDU(alpha, name="ALPHA"),
                fits.ImageHDU(variance, name="VAR"),
            ]
        ).writeto(folder / f"{n}.fits")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {channels: tmp_path_factory.mktemp(f"c{channels}") for channels in (1, 3)}
    for channels, folder in folders.items():
        write_inputs(folder, channels)
    return folders


@cache
def grid() -> Any:
    return sky.frame_wcs(SHAPE, 1.3)


def make(folder: Path, how: str, **more: Any) -> zmrs.Result:
    if "plan" not in more:
        more = {"threads": 2, "memory": "2GiB"} | more
    return zmrs.mosaic([folder], wcs=grid(), shape=SHAPE, **HOW[how], **more)


def smallest_chunk(folder: Path, how: str) -> int:
    """Bytes of the smallest blocks, as the engine names them."""
    with pytest.raises(BudgetError) as refusal:
        make(folder, how, plan={"max_chunk_bytes": 1, "cpu_workers": 2})
    (named,) = re.findall(r"the smallest blocks take (\d+) bytes", str(refusal.value))
    return int(named)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", HOW)
def test_threads_bands_and_memory(how: str, channels: int, inputs: dict[int, Path]) -> None:
    wide = make(inputs[channels], how)
    assert np.isfinite(wide.data).mean() > 0.3
    assert np.unique(wide.coverage).size > (2 if how == "saturated" else 1000)
    assert how != "saturated" or np.nanmax(wide.data) > LEVEL
    assert ("variance" in HOW[how]) == (wide.variance is not None)
    if wide.variance is not None:
        np.testing.assert_array_equal(np.isnan(wide.variance), np.isnan(wide.data))
        assert np.unique(wide.variance).size > 1000
    for threads in (1, 3, 8):
        assert_same_bits(make(inputs[channels], how, threads=threads), wide)
    least = smallest_chunk(inputs[channels], how)
    for plan in (
        {"rows_per_chunk": 1, "cpu_workers": 2},
        {"rows_per_chunk": 47, "cpu_workers": 3},
        {"max_chunk_bytes": 2 * least, "cpu_workers": 2},
        {"max_chunk_bytes": least, "cpu_workers": 2},
    ):
        narrow = make(inputs[channels], how, plan=plan)
        assert narrow.stats["bands"] > wide.stats["bands"]
        assert_same_bits(narrow, wide)
    assert narrow.stats["blocks"] > narrow.stats["bands"]


_PRINT_DIGESTS = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import test_bits_of_weights as here
for job in sys.argv[3:]:
    folder, how = job.split("|")
    print(here.hashlib.sha256(here.planes(here.make(Path(folder), how))).hexdigest())
"""


def test_instruction_sets(inputs: dict[int, Path]) -> None:
    jobs = [(inputs[channels], how) for channels in (1, 3) for how in HOW]
    best = [hashlib.sha256(planes(make(*job))).hexdigest() for job in jobs]
    folders = [str(Path(name).parent) for name in (sky.__file__, __file__)]
    words = [f"{folder}|{how}" for folder, how in jobs]
    for level in ("baseline", "avx2"):
        done = child.run_code(
            _PRINT_DIGESTS, *folders, *words, env=child.clean_env(ZMRS_SIMD=level)
        )
        assert done.status == 0, done.err
        assert done.out.split() == best, f"{level} differs"
