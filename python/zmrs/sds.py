"""SDS mode: thousands of subs straight into one mosaic.

Neighbours in time go into a batch; the subs of a batch are combined on the output grid, over the
box that they cover, into a *mega-tile* in a scratch file; the mega-tiles are combined into the
mosaic, on the same road as the tiles of normal mode.  Subs are resampled once and matched all
together before; a mega-tile weighs by its coverage, pixel by pixel.  So, for means, the batches
change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zmrs import _zmrs, forecast, inputs, limits
from zmrs.coordinates import shifted_by
from zmrs.crop import outlines
from zmrs.events import Stage
from zmrs.io.storage import Storage
from zmrs.placing import Placed
from zmrs.scan import InputImage, Meta
from zmrs.stretch import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zmrs.config import Options
    from zmrs.events import Event
    from zmrs.grid import Grid
    from zmrs.io.journal import Journal
    from zmrs.prepare import Prepared

__all__ = [
    "Batch",
    "MegaTiles",
    "cut_batches",
    "forecast_s",
    "make_mega_tiles",
    "mega_tiles_of",
    "plan_batches",
    "scratch_bytes",
    "stack_options",
    "without",
]

Span = tuple[int, int]
Box = tuple[Span, Span]

_MOST_CELLS = 512
"""Rows and columns of the map on which the coverage of a batch is counted (ZeMosaic 4.5)."""

_STACK_KAPPA = (3.0, 3.0)
"""How far mega-tiles may stray from each other, in standard deviations; subs have `kappa`."""


@dataclass(frozen=True)
class Batch:
    """Subs that are combined into one mega-tile.

    Attributes
    ----------
    number
        Counted from 1.
    subs
        Their places among the inputs.
    columns, rows
        Part of the output that the mega-tile covers: first pixel, and past the last.
    plane_bytes
        Of each plane of the mega-tile.
    """

    number: int
    subs: list[int]
    columns: Span
    rows: Span
    plane_bytes: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the mega-tile."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def job(self, whole: _zmrs.Job) -> _zmrs.Job:
        """What is computed: a part of the job of all subs."""
        return whole.part(self.subs, self.columns, self.rows)


# ---------------------------------------------------------------------------------- the batches


def cut_batches(
    boxes: Sequence[Box],
    shape: tuple[int, int],
    *,
    least: int = 5,
    target: int = 10,
    coverage: float = 0.92,
) -> list[list[int]]:
    """Cut subs into batches that each cover most of the output, as ZeMosaic 4.5 does.

    In the order given, a batch takes subs until it has `target` of them, or at least `least` and
    they cover enough; what is left at the end and too little for a batch joins the last one.

    Parameters
    ----------
    boxes
        Columns and rows of the output, ``(first, past)`` each, that a sub covers.
    shape
        (height, width) of the output.
    least, target
        Subs of a batch.
    coverage
        Part of the output that is enough, counted on at most 512 x 512 cells.

    Returns
    -------
    list of lists
        Numbers of the subs; those whose box holds no pixel are in none.
    """
    cells = tuple(min(size, _MOST_CELLS) for size in shape)
    batches: list[list[int]] = [[]]
    covered = np.zeros(cells, bool)
    for number, (columns, rows) in enumerate(boxes):
        y = _cells(rows, shape[0], cells[0])
        x = _cells(columns, shape[1], cells[1])
        if y.start >= y.stop or x.start >= x.stop:
            continue
        batch = batches[-1]
        batch.append(number)
        covered[y, x] = True
        is_enough = len(batch) >= least and covered.mean() >= coverage
        if is_enough or len(batch) >= target:
            batches.append([])
            covered[:] = False
    rest = batches.pop()
    if len(rest) < least and batches:
        batches[-1] += rest
    elif rest:
        batches.append(rest)
    return batches


def _cells(span: Span, size: int, cells: int) -> slice:
    """Cells that pixels of an axis touch, at least one if there are such pixels."""
    first, past = max(span[0], 0), min(span[1], size)
    if first >= past:
        return slice(0, 0)
    return slice(first * cells // size, -(-past * cells // size))


def plan_batches(
    job: _zmrs.Job, placed: Sequence[Placed], grid: Grid, options: Options
) -> list[Batch]:
    """The batches of a job of all subs, which lie on the output as `placed` says."""
    if options.batch:
        everyone = range(len(placed))
        found = [list(everyone[k : k + options.batch]) for k in everyone[:: options.batch]]
    else:
        found = cut_batches(
            _boxes(placed, grid),
            grid.shape,
            least=options.sds_min_batch,
            target=options.sds_target_batch,
            coverage=options.sds_coverage,
        )
    # Every pixel of a sub lies within its cells of coordinates.
    cells = [_clipped(one.geometry.grid.footprint, grid.shape) for one in placed]
    batches = []
    for number, subs in enumerate(found, start=1):
        columns, rows = (
            (min(cells[sub][axis][0] for sub in subs), max(cells[sub][axis][1] for sub in subs))
            for axis in (0, 1)
        )
        part = job.part(subs, columns, rows)
        batches.append(Batch(number, subs, columns, rows, part.plane_bytes))
    return batches


def _boxes(placed: Sequence[Placed], grid: Grid) -> list[Box]:
    """Columns and rows between the outermost corners of each sub; all where one is not known."""
    images = [(one.image.wcs, inputs.shape_of(one.image)) for one in placed]
    boxes = []
    for corners in outlines(grid, images, [one.image.name for one in placed]):
        if np.isfinite(corners).all():
            first, past = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0)) + 1
            (x0, y0), (x1, y1) = first.astype(int).tolist(), past.astype(int).tolist()
            boxes.append(((x0, x1), (y0, y1)))
        else:
            boxes.append(((0, grid.width), (0, grid.height)))
    return boxes


def _clipped(box: Box, shape: tuple[int, int]) -> Box:
    (x0, x1), (y0, y1) = box
    return (max(x0, 0), min(x1, shape[1])), (max(y0, 0), min(y1, shape[0]))


def without(batches: Sequence[Batch], kept: Sequence[int]) -> list[Batch]:
    """The batches when only the subs at the places `kept` are left; boxes stay as they were."""
    place = {old: new for new, old in enumerate(kept)}
    rest = [[place[sub] for sub in batch.subs if sub in place] for batch in batches]
    return [replace(b, subs=subs) for b, subs in zip(batches, rest, strict=True) if subs]


# -------------------------------------------------------------------------------- the mega-tiles


def stack_options(options: Options) -> Options:
    """How mega-tiles are combined: pixel by pixel, since they lie on the output grid.

    They are matched only for the second pass, whose gains shift their levels; for the first the
    subs are.
    """
    return replace(
        options,
        combine=options.sds_combine,
        kappa=_STACK_KAPPA,
        kernel="nearest",
        match="offset" if options.two_pass and options.match != "none" else "none",
    )


def mega_tiles_of(
    batches: Sequence[Batch], channels: int, grid: Grid, scratch: Callable[[str], Path]
) -> list[Placed]:
    """The mega-tiles as inputs of a job on the same grid, made or not."""
    return [_mega_tile(batch, channels, grid, _file_of(batch, scratch)) for batch in batches]


def _file_of(batch: Batch, scratch: Callable[[str], Path]) -> Path:
    return scratch(f"mega-tile-{batch.number:04}")


def _mega_tile(batch: Batch, channels: int, grid: Grid, file: Path) -> Placed:
    image = Storage(str(file), 0, 0, -32, channels, *batch.shape)
    coverage = replace(image, offset=channels * batch.plane_bytes, channels=1)
    name = f"mega-tile {batch.number}"
    (x0, _), (y0, _) = batch.columns, batch.rows
    return Placed(
        InputImage(name, image, grid.wcs, Meta()),
        shifted_by(x0, y0, batch.shape),
        inputs.stored_source(image),
        weight_map=inputs.stored_source(coverage),
        map_storage=coverage,
    )


def scratch_bytes(batches: Sequence[Batch], channels: int) -> int:
    """What the mega-tiles take on disk."""
    return sum((channels + 1) * batch.plane_bytes for batch in batches)


def forecast_s(layouts: Iterable[_zmrs.Layout], options: Options, *, matches: bool) -> float:
    """Seconds that mega-tiles will take, and the matching of all subs if there is any.

    `layouts` say how the passes of the batches are cut.
    """
    each = (
        forecast.seconds(layout, options.kernel, options.combine, matches=matches, pixels=0)
        for layout in layouts
    )
    return sum(each)


@dataclass(frozen=True)
class MegaTiles:
    """The mega-tiles of a job, made.

    Attributes
    ----------
    stack
        The job that combines them.
    samples, rejected
        Of each sub, those of all channels together in the second.
    batch_of
        Place of the mega-tile that each sub is in; -1 for none.
    read_bytes, files_opened, workers, leased_peak_bytes, chunk_peak_bytes
        As the passes of the batches say, summed or at their worst.
    seconds
        Time that they took.
    """

    stack: Prepared
    samples: list[int]
    rejected: list[int]
    batch_of: list[int]
    read_bytes: int
    files_opened: int
    workers: int
    leased_peak_bytes: int
    chunk_peak_bytes: int
    seconds: float


def make_mega_tiles(
    prepared: Prepared,
    stack: _zmrs.Job,
    tiles: Sequence[Placed],
    scratch: Callable[[str], Path],
    journal: Journal,
    listener: Callable[[Event], object] | None,
) -> MegaTiles:
    """Combine the subs of each batch into a mega-tile.

    Parameters
    ----------
    prepared
        The job of all subs, matched.
    stack, tiles
        The job that combines the mega-tiles, and the mega-tiles.
    scratch
        Gives the path of a scratch file from its name.
    journal
        Knows which ones an interrupted run has made, and is told of each.
    listener
        Receives `zmrs.events.Event` objects.

    Raises
    ------
    zmrs.errors.ZmrsError
        What stops a batch; the message says which.
    """
    stage = Stage(listener, "batches", len(prepared.placed), "files")
    count = len(prepared.placed)
    samples, rejected, batch_of = [0] * count, [0] * count, [-1] * count
    passes = []
    planes = prepared.channels + 1
    write_back = limits.near_system_limit(scratch_bytes(prepared.batches, prepared.channels))
    for place, batch in enumerate(prepared.batches):
        file = _file_of(batch, scratch)
        noted = journal.found(file.name)
        if noted is None:
            file.touch()
            job, layout = batch.job(prepared.job), prepared.batch_layouts[batch.number]
            stats = Totals.of(
                _zmrs.run_pass_into_files(
                    job,
                    layout,
                    [(file, k * batch.plane_bytes) for k in range(planes)],
                    write_back=write_back,
                    bounds=scratch("bounds"),
                    device=prepared.device_for(job, layout),
                )
            )
            journal.note(file.name, stats.as_dict(), [file])
        else:
            stats = Totals.of(noted)
        for k, sub in enumerate(batch.subs):
            samples[sub], rejected[sub] = stats.samples[k], stats.rejected[k]
            batch_of[sub] = place
        passes.append(stats)
        stage.advance(sum(len(b.subs) for b in prepared.batches[: place + 1]))
    return MegaTiles(
        replace(prepared, placed=list(tiles), job=stack, batches=[]),
        samples,
        rejected,
        batch_of,
        read_bytes=sum(stats.read_bytes for stats in passes),
        files_opened=sum(stats.files_opened for stats in passes),
        workers=min(stats.workers for stats in passes),
        leased_peak_bytes=max(stats.ledger_peak for stats in passes),
        chunk_peak_bytes=max(stats.chunk_peak for stats in passes),
        seconds=stage.end(),
    )
