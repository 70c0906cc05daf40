"""How much of a GPU a plan may take: safety clamps and the VRAM budget. Arithmetic on values.

Formulas and constants are those of ZeMosaic 4.5, as observed from outside, less three faults; the
argument ``reference`` of a function brings these back, for comparison:

* a size for *manual* chunks (``phase5_chunk_mb``, 128 as shipped) capped the automatic budget too;
* a machine whose power supply is unknown was treated as running on battery, also when no battery
  is known;
* ``phase5_force_gpu_on_ac`` could never change anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from zmrs.settings import flag, known, number, positive, setting

if TYPE_CHECKING:
    from zmrs._zmrs import Plan
    from zmrs.probe import Capabilities

__all__ = [
    "GpuContext",
    "VramBudget",
    "apply_gpu_safety",
    "bump_gpu_rows",
    "clamp_gpu_chunks",
    "effective_gpu",
    "gpu_context",
    "phase5_vram_budget",
    "shrink_after_oom",
    "vendor_of",
]

_MIB = 1 << 20
_MOST_MIB = 1 << 32

_VENDORS = {
    "nvidia": ("nvidia", "geforce", "quadro", "rtx"),
    "intel": ("intel",),
    "amd": ("amd", "radeon", "advanced micro devices"),
    "apple": ("apple",),
}

_CLAMPED_BYTES = 128 * _MIB
_LEAST_CLAMPED_BYTES = 32 * _MIB
_CLAMPED_FREE_SHARE = 0.4
_CLAMPED_ROWS = (32, 2048)
_ROWS_WHEN_UNKNOWN = 256
_GUARDED_VRAM_BYTES = 9 << 30

_LEAST_BUDGET_BYTES = 128 * _MIB
_FALLBACKS_MIB = {"battery": 128, "discrete_on_mains": 1024, "other": 512}
_MANUAL_MIB = (64, 16384)

_BUMPED_ROWS = (96, 256)

_OOM_FACTOR = 0.7
_OOM_LEAST_BYTES = 16 * _MIB
_OOM_LEAST_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class GpuContext:
    """What is known about using the GPU of this machine for one operation.

    Attributes
    ----------
    operation
        What the GPU would be used for.
    safe_mode
        Whether to be cautious: on battery, hybrid and unplugged, or asked to.
    is_on_mains
        Whether the mains feed the machine.
    reasons
        Short words in the order in which they arose, each once; `zmrs.plan.REASONS` explains
        them.
    """

    operation: str = ""
    safe_mode: bool = False
    is_windows: bool = False
    gpu_available: bool = False
    gpu_vendor: str = "unknown"
    vram_total_bytes: int | None = None
    vram_free_bytes: int | None = None
    has_battery: bool | None = None
    power_plugged: bool | None = None
    on_battery: bool = False
    is_on_mains: bool = False
    is_hybrid_graphics: bool | None = None
    is_asked_to_be_careful: bool = False
    reasons: tuple[str, ...] = ()

    def because(self, *reasons: str) -> GpuContext:
        """The same with more reasons."""
        return replace(self, reasons=tuple(dict.fromkeys(self.reasons + reasons)))

    @property
    def is_intel_only(self) -> bool:
        """Whether the only GPU is an integrated one."""
        return self.gpu_vendor == "intel" and not self.is_hybrid_graphics


def vendor_of(name: str | None) -> str:
    """The maker of a GPU as its name tells: nvidia, intel, amd, apple or unknown."""
    lower = str(name or "").lower()
    for vendor, words in _VENDORS.items():
        if any(word in lower for word in words):
            return vendor
    return "unknown"


def gpu_context(
    caps: Capabilities | Any, operation: str = "", *, reference: bool = False
) -> GpuContext:
    """Judge the machine; `caps` is a `zmrs.probe.Capabilities` or any object with its fields."""
    plugged, battery = (_truth(caps, name) for name in ("power_plugged", "has_battery"))
    on_battery = flag(caps, "on_battery", False)
    # A desktop without a battery cannot say that it is plugged in; nor need it.
    stands = plugged is None and not battery and not on_battery and not reference
    context = GpuContext(
        operation=operation,
        is_windows=str(setting(caps, "system") or "").lower().startswith("win"),
        gpu_available=flag(caps, "gpu_available", False),
        gpu_vendor=vendor_of(setting(caps, "gpu_name")),
        vram_total_bytes=known(caps, "gpu_vram_total_bytes"),
        vram_free_bytes=known(caps, "gpu_vram_free_bytes"),
        has_battery=battery,
        power_plugged=plugged,
        on_battery=on_battery,
        is_on_mains=plugged is True or stands,
        is_hybrid_graphics=_truth(caps, "is_hybrid_graphics"),
        is_asked_to_be_careful=flag(caps, "gpu_safe_mode", False),
    )
    return _judged(context, reference=reference)


def _truth(source: Any, name: str) -> bool | None:
    """A truth value, or None where it is unknown."""
    return None if setting(source, name) is None else flag(source, name, False)


def _judged(context: GpuContext, *, reference: bool) -> GpuContext:
    # In the reference the environment bears on the budget only.
    safe_mode = context.is_asked_to_be_careful and not reference
    reasons = ["safe_mode_asked"] if safe_mode else []
    if context.is_windows:
        if context.on_battery:
            safe_mode = True
            reasons.append("on_battery_clamp")
        if context.is_hybrid_graphics:
            safe_mode = safe_mode or not context.is_on_mains
            reasons.append("hybrid_graphics" if context.is_on_mains else "hybrid_unplugged_clamp")
        if context.has_battery and context.power_plugged and not context.on_battery:
            reasons.append("battery_present")
    if context.is_intel_only:
        reasons.append("intel_only_gpu")
    if context.gpu_vendor == "unknown" and context.gpu_available:
        reasons.append("unknown_gpu_vendor")
    return replace(context, safe_mode=safe_mode).because(*reasons)


@overload
def apply_gpu_safety(
    plan: Plan, caps: Any, config: Any = ..., operation: str = ..., *, reference: bool = ...
) -> tuple[Plan, GpuContext]: ...


@overload
def apply_gpu_safety(
    plan: None, caps: Any, config: Any = ..., operation: str = ..., *, reference: bool = ...
) -> tuple[None, GpuContext]: ...


def apply_gpu_safety(
    plan: Plan | None,
    caps: Capabilities | Any,
    config: Any = None,
    operation: str = "",
    *,
    reference: bool = False,
) -> tuple[Plan | None, GpuContext]:
    """Take from a plan what would be unsafe on the GPU of this machine.

    Parameters
    ----------
    plan
        A plan, or None to learn the context alone.
    caps
        The machine.
    config
        Object or mapping with ``gpu_hybrid_vram_guard`` (True).
    operation
        What the plan is for; goes into the context.
    reference
        Keep the faults of the reference.

    Returns
    -------
    tuple
        The plan, new where something changed, and the `GpuContext` with ordered reasons.
    """
    context = gpu_context(caps, operation, reference=reference)
    if plan is None:
        return None, context
    if context.is_intel_only:
        plan, context = _without_gpu(plan, reference), context.because("disable_intel_only_gpu")
    elif not context.gpu_available:
        plan, context = _without_gpu(plan, reference), context.because("gpu_unavailable")
    guarded = flag(config, "gpu_hybrid_vram_guard", True)
    if not guarded and context.is_hybrid_graphics and not context.safe_mode:
        context = context.because("hybrid_vram_guard_disabled_by_user")
    plan, context, reason = clamp_gpu_chunks(plan, context, config)
    return plan, context.because(reason) if reason else context


def _without_gpu(plan: Plan, reference: bool) -> Plan:
    if reference:
        return plan.replace(use_gpu=False)
    return plan.replace(use_gpu=False, gpu_rows_per_chunk=None, gpu_max_chunk_bytes=None)


def clamp_gpu_chunks(
    plan: Plan, context: GpuContext, config: Any = None
) -> tuple[Plan, GpuContext, str | None]:
    """Make GPU chunks small in safe mode, and on hybrid graphics with little VRAM.

    Returns the plan, the context with ``vram_cap`` added where free VRAM is known, and the reason
    of the clamp, or None when there is none.
    """
    vram = context.vram_total_bytes or context.vram_free_bytes
    is_guarded = (
        flag(config, "gpu_hybrid_vram_guard", True)
        and context.is_windows
        and context.is_hybrid_graphics is True
        and (vram is None or vram <= _GUARDED_VRAM_BYTES)
    )
    if not plan.use_gpu or not (context.safe_mode or is_guarded):
        return plan, context, None
    budget = _CLAMPED_BYTES
    if context.vram_free_bytes is not None:
        budget = min(budget, int(context.vram_free_bytes * _CLAMPED_FREE_SHARE))
        context = context.because("vram_cap")
    budget = max(budget, _LEAST_CLAMPED_BYTES)
    row_bytes = _row_bytes(plan)
    current = plan.gpu_max_chunk_bytes or plan.max_chunk_bytes
    chunk = max(_LEAST_CLAMPED_BYTES, min(budget, current or budget))
    rows = max(1, chunk // row_bytes) if row_bytes else _ROWS_WHEN_UNKNOWN
    least, most = _CLAMPED_ROWS
    plan = plan.replace(gpu_max_chunk_bytes=chunk, gpu_rows_per_chunk=min(max(rows, least), most))
    return plan, context, "safe_mode_clamp" if context.safe_mode else "hybrid_vram_guard"


def _row_bytes(plan: Plan) -> int | None:
    """What a row of the plan's chunks takes, as far as the plan tells."""
    if plan.gpu_max_chunk_bytes and plan.gpu_rows_per_chunk:
        return plan.gpu_max_chunk_bytes // plan.gpu_rows_per_chunk or None
    if plan.max_chunk_bytes and plan.rows_per_chunk:
        return plan.max_chunk_bytes // plan.rows_per_chunk or None
    return None


@dataclass(frozen=True, kw_only=True)
class VramBudget:
    """GPU memory for one chunk of the coadd.

    Attributes
    ----------
    bytes
        What the plan gets: the budget itself (``auto``), or what was asked for within it
        (``user``).
    mode
        ``auto`` or ``user``.
    budget_bytes
        What policy and caps allow.
    free_bytes
        Free VRAM it was worked out from; None is unknown.
    usable_bytes
        Free VRAM less the reserve.
    reserve_bytes
        VRAM left to others.
    fraction
        Share of what is usable.
    requested_bytes
        What was asked for, in ``user`` mode.
    hard_cap_bytes
        The user's cap on everything.
    reasons
        What bound the budget, in order, each once.
    """

    bytes: int
    mode: str
    budget_bytes: int
    free_bytes: int | None
    usable_bytes: int | None
    reserve_bytes: int
    fraction: float
    requested_bytes: int | None
    hard_cap_bytes: int | None
    reasons: tuple[str, ...]


def phase5_vram_budget(
    config: Any,
    context: GpuContext | None,
    *,
    plan_cap_bytes: int | None = None,
    free_bytes: int | None = None,
    reference: bool = False,
) -> VramBudget:
    """GPU memory of a chunk, by power supply, kind of GPU, free VRAM and the user's caps.

    Parameters
    ----------
    config
        Object or mapping with ``phase5_vram_reserve_mb`` (1024), ``phase5_vram_frac_battery``
        (0.25), ``phase5_vram_frac_hybrid_ac`` (0.60), ``phase5_vram_frac_ac`` (0.80),
        ``phase5_vram_hard_cap_mb`` (0, none), ``phase5_chunk_auto`` (True) and
        ``phase5_chunk_mb``, the size for chunks that are not automatic (128).
    context
        The machine, from `apply_gpu_safety`; None is treated as on battery.
    plan_cap_bytes
        The plan's own GPU chunk, which binds on battery and in safe mode only.
    free_bytes
        Free VRAM as of now, instead of the context's.
    reference
        Keep the faults of the reference.
    """
    is_auto = flag(config, "phase5_chunk_auto", True)
    context = context or GpuContext(on_battery=True)
    is_careful = context.on_battery or context.safe_mode or context.is_asked_to_be_careful
    is_on_mains = context.power_plugged is True if reference else context.is_on_mains
    is_hybrid = context.is_hybrid_graphics is True
    fraction = _fraction(config, is_on_mains and not is_careful, is_hybrid)

    reasons: list[str] = []
    reserve = int(number(config, "phase5_vram_reserve_mb", 1024, 0, _MOST_MIB) * _MIB)
    hard_cap = int(number(config, "phase5_vram_hard_cap_mb", 0, 0, _MOST_MIB) * _MIB) or None
    ui_cap = int(number(config, "phase5_chunk_mb", 0, 0, _MANUAL_MIB[1]) * _MIB) or None
    if not reference:
        ui_cap = None
    free = positive(free_bytes) or context.vram_free_bytes
    usable = None
    if free is not None:
        usable = max(_LEAST_BUDGET_BYTES, free - reserve)
        budget = min(usable, int(usable * fraction) or _LEAST_BUDGET_BYTES)
    else:
        reasons.append("probe_unknown")
        case = "discrete_on_mains" if is_on_mains and not is_hybrid else "other"
        budget = _FALLBACKS_MIB["battery" if is_careful else case] * _MIB
        if ui_cap is not None and ui_cap < budget:
            budget = ui_cap
            reasons.append("user_chunk_cap")

    plan_cap = positive(plan_cap_bytes)
    if plan_cap is not None and is_on_mains and not is_careful:
        plan_cap = None
        reasons.append("plan_cap_ignored_on_ac")
    caps = [("plan_cap", plan_cap), ("ui_chunk_cap", ui_cap), ("hard_cap", hard_cap)]
    budget = _capped(budget, caps, reasons)
    if 0 < budget < _LEAST_BUDGET_BYTES:
        budget = _LEAST_BUDGET_BYTES
        reasons.append("min_clamp")
        budget = _capped(budget, [*caps, ("usable_cap", usable)], reasons)

    requested = None
    applied = budget
    if not is_auto:
        least, most = _MANUAL_MIB
        requested = int(number(config, "phase5_chunk_mb", 128, least, most)) * _MIB
        applied = min(requested, budget)
        if requested > budget:
            reasons.append("budget_cap")
    else:
        reasons.append("budget_policy")
    return VramBudget(
        bytes=applied,
        mode="auto" if is_auto else "user",
        budget_bytes=budget,
        free_bytes=free,
        usable_bytes=usable,
        reserve_bytes=reserve,
        fraction=fraction,
        requested_bytes=requested,
        hard_cap_bytes=hard_cap,
        reasons=tuple(dict.fromkeys(reasons)),
    )


def _fraction(config: Any, is_on_mains: bool, is_hybrid: bool) -> float:
    """Share of the usable VRAM that a chunk may take."""
    name, default = "phase5_vram_frac_battery", 0.25
    if is_on_mains and is_hybrid:
        name, default = "phase5_vram_frac_hybrid_ac", 0.60
    elif is_on_mains:
        name, default = "phase5_vram_frac_ac", 0.80
    return number(config, name, default, 0.05, 0.90)


def _capped(value: int, caps: list[tuple[str, int | None]], reasons: list[str]) -> int:
    """The value under all caps, in order; a cap that binds leaves its name."""
    for name, cap in caps:
        if cap is not None and value > cap:
            value = cap
            reasons.append(name)
    return value


def bump_gpu_rows(plan: Plan, context: GpuContext, width: int, n_inputs: int) -> Plan:
    """More GPU rows where safe mode made them few and the chunk has room for more.

    Only on the mains: ``rows = chunk ÷ (8 · width · n)``, between 96 and 256, never fewer than
    before.
    """
    rows, chunk = plan.gpu_rows_per_chunk, plan.gpu_max_chunk_bytes
    is_fed = not context.on_battery or context.power_plugged is True
    if not (context.safe_mode and is_fed and rows and chunk and width > 0):
        return plan
    candidate = chunk // (8 * width * max(1, n_inputs))
    if candidate <= rows:
        return plan
    least, most = _BUMPED_ROWS
    bumped = max(min(most, candidate), least)
    return plan.replace(gpu_rows_per_chunk=bumped) if bumped > rows else plan


def shrink_after_oom(chunk_bytes: int | None, rows: int | None) -> tuple[int, int]:
    """GPU chunk and rows to try after the device ran out of memory: 0.7 times, to 16 MiB and 32."""
    return (
        max(_OOM_LEAST_BYTES, int(_OOM_FACTOR * (chunk_bytes or 0))),
        max(_OOM_LEAST_ROWS, int(_OOM_FACTOR * (rows or 0))),
    )


def effective_gpu(
    plan: Plan,
    context: GpuContext,
    config: Any = None,
    *,
    requested: bool = True,
    reference: bool = False,
) -> tuple[bool, tuple[str, ...]]:
    """Whether the coadd runs on the GPU, and the reasons that decided it.

    ``phase5_force_gpu_on_ac`` of the configuration makes it run there on the mains even if the
    plan would rather not.  It cannot where there is no device, in safe mode, or where the GPU was
    not asked for.
    """
    if not requested:
        return False, ("gpu_off",)
    if context.is_intel_only:
        return False, ("intel_only",)
    vram_is_unknown = context.vram_total_bytes is None and context.vram_free_bytes is None
    if context.safe_mode and (context.gpu_vendor == "unknown" or vram_is_unknown):
        return False, ("safe_mode_unknown_gpu",)
    is_careful = context.on_battery or context.safe_mode or context.is_asked_to_be_careful
    is_on_mains = context.is_on_mains and not is_careful
    can_force = plan.use_gpu if reference else context.gpu_available
    is_forced = flag(config, "phase5_force_gpu_on_ac", False) and is_on_mains and can_force
    if is_forced and not plan.use_gpu:
        return True, ("gpu_forced_on_ac",)
    return plan.use_gpu, ()
