"""The story of a mosaic: scan → grid → geometry → plan → pass → commit.

`prepare` goes as far as anything can be said without reading a pixel, which is also all that
``zmrs plan`` does; `make_mosaic` does the rest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs import _zmrs, inputs, probe
from zmrs.errors import InputError, ZmrsError
from zmrs.events import Stage
from zmrs.io import cards, output
from zmrs.plan import Allowance, Plan, allowance, make_plan
from zmrs.scan import LeftOut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from zmrs.config import Options
    from zmrs.coordinates import Geometry
    from zmrs.events import Event
    from zmrs.grid import Grid

    Listener = Callable[[Event], object] | None

__all__ = ["Prepared", "Result", "make_mosaic", "prepare"]

log = logging.getLogger("zmrs")


@dataclass(frozen=True)
class Placed:
    """An input that touches the output: its image and where output pixels fall in it."""

    image: inputs.Image
    geometry: Geometry
    source: _zmrs.Source
    weight: float
    weight_map: _zmrs.Source | None


@dataclass(frozen=True)
class Prepared:
    """A job with its plan, before any pixel is read.

    Attributes
    ----------
    grid
        Output WCS and shape.
    channels
        Planes of the output image.
    placed
        The inputs in job order.
    left_out
        The others, with reasons.
    job, layout
        What the engine will compute, and how it is cut.
    plan, allowed
        The resources, and where the memory limit comes from.
    reserved_bytes
        What the process holds before the pass.
    seconds
        Time that each step took.
    """

    grid: Grid
    channels: int
    placed: list[Placed]
    left_out: list[LeftOut]
    job: _zmrs.Job
    layout: _zmrs.Layout
    plan: Plan
    allowed: Allowance
    reserved_bytes: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Result:
    """A finished mosaic.

    Attributes
    ----------
    path
        The file, or None when the mosaic is in memory.
    wcs
        Celestial WCS of the output.
    plan
        The resources with which it was made.
    inputs
        What became of every input, in job order, those left out last.
    stats
        Figures of the run: seconds of each step, bytes read and written, memory.
    """

    path: Path | None
    wcs: Any
    plan: Plan
    inputs: list[cards.InputRow]
    stats: dict[str, Any]
    _arrays: tuple[NDArray[np.float32], NDArray[np.float32]] | None = field(repr=False)

    @cached_property
    def data(self) -> NDArray[np.float32]:
        """Image, (H, W) or (C, H, W) float32; NaN where nothing covers. Read when asked for."""
        return self._plane(0)

    @cached_property
    def coverage(self) -> NDArray[np.float32]:
        """Sum of weights, (H, W) float32; 0 where nothing covers."""
        return self._plane(1)

    def _plane(self, number: int) -> NDArray[np.float32]:
        if self._arrays is not None:
            return self._arrays[number]
        from astropy.io import fits  # noqa: PLC0415  (imported long before, with astropy.wcs)

        with fits.open(self.path, memmap=False) as hdus:
            return np.asarray(hdus[number].data, dtype=np.float32)


def prepare(
    given: Iterable[Any],
    options: Options,
    *,
    grid: tuple[Any, tuple[int, int]] | None = None,
    weights: Sequence[Any] | None = None,
    plan: Plan | None = None,
    held_bytes: int = 0,
    in_memory: bool = False,
    scratch: Callable[[], Path] | None = None,
    listener: Listener = None,
) -> Prepared:
    """Everything up to the first pixel: scan, grid, geometry, plan.

    Parameters
    ----------
    given
        Paths, HDUs, ``(array, wcs)`` pairs, ``NDData``.
    options
        What the user decided.
    grid
        WCS and (H, W) of the output, instead of the grid that the options lead to.
    weights
        One per input as given: None, a number or an array of its shape.
    plan
        Resources to use instead of those that the options lead to.
    held_bytes
        Resident size at entry that the memory option does not count.
    in_memory
        Whether the mosaic will be an array of the caller's.
    scratch
        Gives the path of a new scratch file; None makes the job fail where one is needed.
    listener
        Receives `zmrs.events.Event` objects.

    Raises
    ------
    ZmrsError
        No usable input, no sensible grid, or a job that does not fit.
    """
    seconds: dict[str, float] = {}
    allowed = allowance(options.memory, probe.memory_limits(), held_bytes)

    clock = _Clock(seconds)
    given = list(given)
    gathered = inputs.gather(given, hdu=options.hdu, recursive=options.recursive, weights=weights)
    images = _usable(gathered, options)
    channels = inputs.check_channels(images)
    _warn_of_mixtures(images)
    clock.lap("scan")

    chosen = _choose_grid(images, options, grid)
    log.info("grid %s", chosen.description())
    clock.lap("grid")

    placed, off_grid = _place(images, gathered.weights, chosen, scratch or _no_scratch, listener)
    _leave_out([left.reason for left in off_grid], len(placed), options)
    clock.lap("geometry")

    job = _zmrs.Job(
        (channels, *chosen.shape),
        options.kernel,
        options.combine,
        [
            _zmrs.Input(
                os.fsencode(p.image.name).decode(errors="replace"),
                p.source,
                p.geometry.grid,
                weight=p.weight,
                weight_map=p.weight_map,
            )
            for p in placed
        ],
    )
    plan, allowed = _settle_plan(plan, allowed, options)
    reserved = probe.resident_bytes()
    layout = _zmrs.fit(job, plan, reserved, allowed.held_bytes, in_memory)
    plan = plan.replace(rows_per_chunk=layout.band_rows, max_chunk_bytes=layout.chunk_bytes)
    log.info(
        "plan=%s %s memory_mb=%.2f (%s)",
        plan.name,
        plan.figures(),
        allowed.bytes / 2**20,
        allowed.reason,
    )
    clock.lap("plan")
    return Prepared(
        chosen,
        channels,
        placed,
        gathered.left_out + off_grid,
        job,
        layout,
        plan,
        allowed,
        reserved,
        seconds,
    )


def make_mosaic(
    given: Iterable[Any],
    path: Path | None,
    options: Options,
    *,
    grid: tuple[Any, tuple[int, int]] | None = None,
    weights: Sequence[Any] | None = None,
    plan: Plan | None = None,
    held_bytes: int = 0,
    listener: Listener = None,
) -> Result:
    """Make the mosaic of the inputs, in the file `path` or in memory.

    Parameters and errors are those of `prepare`; besides, `zmrs.errors.OutputError` when the
    file cannot be written.  Whatever goes wrong, nothing is left behind.
    """
    given = list(given)
    if path is not None:
        names = [str(item) for item in given if isinstance(item, str | Path)]
        output.check_output(path, names, overwrite=options.overwrite)
    began = time.perf_counter()
    with _scratch_folder(path, options) as scratch:
        prepared = prepare(
            given,
            options,
            grid=grid,
            weights=weights,
            plan=plan,
            held_bytes=held_bytes,
            in_memory=path is None,
            scratch=scratch,
            listener=listener,
        )
        if path is not None:
            # A directory may have held the output's old version; a list may have named it.
            output.check_output(path, _files(prepared), overwrite=options.overwrite)
        _decompress(prepared, listener)
        result = _run(prepared, path, options, listener)
    result.stats["seconds"]["total"] = time.perf_counter() - began
    _log_result(result)
    return result


def _usable(gathered: inputs.Gathered, options: Options) -> list[inputs.Image]:
    """The images that can be used; the others are warned of, or stop a strict run."""
    for warning in gathered.warnings:
        log.warning("%s", warning)
    if not gathered.images and not gathered.left_out:
        raise InputError("there are no inputs; name FITS files, folders or @lists.")
    _leave_out([left.reason for left in gathered.left_out], len(gathered.images), options)
    return gathered.images


def _leave_out(reasons: Sequence[str], n_usable: int, options: Options) -> None:
    """Warn of the inputs that are left out, or stop: when strict, or when no other is left."""
    if reasons and (options.strict or (n_usable == 0 and len(reasons) == 1)):
        raise InputError(reasons[0])
    for reason in reasons:
        log.warning("left out: %s", reason)
    if n_usable == 0:
        raise InputError(f"none of the {len(reasons)} inputs can be used; the reasons stand above.")


def _warn_of_mixtures(images: Sequence[inputs.Image]) -> None:
    """Mixed filters and exposures are allowed, but seldom meant."""
    for attribute, words in (("filter", "filters"), ("exptime", "exposure times")):
        values = {getattr(image.meta, attribute) for image in images} - {None}
        if len(values) > 1:
            shown = ", ".join(str(value) for value in sorted(values)[:4])
            log.warning(
                "the inputs have %d different %s (%s%s)",
                len(values),
                words,
                shown,
                ", …" if len(values) > 4 else "",
            )


def _choose_grid(
    images: Sequence[inputs.Image],
    options: Options,
    given: tuple[Any, tuple[int, int]] | None,
) -> Grid:
    from zmrs.grid import Grid, make_grid  # noqa: PLC0415  (brings astropy)

    if given is not None:
        return Grid(given[0].celestial, int(given[1][0]), int(given[1][1]))
    return make_grid(
        [(image.wcs, inputs.shape_of(image)) for image in images],
        names=[image.name for image in images],
        template=options.wcs,
        scale_arcsec=options.scale,
        center=options.center,
        size=options.size,
        projection=options.projection,
        frame=options.frame,
        rotate_deg=options.rotate,
        max_output_pixels=options.max_output_pixels,
    )


def _place(
    images: Sequence[inputs.Image],
    weights: Sequence[Any],
    grid: Grid,
    scratch: Callable[[], Path],
    listener: Listener,
) -> tuple[list[Placed], list[LeftOut]]:
    """Where every input lies on the grid; those that do not touch it are left out."""
    from zmrs.coordinates import locate  # noqa: PLC0415

    stage = Stage(listener, "geometry", len(images), "files")
    placed, left_out = [], []
    for number, image in enumerate(images):
        geometry = locate((grid.wcs, grid.shape), (image.wcs, inputs.shape_of(image)), scratch)
        if geometry is None:
            reason = (
                f"{image.name}: it does not touch the output grid; leave it out, or check --wcs, "
                "--center and --size."
            )
            left_out.append(LeftOut(image.name, reason))
        else:
            weight, weight_map = inputs.weight_of(weights[number], image)
            placed.append(Placed(image, geometry, inputs.source_of(image), weight, weight_map))
            if geometry.exact_fraction > 0.5:
                log.warning(
                    "%s: its distortion does not interpolate to the bound; exact "
                    "coordinates are kept on disk (slower)",
                    image.name,
                )
        stage.advance(number + 1)
    stage.end()
    return placed, left_out


def _settle_plan(plan: Plan | None, allowed: Allowance, options: Options) -> tuple[Plan, Allowance]:
    """The plan with its memory limit, and where that comes from; what was asked for is kept."""
    if plan is None:
        return make_plan(allowed, options.threads or probe.available_workers()), allowed
    if options.threads is not None:
        plan = plan.replace(cpu_workers=options.threads)
    planned = plan.memory_bytes
    if planned is not None and (options.memory is None or planned <= allowed.bytes):
        return plan, Allowance(planned, "as planned")
    return plan.replace(memory_bytes=allowed.bytes), allowed


def _no_scratch() -> Path:
    raise ZmrsError("a scratch file is needed but there is no place for one; give --scratch.")


@contextlib.contextmanager
def _scratch_folder(path: Path | None, options: Options) -> Iterator[Callable[[], Path]]:
    """A folder for scratch files that appears with the first of them and is always removed."""
    parent = options.scratch or (path.parent if path else None)
    with contextlib.ExitStack() as stack:
        folder: list[Path] = []

        def new_file() -> Path:
            if not folder:
                made = tempfile.TemporaryDirectory(dir=parent, prefix=".zmrs-scratch-")
                folder.append(Path(stack.enter_context(made)))
            return folder[0] / str(len(list(folder[0].iterdir())))

        yield new_file


def _files(prepared: Prepared) -> list[str]:
    return [p.image.name for p in prepared.placed if not isinstance(p.image, inputs.ArrayImage)]


def _decompress(prepared: Prepared, listener: Listener) -> None:
    """Give the engine the pixels of the compressed inputs."""
    compressed = [
        p
        for p in prepared.placed
        if not isinstance(p.image, inputs.ArrayImage) and p.image.storage.compressed
    ]
    if not compressed:
        return
    stage = Stage(listener, "decompress", len(compressed), "files")
    for number, placed in enumerate(compressed):
        assert not isinstance(placed.image, inputs.ArrayImage)
        placed.source.provide(inputs.decompress(placed.image.storage))
        stage.advance(number + 1)
    prepared.seconds["decompress"] = stage.end()


def _run(prepared: Prepared, path: Path | None, options: Options, listener: Listener) -> Result:
    """The pass, into a file or into arrays, and what comes of it."""
    total = prepared.layout.read_bytes + prepared.layout.write_bytes
    stage = Stage(listener, "mosaic", total, "bytes")
    row_bytes = prepared.layout.write_bytes // prepared.grid.height

    def progress(read_bytes: int, rows_written: int) -> None:
        stage.advance(min(read_bytes + rows_written * row_bytes, total))

    engine = (prepared.job, prepared.layout, prepared.plan)
    if path is None:
        image = np.empty((prepared.channels, *prepared.grid.shape), np.float32)
        coverage = np.empty(prepared.grid.shape, np.float32)
        stats = _zmrs.run_pass_into_arrays(*engine, image, coverage, progress=progress)
        prepared.seconds["mosaic"] = stage.end()
        rows = _rows(prepared, stats, options)
        arrays = (image[0] if prepared.channels == 1 else image, coverage)
        return Result(
            None, prepared.grid.wcs, prepared.plan, rows, _figures(prepared, stats), arrays
        )

    everyone = [cards.InputRow(p.image.name, prepared.channels) for p in prepared.placed]
    coverage_cards = cards.coverage_header(prepared.grid.shape, prepared.grid.to_header())
    first = _header(prepared, everyone, options)
    with output.MosaicFile(
        path, prepared.channels, prepared.grid.shape, first, coverage_cards
    ) as file:
        stats = _zmrs.run_pass_into_file(
            *engine,
            file.temporary,
            file.offsets,
            progress=progress,
            write_back=probe.near_system_limit(prepared.layout.write_bytes),
        )
        rows = _rows(prepared, stats, options)
        header = _header(prepared, rows, options)
        file.commit(header, [cards.inputs_table(rows, prepared.channels)])
    prepared.seconds["mosaic"] = stage.end()
    return Result(path, prepared.grid.wcs, prepared.plan, rows, _figures(prepared, stats), None)


def _rows(prepared: Prepared, stats: _zmrs.PassStats, options: Options) -> list[cards.InputRow]:
    """What became of every input."""
    rows = []
    for placed, samples in zip(prepared.placed, stats.samples, strict=True):
        row = cards.InputRow(placed.image.name, prepared.channels)
        row.weight, row.n_samples = placed.weight, samples
        row.geometry_error_px = placed.geometry.error_px
        if placed.image.meta.exptime is not None:
            row.exposure_s = placed.image.meta.exptime
        if not samples:
            row.leave_out(f"{row.name}: it has no valid pixel on the output grid; look at it.")
        rows.append(row)
    empty = [row.reason for row in rows if row.reason]
    _leave_out(empty, len(rows) - len(empty), options)
    return rows + [
        cards.InputRow(left.name, prepared.channels, left.reason) for left in prepared.left_out
    ]


def _header(prepared: Prepared, rows: Sequence[cards.InputRow], options: Options) -> Any:
    """Header of the mosaic, given what became of its inputs."""
    from zmrs import __version__  # noqa: PLC0415  (the package imports this module)

    used = zip(prepared.placed, rows, strict=False)
    metas = [placed.image.meta for placed, row in used if row.status == "used"]
    mib = 2**20
    software = [
        ("SOFTNAME", "zmrs", "program that made this"),
        ("SOFTVERS", __version__, "its version"),
        ("COMBINET", options.combine, "how samples were combined"),
        ("ZMKERN", options.kernel, "interpolation kernel"),
        ("ZMMATCH", options.match, "photometric matching"),
        ("ZMTWOP", False, "coverage renormalisation"),
        ("ZMFLUX", "SB", "values are surface brightness: no Jacobian"),
        ("ZMBACK", "cpu", "where the pixels were computed"),
        ("ZMPLAN", _short(prepared.plan), ""),
        ("ZMMEM", round(prepared.allowed.bytes / mib, 2), "[MiB] memory that was allowed"),
        ("ZMPEAK", round(probe.peak_resident_bytes() / mib, 2), "[MiB] peak resident memory"),
    ]
    grid = prepared.grid
    return cards.primary_header(prepared.channels, grid.shape, grid.to_header(), metas, software)


def _short(plan: Plan) -> str:
    """The plan in the 68 characters of a card."""
    mib = (plan.max_chunk_bytes or 0) / 2**20
    gpu = "on" if plan.use_gpu else "off"
    text = f"{plan.name} workers={plan.cpu_workers} rows={plan.rows_per_chunk}"
    return f"{text} chunk={mib:.2f}MiB gpu={gpu}"[:68]


def _figures(prepared: Prepared, stats: _zmrs.PassStats) -> dict[str, Any]:
    """The run in numbers."""
    stored = prepared.job.input_bytes
    return {
        "seconds": prepared.seconds,
        "workers": stats.workers,
        "bands": prepared.layout.bands,
        "blocks": prepared.layout.blocks,
        "samples": sum(stats.samples),
        "input_bytes": stored,
        "read_bytes": stats.read_bytes,
        "read_amplification": stats.read_bytes / stored if stored else 0.0,
        "write_bytes": prepared.layout.write_bytes,
        "files_opened": stats.files_opened,
        "allowed_bytes": prepared.allowed.bytes,
        "reserved_bytes": prepared.reserved_bytes,
        "projected_bytes": prepared.layout.projected_bytes,
        "leased_peak_bytes": stats.ledger_peak,
        "peak_bytes": probe.peak_resident_bytes(),
    }


def _log_result(result: Result) -> None:
    stats, used = result.stats, sum(row.status == "used" for row in result.inputs)
    log.info(
        "mosaic of %d inputs in %.2f s (pass %.2f s); read %.0f MiB (%.2f of the input), wrote "
        "%.0f MiB; peak %.0f of %.0f MiB",
        used,
        stats["seconds"]["total"],
        stats["seconds"]["mosaic"],
        stats["read_bytes"] / 2**20,
        stats["read_amplification"],
        stats["write_bytes"] / 2**20,
        stats["peak_bytes"] / 2**20,
        stats["allowed_bytes"] / 2**20,
    )


class _Clock:
    """Seconds of one step after the other."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._last = seconds, time.perf_counter()

    def lap(self, step: str) -> None:
        """The step that ends now."""
        now = time.perf_counter()
        self._seconds[step] = now - self._last
        self._last = now
