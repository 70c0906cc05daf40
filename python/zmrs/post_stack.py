"""What happens to a mosaic after its first pass: the coverage renormalisation (Two-Pass).

Both the normal and the SDS road come here, and only here is a plan chosen for the second pass.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs import _zmrs
from zmrs.errors import Cancelled, DeviceError, DiskFullError, ZmrsError
from zmrs.events import Clock
from zmrs.plan import select_two_pass_plan
from zmrs.settings import flag, known, setting
from zmrs.stretch import run_pass
from zmrs.two_pass import PERCENTILE, merge_epsilon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from zmrs.config import Options
    from zmrs.io.journal import Journal
    from zmrs.photometry import Matching
    from zmrs.prepare import Prepared

Targets = list[tuple["Path", int]]
SomeTargets = list[tuple["Path", int] | None]
"""Places of planes; those of None are not written."""

__all__ = [
    "FirstPass",
    "SomeTargets",
    "Targets",
    "TwoPass",
    "clip_of",
    "log_gpu_refused",
    "log_plan",
    "log_request",
    "read_into",
    "targets_in",
    "two_pass",
]

log = logging.getLogger("zmrs")

_MIB = 1 << 20

_FAILURES = (ZmrsError, OSError, ValueError, RuntimeError, MemoryError)
"""What the engine and NumPy raise when something cannot be done."""


@dataclass(frozen=True)
class FirstPass:
    """A finished first pass.

    Attributes
    ----------
    planes
        Its image and coverage.
    marks
        Where each input lies.
    depth_at
        An empty file for a plane with the number of inputs of each pixel, where the coverage does
        not say it; None where it does.
    variance
        Variance of each channel, if it is wanted.
    """

    planes: _zmrs.Planes
    marks: _zmrs.Marks
    depth_at: Path | None = None
    variance: _zmrs.Planes | None = None


@dataclass
class TwoPass:
    """What came of the coverage renormalisation.

    Attributes
    ----------
    is_applied
        Whether the merged image was made; otherwise the first pass is kept.
    gains
        Of the inputs; all 1 when the first pass is kept.
    offsets
        Of the inputs, by channel, once they are multiplied by the gains; None without matching.
    read_bytes, workers, chunk_peak_bytes, leased_peak_bytes
        What the second pass has read, the threads that it was granted, and the most bytes that its
        chunks and all its buffers took; 0 where it did not run to its end.
    reason
        Why the first pass is kept; empty otherwise.
    scales
        Least and greatest value of the scale map, where it counts.
    replaced
        Part of all pixels that are the second pass's.
    seconds
        Time of each step.
    """

    gains: list[float]
    offsets: list[list[float]] | None = None
    is_applied: bool = False
    read_bytes: int = 0
    workers: int = 0
    chunk_peak_bytes: int = 0
    leased_peak_bytes: int = 0
    reason: str = ""
    scales: tuple[float, float] | None = None
    replaced: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """For the figures of a run."""
        return {
            "applied": self.is_applied,
            "reason": self.reason,
            "gains": self.gains,
            "scale_range": self.scales,
            "replaced_fraction": self.replaced,
            "workers": self.workers,
            "chunk_peak_bytes": self.chunk_peak_bytes,
            "leased_peak_bytes": self.leased_peak_bytes,
            "seconds": self.seconds,
        }


def two_pass(
    prepared: Prepared,
    first: FirstPass,
    matching: Matching | None,
    options: Options,
    targets: SomeTargets,
    journal: Journal,
    *,
    write_back: bool,
    bounds: Path | None,
    progress: Callable[[int, int], None],
) -> TwoPass:
    """Even out the inputs by their coverage: gains, second pass, merge.

    The merged image is written to `targets`, one a channel and, after those of planes that stay as
    they are, one a channel for its variance if there is any; they do not hold the first pass;
    `bounds` is where a pass of two sweeps may leave what the first one has found.
    Whatever fails on the way, short of a full disk or a request to stop, leaves the first pass as
    it is, with one warning. What `progress` raises is such a request.
    """
    # This road always has a plan of its own, so there is nothing to fall back to.
    plan = select_two_pass_plan(phase5_plan=prepared.plan, fallback_plan=None)
    log_request(options.two_pass_sigma, clip_of(options), prepared.grid.shape)
    log_plan(plan)
    log_gpu_refused(plan, is_asked=options.gpu == "on")
    outcome = TwoPass([1.0] * len(prepared.placed))
    stops: list[BaseException] = []

    def tell(read_bytes: int, rows_written: int) -> None:
        try:
            progress(read_bytes, rows_written)
        except BaseException as stop:
            stops.append(stop)
            raise

    try:
        _renormalise(prepared, first, matching, targets, journal, outcome, write_back, bounds, tell)
    except _FAILURES as error:
        if stops or isinstance(error, Cancelled | DeviceError | DiskFullError):
            raise
        outcome = TwoPass([1.0] * len(prepared.placed), reason=str(error), seconds=outcome.seconds)
    if outcome.reason:
        log.warning("[TwoPass] the first pass is kept: %s", outcome.reason)
    return outcome


def clip_of(options: Options) -> tuple[float, float]:
    """Least and greatest gain, in that order."""
    low, high = sorted(options.two_pass_gain_clip)
    return low, high


def _renormalise(
    prepared: Prepared,
    first: FirstPass,
    matching: Matching | None,
    targets: SomeTargets,
    journal: Journal,
    outcome: TwoPass,
    write_back: bool,
    bounds: Path | None,
    progress: Callable[[int, int], None],
) -> None:
    noted = journal.found("gains")
    if noted is None:
        noted = _measured(prepared, first, matching, targets[0], outcome)
        journal.note("gains", noted)
    if noted["scales"] is not None:
        outcome.scales = tuple(noted["scales"])
    percentile, found = noted["percentile"], noted["gains"]
    if percentile is None:
        outcome.reason = "nothing is covered."
        return
    if percentile <= 0:
        log.warning(
            "[TwoPass] a twentieth of the mosaic is not above 0 (background subtracted?): the "
            "ratio by which the passes are merged means little there"
        )
    gains = [[gain] * prepared.channels for gain in found]
    offsets = noted["offsets"]
    if matching is not None:
        matched = zip(gains, matching.gains, strict=True)
        gains = [[g * m for g, m in zip(*both, strict=True)] for both in matched]
    began = time.perf_counter()
    stats, _ = run_pass(
        "pass two",
        prepared.job.with_photometry(gains, offsets),
        prepared.layout,
        targets,
        journal,
        shape=prepared.grid.shape,
        bounds=bounds,
        progress=progress,
        write_back=write_back,
        device_for=prepared.device_for,
        over=first.planes,
        over_variance=first.variance,
        epsilon=merge_epsilon(percentile),
    )
    outcome.seconds["second pass"] = time.perf_counter() - began
    outcome.read_bytes, outcome.workers = stats.read_bytes, stats.workers
    outcome.chunk_peak_bytes, outcome.leased_peak_bytes = stats.chunk_peak, stats.ledger_peak
    outcome.replaced = stats.replaced / (prepared.grid.height * prepared.grid.width)
    if not stats.replaced:
        outcome.reason = (
            "the second pass is less than 0.4 times as bright everywhere; check the gains."
        )
        return
    outcome.gains, outcome.is_applied = found, True
    outcome.offsets = None if matching is None else offsets


def _measured(
    prepared: Prepared,
    first: FirstPass,
    matching: Matching | None,
    scales_at: tuple[Path, int] | None,
    outcome: TwoPass,
) -> dict[str, Any]:
    """Gains and offsets of the inputs for the second pass, and what it is merged by."""
    job, layout = prepared.job, prepared.layout
    clock = Clock(outcome.seconds)
    counts = first.planes
    if first.depth_at is not None:
        _zmrs.write_depth(job, layout, first.planes, first.marks, (first.depth_at, 0))
        counts = _zmrs.Planes.in_files(prepared.grid.width, [(first.depth_at, 0)])
        clock.lap("depth")
    assert scales_at is not None
    found = _zmrs.measure_gains(
        job, layout, counts, first.marks, scales_at, device=prepared.coverage_for(job, layout)
    )
    clock.lap("gains")
    percentile = _zmrs.luminance_percentile(job, layout, first.planes, PERCENTILE)
    clock.lap("percentile")
    offsets = [[0.0] * prepared.channels for _ in found.gains]
    if matching is not None and percentile is not None:
        offsets = matching.offsets_after(found.gains)
    clock.lap("matching")
    return {
        "gains": found.gains,
        "scales": found.scales if found.scales[0] <= found.scales[1] else None,
        "percentile": percentile,
        "offsets": offsets,
    }


def targets_in(file: Path, prepared: Prepared) -> Targets:
    """Places for the image of a job in a new scratch file, one a channel."""
    file.touch()
    return [(file, k * prepared.job.plane_bytes) for k in range(prepared.channels)]


def read_into(file: Path, image: NDArray[np.float32]) -> None:
    """Read a merged image into an array, a row at a time."""
    rows = image.reshape(-1, image.shape[-1])
    with file.open("rb") as stored:
        for row in rows:
            row[:] = np.fromfile(stored, ">f4", row.size)


def log_request(
    sigma: float,
    clip: tuple[float, float],
    shape: tuple[int, ...],
    logger: logging.Logger = log,
) -> None:
    """The line that says what is asked for."""
    logger.info(
        "[TwoPass] Second pass requested (sigma=%g, clip=(%g, %g)); coverage shape=%s",
        sigma,
        *clip,
        tuple(map(int, shape)),
    )


def log_gpu_refused(plan: Any, *, is_asked: bool, logger: logging.Logger = log) -> None:
    """The line that says that the plan forbids the GPU, where it does and the GPU was asked for.

    A plan that says nothing of the GPU does not forbid it.
    """
    if is_asked and not flag(plan, "use_gpu", True):
        logger.info("[TwoPass] GPU requested but disabled by plan.use_gpu=False -> forcing CPU")


def log_plan(plan: Any, logger: logging.Logger = log) -> None:
    """The line that proves which plan the second pass runs on."""
    name = setting(plan, "name") or (type(plan).__name__ if plan is not None else "none")
    logger.info(
        "[TwoPass] plan=%s cpu_workers=%s use_gpu=%s max_chunk_mb=%s gpu_max_chunk_mb=%s rows=%s "
        "gpu_rows=%s",
        name,
        known(plan, "cpu_workers") or "-",
        flag(plan, "use_gpu", False),
        _mib(plan, "max_chunk_bytes"),
        _mib(plan, "gpu_max_chunk_bytes"),
        known(plan, "rows_per_chunk") or "-",
        known(plan, "gpu_rows_per_chunk") or "-",
    )


def _mib(plan: Any, name: str) -> str:
    size = known(plan, name)
    return f"{size / _MIB:.2f}" if size else "-"
