"""What the system grants this process, and what the process has taken of it.

Every look may fail, and then says nothing (None) instead of raising.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "AVAILABLE",
    "MemoryLimit",
    "available_bytes",
    "forget_peak",
    "memory_limits",
    "near_system_limit",
    "peak_resident_bytes",
    "resident_bytes",
    "total_bytes",
    "usable_processors",
]

AVAILABLE = "available memory"
"""The source of the one limit that nobody imposes: what other processes leave."""

_HUGE_BYTES = 1 << 60
"""Figures above this mean "no limit" (cgroup v1 writes 2^63 rounded to pages)."""

_LAG_BYTES = 16 << 20
"""The kernel's counters of a cgroup lag behind those of its processes; less than this is noise."""

_MAPPED_LATER_BYTES = 4 << 20
"""Address space that is taken from now on without becoming resident: guard pages, alignment."""

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


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
    others_bytes
        What other processes hold under the same limit.
    """

    source: str
    bytes: int
    is_hard: bool = False
    others_bytes: int = 0

    @property
    def room_bytes(self) -> int:
        """What is left for this process, what it holds already included."""
        return max(self.bytes - self.others_bytes, 1)


def resident_bytes() -> int:
    """Resident memory of this process now; 0 where nothing tells it."""
    status = _status_bytes("VmRSS")
    if status is not None:
        return status
    return _own_psutil_bytes("rss")


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far.

    ``VmHWM`` of the process itself; ``ru_maxrss`` would inherit the parent's size across exec.
    """
    status = _status_bytes("VmHWM")
    if status is not None:
        return status
    return _own_psutil_bytes("peak_wset") or _own_psutil_bytes("rss")


def forget_peak() -> None:
    """Let `peak_resident_bytes` begin anew, so that it tells of one job; Linux only."""
    with contextlib.suppress(OSError):
        (_PROC / "self/clear_refs").write_text("5")


def memory_limits() -> list[MemoryLimit]:
    """All bounds that are known, each as a bound on this process alone.

    One that cannot be looked at does not hide the others.
    """
    found: list[MemoryLimit] = []
    for look in (_available_limits, _cgroup_limits, _mapping_limits, _commit_limits, _slurm_limits):
        with contextlib.suppress(Exception):
            found += look()
    return found


def _available_limits() -> list[MemoryLimit]:
    available = available_bytes()
    return [] if available is None else [MemoryLimit(AVAILABLE, available + resident_bytes())]


def _mapping_limits() -> list[MemoryLimit]:
    """What RLIMIT_AS and RLIMIT_DATA leave: what is mapped, but not resident, is lost to them."""
    import resource  # noqa: PLC0415  (does not exist on Windows)

    found = []
    for kind, field, words in (
        (resource.RLIMIT_AS, "VmSize", "address-space limit (ulimit -v)"),
        (resource.RLIMIT_DATA, "VmData", "data limit (ulimit -d)"),
    ):
        limit, _ = resource.getrlimit(kind)
        taken = _status_bytes(field)
        if limit != resource.RLIM_INFINITY and taken is not None:
            room = max(limit - taken - _MAPPED_LATER_BYTES, 0)
            source = f"{words} of {limit / 2**20:.0f} MiB"
            found.append(MemoryLimit(source, resident_bytes() + room, is_hard=True))
    return found


def _commit_limits() -> list[MemoryLimit]:
    commit = _commit_headroom()
    if commit is None:
        return []
    return [MemoryLimit("commit limit of Windows", resident_bytes() + commit, is_hard=True)]


def _slurm_limits() -> list[MemoryLimit]:
    found = []
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        granted = _environment_int(name) << 20
        if granted and name.endswith("CPU"):
            granted *= _granted_processors()
        if 0 < granted < _HUGE_BYTES:
            found.append(MemoryLimit(f"{name} of the batch system", granted))
    return found


def near_system_limit(output_bytes: int) -> bool:
    """Whether a cgroup limit is so low that dirty pages of the output could reach it."""
    return any(limit.bytes < 4 * output_bytes for limit in _cgroup_limits())


def usable_processors() -> int:
    """Logical processors that this process may use: affinity and cgroup quotas kept, at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        count = os.cpu_count() or 1
    return max(1, min([count, *_cpu_quotas()]))


def _granted_processors() -> int:
    """Those for which the batch system grants memory."""
    usable = usable_processors()
    return min(usable, _environment_int("SLURM_CPUS_ON_NODE") or usable)


def total_bytes() -> int | None:
    """Physical memory of the machine."""
    return _meminfo_bytes("MemTotal") or _psutil_bytes("total")


def available_bytes() -> int | None:
    """Physical memory that could be given to a process now."""
    return _meminfo_bytes("MemAvailable") or _psutil_bytes("available")


def _status_bytes(field: str) -> int | None:
    """A figure of /proc/self/status, in bytes."""
    return _kib_line(_PROC / "self/status", field)


def _meminfo_bytes(field: str) -> int | None:
    return _kib_line(_PROC / "meminfo", field)


def _kib_line(path: Path, field: str) -> int | None:
    """The bytes of a line ``field: N kB`` of a file."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None


def _own_psutil_bytes(attribute: str) -> int:
    """A figure of this process's memory where /proc does not tell it."""
    try:
        import psutil  # noqa: PLC0415  (late: 20 ms)

        return int(getattr(psutil.Process().memory_info(), attribute))
    except Exception:
        return 0


def _psutil_bytes(attribute: str) -> int | None:
    """A figure of the machine's memory where /proc does not tell it."""
    try:
        import psutil  # noqa: PLC0415

        return int(getattr(psutil.virtual_memory(), attribute))
    except Exception:
        return None


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text().strip())
    except (OSError, ValueError):
        return None


def _environment_int(name: str) -> int:
    """A positive number of the environment; 0 for anything else."""
    try:
        return max(int(os.environ.get(name, "")), 0)
    except ValueError:
        return 0


def _cgroup_folders(controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's cgroup and of its parents, and whether they are of version 2."""
    try:
        lines = (_PROC / "self/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        match line.split(":", 2):
            case [_, "", path]:
                is_v2, mounts = True, [_CGROUPS, _CGROUPS / "unified"]
            case [_, controllers, path] if controller in controllers.split(","):
                is_v2, mounts = False, [_CGROUPS / controller, _CGROUPS / controllers]
            case _:
                continue
        parts = Path(path.lstrip("/")).parts
        for mount in dict.fromkeys(mounts):
            for depth in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:depth]), is_v2


def _cgroup_limits() -> list[MemoryLimit]:
    found: dict[int, MemoryLimit] = {}
    for folder, is_v2 in _cgroup_folders("memory"):
        limit = _read_int(folder / ("memory.max" if is_v2 else "memory.limit_in_bytes"))
        if limit is not None and 0 < limit < _HUGE_BYTES:
            others = _others_bytes(folder, is_v2=is_v2)
            found[limit] = MemoryLimit("cgroup memory limit", limit, True, others)
    return [found[limit] for limit in sorted(found)]


def _others_bytes(folder: Path, *, is_v2: bool) -> int:
    """What other processes of a cgroup hold and cannot give back, as page cache could be."""
    name = "anon" if is_v2 else "total_rss"
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        held = next(int(line.split()[1]) for line in lines if line.split()[0] == name)
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
    others = held - (_status_bytes("RssAnon") or 0)
    return others if others > _LAG_BYTES else 0


def _cpu_quotas() -> list[int]:
    """Whole processors that each cgroup quota grants, at least 1."""
    quotas = []
    for folder, is_v2 in _cgroup_folders("cpu"):
        if is_v2:
            try:
                quota, period = (folder / "cpu.max").read_text().split()
                shares = (0 if quota == "max" else int(quota), int(period))
            except (OSError, ValueError):
                continue
        else:
            shares = (
                _read_int(folder / "cpu.cfs_quota_us") or 0,
                _read_int(folder / "cpu.cfs_period_us") or 0,
            )
        if min(shares) > 0:
            quotas.append(max(1, (2 * shares[0] + shares[1]) // (2 * shares[1])))
    return quotas


def _commit_headroom() -> int | None:
    """Bytes that Windows would still commit for this process (``GlobalMemoryStatusEx``)."""
    if sys.platform != "win32":
        return None
    import ctypes  # noqa: PLC0415

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load_percent", ctypes.c_uint32),
            *[
                (name, ctypes.c_uint64)
                for name in (
                    "total", "available", "commit_limit", "commit_available",
                    "virtual_total", "virtual_available", "virtual_extended",
                )
            ],
        ]  # fmt: skip

    status = Status(length=ctypes.sizeof(Status))
    try:
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            return None
    except (AttributeError, OSError):
        return None
    return int(status.commit_available)
