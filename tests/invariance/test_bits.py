"""The bytes of every plane do not depend on how the job is run.

Not on threads, not on the memory limit, not on the height of the bands, not on the instruction
set.  The scene has what might: turned and strongly turned inputs, holes, weights of both kinds,
distortion, exact coordinates, wide and narrow blocks.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import child
import sky
import stack_oracle
import zmrs
from zmrs import limits
from zmrs.config import COMBINES, KERNELS
from zmrs.errors import BudgetError
from zmrs.simulate import make_frame_wcs

SHAPE = (230, 1300)  # wide enough for blocks narrower than the canvas
TWO_SWEEPS = "kappa-sigma-stream"
ANGLES = (0.0, 2.7, 90.0, 137.0, -178.5, 45.0)


def frames(channels: int, layer: int = 0) -> list[sky.Tile]:
    """Turned frames with holes along the canvas; the first is distorted. Layers differ a little."""
    grid = sky.frame_wcs(SHAPE)
    result = []
    for n, angle in enumerate(angle + 1.7 * layer for angle in ANGLES):
        shape = (170 + 13 * n, 330 - 7 * n)
        centre = grid.all_pix2world(150.0 + 200 * n, 115.0 + 10 * n, 0)
        wcs = make_frame_wcs(
            tuple(map(float, centre)), sky.SCALE_ARCSEC, angle, shape,
            sip_strength=0.0 if n else 3.0,
        )  # fmt: skip
        rng = np.random.default_rng([n, channels, *[layer] * layer])
        full = shape if channels == 1 else (channels, *shape)
        image = (rng.normal(500.0, 100.0, full) * 10.0 ** rng.uniform(-1, 2)).astype(np.float32)
        image[..., rng.random(shape) < 0.01] = np.nan
        image[..., 40:45, 60:90] = np.nan
        result.append((image, wcs))
    return result


def weights_of(tiles: Sequence[sky.Tile]) -> list[Any]:
    """None, a number or a map in turn."""
    weights: list[Any] = []
    for n, (image, _) in enumerate(tiles):
        rng = np.random.default_rng([9, n])
        weights.append([None, 0.3, rng.uniform(-0.02, 3.0, image.shape[-2:])][n % 3])
    return weights


@cache
def scene(
    channels: int, weighted: bool, layers: int = 1
) -> tuple[list[sky.Tile], list[Any] | None, WCS]:
    tiles = [tile for layer in range(layers) for tile in frames(channels, layer)]
    return tiles, weights_of(tiles) if weighted else None, sky.frame_wcs(SHAPE, 1.3)


def make(
    kernel: str, combine: str = "mean", channels: int = 1, weighted: bool = False, **kw: Any
) -> zmrs.Result:
    rejects = combine in stack_oracle.JUDGES
    tiles, weights, wcs = scene(channels, weighted, 3 if rejects else 1)
    if "plan" not in kw:
        kw = {"threads": 2, "memory": "2GiB"} | kw
    if rejects:
        # So few inputs lie over one another that 3 would reject nothing.
        kw["kappa"] = (1.0, 1.1)
    return zmrs.mosaic(
        tiles, wcs=wcs, shape=SHAPE, kernel=kernel, combine=combine, weights=weights, **kw
    )


def planes(result: zmrs.Result) -> bytes:
    variance = b"" if result.variance is None else result.variance.tobytes()
    return result.data.tobytes() + result.coverage.tobytes() + variance


def digest(result: zmrs.Result) -> str:
    return hashlib.sha256(planes(result)).hexdigest()


def assert_same_bits(result: zmrs.Result, other: zmrs.Result) -> None:
    assert (result.variance is None) == (other.variance is None)
    for name in ("data", "coverage", "variance")[: 2 if result.variance is None else 3]:
        ours, theirs = getattr(result, name), getattr(other, name)
        differ = ours.view(np.uint32) != theirs.view(np.uint32)
        assert not differ.any(), f"{name}: {differ.sum()} pixels differ"
    for name in ("rejected_low", "rejected_high"):
        assert np.array_equal(getattr(result, name), getattr(other, name)), name
    for ours, theirs in zip(result.inputs, other.inputs, strict=True):
        assert ours.rejected_fraction == theirs.rejected_fraction


# One of each kernel; the weighted and coloured ones take turns with the plain ones.
JOBS = [
    pytest.param(kernel, channels, weighted, id=f"{kernel}-{channels}-{weighted and 'weights'}")
    for kernel, channels, weighted in (
        ("nearest", 1, True), ("bilinear", 1, False), ("bilinear", 3, True),
        ("bicubic", 1, True), ("lanczos2", 3, False), ("lanczos3", 1, True),
    )
]  # fmt: skip


def test_the_scene_tries_what_it_should() -> None:
    result = make("bilinear")
    assert np.isfinite(result.data).mean() > 0.5
    assert np.unique(result.coverage).size >= 3
    assert all(row.n_samples for row in result.inputs)


@pytest.mark.parametrize(("kernel", "channels", "weighted"), JOBS)
def test_threads(kernel: str, channels: int, weighted: bool) -> None:
    one = make(kernel, "mean", channels, weighted, threads=1)
    assert one.stats["workers"] == 1
    for threads in (2, 3, 8):
        other = make(kernel, "mean", channels, weighted, threads=threads)
        assert other.stats["workers"] == threads
        assert_same_bits(other, one)


@pytest.mark.parametrize(("kernel", "channels", "weighted"), JOBS)
def test_height_of_bands(kernel: str, channels: int, weighted: bool) -> None:
    automatic = make(kernel, "mean", channels, weighted)
    for rows in (1, 3, 47, 10**6):
        plan = {"rows_per_chunk": rows, "memory_bytes": 1 << 31, "cpu_workers": 2}
        other = make(kernel, "mean", channels, weighted, plan=plan)
        assert other.plan.rows_per_chunk == min(rows, SHAPE[0])
        assert_same_bits(other, automatic)


@pytest.mark.parametrize("combine", COMBINES)
def test_every_combine_in_bands_of_three_rows(combine: str) -> None:
    plan = {"rows_per_chunk": 3, "memory_bytes": 1 << 31, "cpu_workers": 3}
    for channels in (1, 3):
        automatic = make("bicubic", combine, channels, True)
        assert (combine in stack_oracle.JUDGES) == np.any(automatic.rejected_low)
        assert_same_bits(make("bicubic", combine, channels, True, plan=plan), automatic)


def smallest_limit(**job: Any) -> int:
    """Bytes that the engine names as the least for a job, as a limit of the whole process.

    A plan carries it, since ``memory=`` of the Python interface counts from the resident size.
    """
    with pytest.raises(BudgetError) as refusal:
        make(**job, plan={"memory_bytes": limits.resident_bytes() + 1, "cpu_workers": 2})
    named = re.search(r"smallest limit that works is .*?(\d+)MiB", str(refusal.value))
    assert named, str(refusal.value)
    return int(named[1]) << 20


@pytest.mark.parametrize(("kernel", "channels", "weighted"), JOBS)
def test_memory_limit(kernel: str, channels: int, weighted: bool) -> None:
    job = {"kernel": kernel, "channels": channels, "weighted": weighted}
    wide = make(**job)
    limit = smallest_limit(**job)
    slack = 1 << 20  # the process may have grown since it was asked
    narrow = make(**job, plan={"memory_bytes": limit + slack, "cpu_workers": 2})
    assert narrow.stats["bands"] > wide.stats["bands"]
    assert_same_bits(narrow, wide)
    with_less = make(**job, memory=f"{(limit + 4 * slack) >> 20}MiB")
    assert_same_bits(with_less, wide)


@pytest.mark.parametrize(("kernel", "channels", "weighted"), JOBS[2::3])
def test_smallest_blocks(kernel: str, channels: int, weighted: bool) -> None:
    """Block buffers as small as the engine takes, found by bisection; and some in between."""
    job = {"kernel": kernel, "channels": channels, "weighted": weighted}
    wide = make(**job)
    low, high = 1000, wide.plan.max_chunk_bytes
    while high - low > 20_000:
        middle = (low + high) // 2
        try:
            narrow = make(**job, plan={"max_chunk_bytes": middle, "cpu_workers": 2})
        except BudgetError:
            low = middle
        else:
            high = middle
            assert_same_bits(narrow, wide)
    assert narrow.stats["blocks"] > narrow.stats["bands"] > SHAPE[0] // 5


@pytest.mark.parametrize(("channels", "weighted"), [(1, True), (3, False)])
def test_two_sweeps_over_the_inputs(channels: int, weighted: bool) -> None:
    """Threads, bands, the smallest limit, and inputs that come one after the other."""
    job = {"kernel": "bilinear", "combine": TWO_SWEEPS, "channels": channels, "weighted": weighted}
    job |= {"reject_together": channels > 1}
    wide = make(**job)
    assert np.any(wide.rejected_low)
    assert np.any(wide.rejected_high)
    for threads in (1, 3, 8):
        assert_same_bits(make(**job, threads=threads), wide)
    for rows in (1, 47):
        plan = {"rows_per_chunk": rows, "memory_bytes": 1 << 31, "cpu_workers": 2}
        assert_same_bits(make(**job, plan=plan), wide)
    limit = smallest_limit(**job) + (1 << 20)
    narrow = make(**job, plan={"memory_bytes": limit, "cpu_workers": 2})
    assert narrow.stats["bands"] > wide.stats["bands"]
    assert_same_bits(narrow, wide)
    low, high = 1000, wide.plan.max_chunk_bytes
    while high - low > 100_000:
        middle = (low + high) // 2
        try:
            in_turn = make(**job, plan={"max_chunk_bytes": middle, "cpu_workers": 2})
        except BudgetError:
            low = middle
        else:
            high = middle
            assert_same_bits(in_turn, wide)
    assert in_turn.stats["blocks"] > in_turn.stats["bands"]


_PRINT_DIGESTS = """
import sys
sys.path[:0] = sys.argv[1:3]
import test_bits
for job in sys.argv[3:]:
    kernel, combine, channels, weighted = job.split(",")
    print(test_bits.digest(test_bits.make(kernel, combine, int(channels), weighted == "True")))
"""


def test_instruction_sets() -> None:
    """What AVX-512, AVX2 and plain x86-64 compute has the same bits, for every kernel."""
    combines = dict(zip(KERNELS, ("first", "mean", "max", "sum", "mean"), strict=True))
    jobs = [
        f"{kernel},{combines[kernel]},{channels},{weighted}"
        for kernel in KERNELS
        for channels, weighted in ((1, True), (3, False))
    ]
    jobs += [f"bilinear,{TWO_SWEEPS},{channels},True" for channels in (1, 3)]
    here = [make(k, c, int(n), w == "True") for k, c, n, w in (job.split(",") for job in jobs)]
    best = [digest(result) for result in here]
    folders = [str(path) for path in (sky.__file__, __file__)]
    folders = [path.rpartition("/")[0] for path in folders]
    for level in ("baseline", "avx2"):
        done = child.run_code(_PRINT_DIGESTS, *folders, *jobs, env=child.clean_env(ZMRS_SIMD=level))
        assert done.status == 0, done.err
        assert done.out.split() == best, f"{level} differs"


def test_repeated_runs() -> None:
    first = make("lanczos3", "mean", 1, True)
    for _ in range(3):
        assert_same_bits(make("lanczos3", "mean", 1, True), first)


def test_a_file_holds_the_same_bits_as_the_arrays(tmp_path: Any) -> None:
    for channels, kernel in ((1, "bilinear"), (3, "lanczos3")):
        tiles, weights, wcs = scene(channels, True)
        paths = sky.write_tiles(tmp_path, tiles)
        headers = [WCS(fits.getheader(path), naxis=2) for path in paths]
        pairs = [(image, wcs) for (image, _), wcs in zip(tiles, headers, strict=True)]
        job = {"wcs": wcs, "shape": SHAPE, "kernel": kernel, "weights": weights, "threads": 2}
        arrays = zmrs.mosaic(pairs, memory="2GiB", **job)
        result = zmrs.mosaic(paths, tmp_path / f"{channels}.fits", memory="2GiB", **job)
        assert result.data.astype("=f4").tobytes() == arrays.data.tobytes()
        assert result.coverage.astype("=f4").tobytes() == arrays.coverage.tobytes()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "zmrs")


if sys.platform != "linux":
    pytest.skip("resident sizes are read from /proc", allow_module_level=True)
