"""Everything up to the first pixel: scan (→ solve → select) → grid → geometry → plan.

It is all that ``zmrs plan`` needs; `zmrs.pipeline` does the rest.  Only ``--select`` looks at
pixels before.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmrs import (
    _zmrs,
    crop,
    forecast,
    inputs,
    limits,
    photometry,
    post_stack,
    sds,
    selection,
    survey,
)
from zmrs.backends.choose import Backend, obstacle
from zmrs.config import without_effect
from zmrs.errors import BudgetError, InputError, UsageError
from zmrs.events import Clock
from zmrs.grid import Grid, input_pixel_scale_arcsec, make_grid
from zmrs.memory import Allowance, allowance
from zmrs.mixtures import warn_of_copies, warn_of_mixtures
from zmrs.placing import Placed, no_scratch, place
from zmrs.plan import Plan, check_gpu, given_plan
from zmrs.probe import detect_capabilities
from zmrs.room import Room, computed_by, room_for
from zmrs.scan import LeftOut
from zmrs.solving import find_solver, solve_frames
from zmrs.weight_rule import weight_rule
from zmrs.weights import are_counts, warn_of_unknown, weighed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zmrs.backends.base import CoverageDevice, Device
    from zmrs.config import Options
    from zmrs.events import Event
    from zmrs.finished import Finished
    from zmrs.probe import Capabilities
    from zmrs.solving import Solver

    Listener = Callable[[Event], object] | None

__all__ = ["Prepared", "are_matched", "job_of", "leave_out", "needs_depth", "prepare", "stack_job"]

log = logging.getLogger("zmrs")

_SWEEP_LEAVES_BYTES = 8 << 20
"""What a sweep for ``--select`` leaves in the process at most: libraries that it has brought."""

_MOSTLY_EMPTY = 10.0
"""An output of more than so many times the inputs' area is warned of."""


@dataclass(frozen=True)
class Prepared:
    """A job with its plan, before its pixels are read.

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
    base
        The finished mosaic to which inputs are added, the first of them; None for a new one.
    backend
        What computes the passes, as far as their plans allow it.
    selection
        The choice among the inputs as they were given.
    job
        What the engine will compute of the inputs.
    batches
        The inputs in the batches that are combined first; empty unless they are.
    batch_layouts
        How the pass of each batch is cut, by its number.
    layout
        How the last job is cut: that of the inputs, or of the stacks of their batches.
    room
        What there is for it.
    allowed
        Where the memory limit comes from.
    reserved_bytes
        What the process holds before the pass, and what the table of an updated mosaic will take.
    n_passes
        How often the inputs are combined.
    matching_bytes
        Of the inputs that are read before the passes, to be matched.
    compressed_bytes
        Of compressed input files, which are read whole before the pass.
    survey_bytes
        Of the inputs that are read to know what they are: zeros, dead frames, noise.
    weight_unit
        What weighs 1, as `zmrs.weights.weighed` says.
    scratch_bytes
        What lies in scratch files.
    seconds
        Time that each step took.
    forecast_s
        Time that everything will take, start to end.
    """

    grid: Grid
    channels: int
    placed: list[Placed]
    left_out: list[LeftOut]
    base: Finished | None
    backend: Backend
    selection: selection.Selection
    job: _zmrs.Job
    batches: list[sds.Batch]
    batch_layouts: dict[int, _zmrs.Layout]
    layout: _zmrs.Layout
    room: Room
    allowed: Allowance
    reserved_bytes: int
    n_passes: int
    matching_bytes: int
    compressed_bytes: int
    survey_bytes: int
    weight_unit: float | None
    scratch_bytes: int
    seconds: dict[str, float]
    forecast_s: float

    @property
    def read_bytes(self) -> int:
        """Bytes that will be read."""
        passes = self.n_passes * self.layout.read_bytes
        passes += sum(self.batch_layouts[batch.number].read_bytes for batch in self.batches)
        looks = self.selection.read_bytes + self.survey_bytes
        return passes + self.matching_bytes + self.compressed_bytes + looks

    @property
    def worst(self) -> _zmrs.Layout:
        """The layout of the pass that takes most memory."""
        layouts = [self.layout, *self.batch_layouts.values()]
        return max(layouts, key=lambda layout: layout.projected_bytes)

    @property
    def plan(self) -> Plan:
        """The resources, as the engine uses them."""
        return self.layout.plan

    def device_for(self, job: _zmrs.Job, layout: _zmrs.Layout) -> Device | None:
        """What computes a pass in the place of the engine's workers; None for those."""
        return self.backend.device_for(job, layout.plan)

    def coverage_for(self, job: _zmrs.Job, layout: _zmrs.Layout) -> CoverageDevice | None:
        """What does the work on the coverage in the workers' place; None for those."""
        return self.backend.coverage_for(job, layout.plan)


def prepare(
    given: Iterable[Any],
    options: Options,
    *,
    grid: tuple[Any, tuple[int, int]] | None = None,
    weights: Sequence[Any] | None = None,
    plan: Plan | None = None,
    held_bytes: int = 0,
    in_memory: bool = False,
    scratch: Callable[[str], Path] | None = None,
    listener: Listener = None,
    base: Finished | None = None,
) -> Prepared:
    """Everything up to the first pixel: scan, selection, grid, geometry, plan.

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
        Gives the path of a scratch file from its name; None makes the job fail where one is needed.
    listener
        Receives `zmrs.events.Event` objects.
    base
        A finished mosaic to which the inputs are added; its grid is the output's.

    Raises
    ------
    ZmrsError
        No usable input, no sensible grid, a job that does not fit, or a GPU or solver demanded in
        vain.
    """
    solver = find_solver(options.solver)
    seconds: dict[str, float] = {}
    # A peak from before this job is nobody's to plan for.
    limits.forget_peak()
    peak_before = limits.peak_resident_bytes()
    for sentence in without_effect(options):
        log.warning("%s", sentence)
    caps, allowed = _machine(options, plan, held_bytes)
    if options.scratch is not None and not Path(options.scratch).is_dir():
        raise UsageError(f"--scratch {options.scratch}: there is no such folder; make it first.")
    clock = Clock(seconds)
    gathered = _gathered(list(given), options, weights, solver, clock, listener)
    # A plan that the caller brings has a say in the limit.
    limit = allowed if plan is None else given_plan(plan, options, caps, allowed)[1]
    selected = _selected(gathered, options, base, limit, clock, listener)
    images = selected.images
    together = images if base is None else [base.image, *images]
    channels = inputs.channels_of(together[0])
    chosen = _choose_grid(images, options, grid) if base is None else base.grid
    log.info("grid %s", chosen.description())
    _warn_of_emptiness(chosen, together)
    clock.lap("grid")

    spare = allowed.bytes - limits.resident_bytes()
    placed, off_grid = place(
        images, selected.weights, chosen, options, scratch or no_scratch, spare, listener
    )
    leave_out([left.reason for left in off_grid], len(placed), options)
    placed, weight_unit = weighed(
        placed, options.weight_by, unit=None if base is None else base.weight_unit
    )
    warn_of_unknown(placed, options.weight_by)
    if base is not None:
        placed = [base.placed(), *placed]
    clock.lap("geometry")

    threshold = (plan or Plan()).two_pass_coverage_threshold
    job = job_of(channels, chosen, placed, options, threshold)
    batches, last, last_options = [], job, options
    if options.has_batches:
        batches = sds.plan_batches(job, placed, chosen, options)
        log.info("%d subs in %d batches", len(placed), len(batches))
        last, _ = stack_job(batches, channels, chosen, options, threshold)
        last_options = sds.stack_options(options)
    room_on = partial(
        room_for, chosen, placed, options, allowed, plan, peak_before, base, in_memory
    )
    backend, room = computed_by(options, plan, caps, allowed, (job, batches, last), room_on)
    if selected.unmet_bytes:
        # It will refuse, and name a limit that does for everything.
        room = replace(
            room,
            planning_peak_bytes=selected.unmet_bytes,
            reserved_bytes=room.reserved_bytes + _SWEEP_LEAVES_BYTES,
        )
    batch_layouts, layout = room.cut(job, batches, last)
    survey_bytes = _zmrs.survey_bytes(job, survey.questions(placed, options))
    clock.lap("plan")
    of_batches = [*batch_layouts.values()]
    scratch_bytes = _scratch_bytes(job, channels, [*of_batches, layout], batches, placed, options)
    return Prepared(
        grid=chosen,
        channels=channels,
        placed=placed,
        left_out=gathered.left_out + selected.left_out + off_grid,
        base=base,
        backend=backend,
        selection=selected,
        job=job,
        batches=batches,
        batch_layouts=batch_layouts,
        layout=layout,
        room=room,
        allowed=room.allowed,
        reserved_bytes=room.reserved_bytes,
        n_passes=2 if options.two_pass else 1,
        matching_bytes=(job.input_bytes if are_matched(options, placed) else 0)
        + (last.input_bytes if batches and last_options.match != "none" else 0),
        compressed_bytes=sum(
            inputs.file_bytes(packed.storage) for one in placed for packed in one.packed()
        ),
        survey_bytes=survey_bytes,
        weight_unit=weight_unit,
        scratch_bytes=scratch_bytes,
        seconds=seconds,
        forecast_s=sum(seconds.values())
        + sds.forecast_s(of_batches, options, matches=are_matched(options, placed))
        + forecast.seconds(
            layout,
            last_options.kernel,
            last_options.combine,
            matches=are_matched(last_options, placed),
            pixels=chosen.height * chosen.width if options.two_pass else 0,
            survey_bytes=survey_bytes,
            variance=options.variance,
        ),
    )


def _machine(
    options: Options, plan: Plan | None, held_bytes: int
) -> tuple[Capabilities, Allowance]:
    """The machine, and the memory limit on it."""
    caps = detect_capabilities(gpu=False)
    allowed = allowance(options.memory, caps.limits, held_bytes)
    allowed.check_libraries(limits.resident_bytes())
    _warn_of_scarcity(allowed, caps)
    without = obstacle(options.gpu, plan)
    if without is not None:
        check_gpu(options, plan, without_gpu=without.reason, note=without.note)
    return caps, allowed


def _gathered(
    given: Sequence[Any],
    options: Options,
    weights: Sequence[Any] | None,
    solver: Solver | None,
    clock: Clock,
    listener: Listener,
) -> inputs.Gathered:
    """What was given, as images with what weighs them; `solver` looks for a missing WCS."""
    rule = weight_rule(options.weights, options.weight_type)
    if options.weight_type != "weight" and rule.is_optional and not weights:
        raise UsageError(
            f"--weight-type {options.weight_type}: there are no weights; name them with --weights."
        )
    gathered = inputs.gather(
        given, hdu=options.hdu, recursive=options.recursive, rule=rule, weights=weights
    )
    clock.lap("scan")
    if solver is not None:
        gathered.results = solve_frames(
            gathered.results,
            solver,
            rule=rule,
            limit_s=options.solver_timeout,
            scratch=options.scratch,
            listener=listener,
        )
        clock.lap("solve")
    if options.debayer == "none":
        gathered.results = [inputs.as_stored(result) for result in gathered.results]
    return gathered


def _selected(
    gathered: inputs.Gathered,
    options: Options,
    base: Finished | None,
    limit: Allowance,
    clock: Clock,
    listener: Listener,
) -> selection.Selection:
    """The images that are used, which share their number of channels."""
    images = _usable(gathered, options)
    if base is not None:
        images = _unknown(gathered, base, options)
    inputs.check_channels(images if base is None else [base.image, *images])
    selected = selection.select(gathered, options, limit.bytes, listener)
    leave_out(selected.damaged, len(selected.images), options)
    warn_of_mixtures(selected.images, None if base is None else base.image)
    warn_of_copies(selected.images)
    clock.lap("select")
    return selected


def _scratch_bytes(
    job: _zmrs.Job,
    channels: int,
    layouts: Sequence[_zmrs.Layout],
    batches: Sequence[sds.Batch],
    placed: Sequence[Placed],
    options: Options,
) -> int:
    """What scratch files will take at most, unless that is more than is allowed."""
    # All passes have one file for their bounds; only the last one is made twice.
    size = layouts[-1].two_pass_bytes + max(layout.bounds_bytes for layout in layouts)
    size += sds.scratch_bytes(batches, channels)
    size += sum(one.geometry.grid.scratch_bytes for one in placed)
    size += job.plane_bytes if needs_depth(placed, options) else 0
    packed = (packed for one in placed for packed in one.packed())
    size += sum(one.source.stored_bytes for one in packed if one.unpacked_at is not None)
    if options.scratch_max is not None and size > options.scratch_max:
        instead = ", or give --batch 0, which needs none for batches" if batches else ""
        raise BudgetError(
            f"scratch files would take {-(-size >> 20)} MiB, and --scratch-max allows "
            f"{options.scratch_max / 2**20:.4g}; raise it{instead}."
        )
    return size


def stack_job(
    batches: Sequence[sds.Batch],
    channels: int,
    grid: Grid,
    options: Options,
    threshold: float,
    scratch: Callable[[str], Path] = Path,
) -> tuple[_zmrs.Job, list[Placed]]:
    """The job that combines the stacks of batches, and these; made or not."""
    tiles = sds.mega_tiles_of(batches, channels, grid, scratch)
    return job_of(channels, grid, tiles, sds.stack_options(options), threshold), tiles


def _usable(gathered: inputs.Gathered, options: Options) -> list[inputs.Image]:
    """The images that can be used; the others are warned of, or stop a strict run."""
    for warning in gathered.warnings:
        log.warning("%s", warning)
    if not gathered.images and not gathered.left_out:
        raise InputError("there are no inputs; name FITS files, folders or @lists.")
    own = [left.reason for left in gathered.left_out if left.is_own]
    for reason in own:
        log.info("left out: %s", reason)
    if not gathered.images and all(left.is_missing for left in gathered.left_out):
        raise FileNotFoundError(gathered.left_out[0].reason)
    bad = [left.reason for left in gathered.left_out if not left.is_own]
    leave_out(bad or (own if not gathered.images else []), len(gathered.images), options)
    return gathered.images


def _unknown(gathered: inputs.Gathered, base: Finished, options: Options) -> list[inputs.Image]:
    """The images that are not in a mosaic yet; the others get no second row in its table."""
    images = gathered.images
    found = [images[number] for number in base.known_among(images)]
    if found:
        gathered.drop(found)
        leave_out([base.already(found)], len(gathered.images), options)
    return gathered.images


def leave_out(reasons: Sequence[str], n_usable: int, options: Options) -> None:
    """Warn of the inputs that are left out, or stop: when strict, or when no other is left."""
    if reasons and (options.strict or (n_usable == 0 and len(reasons) == 1)):
        raise InputError(reasons[0])
    for reason in reasons:
        log.warning("left out: %s", reason)
    if n_usable == 0:
        raise InputError(
            f"none of the {len(reasons)} inputs can be used; of the first it is said: {reasons[0]}"
        )


def _warn_of_scarcity(allowed: Allowance, caps: Capabilities) -> None:
    """More memory may be asked for than there is, but seldom knowingly."""
    scarcest = min(caps.limits, key=lambda limit: limit.room_bytes, default=None)
    if scarcest is not None and allowed.bytes > scarcest.room_bytes:
        log.warning(
            "%.0f MiB of memory are allowed, but the %s leaves %.0f MiB; the system may swap",
            allowed.bytes / 2**20,
            scarcest.source,
            scarcest.room_bytes / 2**20,
        )


def _warn_of_emptiness(grid: Grid, images: Sequence[inputs.Image]) -> None:
    """A grid that the inputs fill to a small part was stretched by one of them, most likely."""
    filled = sum(
        height * width * (input_pixel_scale_arcsec(image.wcs, (height, width)) ** 2)
        for image in images
        for height, width in [inputs.shape_of(image)]
    )
    scale_arcsec = input_pixel_scale_arcsec(grid.wcs, grid.shape)
    times = grid.height * grid.width * scale_arcsec**2 / filled
    if times > _MOSTLY_EMPTY:
        log.warning(
            "the output is %.0f times as large as all inputs together; is one of them astray?",
            times,
        )


def _choose_grid(
    images: Sequence[inputs.Image],
    options: Options,
    given: tuple[Any, tuple[int, int]] | None,
) -> Grid:
    if given is not None:
        return Grid(given[0].celestial, int(given[1][0]), int(given[1][1]))
    shapes = [(image.wcs, inputs.shape_of(image)) for image in images]
    names = [image.name for image in images]
    grid = make_grid(
        shapes,
        names=names,
        template=options.wcs,
        scale_arcsec=options.scale,
        center=options.center,
        size=options.size,
        projection=options.projection,
        frame=options.frame,
        rotate_deg=options.rotate,
        max_output_pixels=options.max_output_pixels,
    )
    is_ours = options.wcs is None and options.center is None and options.size is None
    if options.mode == "sds" and options.autocrop and is_ours:
        return crop.cropped(grid, shapes, names)
    return grid


def job_of(
    channels: int, grid: Grid, placed: Sequence[Placed], options: Options, threshold: float
) -> _zmrs.Job:
    """Everything that determines the pixels, as the engine takes it."""
    each = [one.for_engine() for one in placed]
    is_update = any(one.is_base for one in placed)
    rules = (options.two_pass_sigma, *post_stack.clip_of(options), threshold)
    return _zmrs.Job(
        (channels, *grid.shape),
        options.kernel,
        options.combine,
        each,
        kappa=options.kappa,
        winsor=options.winsor,
        together=options.reject_together,
        **photometry.rules(options, matches=are_matched(options, placed), is_update=is_update),
        two_pass=rules if options.two_pass else None,
        variance=options.variance,
    )


def are_matched(options: Options, placed: Sequence[Placed]) -> bool:
    """Whether inputs are compared: one alone has nothing to agree with."""
    return options.match != "none" and len(placed) > 1


def needs_depth(placed: Sequence[Placed], options: Options) -> bool:
    """Whether the Two-Pass has to count inputs because their coverage does not."""
    return options.two_pass and not are_counts(placed, options.weight_by)
