"""What ``zmrs doctor`` prints: the machine, its limits, and the plan that they lead to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from zmrs._zmrs import build_info
from zmrs.gpu_safety import GpuContext, VramBudget, gpu_context, phase5_vram_budget
from zmrs.memory import Allowance, allowance
from zmrs.plan import REASONS, Plan, global_plan
from zmrs.probe import detect_capabilities

if TYPE_CHECKING:
    from zmrs.config import Options
    from zmrs.limits import MemoryLimit
    from zmrs.probe import Capabilities

__all__ = ["Findings", "as_dict", "as_text", "examine"]

_MIB = 1 << 20


@dataclass(frozen=True)
class Findings:
    """The machine, and what zmrs makes of it."""

    caps: Capabilities
    allowed: Allowance
    plan: Plan
    gpu: GpuContext
    budget: VramBudget


def examine(options: Options) -> Findings:
    """Look at the machine and plan for it, no job in particular."""
    caps = detect_capabilities()
    allowed = allowance(options.memory, caps.limits)
    # No job can run on a GPU yet; what one could take is shown all the same.
    plan = global_plan(None, 0, options, caps, allowed=allowed, has_gpu_backend=False)
    context = gpu_context(caps, "doctor")
    return Findings(caps, allowed, plan, context, phase5_vram_budget(None, context))


def as_dict(found: Findings) -> dict[str, Any]:
    """The findings as plain values, in the form that scripts rely on."""
    caps = found.caps
    values = {field.name: getattr(caps, field.name) for field in fields(caps)}
    del values["limits"]
    return {
        "version": build_info()["version"],
        "build": build_info(),
        "capabilities": values,
        "limits": [_limit(limit) for limit in caps.limits],
        "gpu": {
            "available": caps.gpu_available,
            "name": caps.gpu_name,
            "vendor": found.gpu.gpu_vendor,
            "note": caps.gpu_note,
            "vram_total_bytes": caps.gpu_vram_total_bytes,
            "vram_free_bytes": caps.gpu_vram_free_bytes,
            "safe_mode": found.gpu.safe_mode,
            "budget_bytes": found.budget.bytes if caps.gpu_available else None,
            "used": found.plan.use_gpu,
            "reasons": list(_gpu_reasons(found)),
        },
        "plan": found.plan.to_dict(),
    }


def _limit(limit: MemoryLimit) -> dict[str, Any]:
    return {"source": limit.source, "bytes": limit.bytes, "others_bytes": limit.others_bytes}


def _gpu_reasons(found: Findings) -> tuple[str, ...]:
    """Why the GPU is used as it is, or not at all."""
    if not found.caps.gpu_available:
        return ("gpu_unavailable",)
    return tuple(dict.fromkeys((*found.gpu.reasons, *found.budget.reasons, "cpu_only")))


def as_text(found: Findings) -> str:
    """The findings for people."""
    caps, build = found.caps, build_info()
    lines = [
        f"zmrs       {build['version']} ({build['profile']}, {build['simd']})",
        f"processors {_or_unknown(caps.cpu_logical_cores)} logical,"
        f" {_or_unknown(caps.cpu_cores)} physical, usable by this process",
        f"memory     {_mib(caps.ram_total_bytes)}, {_mib(caps.ram_available_bytes)} available",
        f"power      {_power(caps)}",
        f"GPU        {_gpu(found)}",
        *(f"             {REASONS[reason]}" for reason in _gpu_reasons(found)),
        "limits     on the memory of this process" if caps.limits else "limits     none known",
        *(f"             {_limit_line(limit)}" for limit in caps.limits),
        f"plan       {found.plan.name} {found.plan.figures()}",
        f"             memory limit {_mib(found.allowed.bytes)}: {found.allowed.reason}",
        *(f"             {REASONS[reason]}" for reason in found.plan.reasons),
        "           rows and chunks are cut for each job; zmrs plan INPUT... shows them",
    ]
    return "\n".join(lines)


def _or_unknown(value: int | None) -> str:
    return "an unknown number of" if value is None else str(value)


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / _MIB:.0f} MiB"


def _power(caps: Capabilities) -> str:
    battery = {True: "battery", False: "no battery", None: "battery unknown"}[caps.has_battery]
    mains = {True: ", plugged in", False: ", not plugged in", None: ""}[caps.power_plugged]
    return battery + mains


def _gpu(found: Findings) -> str:
    caps = found.caps
    if not caps.gpu_available:
        return f"none: {caps.gpu_note}"
    hybrid = ", hybrid graphics" if caps.is_hybrid_graphics else ""
    return (
        f"{caps.gpu_name or 'without a name'} ({found.gpu.gpu_vendor}){hybrid},"
        f" {_mib(caps.gpu_vram_free_bytes)} of {_mib(caps.gpu_vram_total_bytes)} free,"
        f" a chunk may take {_mib(found.budget.bytes)}"
    )


def _limit_line(limit: MemoryLimit) -> str:
    others = f", of which other processes hold {_mib(limit.others_bytes)}"
    strict = " (hard)" if limit.is_hard else ""
    return f"{limit.source}: {_mib(limit.bytes)}{others if limit.others_bytes else ''}{strict}"
