"""What there is for a job: who computes its passes, and what these may take.

The memory of a GPU's context comes out of the same limit, so both are decided together.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zmrs import _zmrs, limits
from zmrs.backends.choose import Backend, open_backend
from zmrs.backends.ladder import remembered
from zmrs.errors import BudgetError, UsageError
from zmrs.plan import REASONS, check_gpu, describe, given_plan, on_cpu, phase5_plan
from zmrs.probe import Capabilities, detect_capabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zmrs import sds
    from zmrs.config import Options
    from zmrs.finished import Finished
    from zmrs.grid import Grid
    from zmrs.memory import Allowance
    from zmrs.placing import Placed
    from zmrs.plan import Plan

__all__ = ["Room", "computed_by", "room_for"]

log = logging.getLogger("zmrs")

_JOURNAL_BYTES = 2048
"""What the journal of a long run takes at most for each input while it is begun."""


@dataclass(frozen=True)
class Room:
    """What there is for a job: its plan, the limit, and what the process holds already.

    `in_memory` is whether the last pass leaves its output with the caller, `demands_gpu` whether
    the GPU must not be given up, `has_context` whether one was opened.
    """

    plan: Plan
    allowed: Allowance
    reserved_bytes: int
    planning_peak_bytes: int
    in_memory: bool
    demands_gpu: bool = False
    has_context: bool = False

    def cut(
        self, whole: _zmrs.Job, batches: Sequence[sds.Batch], last: _zmrs.Job
    ) -> tuple[dict[int, _zmrs.Layout], _zmrs.Layout]:
        """Cut the passes of a job so that each fits: those of the batches, by number, and the last.

        `whole` is the job of all inputs, and the last one itself if there are no batches.  A
        refusal names the smallest limit that works for all of them.
        """
        layouts, refusals = self._tried(whole, batches, last)
        if refusals and self.plan.use_gpu and not self.demands_gpu:
            plan = on_cpu(self.plan, "gpu_does_not_fit")
            return replace(self, plan=plan).cut(whole, batches, last)
        if refusals:
            worst = max(refusals, key=lambda refusal: refusal.least_bytes)
            advice = self.allowed.advice(str(worst))
            if self.has_context and not self.demands_gpu:
                advice += " A GPU context has taken a part of it: --gpu off does without."
            raise BudgetError(advice, worst.least_bytes)
        *of_batches, layout = layouts
        log.info("plan=%s (memory: %s)", describe(layout.plan), self.allowed.reason)
        numbers = (batch.number for batch in batches)
        return dict(zip(numbers, of_batches, strict=True)), layout

    def fits(self, whole: _zmrs.Job, batches: Sequence[sds.Batch], last: _zmrs.Job) -> bool:
        """Whether the passes of a job, as for `cut`, fit."""
        return not self._tried(whole, batches, last)[1]

    def less(self, others_bytes: int) -> Room:
        """What is left when others take so much of it."""
        return replace(self, reserved_bytes=self.reserved_bytes + others_bytes)

    def _tried(
        self, whole: _zmrs.Job, batches: Sequence[sds.Batch], last: _zmrs.Job
    ) -> tuple[list[_zmrs.Layout], list[BudgetError]]:
        """The layouts of the passes that fit, and the refusals of others."""
        layouts, refusals = [], []
        for job in (*(batch.job(whole) for batch in batches), last):
            try:
                layouts.append(
                    _zmrs.fit(
                        job,
                        self.plan,
                        self.reserved_bytes,
                        self.allowed.held_bytes,
                        self.planning_peak_bytes,
                        self.in_memory and job is last,
                        whole,
                    )
                )
            except BudgetError as refusal:
                refusals.append(refusal)
        return layouts, refusals


def computed_by(
    options: Options,
    given: Plan | None,
    caps: Capabilities,
    allowed: Allowance,
    passes: tuple[_zmrs.Job, Sequence[sds.Batch], _zmrs.Job],
    room_on: Callable[[Capabilities, str], Room],
) -> tuple[Backend, Room]:
    """What computes the passes of a job, and what they may take beside it.

    The passes are as for `Room.cut`; `room_on` says what they may take on a machine, given why they
    cannot run on its GPU.
    """
    job, batches, last = passes

    def fits(context_bytes: int) -> bool:
        if allowed.bytes - limits.resident_bytes() < context_bytes:
            return False
        # Who demands the GPU is told if the job does not fit beside it.
        if options.gpu == "on":
            return True
        return room_on(caps, "gpu_host_memory").less(context_bytes).fits(job, batches, last)

    backend = open_backend(options.gpu, given, fits)
    without_gpu, note = backend.against(*([job] if batches else []), last)
    check_gpu(options, given, without_gpu=without_gpu, note=note)
    if backend.hardware is None:
        return backend, room_on(caps, without_gpu)
    # Only now more is asked of the GPU: that costs seconds and memory.
    return backend, replace(room_on(detect_capabilities(), without_gpu), has_context=True)


def room_for(
    grid: Grid,
    placed: Sequence[Placed],
    options: Options,
    allowed: Allowance,
    given: Plan | None,
    peak_before: int,
    base: Finished | None,
    in_memory: bool,
    caps: Capabilities,
    without_gpu: str,
) -> Room:
    """What a job may take on a machine, given why it cannot run on the GPU; empty if it can.

    Raises
    ------
    zmrs.errors.UsageError
        When the GPU is demanded and the plan does not allow it.
    """
    # What was mapped meanwhile is lost to an address-space limit.
    allowed = allowed.within(limits.memory_limits())
    if given is None:
        plan = phase5_plan(grid, placed, options, caps, allowed=allowed, without_gpu=without_gpu)
    else:
        plan, allowed = given_plan(given, options, caps, allowed, without_gpu=without_gpu)
    peak = limits.peak_resident_bytes()
    reserved = limits.resident_bytes() + (0 if base is None else base.table_bytes)
    reserved += 0 if in_memory else _JOURNAL_BYTES * len(placed)
    peak = peak if peak > peak_before else 0
    if options.gpu == "on" and not plan.use_gpu and (given is None or given.use_gpu):
        reason = next(r for r in reversed(plan.reasons) if not r.startswith("memory_"))
        raise UsageError(f"--gpu on: {REASONS[reason]}; use --gpu auto.")
    plan = remembered(plan)
    return Room(plan, allowed, reserved, peak, in_memory, demands_gpu=options.gpu == "on")
