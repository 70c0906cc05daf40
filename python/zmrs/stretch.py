"""A pass in stretches: it pauses where the journal wants to note how far it has come."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmrs import _zmrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from zmrs.backends.base import Device
    from zmrs.io.journal import Journal

__all__ = ["Totals", "run_pass"]

_WORST = {"workers": min, "ledger_peak": max, "chunk_peak": max}


@dataclass(frozen=True)
class Totals:
    """What the stretches of a pass have found out together.

    Attributes
    ----------
    reached
        The sweep, and the first row that is not finished.
    samples, rejected
        Of each input, by all its channels in the second.
    read_bytes, files_opened, replaced
        Sums.
    workers
        Fewest threads that a stretch was granted.
    ledger_peak, chunk_peak
        Most bytes that a stretch has held.
    """

    reached: tuple[int, int]
    samples: list[int]
    rejected: list[int]
    read_bytes: int
    files_opened: int
    workers: int
    ledger_peak: int
    chunk_peak: int
    replaced: int

    @classmethod
    def of(cls, stats: _zmrs.PassStats | dict[str, Any]) -> Totals:
        """Those of one stretch, or as `as_dict` has told them."""
        if isinstance(stats, dict):
            return cls(**stats | {"reached": tuple(stats["reached"])})
        return cls(**{field.name: getattr(stats, field.name) for field in fields(cls)})

    def then(self, more: Totals) -> Totals:
        """Those of this stretch and of the one that follows it."""
        values: dict[str, Any] = {"reached": more.reached}
        for name, mine in asdict(self).items():
            theirs = getattr(more, name)
            if name in ("samples", "rejected"):
                values[name] = [a + b for a, b in zip(mine, theirs, strict=True)]
            elif name != "reached":
                values[name] = _WORST.get(name, int.__add__)(mine, theirs)
        return Totals(**values)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def run_pass(
    name: str,
    job: _zmrs.Job,
    layout: _zmrs.Layout,
    targets: list[tuple[Path, int] | None],
    journal: Journal,
    *,
    shape: tuple[int, int],
    marks: Path | None = None,
    bounds: Path | None = None,
    progress: Callable[[int, int], object],
    device_for: Callable[[_zmrs.Job, _zmrs.Layout], Device | None] | None = None,
    **more: Any,
) -> tuple[Totals, _zmrs.Marks | None]:
    """Run a pass into files, from where the journal knows it to be, and note how far it comes.

    Parameters
    ----------
    name
        What the journal calls it.
    job, layout, targets, bounds
        As for the engine.
    shape
        (H, W) of the output.
    marks
        File for where the inputs lie, if that is wanted.
    progress
        Told bytes read and rows written, of this stretch.
    device_for
        Gives what computes the pass in the place of the engine's workers, or None.
    more
        Other arguments of the engine's.

    Returns
    -------
    Totals
        Of the whole pass, whichever run has done it.
    Marks or None
        Where the inputs lie.
    """
    last = layout.sweeps - 1
    noted = journal.found(name)
    totals = None if noted is None else Totals.of(noted["totals"])
    at, saved = None, None
    if marks is not None and noted is None:
        at = _zmrs.Marks(marks)
    elif marks is not None and noted is not None:
        saved = Path(noted["marks"])
        at = _zmrs.Marks.reopen(marks, saved)
    files = [*dict.fromkeys(target[0] for target in targets if target is not None)]
    files += [] if marks is None else [marks]
    done = (totals.read_bytes, totals.reached[1]) if totals is not None else (0, 0)

    def tell(read_bytes: int, rows: int) -> bool:
        progress(done[0] + read_bytes, done[1] + rows)
        return journal.is_due()

    device = None
    while totals is None or totals.reached != (last, shape[0]):
        if device is None and device_for is not None:
            device = device_for(job, layout)
        stats = _zmrs.run_pass_into_files(
            job,
            layout,
            targets,
            start=(0, 0) if totals is None else totals.reached,
            marks=at,
            bounds=bounds,
            device=device,
            progress=tell,
            **more,
        )
        stretch = Totals.of(stats)
        totals = stretch if totals is None else totals.then(stretch)
        done = (totals.read_bytes, totals.reached[1])
        # A finished pass has no more use for its bounds, and the next one makes its own.
        is_finished = totals.reached == (last, shape[0])
        between = [] if bounds is None or is_finished else [bounds]
        before, saved = saved, None
        if at is not None:
            saved = Path(f"{marks}-{totals.reached[1]}")
            at.save(saved)
        journal.note(
            name,
            {"totals": totals.as_dict(), "marks": None if saved is None else str(saved)},
            [*files, *between, *([saved] if saved else [])],
        )
        if before is not None:
            before.unlink(missing_ok=True)
    return totals, at
