"""The resource plan: how a job runs, never what it computes.

Arithmetic on values only; the machine is looked at by `zmrs.probe`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zmrs._zmrs import Plan
from zmrs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zmrs.probe import MemoryLimit

__all__ = ["AUTO_FRACTION", "Allowance", "Plan", "allowance", "make_plan", "parse_size"]

AUTO_FRACTION = 0.6
"""Share of the least limit that a job takes when it is not told how much."""

_UNITS = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_MOST_BYTES = 2**53
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Z%]*)\s*")


def parse_size(text: str) -> int | float:
    """Bytes of a size such as ``512MiB`` or ``2GB``, or a fraction in (0, 1] for ``50%``.

    Raises
    ------
    UsageError
        For anything else; a bare number is refused because it could mean bytes or megabytes.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text}' is no size; write 512MiB, 2GB or 50%.")
    number, unit = float(match[1]), match[2].lower()
    if unit == "%":
        if not 0 < number <= 100:
            raise UsageError(f"'{text}' is no share of the memory; write 1% to 100%.")
        return number / 100
    if unit == "":
        raise UsageError(f"'{text}' lacks a unit; write {match[1]}MiB or {match[1]}GB.")
    if unit not in _UNITS:
        raise UsageError(f"'{text}' has an unknown unit; write MiB, GiB, MB, GB or %.")
    if number * _UNITS[unit] > _MOST_BYTES:
        raise UsageError(f"'{text}' is more than any machine has; write for example 512MiB.")
    size = int(number * _UNITS[unit])
    if size < 1:
        raise UsageError(f"'{text}' is no memory at all; write for example 512MiB.")
    return size


@dataclass(frozen=True)
class Allowance:
    """How much memory a job may hold, and why.

    Attributes
    ----------
    bytes
        The most that the whole process may hold resident.
    reason
        Where the figure comes from, in words.
    held_bytes
        The part of it that the caller's own figure does not count.
    """

    bytes: int
    reason: str
    held_bytes: int = 0


def allowance(
    asked: int | float | None, limits: Sequence[MemoryLimit], held_bytes: int = 0
) -> Allowance:
    """The memory limit of a job.

    Parameters
    ----------
    asked
        Bytes, or a fraction of what automatic starts from, or None for automatic.
    limits
        What the machine and the system impose.
    held_bytes
        Resident size at entry that an explicit `asked` does not count (Python interface).
    """
    least = min(limits, key=lambda limit: limit.bytes, default=None)
    if isinstance(asked, int):
        wall = min((x for x in limits if x.is_hard), key=lambda x: x.bytes, default=None)
        if wall is not None and wall.bytes < asked + held_bytes:
            return Allowance(wall.bytes, f"as asked, but cut to the {wall.source}", held_bytes)
        return Allowance(asked + held_bytes, "as asked", held_bytes)
    if least is None:
        return Allowance(
            (1 << 30) + held_bytes, "1 GiB, because no limit of the system is known", held_bytes
        )
    share = AUTO_FRACTION if asked is None else asked
    # What the process holds already would count against its own share otherwise.
    size = held_bytes + int((least.bytes - held_bytes) * share)
    return Allowance(size, f"{share:.0%} of the {least.source}", held_bytes)


def make_plan(allowed: Allowance, workers: int) -> Plan:
    """The plan of a job, before its bands are sized."""
    return Plan(name="phase5", cpu_workers=workers, memory_bytes=allowed.bytes)
