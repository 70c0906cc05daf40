"""The story of the frames without a WCS: from before, or with hints, or without, or not at all.

Frames are solved one after the other: a solver takes about a second for one, and its memory, which
nobody has promised anything of, is then needed once.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zmrs.errors import DiskFullError
from zmrs.events import Stage
from zmrs.io.headers import UnusableError
from zmrs.scan import LeftOut, left_out_for, scan_image, scan_unsolved
from zmrs.solving import cache, child
from zmrs.solving.hints import NO_HINTS, hints_of
from zmrs.solving.programs import NotSolvedError
from zmrs.solving.solution import solution_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from zmrs.events import Event
    from zmrs.inputs import Image
    from zmrs.scan import InputImage, Unsolved
    from zmrs.solving.hints import Hints
    from zmrs.solving.picture import Picture
    from zmrs.solving.programs import Solver
    from zmrs.solving.solution import Solution
    from zmrs.weight_rule import WeightRule

__all__ = ["solve_frames"]

log = logging.getLogger("zmrs")


@dataclass
class _Tally:
    """What has become of the frames so far."""

    solved: int = 0
    known: int = 0
    failed: int = 0
    unkept: list[str] = field(default_factory=list)


def solve_frames(
    results: Sequence[Image | LeftOut],
    solver: Solver,
    *,
    rule: WeightRule,
    limit_s: float,
    scratch: str | None,
    listener: Callable[[Event], object] | None,
) -> list[Image | LeftOut]:
    """Give the images that lack nothing but a WCS one, where the solver finds it.

    Parameters
    ----------
    results
        Images, and those that cannot be used, in job order.
    solver
        The program.
    rule
        Where images have their weights.
    limit_s
        Seconds that each try may take: one with hints, one without.
    scratch
        Folder for what the solver reads and writes meanwhile; None is the system's.
    listener
        Receives `zmrs.events.Event` objects.

    Returns
    -------
    list
        The same, in the same order, with an image for each frame that now has a WCS, and the reason
        for each that has none.

    Raises
    ------
    UsageError
        The program cannot be started.
    DiskFullError
        What it needs cannot be written.
    """
    unsolved = [
        (place, result.name, result.unsolved_hdu)
        for place, result in enumerate(results)
        if isinstance(result, LeftOut) and result.unsolved_hdu is not None
    ]
    found = list(results)
    if not unsolved:
        return found
    stage, tally = Stage(listener, "solve", len(unsolved), "files"), _Tally()
    for number, (place, name, hdu) in enumerate(unsolved, start=1):
        found[place] = _solve_one(name, hdu, solver, rule, limit_s, scratch, tally)
        stage.advance(number)
    stage.end()
    if tally.unkept:
        log.warning(
            "%s; what was found of %d frames will be looked for again by the next run",
            tally.unkept[0],
            len(tally.unkept),
        )
    log.info(
        "frames without a WCS: %d (%d solved by %s, %d known, %d not solved)",
        len(unsolved),
        tally.solved,
        solver.name,
        tally.known,
        tally.failed,
    )
    return found


def _solve_one(
    path: str,
    hdu: int,
    solver: Solver,
    rule: WeightRule,
    limit_s: float,
    scratch: str | None,
    tally: _Tally,
) -> InputImage | LeftOut:
    """A frame with its solution, from before or new; or why there is none."""
    try:
        frame = scan_unsolved(path, hdu)
        solution = cache.load(frame)
        if solution is None:
            solution = _look(frame, solver, limit_s, scratch)
            tally.solved += 1
            _keep(frame, solution, tally)
        else:
            tally.known += 1
    except (OSError, UnusableError) as error:
        tally.failed += 1
        return left_out_for(path, error)
    return scan_image(path, hdu, rule=rule, solved=solution.solved)


def _keep(frame: Unsolved, solution: Solution, tally: _Tally) -> None:
    try:
        cache.store(frame, solution)
    except OSError as error:
        where = cache.cache_of(frame.storage.path)
        tally.unkept.append(f"{where}: cannot be written ({error.strerror or error})")


def _look(frame: Unsolved, solver: Solver, limit_s: float, scratch: str | None) -> Solution:
    """Show a frame to the solver, with hints and then without."""
    from zmrs.solving.picture import write_picture  # noqa: PLC0415  (brings astropy)

    hints = hints_of(frame)
    tries = [NO_HINTS] if hints == NO_HINTS else [hints, NO_HINTS]
    why = []
    with _folder(scratch) as folder:
        picture = write_picture(frame, folder)
        for number, one in enumerate(tries):
            desk = folder / f"try-{number}"
            desk.mkdir()
            try:
                return _try(frame, picture, solver, one, desk, limit_s)
            except NotSolvedError as error:
                why.append(f"{'without' if one == NO_HINTS else 'with'} hints: {error}")
                log.debug("%s: %s", frame.storage.path, why[-1])
    raise UnusableError(
        f"no WCS of the sky in its header, and {solver.name} found none ({', '.join(why)})",
        "look at it, give the solver more time with --solver-timeout, or leave it out",
    )


@contextlib.contextmanager
def _folder(scratch: str | None) -> Iterator[Path]:
    """A folder that goes when it has been used; not to be able to write there is fatal."""
    try:
        with tempfile.TemporaryDirectory(prefix=".zmrs-solve-", dir=scratch) as name:
            yield Path(name).absolute()
    except OSError as error:
        where = scratch or tempfile.gettempdir()
        raise DiskFullError(
            f"{where}: what the solver needs cannot be written there ({error.strerror or error}); "
            "name a roomier folder with --scratch."
        ) from error


def _try(
    frame: Unsolved, picture: Picture, solver: Solver, hints: Hints, desk: Path, limit_s: float
) -> Solution:
    ran = child.run(solver.command(picture, hints, desk, limit_s), desk, limit_s)
    if ran.status is None:
        raise NotSolvedError(f"not within {limit_s:g} s")
    cards = solver.found(desk, ran)
    try:
        return solution_of(cards, picture.times, frame.storage.shape, solver.name)
    except UnusableError as error:
        raise NotSolvedError(f"what it wrote is no WCS ({error.cause})") from error
