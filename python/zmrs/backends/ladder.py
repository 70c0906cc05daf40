"""When a device fails: smaller chunks as long as its memory is the matter, then the CPU.

Whatever was computed until then is computed again: a mosaic is all of one device, never mixed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from zmrs.errors import DeviceError, DeviceMemoryError
from zmrs.gpu_safety import shrink_after_oom
from zmrs.plan import on_cpu

if TYPE_CHECKING:
    from zmrs.plan import Plan

__all__ = ["MOST_TRIES", "after", "remembered", "succeeded"]

log = logging.getLogger("zmrs")

MOST_TRIES = 3
"""How often smaller chunks are tried."""

_hint: tuple[int, int] | None = None
"""Chunk bytes and rows with which a job was done, after larger ones had failed."""


def remembered(plan: Plan) -> Plan:
    """A plan that asks for no more than the device could give earlier in this process."""
    chunk, rows = plan.gpu_max_chunk_bytes, plan.gpu_rows_per_chunk
    if _hint is None or not plan.use_gpu or chunk is None or chunk <= _hint[0]:
        return plan
    fewer = _hint[1] if rows is None else min(rows, _hint[1])
    reasons = (*plan.reasons, "gpu_out_of_memory")
    return plan.replace(gpu_max_chunk_bytes=_hint[0], gpu_rows_per_chunk=fewer, reasons=reasons)


def succeeded(plan: Plan) -> None:
    """Remember that a plan did with smaller chunks."""
    global _hint  # noqa: PLW0603  (it is of the process, as the device's memory is)
    if plan.use_gpu and plan.gpu_max_chunk_bytes and plan.gpu_rows_per_chunk:
        _hint = (plan.gpu_max_chunk_bytes, plan.gpu_rows_per_chunk)


def after(failure: DeviceError, plan: Plan, ran: Plan, tries: int, *, demands_gpu: bool) -> Plan:
    """The plan to try next.

    Parameters
    ----------
    failure
        What the device has said.
    plan, ran
        The plan of the job, and as it ran: cut to the job's bands.
    tries
        How often smaller chunks have been tried already.
    demands_gpu
        Whether the CPU is out of the question.

    Raises
    ------
    zmrs.errors.DeviceError
        When the GPU is demanded and no smaller chunk is left to be tried.
    """
    had, ran_rows = plan.gpu_max_chunk_bytes or 0, ran.gpu_rows_per_chunk or 0
    if isinstance(failure, DeviceMemoryError) and tries < MOST_TRIES:
        chunk, rows = shrink_after_oom(had, ran_rows)
        # Its floors must not raise what is below them already.
        chunk, rows = min(chunk, had), min(rows, ran_rows)
        if (chunk, rows) != (had, ran_rows):
            log.warning(
                "the GPU ran out of memory (%s); trying chunks of %.0f MiB and %d rows",
                failure,
                chunk / 2**20,
                rows,
            )
            reasons = tuple(dict.fromkeys((*plan.reasons, "gpu_out_of_memory")))
            return plan.replace(gpu_max_chunk_bytes=chunk, gpu_rows_per_chunk=rows, reasons=reasons)
    if demands_gpu:
        raise DeviceError(
            f"--gpu on: the GPU failed ({failure}); use --gpu auto, which goes on on the CPU."
        ) from failure
    log.warning("the GPU failed (%s); the CPU computes everything again", failure)
    return on_cpu(plan, "gpu_failed")
