"""Does a job run on the GPU?  What speaks against it is asked from the cheapest question on.

The plan says how much of the GPU may be used, and has the last word (`zmrs.plan`); here it is found
out whether there is one at all that could compute the job.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zmrs.backends.coverage import GpuCoverage, coverage_kernels_of, room_for_coverage
from zmrs.backends.gpu import GpuPass, guarded, kernels_of
from zmrs.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from zmrs import _zmrs
    from zmrs.backends.base import Hardware
    from zmrs.plan import Plan

__all__ = ["CONTEXT_BYTES", "CPU", "Backend", "obstacle", "open_backend"]

log = logging.getLogger("zmrs")

CONTEXT_BYTES = 768 << 20
"""Memory of the process that CuPy and a CUDA context may take.  It decides whether one is opened at
all; what it then has taken is measured, and planned with."""

_FREE_PART = 0.95
"""Of the device memory that is free when a pass begins, what it may take."""

_has_context = False
"""Whether this process has opened a device before: its memory is taken already."""

_DRIVERS = {"win32": "nvcuda.dll", "linux": "libcuda.so.1"}


@dataclass(frozen=True)
class Backend:
    """What computes the passes of a job.

    Attributes
    ----------
    hardware
        A device; None where the engine's workers compute.
    reason
        Why it is not a device: a reason of a plan, empty if it is one.
    note
        More of that, for people.
    """

    hardware: Hardware | None = None
    reason: str = ""
    note: str = ""

    def against(self, *jobs: _zmrs.Job) -> tuple[str, str]:
        """What keeps jobs from the device: a reason of a plan, and a note; empty if nothing does.

        Their kernels are made, so that what that takes of the process's memory is taken before its
        plan is made.
        """
        if self.hardware is None:
            return self.reason, self.note
        try:
            with guarded():
                for job in jobs:
                    self.hardware.compile(*kernels_of(job))
                    of_coverage = coverage_kernels_of(job)
                    if of_coverage is not None:
                        self.hardware.compile(*of_coverage)
                self.hardware.warm()
        except DeviceError as error:
            return "gpu_unavailable", str(error)
        return "", ""

    def device_for(self, job: _zmrs.Job, plan: Plan) -> GpuPass | None:
        """What computes a pass of a job with a plan; None is the engine's workers."""
        if self.hardware is None or not plan.use_gpu:
            return None
        with guarded():
            return GpuPass(self.hardware, job, self._granted(self.hardware, plan))

    def coverage_for(self, job: _zmrs.Job, plan: Plan) -> GpuCoverage | None:
        """What does the work on the coverage between the passes; None is the engine's workers.

        They do it too where the device has too little memory for it: the bits are the same.
        """
        if self.hardware is None or not plan.use_gpu:
            return None
        with guarded():
            limit = self._granted(self.hardware, plan)
            if room_for_coverage(job, limit) is None:
                log.debug(
                    "%.0f MiB of the GPU are too few for the coverage; the CPU blurs it",
                    limit / 2**20,
                )
                return None
            return GpuCoverage(self.hardware, job, limit)

    def _granted(self, hardware: Hardware, plan: Plan) -> int:
        """Device memory that a pass may take, and no buffer will exceed."""
        assert plan.gpu_max_chunk_bytes is not None
        # Others may have taken some since it was planned.
        free = int(_FREE_PART * hardware.free_bytes())
        limit = min(plan.gpu_max_chunk_bytes, free)
        hardware.allow(limit)
        return limit


CPU = Backend(reason="gpu_off")


def obstacle(asked: str, given: Plan | None) -> Backend | None:
    """What keeps a job from a device, as far as that is told without opening one.

    Parameters
    ----------
    asked
        ``auto``, ``on`` or ``off``.
    given
        A plan that the caller brings, if any; it may forbid the GPU.
    """
    if asked == "off":
        return CPU
    if given is not None and not given.use_gpu:
        return Backend(reason="gpu_not_planned")
    missing = _missing()
    return Backend(reason="gpu_unavailable", note=missing) if missing else None


def open_backend(asked: str, given: Plan | None, fits: Callable[[int], bool]) -> Backend:
    """The device of this machine, if it may be used and can be.

    Parameters
    ----------
    asked, given
        As for `obstacle`.
    fits
        Whether the job does without so many bytes of the process's memory.
    """
    global _has_context  # noqa: PLW0603  (it is of the process)
    found = obstacle(asked, given)
    if found is not None:
        return found
    if not _has_context and not fits(CONTEXT_BYTES):
        note = f"it may take {CONTEXT_BYTES >> 20} MiB"
        return Backend(reason="gpu_host_memory", note=note)
    from zmrs.backends.cuda import Cuda  # noqa: PLC0415  (brings CuPy)

    try:
        hardware = Cuda()
    except DeviceError as error:
        return Backend(reason="gpu_unavailable", note=str(error))
    _has_context = True
    log.debug("the GPU is %s", hardware.name)
    return Backend(hardware)


def _missing() -> str:
    """What a GPU would need and is not here, as far as that is cheaply told; nothing if it may be.

    Asking CuPy costs a second, and loading the driver some memory.
    """
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    name = _DRIVERS.get(sys.platform)
    try:
        if name is not None:
            ctypes.CDLL(name)
            return ""
    except OSError:
        pass
    return "there is no NVIDIA driver"
