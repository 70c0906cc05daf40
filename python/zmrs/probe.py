"""What the machine offers: memory, processors, and what this process uses of them.

Every probe may fail, and then says nothing (None) instead of raising.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MemoryLimit",
    "available_workers",
    "memory_limits",
    "near_system_limit",
    "peak_resident_bytes",
    "resident_bytes",
]

_HUGE_BYTES = 1 << 60
"""Figures above this mean "no limit" (cgroup v1 writes 2^63 rounded to pages)."""


@dataclass(frozen=True)
class MemoryLimit:
    """A bound on the resident memory of this process.

    Attributes
    ----------
    source
        Where it comes from, in words.
    bytes
        The most that the process may hold, what it holds already included.
    is_hard
        Whether the system ends or refuses a process that goes beyond.
    """

    source: str
    bytes: int
    is_hard: bool = False


def resident_bytes() -> int:
    """Resident memory of this process now."""
    status = _status_bytes("VmRSS")
    if status is not None:
        return status
    import psutil  # noqa: PLC0415  (only where /proc is missing)

    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far.

    ``VmHWM`` of the process itself; ``ru_maxrss`` would inherit the parent's size across exec.
    """
    status = _status_bytes("VmHWM")
    if status is not None:
        return status
    import psutil  # noqa: PLC0415

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def memory_limits() -> list[MemoryLimit]:
    """All bounds that are known, each as a bound on this process alone."""
    here = resident_bytes()
    limits = []
    available = _available_bytes()
    if available is not None:
        limits.append(MemoryLimit("available memory", available + here))
    limits += _cgroup_limits()
    headroom = _address_space_headroom()
    if headroom is not None:
        limits.append(MemoryLimit("address-space limit (ulimit -v)", here + headroom, is_hard=True))
    for name, unit in (("SLURM_MEM_PER_NODE", 1 << 20), ("SLURM_MEM_PER_CPU", 1 << 20)):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            count = available_workers() if name.endswith("CPU") else 1
            limits.append(MemoryLimit(f"{name} of the batch system", int(value) * unit * count))
    return limits


def near_system_limit(output_bytes: int) -> bool:
    """Whether a cgroup limit is so low that dirty pages of the output could reach it."""
    return any(limit.bytes < 4 * output_bytes for limit in _cgroup_limits())


def available_workers() -> int:
    """Processors that this process may use: affinity and cgroup quota respected, at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        count = os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(count, quota) if quota else count)


def _status_bytes(field: str) -> int | None:
    """A figure of /proc/self/status, in bytes."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    return None


def _available_bytes() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    try:
        import psutil  # noqa: PLC0415

        return int(psutil.virtual_memory().available)
    except Exception:
        return None


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text().strip())
    except (OSError, ValueError):
        return None


def _cgroup_folders() -> list[tuple[Path, str]]:
    """Folders of this process's memory cgroup and its parents, with the name of the limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots, name = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")], "memory.max"
        elif "memory" in controllers.split(","):
            roots, name = [Path("/sys/fs/cgroup/memory")], "memory.limit_in_bytes"
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        for root in roots:
            folders += [(root.joinpath(*parts[:n]), name) for n in range(len(parts), -1, -1)]
    return folders


def _cgroup_limits() -> list[MemoryLimit]:
    found = set()
    for folder, name in _cgroup_folders():
        limit = _read_int(folder / name)
        if limit is not None and 0 < limit < _HUGE_BYTES:
            found.add(limit)
    return [MemoryLimit("cgroup memory limit", limit, is_hard=True) for limit in sorted(found)]


def _cpu_quota() -> int | None:
    """Whole processors that a cgroup quota grants, at least 1, or None without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    quota_us = _read_int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
    period_us = _read_int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
    if quota_us and period_us and quota_us > 0:
        return max(1, round(quota_us / period_us))
    return None


def _address_space_headroom() -> int | None:
    """Bytes that may still be mapped under RLIMIT_AS, or None without such a limit."""
    try:
        import resource  # noqa: PLC0415  (does not exist on Windows)
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    mapped = _status_bytes("VmSize")
    if limit == resource.RLIM_INFINITY or mapped is None:
        return None
    return max(limit - mapped, 0)
