"""The Python interface: a function for a new mosaic, one for more frames in it."""

from __future__ import annotations

import operator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmrs import limits
from zmrs.config import COMBINES, GPUS, KERNELS, MATCHES, Options, parse, with_preset
from zmrs.errors import UsageError
from zmrs.finished import read_finished
from zmrs.memory import parse_memory
from zmrs.pipeline import Result, make_mosaic
from zmrs.plan import Plan
from zmrs.settings import setting
from zmrs.sky import is_known_sky

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from zmrs.events import Event

__all__ = ["mosaic", "update"]

_MOST_THREADS = 1 << 31


def mosaic(
    inputs: Iterable[Any],
    output: str | Path | None = None,
    *,
    memory: int | str | None = None,
    threads: int | None = None,
    mode: str = "normal",
    kernel: str = "bilinear",
    combine: str | None = None,
    match: str = "offset",
    two_pass: bool | None = None,
    variance: bool = False,
    weights: Iterable[Any] | str | None = None,
    wcs: Any = None,
    shape: tuple[int, int] | None = None,
    plan: Any = None,
    gpu: str = "auto",
    overwrite: bool = False,
    progress: Callable[[Event], object] | None = None,
    **options: Any,
) -> Result:
    """Make one mosaic of many overlapping images.

    Parameters
    ----------
    inputs
        Paths (files, folders, globs, ``@list``), HDUs, ``(array, wcs)`` pairs or ``NDData``, in
        any mix.  Arrays are (H, W) or (C, H, W), any real type; NaN is invalid; they are used in
        place and must not change meanwhile.
    output
        FITS file to make; None gives the mosaic as arrays.
    memory
        The most that the call may add to the resident memory of the process: bytes, or text such
        as ``"512MiB"``, ``"2GB"``, ``"50%"``; None is 60 % of the least limit of the system.
    threads
        Worker threads at most; None is all processors but one in twenty.
    mode
        ``normal`` combines the inputs at once; ``sds`` combines thousands of subs in batches first,
        and then the stacks of these: ``batch``, ``sds_min_batch``, ``sds_target_batch``,
        ``sds_coverage``, ``sds_combine``, ``sds_min_coverage_keep`` and ``autocrop`` among the
        `options` say how.
    kernel
        ``nearest``, ``bilinear``, ``bicubic``, ``lanczos2`` or ``lanczos3``.
    combine
        ``mean``, ``sum``, ``min``, ``max``, ``first``, ``last``, ``median``, or a rejecting one:
        ``kappa-sigma``, ``kappa-sigma-stream``, ``winsorized``, ``winsorized-reference``,
        ``winsor-percentile``; ``kappa``, ``winsor`` and ``reject_together`` among the `options` say
        how.
    match
        Photometric matching: ``offset`` brings inputs to a common sky level where they overlap,
        ``gain`` to a common scale before, ``none`` takes them as they are; ``match_gain_limits``,
        ``match_offset_limit`` and ``match_sky`` among the `options` say how.
    two_pass
        Even out the brightness of the inputs by their coverage, in a second pass;
        ``two_pass_sigma`` and ``two_pass_gain_clip`` among the `options` say how.  None is as the
        ``preset`` among them says: no.
    variance
        Find the variance of every pixel, too (``result.variance``, or the extension ``VAR``): that
        of the inputs' pixels, as maps of the ``weight_type`` variance or rms say it, else as it is
        measured, one for each input and channel, carried through kernel, gains, weights and
        combine.
    weights
        One per entry of `inputs`: None, a number above 0, or an array (H, W) of its shape, whose
        values are what the option ``weight_type`` says; values that make no weight above 0, and
        NaN, mark invalid pixels.  Numbers multiply what ``weight_by`` gives.  As text, where files
        have their weights: an extension or ``s/OLD/NEW/``.
    wcs, shape
        Output grid: an `astropy.wcs.WCS` or a header with its (H, W), or the path of a template;
        None is the optimal grid of the inputs.
    plan
        Resources: a `zmrs.Plan`, any object or mapping with its fields; None makes one.
    gpu
        ``auto`` computes on a GPU where that can be done, ``off`` never, ``on`` fails where it
        cannot be done; but a `plan` whose ``use_gpu`` is False goes before.
    overwrite
        Replace an existing output.
    progress
        Called with `zmrs.events.Event` objects while the job runs; what it raises stops the job.
    **options
        The other fields of `zmrs.config.Options`: ``hdu``, ``recursive``, ``scale``, ``center``,
        ``size``, ``projection``, ``frame``, ``rotate``, ``max_output_pixels``, ``strict``,
        ``scratch``, ``kappa``, ``winsor``, ``reject_together``, ``match_gain_limits``,
        ``match_offset_limit``, ``match_sky``, ``two_pass_sigma``, ``two_pass_gain_clip``,
        ``preset``, ``weight_type``, ``weight_by``, ``border_mask``, ``feather``, ``zero_is_blank``,
        ``solver``, ``solver_timeout``.

    Returns
    -------
    Result
        ``data`` (read from the file when first asked for), ``coverage``, ``variance``, ``wcs``,
        ``plan``, ``inputs`` and ``stats``.

    Raises
    ------
    zmrs.errors.ZmrsError
        One of its subclasses, with one sentence; nothing is left behind.
    """
    _check_choices(
        ("kernel", kernel, KERNELS),
        ("combine", combine, (None, *COMBINES)),
        ("match", match, MATCHES),
        ("gpu", gpu, GPUS),
    )
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    threads = _threads(threads)
    plan = _plan(plan)
    if shape is not None and isinstance(wcs, str | Path):
        raise UsageError("shape: the template says it already; drop one of the two.")
    options |= {"overwrite": overwrite, "variance": variance}
    modal = {"combine": combine, "two_pass": two_pass}
    options |= {name: value for name, value in modal.items() if value is not None}
    _check_options(options, wcs)
    template = str(wcs) if isinstance(wcs, str | Path) else None
    if isinstance(weights, str):
        options["weights"], weights = weights, None
    given = {
        "memory": parse_memory(memory),
        "threads": threads,
        "mode": mode,
        "kernel": kernel,
        "match": match,
        "gpu": gpu,
        "wcs": template,
    }
    chosen = with_preset(given | options)
    return make_mosaic(
        inputs,
        None if output is None else Path(output),
        chosen,
        grid=_grid(wcs, shape) if template is None else None,
        weights=None if weights is None else list(weights),
        plan=plan,
        held_bytes=limits.resident_bytes(),
        listener=progress,
    )


def update(
    path: str | Path,
    inputs: Iterable[Any],
    output: str | Path | None = None,
    *,
    memory: int | str | None = None,
    threads: int | None = None,
    kernel: str | None = None,
    match: str | None = None,
    weights: Iterable[Any] | str | None = None,
    plan: Any = None,
    gpu: str = "auto",
    overwrite: bool = False,
    progress: Callable[[Event], object] | None = None,
    **options: Any,
) -> Result:
    """Add images to a finished mean mosaic, without the old ones.

    Parameters
    ----------
    path
        FITS file of the mosaic; it keeps its grid and its level.
    inputs
        As for `mosaic`; files that are in the mosaic already are left out.
    output
        FITS file to make; None replaces `path`, once the new one is complete.
    kernel, match
        As for `mosaic`; None is as the mosaic was made, and so it is for ``weight_by``,
        ``border_mask``, ``feather``, ``weights``, ``weight_type`` and ``zero_is_blank``.
    memory, threads, weights, plan, gpu, overwrite, progress
        As for `mosaic`.
    **options
        The other fields of `zmrs.config.Options` that a finished mosaic leaves open.

    Returns
    -------
    Result
        As of `mosaic`; ``inputs`` are those of the whole mosaic, the old ones first.

    Raises
    ------
    zmrs.errors.ZmrsError
        One of its subclasses, with one sentence; the mosaic is as it was.
    """
    held_bytes = limits.resident_bytes()
    _check_choices(
        ("kernel", kernel, (None, *KERNELS)), ("match", match, (None, *MATCHES)), ("gpu", gpu, GPUS)
    )
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    _check_options(options, None)
    if isinstance(weights, str):
        options["weights"], weights = weights, None
    plan = _plan(plan)
    base = read_finished(Path(path))
    given = {
        "memory": parse_memory(memory),
        "threads": _threads(threads),
        "kernel": kernel,
        "match": match,
        "gpu": gpu,
        "overwrite": overwrite,
    }
    chosen = {name: value for name, value in given.items() if value is not None} | options
    return make_mosaic(
        inputs,
        base.target(None if output is None else Path(output)),
        with_preset(base.defaults | chosen),
        weights=None if weights is None else list(weights),
        plan=plan,
        held_bytes=held_bytes,
        listener=progress,
        base=base,
    )


def _check_choices(*choices: tuple[str, Any, tuple[str | None, ...]]) -> None:
    """Refuse values that are none of those known: name, value and these."""
    for name, value, known in choices:
        if value not in known:
            raise UsageError(f"{name}: '{value}' is not one of {', '.join(filter(None, known))}.")


def _plan(source: Any) -> Plan | None:
    """A plan that the caller brings, in whatever form."""
    if source is None:
        return None
    if isinstance(source, str | bytes | int | float):
        raise UsageError(f"plan: {source!r} is no plan; give a zmrs.Plan or its fields.")
    plan = Plan.from_phase5(source)
    # Who says nothing of the GPU does not forbid it.
    return plan.replace(use_gpu=True) if setting(source, "use_gpu") is None else plan


def _threads(threads: Any) -> int | None:
    """A number of workers as `zmrs.config.Options` takes it."""
    if threads is None:
        return None
    try:
        number = operator.index(threads)
    except TypeError:
        number = 0
    if isinstance(threads, bool) or not 1 <= number <= _MOST_THREADS:
        raise UsageError(f"threads: {threads!r} cannot work; give a number of at least 1.")
    return number


def _check_options(options: dict[str, Any], wcs: Any) -> None:
    """Refuse options that do not exist, or that a given grid would leave without effect."""
    known = {option.name: option for option in fields(Options)}
    for name, value in options.items():
        if name not in known:
            raise UsageError(f"{name}: zmrs has no such option; see zmrs.config.Options.")
        kind = known[name].metadata["kind"]
        if isinstance(value, str) and kind not in ("text", "path"):
            options[name] = parse(known[name], value, name)
        elif kind == "flag" and not isinstance(value, bool):
            raise UsageError(f"{name}: {value!r} is neither True nor False.")
    shaping = ("scale", "center", "size", "projection", "frame", "rotate", "max_output_pixels")
    useless = [name for name in shaping if options.get(name) is not None]
    if useless and wcs is not None and not isinstance(wcs, str | Path):
        raise UsageError(f"wcs: it says the whole grid; drop it or {', '.join(useless)}.")


def _grid(wcs: Any, shape: tuple[int, int] | None) -> tuple[Any, tuple[int, int]] | None:
    """An output grid from a WCS or a header, and a shape."""
    if wcs is None:
        if shape is not None:
            raise UsageError("shape: it needs the output WCS with it; for a size alone use size=.")
        return None
    if not hasattr(wcs, "has_celestial"):
        from astropy.io.fits import Header  # noqa: PLC0415  (late: 0.3 s)
        from astropy.wcs import WCS  # noqa: PLC0415

        if not isinstance(wcs, Header):
            raise UsageError(f"wcs: a {type(wcs).__name__} is no WCS; give one, or a file's name.")
        wcs = WCS(wcs)
    if not wcs.has_celestial or not is_known_sky(wcs.celestial):
        raise UsageError("wcs: the output WCS is not equatorial or galactic.")
    if shape is None or len(shape) != 2 or min(shape) < 1:
        raise UsageError(f"shape: the output WCS needs the (H, W) of the output, not {shape}.")
    return wcs, (int(shape[0]), int(shape[1]))
