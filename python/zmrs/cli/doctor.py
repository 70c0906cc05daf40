"""What ``zmrs doctor`` prints: the machine, its limits, and the plan that they lead to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from zmrs import limits
from zmrs._zmrs import build_info
from zmrs.backends.choose import CONTEXT_BYTES
from zmrs.memory import allowance
from zmrs.plan import REASONS, Plan, global_plan, phase5_plan
from zmrs.probe import detect_capabilities

if TYPE_CHECKING:
    from zmrs.config import Options
    from zmrs.limits import MemoryLimit
    from zmrs.memory import Allowance
    from zmrs.probe import Capabilities

__all__ = ["Findings", "as_dict", "as_text", "examine"]

_MIB = 1 << 20

_TYPICAL_JOB = ((10_000, 10_000), 36)
"""Output and inputs for which the GPU's share is shown: it hardly depends on them."""


_OF_THE_CPU = ("workers_", "processors_", "autotune_", "memory_")
"""Beginnings of a plan's reasons that say nothing of the GPU."""


@dataclass(frozen=True)
class Findings:
    """The machine, and what zmrs makes of it.

    Attributes
    ----------
    caps, allowed
        The machine, and the memory limit that it leads to.
    plan
        What runs would be planned with.
    gpu_plan
        That of a typical job, which shows what safety and budget leave of the GPU.
    """

    caps: Capabilities
    allowed: Allowance
    plan: Plan
    gpu_plan: Plan

    @property
    def gpu_reasons(self) -> tuple[str, ...]:
        """Why so much of the GPU could be used, or nothing."""
        return tuple(r for r in self.gpu_plan.reasons if not r.startswith(_OF_THE_CPU))


def examine(options: Options, caps: Capabilities | None = None) -> Findings:
    """Look at the machine (or at `caps`) and plan for it, no job in particular."""
    # Before the GPU is asked: that takes what a job would ask for beside this.
    held_bytes = limits.resident_bytes()
    caps = caps or detect_capabilities()
    allowed = allowance(options.memory, caps.limits)
    is_short = caps.gpu_available and allowed.bytes - held_bytes < CONTEXT_BYTES
    without = "gpu_host_memory" if is_short else ""
    plan = global_plan(None, 0, options, caps, allowed=allowed, without_gpu=without)
    gpu_plan = phase5_plan(*_TYPICAL_JOB, options, caps, allowed=allowed, without_gpu=without)
    return Findings(caps, allowed, plan, gpu_plan)


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
            "vendor": caps.gpu_vendor,
            "note": caps.gpu_note,
            "vram_total_bytes": caps.gpu_vram_total_bytes,
            "vram_free_bytes": caps.gpu_vram_free_bytes,
            "max_chunk_bytes": found.gpu_plan.gpu_max_chunk_bytes,
            "used": found.plan.use_gpu,
            "reasons": list(found.gpu_reasons),
        },
        "plan": found.plan.to_dict(),
    }


def _limit(limit: MemoryLimit) -> dict[str, Any]:
    return {
        "source": limit.source,
        "bytes": limit.bytes,
        "others_bytes": limit.others_bytes,
        "is_hard": limit.is_hard,
    }


def as_text(found: Findings) -> str:
    """The findings for people."""
    caps, build = found.caps, build_info()
    workers = [r for r in found.plan.reasons if r.startswith(("workers_", "processors_", "auto"))]
    lines = [
        f"zmrs        {build['version']} ({build['profile']}, {build['simd']})",
        f"processors  {_or_unknown(caps.cpu_logical_cores)} logical,"
        f" {_or_unknown(caps.cpu_cores)} physical, usable by this process",
        f"memory      {_mib(caps.ram_total_bytes)}, {_mib(caps.ram_available_bytes)} available",
        *(f"              {_limit_line(limit)}" for limit in caps.limits),
        f"power       {_power(caps)}",
        f"GPU         {_gpu(found)}",
        *(f"              {REASONS[r]}" for r in found.gpu_reasons if r != "gpu_unavailable"),
        f"workers     {found.plan.cpu_workers}",
        *(f"              {REASONS[reason]}" for reason in workers),
        f"limit       {_mib(found.allowed.bytes)} of memory: {found.allowed.reason}",
        "            rows and chunks are cut for each job; zmrs plan INPUT... shows them",
    ]
    return "\n".join(lines)


def _or_unknown(value: int | None) -> str:
    return "an unknown number of" if value is None else str(value)


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / _MIB:.0f} MiB"


def _power(caps: Capabilities) -> str:
    battery = {True: "battery", False: "mains, no battery", None: "unknown"}[caps.has_battery]
    plugged = {True: ", plugged in", False: ", not plugged in", None: ""}[caps.power_plugged]
    return battery + plugged


def _gpu(found: Findings) -> str:
    caps = found.caps
    if not caps.gpu_available:
        return f"none: {caps.gpu_note}"
    hybrid = ", hybrid graphics" if caps.is_hybrid_graphics else ""
    chunk = found.gpu_plan.gpu_max_chunk_bytes
    may = f", a chunk may take {_mib(chunk)}" if chunk else ""
    return (
        f"{caps.gpu_name or 'without a name'} ({caps.gpu_vendor}){hybrid},"
        f" {_mib(caps.gpu_vram_free_bytes)} of {_mib(caps.gpu_vram_total_bytes)} free{may}"
    )


def _limit_line(limit: MemoryLimit) -> str:
    others = f", of which others hold {_mib(limit.others_bytes)}" if limit.others_bytes else ""
    return f"{limit.source}: {_mib(limit.bytes)}{others}"
