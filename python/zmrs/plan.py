"""The resource plan: how a job runs.

The way of the Phase 5 plan: machine → `auto_tune_plan` → `apply_gpu_safety` →
`phase5_vram_budget` → memory limit → the engine's own cut, which sets workers, rows and bytes to
what will run.  `select_two_pass_plan` is the only place that chooses a plan for the Two-Pass.

Arithmetic on values; the machine is looked at by `zmrs.probe`.  The tuner's formulas and constants
are those of ZeMosaic 4.5, as observed from outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zmrs._zmrs import Plan
from zmrs.errors import UsageError
from zmrs.gpu_safety import (
    apply_gpu_safety,
    bump_gpu_rows,
    effective_gpu,
    gpu_context,
    phase5_vram_budget,
)
from zmrs.memory import Allowance, allowance, parse_memory
from zmrs.probe import detect_capabilities
from zmrs.settings import flag, known, number, setting

if TYPE_CHECKING:
    from collections.abc import Sized

    from zmrs.probe import Capabilities

__all__ = [
    "REASONS",
    "Plan",
    "apply_gpu_safety",
    "auto_tune_plan",
    "check_gpu",
    "describe",
    "detect_capabilities",
    "given_plan",
    "global_plan",
    "on_cpu",
    "phase5_plan",
    "phase5_vram_budget",
    "select_two_pass_plan",
]

_MIB = 1 << 20
_MOST_BYTES = 1 << 53
_MOST_COUNT = 1 << 31

_RAM_MARGIN = 0.95
_AVAILABLE_MARGIN = 0.98
_VRAM_MARGIN = 0.9
_RAM_WHEN_UNKNOWN = 8 << 30
_LEAST_RAM_BYTES = 256 * _MIB
_LEAST_CHUNK_BYTES = 32 * _MIB
_LEAST_ROWS = 4
_BYTES_PER_PIXEL = 4

REASONS = {
    "processors_unknown": "the number of processors is unknown, so one is used",
    "workers_asked": "as many workers as asked for",
    "workers_load_target": "one processor in twenty is left to others",
    "workers_max_configured": "no more workers than configured",
    "workers_memory": "fewer workers, because the buffers of all would not fit the memory limit",
    "autotune_off": "tuning is switched off in the configuration",
    "memory_asked": "the memory limit is the one asked for",
    "memory_automatic": "the memory limit is a share of the least limit of the system",
    "memory_cut_to_system_limit": "the memory limit asked for is cut to what the system grants",
    "memory_limits_unknown": "no limit of the system is known, so a modest one is used",
    "memory_planned": "the memory limit is the one of the plan that was given",
    "gpu_host_memory": "a GPU context would take more of the memory limit than is left",
    "gpu_does_not_fit": "the GPU chunk is too small for the job",
    "gpu_out_of_memory": "smaller GPU chunks, because the GPU ran out of memory",
    "gpu_failed": "the GPU failed, so the CPU computes everything again",
    "begun_on_cpu": "the CPU has begun what is gone on with",
    "gpu_memory_asked": "no more GPU memory than asked for",
    "gpu_off": "the GPU is not asked for",
    "gpu_not_planned": "the plan that was given does without the GPU",
    "gpu_unavailable": "there is no usable GPU",
    "gpu_vram_unknown": "the size of the GPU's memory is unknown, so it is not used",
    "gpu_forced_on_ac": "on the mains the GPU is used as told",
    "intel_only": "the only GPU is an integrated one of Intel, which CUDA cannot use",
    "intel_only_gpu": "the only GPU is an integrated one of Intel",
    "disable_intel_only_gpu": "an integrated GPU of Intel is not used",
    "unknown_gpu_vendor": "the maker of the GPU is unknown",
    "safe_mode_asked": "safe mode is asked for (ZMRS_GPU_SAFE_MODE)",
    "safe_mode_unknown_gpu": "in safe mode a GPU of unknown maker or memory is not used",
    "safe_mode_clamp": "safe mode makes GPU chunks small",
    "on_battery_clamp": "the machine runs on battery: safe mode",
    "battery_present": "there is a battery, but the mains feed the machine",
    "hybrid_graphics": "an integrated and a discrete GPU share the work",
    "hybrid_unplugged_clamp": "hybrid graphics without mains: safe mode",
    "hybrid_vram_guard": "hybrid graphics with little memory: GPU chunks have few rows",
    "hybrid_vram_guard_disabled_by_user": "the guard of hybrid graphics is switched off",
    "vram_cap": "a GPU chunk takes at most 40 % of the free GPU memory",
    "probe_unknown": "free GPU memory is unknown, so a modest budget is used",
    "user_chunk_cap": "the configured chunk size bounds the GPU budget",
    "ui_chunk_cap": "the configured chunk size bounds the GPU budget",
    "plan_cap": "the plan's own GPU chunk bounds the budget",
    "plan_cap_ignored_on_ac": "on the mains the plan's own GPU chunk does not bind",
    "hard_cap": "the configured cap bounds the GPU budget",
    "usable_cap": "no more than the free GPU memory less its reserve",
    "min_clamp": "a GPU budget is at least 128 MiB, caps permitting",
    "budget_policy": "GPU chunks are sized by power supply and free GPU memory",
    "budget_cap": "the GPU chunk asked for is cut to the budget",
    "gpu_rows_bumped": "more GPU rows, because the chunk has room for them",
}
"""What each of a plan's ``reasons`` means, in words."""

_DECIDED_ANEW = (
    "memory_",
    "gpu_off",
    "gpu_not_planned",
    "gpu_unavailable",
    "gpu_host_memory",
    "gpu_does_not_fit",
    "gpu_out_of_memory",
    "gpu_failed",
    "gpu_memory_asked",
    "begun_on_cpu",
)
"""Beginnings of reasons that a plan has from the run that it was made for, not from the machine."""


def auto_tune_plan(
    kind: str,
    frame_shape: tuple[int, int] | None,
    n_frames: int,
    bytes_per_pixel: int,
    config: Any,
    caps: Capabilities | Any,
    *,
    reference: bool = False,
) -> Plan:
    """Workers, chunks and rows that suit a machine.

    Parameters
    ----------
    kind
        ``global`` names the plan ``global``, anything else ``phase5``; it changes nothing else.
    frame_shape
        (H, W) in pixels; None or zeros leave the rows open.
    n_frames
        Images that overlap at most.
    bytes_per_pixel
        Of one image.
    config
        Object or mapping with ``parallel_autotune_enabled`` (True), ``parallel_target_cpu_load``
        (0.95), ``parallel_target_ram_fraction`` (0.90), ``parallel_gpu_vram_fraction`` (0.80),
        ``parallel_max_cpu_workers`` (0, no limit), and ``threads``, the workers that the user wants
        in any case; None is all defaults.
    caps
        The machine; everything may be unknown.
    reference
        Keep the reference's floors, which break small memory limits: 256 MiB in all, 32 MiB a
        worker; and its four rows of an image that has fewer.

    Returns
    -------
    Plan
        Without a memory limit.
    """
    tuner = _Tuner(config, caps, is_reference=reference)
    name = "global" if kind == "global" else "phase5"
    return tuner.plan(name, frame_shape, n_frames, bytes_per_pixel)


@dataclass(frozen=True)
class _Tuner:
    """The formulas of `auto_tune_plan`.

    Attributes
    ----------
    most_bytes
        Memory that all chunks together may take at most; None is what the machine has.
    """

    config: Any
    caps: Any
    is_reference: bool = False
    most_bytes: int | None = None

    def plan(
        self, name: str, shape: tuple[int, int] | None, n_frames: int, bytes_per_pixel: int
    ) -> Plan:
        height, width = (_count(side) for side in ((0, 0) if shape is None else shape))
        row_bytes = width * max(1, _count(bytes_per_pixel)) * max(1, _count(n_frames))
        workers, reasons = self._workers()
        ram = self._ram_bytes()
        least = _LEAST_CHUNK_BYTES if self.is_reference else 1
        chunk = max(least, ram // workers)
        gpu_chunk = self._gpu_chunk(height * width > 0, reasons)
        use_gpu = gpu_chunk is not None
        return Plan(
            name=name,
            cpu_workers=workers,
            use_memmap=height * row_bytes > ram,
            max_chunk_bytes=min(chunk, _MOST_BYTES),
            rows_per_chunk=self._rows(chunk, row_bytes, height),
            use_gpu=use_gpu,
            gpu_max_chunk_bytes=min(gpu_chunk, _MOST_BYTES) if gpu_chunk else None,
            gpu_rows_per_chunk=self._rows(gpu_chunk, row_bytes, height) if gpu_chunk else None,
            reasons=reasons,
        )

    @property
    def _is_tuned(self) -> bool:
        return flag(self.config, "parallel_autotune_enabled", True)

    def _workers(self) -> tuple[int, list[str]]:
        asked = known(self.config, "threads")
        if asked is not None:
            return min(asked, _MOST_COUNT), ["workers_asked"]
        logical = known(self.caps, "cpu_logical_cores")
        reasons = [] if logical else ["processors_unknown"]
        workers = logical = min(logical or 1, _MOST_COUNT)
        if self._is_tuned:
            load = number(self.config, "parallel_target_cpu_load", 0.95, 0.1, 1.0)
            workers = max(1, round(logical * load))
            if workers < logical:
                reasons.append("workers_load_target")
        else:
            reasons.append("autotune_off")
        most = int(number(self.config, "parallel_max_cpu_workers", 0, 0, _MOST_COUNT))
        if 0 < most < workers:
            workers = most
            reasons.append("workers_max_configured")
        return workers, reasons

    def _ram_bytes(self) -> int:
        """Memory for the chunks of all workers."""
        available = known(self.caps, "ram_available_bytes")
        base = known(self.caps, "ram_total_bytes") or available or _RAM_WHEN_UNKNOWN
        share = number(self.config, "parallel_target_ram_fraction", 0.90, 0.1, 0.95)
        ram = int(base * share * _RAM_MARGIN)
        if available is not None:
            ram = min(ram, int(available * _AVAILABLE_MARGIN))
        if self.is_reference:
            ram = max(ram, _LEAST_RAM_BYTES)
        return ram if self.most_bytes is None else min(ram, self.most_bytes)

    def _gpu_chunk(self, has_shape: bool, reasons: list[str]) -> int | None:
        """Bytes of a GPU chunk; 0 without a shape to size it for; None without a GPU."""
        if not (flag(self.caps, "gpu_available", False) and self._is_tuned):
            return None
        if not has_shape:
            return 0
        free = known(self.caps, "gpu_vram_free_bytes")
        base = known(self.caps, "gpu_vram_total_bytes") or free
        if base is None:
            reasons.append("gpu_vram_unknown")
            return None
        share = number(self.config, "parallel_gpu_vram_fraction", 0.80, 0.1, 0.9)
        budget = base * share * _VRAM_MARGIN
        if free is not None:
            budget = min(budget, free * _AVAILABLE_MARGIN)
        return int(max(_LEAST_CHUNK_BYTES, budget))

    def _rows(self, chunk: int, row_bytes: int, height: int) -> int | None:
        if row_bytes <= 0 or height <= 0:
            return None
        rows = max(_LEAST_ROWS, min(height, max(1, chunk // row_bytes)))
        return min(rows if self.is_reference else min(rows, height), _MOST_COUNT)


def _count(value: Any) -> int:
    """A number of rows, columns, images or bytes; 0 for anything that is none."""
    try:
        return max(int(value), 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def _within(plan: Plan, allowed: Allowance) -> Plan:
    """The plan with a memory limit, which always wins over what was tuned."""
    chunk = min(plan.max_chunk_bytes or allowed.bytes, allowed.bytes)
    plan = plan.replace(memory_bytes=allowed.bytes, max_chunk_bytes=chunk)
    return _because(plan, allowed.code)


def global_plan(
    shape: tuple[int, int] | None,
    n_frames: int,
    config: Any,
    caps: Capabilities | Any,
    *,
    allowed: Allowance | None = None,
    without_gpu: str = "",
) -> Plan:
    """The plan of a run before anything is known of its last stage, named ``global``.

    Parameters and errors are those of `phase5_plan`.
    """
    return _plan("global", shape or (0, 0), n_frames, config, caps, allowed, without_gpu)


def phase5_plan(
    grid: Any,
    inputs: Sized | int,
    config: Any,
    caps: Capabilities | Any,
    *,
    allowed: Allowance | None = None,
    without_gpu: str = "",
) -> Plan:
    """The plan of the last stage, resampling and combining, named ``phase5``.

    Rows and chunk bytes are left open (None): the tuner's suit an engine that holds whole frames,
    ours cuts the output with a memory formula of its own and writes what it will use into the plan.

    Parameters
    ----------
    grid
        Output: (H, W), or anything with that as its ``shape``.
    inputs
        The inputs, or how many there are.
    config
        Object or mapping: options of a job (``memory``, ``threads``) and the settings of
        `auto_tune_plan`, `apply_gpu_safety` and `phase5_vram_budget`; None is all defaults.
    caps
        The machine, from `detect_capabilities`.
    allowed
        Memory limit; None works it out from ``config.memory`` and ``caps.limits``.
    without_gpu
        Why the job cannot run on a GPU, one of `REASONS`; empty if it can.

    Raises
    ------
    zmrs.errors.UsageError
        For a ``config.memory`` that is text, but no size.
    """
    shape = grid if hasattr(grid, "__len__") else grid.shape
    n_inputs = len(inputs) if hasattr(inputs, "__len__") else _count(inputs)
    shape = (_count(shape[0]), _count(shape[1]))
    plan = _plan("phase5", shape, n_inputs, config, caps, allowed, without_gpu)
    return plan.replace(rows_per_chunk=None, max_chunk_bytes=None)


def _plan(
    name: str,
    shape: tuple[int, int],
    n_images: int,
    config: Any,
    caps: Capabilities | Any,
    allowed: Allowance | None,
    without_gpu: str,
) -> Plan:
    """Tuned, safe on the GPU, within the memory limit."""
    allowed = allowed or _allowance(config, caps)
    tuner = _Tuner(config, caps, most_bytes=allowed.bytes)
    plan = tuner.plan(name, shape, n_images, _BYTES_PER_PIXEL)
    refusal = _against_gpu(config, None, without_gpu=without_gpu)
    if refusal is None:
        plan = _gpu_share(plan, caps, config, shape, n_images)
    else:
        plan = on_cpu(plan, refusal)
    return _within(plan, allowed)


def given_plan(
    plan: Plan,
    config: Any,
    caps: Capabilities | Any,
    allowed: Allowance,
    *,
    without_gpu: str = "",
) -> tuple[Plan, Allowance]:
    """A plan that the caller brings, as far as the job and the machine allow it.

    Its workers, rows and chunk bytes are upper bounds; its memory limit counts where
    ``config.memory`` says none or a larger one, `allowed` otherwise.  Its figures for a GPU are
    kept, also where ``use_gpu`` becomes False: the log shows whose plan it is.  Returns the plan
    and the memory limit that holds.
    """
    kept = [reason for reason in plan.reasons if not reason.startswith(_DECIDED_ANEW)]
    plan = plan.replace(reasons=kept)
    threads = known(config, "threads")
    if threads is not None:
        kept = [reason for reason in kept if not reason.startswith("workers_")]
        plan = plan.replace(cpu_workers=min(threads, _MOST_COUNT), reasons=[*kept, "workers_asked"])
    planned = plan.memory_bytes
    if planned is not None and (setting(config, "memory") is None or planned <= allowed.bytes):
        allowed = allowance(planned, setting(caps, "limits") or (), words="as planned")
    refusal = _against_gpu(config, plan, without_gpu=without_gpu)
    if refusal is not None:
        plan = _because(plan.replace(use_gpu=False), refusal)
    elif plan.use_gpu:
        if plan.gpu_max_chunk_bytes is None:
            budget = phase5_vram_budget(config, gpu_context(caps, plan.name))
            plan = _because(plan.replace(gpu_max_chunk_bytes=budget.bytes), *budget.reasons)
        plan = _within_asked(plan, config)
    return _within(plan, allowed), allowed


def check_gpu(
    config: Any, given: Plan | None = None, *, without_gpu: str = "", note: str = ""
) -> None:
    """Refuse a job that demands a GPU which it cannot get.

    Parameters
    ----------
    config
        Object or mapping whose ``gpu`` is ``auto``, ``on`` (a demand) or ``off``.
    given
        A plan that the caller brings, if any: where it forbids the GPU the demand is void.
    without_gpu
        Why the job cannot run on a GPU, one of `REASONS`; empty if it can.
    note
        More of that, for people.

    Raises
    ------
    zmrs.errors.UsageError
        When the GPU is demanded, nothing forbids it, and there is no way to use one.
    """
    refusal = _against_gpu(config, given, without_gpu=without_gpu)
    if setting(config, "gpu") == "on" and refusal and refusal != "gpu_not_planned":
        more = f" ({note})" if note else ""
        raise UsageError(f"--gpu on: {REASONS[refusal]}{more}; use --gpu auto.")


def _against_gpu(config: Any, given: Plan | None, *, without_gpu: str) -> str | None:
    """What keeps a job from the GPU before its memory is looked at: a reason, or nothing."""
    if setting(config, "gpu") == "off":
        return "gpu_off"
    if given is not None and not given.use_gpu:
        return "gpu_not_planned"
    return without_gpu or None


def _gpu_share(
    plan: Plan, caps: Capabilities | Any, config: Any, shape: tuple[int, int], n_images: int
) -> Plan:
    """The plan with what it may take of the GPU: safety, effective use, VRAM budget, rows."""
    safe, context = apply_gpu_safety(plan, caps, config, plan.name)
    requested = flag(config, "use_gpu_phase5", True)
    is_used, decided = effective_gpu(safe, context, config, requested=requested)
    if not is_used:
        return on_cpu(safe, *context.reasons, *decided)
    budget = phase5_vram_budget(config, context, plan_cap_bytes=safe.gpu_max_chunk_bytes)
    sized = safe.replace(use_gpu=True, gpu_max_chunk_bytes=budget.bytes)
    bumped = bump_gpu_rows(sized, context, shape[1], n_images)
    more = ("gpu_rows_bumped",) if bumped != sized else ()
    final = _within_image(bumped, shape[0])
    final = _because(final, *context.reasons, *decided, *budget.reasons, *more)
    return _within_asked(final, config)


def _within_asked(plan: Plan, config: Any) -> Plan:
    """No more GPU memory than the user grants."""
    asked, planned = known(config, "gpu_memory"), plan.gpu_max_chunk_bytes
    if asked is None or (planned is not None and planned <= asked):
        return plan
    return _because(plan.replace(gpu_max_chunk_bytes=min(asked, _MOST_BYTES)), "gpu_memory_asked")


def _within_image(plan: Plan, height: int) -> Plan:
    """No more GPU rows than there are: the clamps only know how few are too few."""
    rows = plan.gpu_rows_per_chunk
    return plan.replace(gpu_rows_per_chunk=height) if rows and 0 < height < rows else plan


def on_cpu(plan: Plan, *reasons: str) -> Plan:
    """The plan without a GPU, and why."""
    plan = plan.replace(use_gpu=False, gpu_rows_per_chunk=None, gpu_max_chunk_bytes=None)
    return _because(plan, *reasons)


def _because(plan: Plan, *reasons: str) -> Plan:
    return plan.replace(reasons=tuple(dict.fromkeys(plan.reasons + reasons)))


def _allowance(config: Any, caps: Any) -> Allowance:
    asked = setting(config, "memory")
    # Options have it parsed already: floats are shares there.
    if not (isinstance(asked, float) and 0 < asked <= 1):
        asked = parse_memory(asked)
    return allowance(asked, setting(caps, "limits") or ())


def select_two_pass_plan(*, phase5_plan: Any, fallback_plan: Any, config: Any = None) -> Any:
    """The plan of the Two-Pass.  Every path asks here, and nobody else chooses.

    Parameters
    ----------
    phase5_plan
        The plan that the first pass ran with: it wins unless it is None.
    fallback_plan
        The plan of the whole run, when there is no other.
    config
        Object or mapping whose ``parallel_plan_phase5`` comes between the two.

    Returns
    -------
    object
        The very object that was chosen: a `Plan`, another program's object, a mapping, or None.
    """
    if phase5_plan is not None:
        return phase5_plan
    configured = setting(config, "parallel_plan_phase5")
    return fallback_plan if configured is None else configured


def describe(plan: Plan) -> str:
    """The plan in one line: name, figures, memory limit, and the reasons for all that."""
    memory = "-" if plan.memory_bytes is None else f"{plan.memory_bytes / _MIB:.2f}"
    reasons = ",".join(plan.reasons) or "-"
    return f"{plan.name} {plan.figures()} memory_mb={memory} reasons={reasons}"
