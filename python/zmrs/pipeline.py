"""The story of a mosaic: scan → grid → geometry → plan → survey → matching → passes → commit.

In SDS mode batches of the inputs are combined before the passes, which then combine their stacks.

`zmrs.prepare` goes as far as anything can be said without reading a pixel; `make_mosaic` does the
rest.
"""

from __future__ import annotations

import gc
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmrs import photometry, sds, survey
from zmrs.backends import ladder
from zmrs.errors import DeviceError, InputError
from zmrs.events import Stage
from zmrs.identity import identity_of
from zmrs.io import cards, output
from zmrs.io.journal import Journal
from zmrs.passes import Passes
from zmrs.placing import Placed, scratch_folder
from zmrs.plan import on_cpu
from zmrs.prepare import (
    Prepared,
    are_matched,
    job_of,
    leave_out,
    needs_depth,
    prepare,
    stack_job,
)
from zmrs.result import (
    Result,
    Run,
    all_rows,
    figures_of,
    header_of,
    images_of,
    log_result,
    rows_of,
)
from zmrs.scan import InputImage, LeftOut
from zmrs.weights import weighed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zmrs.config import Options
    from zmrs.events import Event
    from zmrs.finished import Finished
    from zmrs.plan import Plan

    Listener = Callable[[Event], object] | None

__all__ = ["Prepared", "Result", "make_mosaic", "prepare"]

log = logging.getLogger("zmrs")


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
    base: Finished | None = None,
) -> Result:
    """Make the mosaic of the inputs, in the file `path` or in memory; or add them to a mosaic.

    Parameters and errors are those of `prepare`; besides, `zmrs.errors.OutputError` when the
    file cannot be written.  The file of `base` may be `path`; it is replaced when the new one is
    complete.  Whatever goes wrong, nothing is left behind, but what a later run of
    the same job can go on with.
    """
    given = list(given)
    is_replaced = options.overwrite
    if path is not None:
        is_replaced = is_replaced or (base is not None and base.is_at(path))
        names = [str(item) for item in given if isinstance(item, str | Path)]
        output.check_output(path, names, overwrite=is_replaced)
    began = time.perf_counter()
    parent = Path(options.scratch) if options.scratch else (path.parent if path else None)
    with (
        Journal(
            path,
            Path(options.scratch) if options.scratch else None,
            after_s=options.journal_after,
            resumes=options.resume,
        ) as journal,
        scratch_folder(parent) as folder,
    ):
        if base is not None:
            # Only now no other run can change it.
            base.check(options)
        scratch = folder if path is None else journal.scratch
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
            base=base,
        )
        if path is not None:
            # A directory may have held the output's old version; a list may have named it.
            output.check_output(path, _files(prepared), overwrite=is_replaced)
        if prepared.scratch_bytes:
            size = prepared.layout.write_bytes
            output.check_scratch(
                parent, prepared.scratch_bytes, path, size, held_bytes=journal.held_bytes()
            )
        prepared = _surveyed(_decompressed(prepared, options, listener), options, listener)
        prepared = _as_begun(prepared, options, journal)
        journal.open(identity_of(prepared, options))
        result = _run(prepared, path, options, scratch, journal, listener)
    total_s = time.perf_counter() - began
    result.stats["seconds"]["total"] = total_s
    result.stats["forecast_ratio"] = total_s / prepared.forecast_s
    # What an interrupted run has done may have been done by fewer.
    if result.stats["workers"] < prepared.plan.cpu_workers and not journal.goes_on:
        log.warning(
            "the system granted %d of %d threads; its limit on them is low (ulimit -u)",
            result.stats["workers"],
            prepared.plan.cpu_workers,
        )
    log_result(result)
    return result


def _files(prepared: Prepared) -> list[str]:
    return [one.image.name for one in _new(prepared.placed) if isinstance(one.image, InputImage)]


def _new(placed: Sequence[Placed]) -> list[Placed]:
    """Inputs that are not the mosaic to which the others are added."""
    return [one for one in placed if not one.is_base]


def _decompressed(prepared: Prepared, options: Options, listener: Listener) -> Prepared:
    """The job with the pixels of its compressed inputs, less those that turn out to be damaged."""
    compressed = [p for p in prepared.placed if p.packed()]
    if not compressed:
        return prepared
    stage = Stage(listener, "decompress", len(compressed), "files")
    damaged = {}
    for number, placed in enumerate(compressed, start=1):
        try:
            for packed in placed.packed():
                packed.unpack()
        except InputError as error:
            damaged[placed.image.name] = str(error)
        stage.advance(number)
    prepared.seconds["decompress"] = stage.end()
    if not damaged:
        return prepared
    rest = [p for p in prepared.placed if p.image.name not in damaged]
    leave_out(list(damaged.values()), len(_new(rest)), options)
    left_out = [LeftOut(name, reason) for name, reason in damaged.items()]
    rest, unit = weighed(rest, options.weight_by, unit=_fixed_unit(prepared))
    return _with(prepared, rest, left_out, options, weight_unit=unit)


def _fixed_unit(prepared: Prepared) -> float | None:
    """What weighs 1, where a mosaic that is updated has settled it."""
    return None if prepared.base is None else prepared.base.weight_unit


def _with(
    prepared: Prepared, placed: list[Placed], left_out: list[LeftOut], options: Options, **more: Any
) -> Prepared:
    """The job with other inputs, and with more that are left out."""
    threshold = prepared.plan.two_pass_coverage_threshold
    names = {one.image.name for one in placed}
    kept = [k for k, one in enumerate(prepared.placed) if one.image.name in names]
    job = job_of(prepared.channels, prepared.grid, placed, options, threshold)
    batches, last = sds.without(prepared.batches, kept), job
    if batches:
        last, _ = stack_job(batches, prepared.channels, prepared.grid, options, threshold)
    if left_out:
        # Others of them are now loaded together, which may want more room than before.
        of_batches, layout = prepared.room.cut(job, batches, last)
        more |= {"batch_layouts": of_batches, "layout": layout}
    return replace(
        prepared,
        placed=placed,
        batches=batches,
        left_out=prepared.left_out + left_out,
        job=job,
        **more,
    )


def _surveyed(prepared: Prepared, options: Options, listener: Listener) -> Prepared:
    """The job without dead inputs, with what a look at the others tells."""
    if not survey.questions(prepared.placed, options):
        return prepared
    unit = _fixed_unit(prepared)
    found = survey.survey(prepared.job, prepared.placed, prepared.plan, options, listener, unit)
    prepared.seconds["survey"] = found.seconds
    leave_out([left.reason for left in found.left_out], len(_new(found.placed)), options)
    return _with(
        prepared,
        found.placed,
        found.left_out,
        options,
        survey_bytes=found.read_bytes,
        weight_unit=found.weight_unit,
    )


def _depth_file(
    prepared: Prepared, options: Options, scratch: Callable[[str], Path]
) -> Path | None:
    """An empty file for the numbers of inputs of all pixels, if the Two-Pass needs them."""
    if not needs_depth(prepared.placed, options):
        return None
    file = scratch("depth")
    file.touch()
    return file


def _run(
    prepared: Prepared,
    path: Path | None,
    options: Options,
    scratch: Callable[[str], Path],
    journal: Journal,
    listener: Listener,
) -> Result:
    """Matching, and what follows it: on the device of the plan, or where that fails on the CPU."""
    prepared, matching = _matched(prepared, options, listener)
    tries = 0
    while True:
        try:
            result = _combined(prepared, matching, path, options, scratch, journal, listener)
        except DeviceError as failure:
            plan = ladder.after(
                failure,
                prepared.room.plan,
                prepared.plan,
                tries,
                demands_gpu=prepared.room.demands_gpu,
            )
        else:
            if tries:
                ladder.succeeded(prepared.room.plan)
            return result
        tries += 1
        # What the device still holds for the failed pass.
        gc.collect()
        prepared = _replanned(prepared, plan, options)
        journal.restart(identity_of(prepared, options))


def _as_begun(prepared: Prepared, options: Options, journal: Journal) -> Prepared:
    """The job on the CPU, if that is where an interrupted run has begun it."""
    if not prepared.plan.use_gpu or prepared.room.demands_gpu or not journal.has_been_begun():
        return prepared
    plain = _replanned(prepared, on_cpu(prepared.room.plan, "begun_on_cpu"), options)
    return plain if journal.would_go_on(identity_of(plain, options)) else prepared


def _replanned(prepared: Prepared, plan: Plan, options: Options) -> Prepared:
    """The job with another plan."""
    room, last = replace(prepared.room, plan=plan), prepared.job
    if prepared.batches:
        threshold = plan.two_pass_coverage_threshold
        last, _ = stack_job(prepared.batches, prepared.channels, prepared.grid, options, threshold)
    of_batches, layout = room.cut(prepared.job, prepared.batches, last)
    return replace(prepared, room=room, batch_layouts=of_batches, layout=layout)


def _combined(
    prepared: Prepared,
    matching: photometry.Matching | None,
    path: Path | None,
    options: Options,
    scratch: Callable[[str], Path],
    journal: Journal,
    listener: Listener,
) -> Result:
    """Batches if there are any, and passes, into a file or into arrays."""
    depth_at = _depth_file(prepared, options, scratch)
    made, stack, of_stack = None, prepared, matching
    if prepared.batches:
        made, of_stack = _stacked(prepared, options, scratch, journal, listener)
        stack = made.stack
    passes = Passes(stack, of_stack, options, scratch, journal, listener, depth_at)
    if path is None:
        stats, arrays = passes.into_arrays()
        run = Run(stats, matching, passes.second, made)
        rows = _checked_rows(prepared, run, options)
        everyone = all_rows(prepared, rows)
    else:
        arrays = None
        rows = [cards.InputRow.of(p.image.name, prepared.channels) for p in prepared.placed]
        header = header_of(prepared, rows, options)
        images = images_of(stack, header)
        temporary, goes_on = journal.part()
        with output.MosaicFile(
            path, temporary, prepared.grid.shape, images, goes_on=goes_on
        ) as file:
            journal.note("file", {}, [temporary])
            stats = passes.into_file(file.targets)
            run = Run(stats, matching, passes.second, made)
            rows = _checked_rows(prepared, run, options)
            header = header_of(prepared, rows, options, passes.second)
            everyone = all_rows(prepared, rows)
            file.commit(header, [cards.inputs_table(everyone, prepared.channels)])
    figures = figures_of(prepared, run)
    return Result(path, prepared.grid.wcs, prepared.plan, everyone, figures, arrays)


def _stacked(
    prepared: Prepared,
    options: Options,
    scratch: Callable[[str], Path],
    journal: Journal,
    listener: Listener,
) -> tuple[sds.MegaTiles, photometry.Matching | None]:
    """The stacks of the batches, and what the second pass needs to know of their levels."""
    threshold = prepared.plan.two_pass_coverage_threshold
    job, tiles = stack_job(
        prepared.batches, prepared.channels, prepared.grid, options, threshold, scratch
    )
    made = sds.make_mega_tiles(prepared, job, tiles, scratch, journal, listener)
    prepared.seconds["batches"] = made.seconds
    if not are_matched(sds.stack_options(options), tiles):
        return made, None
    levels = photometry.match(made.stack, options, listener, with_gains=False)
    prepared.seconds["levels"] = levels.seconds
    # The subs agree already: only what the gains of the second pass upset is to be mended.
    return made, replace(levels, is_relative=True)


def _matched(
    prepared: Prepared, options: Options, listener: Listener
) -> tuple[Prepared, photometry.Matching | None]:
    """The job with the gains and offsets of its inputs, if they are to be matched."""
    if not are_matched(options, prepared.placed):
        return prepared, None
    matching = photometry.match(prepared, options, listener, with_gains=options.match == "gain")
    prepared.seconds["match"] = matching.seconds
    job = prepared.job.with_photometry(matching.gains, matching.offsets)
    if not options.two_pass or prepared.batches:
        # The passes will need the memory.
        matching = replace(matching, samples=None)
    return replace(prepared, job=job), matching


def _checked_rows(prepared: Prepared, run: Run, options: Options) -> list[cards.InputRow]:
    """What became of every input, once it is known that there is a mosaic at all.

    Rows stand in the order of the inputs, that of a mosaic that is updated too.
    """
    rows = rows_of(prepared, run)
    new = [row for row, one in zip(rows, prepared.placed, strict=False) if not one.is_base]
    empty = [row.reason for row in new if row.reason]
    leave_out(empty, len(new) - len(empty), options)
    return rows
