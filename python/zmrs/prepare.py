"""Everything up to the first pixel: scan → select → grid → geometry → plan.

It is all that ``zmrs plan`` needs; `zmrs.pipeline` does the rest.  Only ``--select`` looks at
pixels before.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
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
from zmrs.errors import BudgetError, InputError, UsageError
from zmrs.events import Clock
from zmrs.grid import Grid, input_pixel_scale_arcsec, make_grid
from zmrs.memory import Allowance, allowance
from zmrs.mixtures import warn_of_copies, warn_of_mixtures
from zmrs.placing import Placed, no_scratch, place
from zmrs.plan import Plan, check_gpu, describe, given_plan, phase5_plan
from zmrs.probe import detect_capabilities
from zmrs.scan import LeftOut
from zmrs.weight_rule import weight_rule
from zmrs.weights import are_counts, warn_of_unknown, weighed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zmrs.config import Options
    from zmrs.events import Event
    from zmrs.probe import Capabilities

    Listener = Callable[[Event], object] | None

__all__ = ["Prepared", "are_matched", "job_of", "leave_out", "needs_depth", "prepare", "stack_job"]

log = logging.getLogger("zmrs")

_HAS_GPU_BACKEND = False
"""Whether there is an engine that computes on a GPU."""

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
    selection
        The choice among the inputs as they were given.
    job
        What the engine will compute of the inputs.
    batches
        The inputs in the batches that are combined first; empty unless they are.
    layout
        How the last job is cut: that of the inputs, or of the stacks of their batches.
    allowed
        Where the memory limit comes from.
    reserved_bytes
        What the process holds before the pass.
    n_passes
        How often the inputs are combined.
    matching_bytes
        Of the inputs that are read before the passes, to be matched.
    compressed_bytes
        Of compressed input files, which are read whole before the pass.
    survey_bytes
        Of the inputs that are read to know what they are: zeros, dead frames, noise.
    inverse_variance
        Median of those that weigh the inputs; None unless they do.
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
    selection: selection.Selection
    job: _zmrs.Job
    batches: list[sds.Batch]
    layout: _zmrs.Layout
    allowed: Allowance
    reserved_bytes: int
    n_passes: int
    matching_bytes: int
    compressed_bytes: int
    survey_bytes: int
    inverse_variance: float | None
    scratch_bytes: int
    seconds: dict[str, float]
    forecast_s: float

    @property
    def read_bytes(self) -> int:
        """Bytes that will be read."""
        passes = self.n_passes * self.layout.read_bytes
        passes += sum(batch.layout.read_bytes for batch in self.batches)
        looks = self.selection.read_bytes + self.survey_bytes
        return passes + self.matching_bytes + self.compressed_bytes + looks

    @property
    def worst(self) -> _zmrs.Layout:
        """The layout of the pass that takes most memory."""
        layouts = [self.layout, *(batch.layout for batch in self.batches)]
        return max(layouts, key=lambda layout: layout.projected_bytes)

    @property
    def plan(self) -> Plan:
        """The resources, as the engine uses them."""
        return self.layout.plan


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

    Raises
    ------
    ZmrsError
        No usable input, no sensible grid, a job that does not fit, or a GPU demanded in vain.
    """
    check_gpu(options, plan, has_gpu_backend=_HAS_GPU_BACKEND)
    seconds: dict[str, float] = {}
    # A peak from before this job is nobody's to plan for.
    limits.forget_peak()
    peak_before = limits.peak_resident_bytes()
    # A GPU is not asked for: that costs seconds and memory, and no backend could use it yet.
    caps = detect_capabilities(gpu=False)
    allowed = allowance(options.memory, caps.limits, held_bytes)
    allowed.check_libraries(limits.resident_bytes())
    _warn_of_scarcity(allowed, caps)

    if options.scratch is not None and not Path(options.scratch).is_dir():
        raise UsageError(f"--scratch {options.scratch}: there is no such folder; make it first.")
    clock = Clock(seconds)
    gathered = _gathered(list(given), options, weights)
    channels = inputs.check_channels(_usable(gathered, options))
    clock.lap("scan")
    # A plan that the caller brings has a say in the limit.
    limit = allowed if plan is None else given_plan(plan, options, caps, allowed)[1]
    selected = selection.select(gathered, options, limit.bytes, listener)
    images = selected.images
    leave_out(selected.damaged, len(images), options)
    clock.lap("select")

    warn_of_mixtures(images)
    warn_of_copies(images)
    chosen = _choose_grid(images, options, grid)
    log.info("grid %s", chosen.description())
    _warn_of_emptiness(chosen, images)
    clock.lap("grid")

    spare = allowed.bytes - limits.resident_bytes()
    placed, off_grid = place(
        images, selected.weights, chosen, options, scratch or no_scratch, spare, listener
    )
    leave_out([left.reason for left in off_grid], len(placed), options)
    placed = weighed(placed, options.weight_by)
    warn_of_unknown(placed, options.weight_by)
    clock.lap("geometry")

    threshold = (plan or Plan()).two_pass_coverage_threshold
    job = job_of(channels, chosen, placed, options, threshold)
    room = _room(chosen, placed, options, caps, allowed, plan, peak_before)
    if selected.unmet_bytes:
        # It will refuse, and name a limit that does for everything.
        room = replace(room, planning_peak_bytes=selected.unmet_bytes)
    batches, last, last_options = [], job, options
    if options.has_batches:
        batches = sds.plan_batches(job, placed, chosen, options, room.fit)
        log.info("%d subs in %d batches", len(placed), len(batches))
        last, _ = stack_job(batches, channels, chosen, options, threshold)
        last_options = sds.stack_options(options)
    layout = room.fit(last, in_memory=in_memory)
    log.info("plan=%s (memory: %s)", describe(layout.plan), room.allowed.reason)
    survey_bytes = survey.foretold_bytes(job, placed, options)
    clock.lap("plan")
    scratch_bytes = _scratch_bytes(job, channels, layout, batches, placed, options)
    return Prepared(
        grid=chosen,
        channels=channels,
        placed=placed,
        left_out=gathered.left_out + selected.left_out + off_grid,
        selection=selected,
        job=job,
        batches=batches,
        layout=layout,
        allowed=room.allowed,
        reserved_bytes=room.reserved_bytes,
        n_passes=2 if options.two_pass else 1,
        matching_bytes=(job.input_bytes if are_matched(options, placed) else 0)
        + (last.input_bytes if batches and last_options.match != "none" else 0),
        compressed_bytes=sum(
            inputs.file_bytes(store) for one in placed for _, store in one.compressed()
        ),
        survey_bytes=survey_bytes,
        inverse_variance=None,
        scratch_bytes=scratch_bytes,
        seconds=seconds,
        forecast_s=sum(seconds.values())
        + sds.forecast_s(batches, options, matches=are_matched(options, placed))
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


def _gathered(
    given: Sequence[Any], options: Options, weights: Sequence[Any] | None
) -> inputs.Gathered:
    """What was given, as images with what weighs them."""
    rule = weight_rule(options.weights, options.weight_type)
    if options.weight_type != "weight" and rule.is_optional and not weights:
        raise UsageError(
            f"--weight-type {options.weight_type}: there are no weights; name them with --weights."
        )
    return inputs.gather(
        given, hdu=options.hdu, recursive=options.recursive, rule=rule, weights=weights
    )


@dataclass(frozen=True)
class _Room:
    """What there is for a job: its plan, the limit, and what the process holds already."""

    plan: Plan
    allowed: Allowance
    reserved_bytes: int
    planning_peak_bytes: int

    def fit(self, job: _zmrs.Job, *, in_memory: bool = False) -> _zmrs.Layout:
        """Cut a job so that it fits, or refuse."""
        try:
            return _zmrs.fit(
                job,
                self.plan,
                self.reserved_bytes,
                self.allowed.held_bytes,
                self.planning_peak_bytes,
                in_memory,
            )
        except BudgetError as error:
            raise BudgetError(self.allowed.advice(str(error))) from None


def _room(
    grid: Grid,
    placed: Sequence[Placed],
    options: Options,
    caps: Capabilities,
    allowed: Allowance,
    given: Plan | None,
    peak_before: int,
) -> _Room:
    # What was mapped meanwhile is lost to an address-space limit.
    allowed = allowed.within(limits.memory_limits())
    gpu = {"has_gpu_backend": _HAS_GPU_BACKEND}
    if given is None:
        plan = phase5_plan(grid, placed, options, caps, allowed=allowed, **gpu)
    else:
        plan, allowed = given_plan(given, options, caps, allowed, **gpu)
    peak = limits.peak_resident_bytes()
    return _Room(plan, allowed, limits.resident_bytes(), peak if peak > peak_before else 0)


def _scratch_bytes(
    job: _zmrs.Job,
    channels: int,
    layout: _zmrs.Layout,
    batches: Sequence[sds.Batch],
    placed: Sequence[Placed],
    options: Options,
) -> int:
    """What scratch files will take at most, unless that is more than is allowed."""
    size = layout.two_pass_bytes + layout.bounds_bytes + sds.scratch_bytes(batches, channels)
    size += sum(one.geometry.grid.scratch_bytes for one in placed)
    size += job.plane_bytes if needs_depth(placed, options) else 0
    if options.scratch_max is not None and size > options.scratch_max:
        instead = ", or give --batch 0, which needs none for batches" if batches else ""
        raise BudgetError(
            f"scratch files would take {(size >> 20) + 1} MiB, and --scratch-max allows "
            f"{options.scratch_max >> 20}; raise it{instead}."
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
    rules = (options.two_pass_sigma, *post_stack.clip_of(options), threshold)
    return _zmrs.Job(
        (channels, *grid.shape),
        options.kernel,
        options.combine,
        each,
        kappa=options.kappa,
        winsor=options.winsor,
        together=options.reject_together,
        **photometry.rules(options, matches=are_matched(options, placed)),
        two_pass=rules if options.two_pass else None,
        variance=options.variance,
    )


def are_matched(options: Options, placed: Sequence[Placed]) -> bool:
    """Whether inputs are compared: one alone has nothing to agree with."""
    return options.match != "none" and len(placed) > 1


def needs_depth(placed: Sequence[Placed], options: Options) -> bool:
    """Whether the Two-Pass has to count inputs because their coverage does not."""
    return options.two_pass and not are_counts(placed, options.weight_by)
