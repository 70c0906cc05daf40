"""What benchmarks/gpu.py measures: one function a question."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zmrs import _zmrs
from zmrs.backends.cuda import Cuda
from zmrs.backends.gpu import METHODS, GpuPass
from zmrs.config import KERNELS, Options
from zmrs.prepare import Prepared, prepare

MIB = 1 << 20
SCALE_ARCSEC = 1.0
CENTER = (150.0, 30.0)
CLIPPING = ("kappa-sigma", "winsorized", "winsorized-reference", "kappa-sigma-stream")


class Stopwatch(Cuda):
    """A device that is waited for around every kernel, whose time is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, list[float]] = {}

    def launch(self, kernel: str, count: int, arguments: Any) -> None:
        self.wait()
        began = time.perf_counter()
        super().launch(kernel, count, arguments)
        self.wait()
        self.seconds.setdefault(kernel, []).append(time.perf_counter() - began)


def copy_bandwidth(hardware: Cuda, nbytes: int = 256 * MIB, times: int = 10) -> float:
    """Bytes a second that the device copies within its memory, those read and those written."""
    source, target = hardware.allocate(nbytes), hardware.allocate(nbytes)
    best = np.inf
    for _ in range(times):
        hardware.wait()
        began = time.perf_counter()
        hardware.copy(target, source, nbytes)
        hardware.wait()
        best = min(best, time.perf_counter() - began)
    return 2 * nbytes / best


# --------------------------------------------------------------------------------- the same pixels


@dataclass(frozen=True)
class Agreement:
    """How the mosaic of the GPU compares with that of the CPU.

    Attributes
    ----------
    words
        What was made.
    differ
        Values whose bits differ.
    worst
        Greatest relative difference, where both are finite.
    same_nan
        Whether both are NaN in the same places.
    """

    words: str
    differ: int
    worst: float
    same_nan: bool


def frames(
    shape: tuple[int, int], n: int, channels: int, *, sip_strength: float = 3.0
) -> list[tuple[np.ndarray, Any]]:
    """Turned frames with holes around one place; every third is distorted so much."""
    from zmrs.simulate import make_frame_wcs

    made = []
    for k in range(n):
        rng = np.random.default_rng([k, channels])
        at = (CENTER[0] + rng.uniform(-1, 1) * 0.01, CENTER[1] + rng.uniform(-1, 1) * 0.01)
        sip = sip_strength if k % 3 == 0 else 0.0
        wcs = make_frame_wcs(at, SCALE_ARCSEC, 7.3 * k, shape, sip_strength=sip)
        image = rng.normal(500, 30, (channels, *shape)).astype(np.float32)
        image[:, rng.random(shape) < 1e-3] = np.nan
        made.append((image if channels > 1 else image[0], wcs))
    return made


def passes(job: Prepared, device: GpuPass | None) -> list[np.ndarray]:
    """The planes of one pass."""
    shape, channels = job.grid.shape, job.channels
    image = np.empty((channels, *shape), np.float32)
    coverage = np.empty(shape, np.float32)
    counts = np.empty((2 * channels, *shape), np.int16) if job.job.counts_rejected else None
    with tempfile.TemporaryDirectory() as folder:
        _zmrs.run_pass_into_arrays(
            job.job, job.layout, image, coverage, counts=counts, device=device,
            bounds=Path(folder) / "bounds",
        )  # fmt: skip
    return [image, coverage] + ([] if counts is None else [counts])


def compare(words: str, ours: list[np.ndarray], its: list[np.ndarray]) -> Agreement:
    """Two mosaics, plane by plane."""
    differ, worst, same_nan = 0, 0.0, True
    for a, b in zip(ours, its, strict=True):
        nan = np.isnan(a) & np.isnan(b)
        same_nan &= bool(np.array_equal(np.isnan(a), np.isnan(b)))
        differ += int(np.count_nonzero((a != b) & ~nan))
        both = np.isfinite(a) & np.isfinite(b)
        size = np.maximum(np.abs(a[both].astype(float)), 1e-30)
        off = np.abs(a[both].astype(float) - b[both]) / size
        worst = max(worst, float(off.max(initial=0.0)))
    return Agreement(words, differ, worst, same_nan)


def agreements(hardware: Cuda, edge: int) -> list[Agreement]:
    """Every kernel with the mean, every combine with the bilinear one, gray and in colour."""
    found = []
    for channels in (1, 3):
        tiles = frames((edge, edge * 5 // 4), 9, channels)
        asked = [(kernel, "mean") for kernel in KERNELS] + [("bilinear", m) for m in METHODS[1:]]
        for kernel, method in asked:
            clips: dict[str, Any] = {"kappa": (1.5, 1.5)} if method in CLIPPING else {}
            options = Options(kernel=kernel, combine=method, match="none", gpu="off", **clips)
            job = prepare(tiles, options, in_memory=True)
            hardware.allow(1 << 30)
            device = GpuPass(hardware, job.job, 1 << 30)
            plan = job.layout.plan.replace(use_gpu=True, gpu_max_chunk_bytes=1 << 30)
            cut = replace(job, layout=_zmrs.fit(job.job, plan, 0, 0, 0, True))
            words = f"{kernel}, {method}, {channels} channel{'s' if channels > 1 else ''}"
            found.append(compare(words, passes(job, None), passes(cut, device)))
    return found


def two_pass_agreement(edge: int) -> Agreement:
    """The coverage renormalisation, as a whole command would run it."""
    import zmrs

    tiles = frames((edge, edge), 9, 3)
    more: dict[str, Any] = {"two_pass": True, "two_pass_sigma": 20.0, "kernel": "lanczos3"}
    made = [zmrs.mosaic(tiles, gpu=gpu, **more) for gpu in ("off", "on")]
    planes = [[one.data, one.coverage] for one in made]
    return compare("lanczos3, mean, two passes, 3 channels", *planes)


# -------------------------------------------------------------------------------------- throughput


@dataclass(frozen=True)
class Throughput:
    """The kernel that combines, with all data on the device.

    Attributes
    ----------
    words
        What was made.
    samples
        Samples that it took.
    moved_bytes
        What it must move: pixels of windows once, cubics once, planes of the output once.
    seconds
        Of the fastest of its launches.
    """

    words: str
    samples: int
    moved_bytes: int
    seconds: float


def throughput(hardware: Stopwatch, kernel: str, edge: int, n: int, rounds: int) -> Throughput:
    """Combining in a step that holds everything, again and again."""
    tiles = frames((edge, edge), n, 1, sip_strength=0.0)
    job = prepare(tiles, Options(kernel=kernel, match="none", gpu="off"), in_memory=True)
    held = _again(hardware, job, rounds, on_gpu=False)
    height, width = job.grid.shape
    return Throughput(
        f"{kernel}, {n} frames of {edge} x {edge} onto {width} x {height}",
        job.layout.samples,
        held["loaded"] + held["cubics"] + held["out"],
        min(hardware.seconds["run"]),
    )


def decoding(hardware: Stopwatch, folder: Path, edge: int, n: int, rounds: int) -> Throughput:
    """Decoding what files of 16-bit counts hold, into single precision."""
    from astropy.io import fits

    for k, (image, wcs) in enumerate(frames((edge, edge), n, 1, sip_strength=0.0)):
        counts = np.nan_to_num(image).astype(np.uint16)
        fits.PrimaryHDU(counts, wcs.to_header()).writeto(folder / f"{k}.fits", overwrite=True)
    job = prepare(sorted(folder.glob("*.fits")), Options(match="none", gpu="off"), in_memory=True)
    held = _again(hardware, job, rounds, on_gpu=True)
    return Throughput(
        f"decoding, {n} files of 16-bit counts, {edge} x {edge}",
        held["pixels"] // 4,
        held["loaded"] + held["pixels"],
        min(hardware.seconds["decode"]),
    )


def _again(hardware: Stopwatch, job: Prepared, rounds: int, *, on_gpu: bool) -> dict[str, int]:
    """Run a pass in one band so many times; the bytes of its buffers.

    With `on_gpu` the device decodes the windows, otherwise the workers do.
    """
    limit = 64 << 30
    plan = job.plan.replace(
        rows_per_chunk=job.grid.height, max_chunk_bytes=None, memory_bytes=1 << 40,
        use_gpu=on_gpu, gpu_max_chunk_bytes=limit,
    )  # fmt: skip
    layout = _zmrs.fit(job.job, plan, 0, 0, 0, True)
    hardware.allow(limit)
    device = GpuPass(hardware, job.job, limit)
    hardware.seconds.clear()
    for _ in range(rounds):
        passes(replace(job, layout=layout), device)
    held = {name: buffer.nbytes for name, buffer in device._buffers.items()}
    # One step at a time: the other turn has nothing.
    return held | {"loaded": max(held.get(f"loaded {turn}", 0) for turn in (0, 1))}


# --------------------------------------------------------------------------- whole runs, and others


def plain_cupy_seconds(paths: list[Path], wcs: Any, shape: tuple[int, int]) -> float:
    """The plain way: astropy's coordinates of every pixel, `map_coordinates`, a mean."""
    import cupy
    from astropy.io import fits
    from astropy.wcs import WCS
    from cupyx.scipy.ndimage import map_coordinates

    began = time.perf_counter()
    total, weight = cupy.zeros(shape, cupy.float32), cupy.zeros(shape, cupy.float32)
    rows, columns = np.indices(shape)
    for path in paths:
        with fits.open(path) as hdus:
            image, header = hdus[0].data.astype(np.float32), hdus[0].header
        ra, dec = wcs.all_pix2world(columns.ravel(), rows.ravel(), 0)
        x, y = WCS(header).all_world2pix(ra, dec, 0, quiet=True)
        at = cupy.asarray(np.stack([y, x]).astype(np.float32))
        found = map_coordinates(cupy.asarray(image), at, order=1, cval=cupy.nan).reshape(shape)
        valid = ~cupy.isnan(found)
        total += cupy.where(valid, found, 0)
        weight += valid
    (total / cupy.maximum(weight, 1)).get()
    return time.perf_counter() - began


@dataclass(frozen=True)
class Run:
    """The fastest of some whole runs.

    Attributes
    ----------
    result
        What it has made.
    seconds
        How long it took.
    """

    result: Any
    seconds: float

    @property
    def gains_seconds(self) -> float:
        """Time from the coverage of the first pass to the gains for the second."""
        return float(self.result.stats["two_pass"]["seconds"]["gains"])


def best_run(folder: Path, out: Path, way: str, *, two_pass: bool, cold: bool) -> Run:
    """The fastest of three runs, after one that does not count.

    With `cold` the inputs are not in the page cache, where the system lets go of them.
    """
    import zmrs

    runs = []
    for _ in range(4):
        if cold:
            for path in folder.glob("*.fits"):
                _forget(path)
        began = time.perf_counter()
        more: dict[str, Any] = {"gpu": way, "match": "none", "two_pass": two_pass}
        result = zmrs.mosaic(folder, out, overwrite=True, **more)
        runs.append(Run(result, time.perf_counter() - began))
    return min(runs[1:], key=lambda run: run.seconds)


def _forget(path: Path) -> None:
    """Ask the system to drop a file from its cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def shape_of(path: Path) -> tuple[int, int]:
    """(H, W) of a mosaic."""
    from astropy.io import fits

    header = fits.getheader(path)
    return int(header["NAXIS2"]), int(header["NAXIS1"])
