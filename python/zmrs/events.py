"""What happens while a job runs, told to whoever listens."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from zmrs import limits

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clock", "Event", "Stage"]


@dataclass(frozen=True)
class Event:
    """One step of a stage.

    Attributes
    ----------
    event
        ``start``, ``progress`` or ``end``.
    stage
        ``solve``, ``select``, ``geometry``, ``decompress``, ``survey``, ``match``, ``batches``,
        ``mosaic`` or ``two_pass``.
    done, total
        How far the stage is, in `unit`.
    unit
        ``files`` or ``bytes``.
    eta_s
        Seconds that the stage still takes at its present pace; None while unknown.
    rss_mib
        Resident memory of the process now, in MiB.
    """

    event: str
    stage: str
    done: int
    total: int
    unit: str
    eta_s: float | None
    rss_mib: float

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


class Stage:
    """A stage under way: counts, estimates, and tells `listener`."""

    def __init__(
        self, listener: Callable[[Event], object] | None, stage: str, total: int, unit: str
    ) -> None:
        self._listener, self._stage, self._total, self._unit = listener, stage, total, unit
        self._began = time.perf_counter()
        self._tell("start", 0)

    def advance(self, done: int) -> None:
        """The stage has come so far."""
        self._tell("progress", done)

    def end(self) -> float:
        """The stage is complete; returns its seconds."""
        self._tell("end", self._total)
        return time.perf_counter() - self._began

    def _tell(self, event: str, done: int) -> None:
        if self._listener is None:
            return
        elapsed = time.perf_counter() - self._began
        # The first moments say nothing of the pace.
        paced = done > 0 and (elapsed > 0.5 or done >= self._total)
        eta_s = elapsed * (self._total - done) / done if paced else None
        rss_mib = limits.resident_bytes() / 2**20
        self._listener(Event(event, self._stage, done, self._total, self._unit, eta_s, rss_mib))


class Clock:
    """Seconds of one step after the other."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._last = seconds, time.perf_counter()

    def lap(self, step: str) -> None:
        """The step that ends now."""
        now = time.perf_counter()
        self._seconds[step] = now - self._last
        self._last = now
