"""How much memory a job may hold: sizes as people write them, and the limit that follows."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from zmrs.errors import BudgetError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zmrs.limits import MemoryLimit

__all__ = ["AUTO_FRACTION", "Allowance", "allowance", "parse_memory", "parse_size"]

AUTO_FRACTION = 0.6
"""Share of the least limit that a job takes when it is not told how much."""

_LIBRARIES_BYTES = 80 << 20
"""Address space that NumPy's linear algebra and the like take when they are used first."""

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


def parse_memory(value: Any) -> int | float | None:
    """A memory limit as people and programs give it: bytes, a size or share as text, or None.

    Raises
    ------
    UsageError
        For anything that is no number of bytes.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return parse_size(value)
    try:
        whole = operator.index(value) if not isinstance(value, float) else int(value)
    except (TypeError, ValueError, OverflowError):
        whole = 0
    if isinstance(value, bool) or whole != value or not 1 <= whole <= _MOST_BYTES:
        shown = str(value)[:40]
        raise UsageError(f"memory: {shown} is no number of bytes; give one, or '512MiB'.")
    return whole


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
    code
        The reason as a plan's ``reasons`` have it.
    """

    bytes: int
    reason: str
    held_bytes: int = 0
    code: str = "memory_asked"

    def advice(self, refusal: str) -> str:
        """A refusal whose remedy fits the origin of the limit, which is not always an option."""
        if self.code == "memory_planned":
            return refusal.replace("--memory ", "a plan with memory_bytes of ")
        if self.code == "memory_cut_to_system_limit":
            wall = self.reason.partition("cut to ")[2]
            return refusal.replace("--memory ", f"one of {wall} that leaves ")
        return refusal

    def check_libraries(self, resident_bytes: int) -> None:
        """Refuse an address-space limit that libraries would run into before any plan is made.

        Raises
        ------
        BudgetError
            Less is left than they take; they would end the process without a word.
        """
        left = self.bytes - resident_bytes
        wall = self.reason.partition("cut to the ")[2]
        if wall.startswith("address-space") and left < _LIBRARIES_BYTES:
            raise BudgetError(
                f"the {wall} leaves {max(left, 0) >> 20} MiB, and libraries alone take "
                f"{_LIBRARIES_BYTES >> 20}; raise it."
            )

    def within(self, limits: Sequence[MemoryLimit]) -> Allowance:
        """The same, cut to what the system still grants."""
        wall = min((x for x in limits if x.is_hard), key=lambda x: x.room_bytes, default=None)
        if wall is None or wall.room_bytes >= self.bytes:
            return self
        words = f"{self.reason}, but cut to the {wall.source}"
        return replace(self, bytes=wall.room_bytes, reason=words, code="memory_cut_to_system_limit")


def allowance(
    asked: int | float | None,
    limits: Sequence[MemoryLimit],
    held_bytes: int = 0,
    *,
    words: str = "as asked",
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
    words
        Who asked, in words: ``as asked`` or ``as planned``.
    """
    if isinstance(asked, int):
        code = words.replace("as ", "memory_")
        return Allowance(asked + held_bytes, words, held_bytes, code).within(limits)
    least = min(limits, key=lambda limit: limit.room_bytes, default=None)
    if least is None:
        words = "1 GiB, because no limit of the system is known"
        return Allowance((1 << 30) + held_bytes, words, held_bytes, "memory_limits_unknown")
    share = AUTO_FRACTION if asked is None else asked
    # What the process holds already would count against its own share otherwise.
    size = max(held_bytes + int((least.room_bytes - held_bytes) * share), 1)
    code = "memory_automatic" if asked is None else "memory_asked"
    return Allowance(size, f"{100 * share:g}% of the {least.source}", held_bytes, code)
