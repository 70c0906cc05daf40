"""The Python interface: one function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmrs import probe
from zmrs.config import COMBINES, KERNELS, MATCHES, Options
from zmrs.errors import UsageError
from zmrs.pipeline import Result, make_mosaic
from zmrs.plan import Plan, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zmrs.events import Event

__all__ = ["mosaic"]


def mosaic(
    inputs: Iterable[Any],
    output: str | Path | None = None,
    *,
    memory: int | str | None = None,
    threads: int | None = None,
    kernel: str = "bilinear",
    combine: str = "mean",
    match: str = "none",
    weights: Sequence[Any] | None = None,
    wcs: Any = None,
    shape: tuple[int, int] | None = None,
    plan: Any = None,
    overwrite: bool = False,
    progress: Callable[[Event], object] | None = None,
    **options: Any,
) -> Result:
    """Make one mosaic of many overlapping images.

    Parameters
    ----------
    inputs
        Paths (files, folders, globs, ``@list``), HDUs, ``(array, wcs)`` pairs or ``NDData``, in
        any mix.  Arrays are (H, W) or (C, H, W), any real type; NaN is invalid.
    output
        FITS file to make; None gives the mosaic as arrays.
    memory
        The most that the call may add to the resident memory of the process: bytes, or text such
        as ``"512MiB"``, ``"2GB"``, ``"50%"``; None is 60 % of the least limit of the system.
    threads
        Worker threads; None is all processors.
    kernel
        ``nearest``, ``bilinear``, ``bicubic``, ``lanczos2`` or ``lanczos3``.
    combine
        ``mean``, ``sum``, ``min``, ``max``, ``first`` or ``last``.
    match
        Photometric matching: ``none``.
    weights
        One per input: None, a number above 0, or an array (H, W) of the input's shape in which
        values not above 0, and NaN, mark invalid pixels.
    wcs, shape
        Output grid: an `astropy.wcs.WCS` and its (H, W), or the path of a template; None is the
        optimal grid of the inputs.
    plan
        Resources: a `zmrs.Plan`, any object or mapping with its fields; None makes one.
    overwrite
        Replace an existing output.
    progress
        Called with `zmrs.events.Event` objects while the job runs; what it raises stops the job.
    **options
        The other fields of `zmrs.config.Options`: ``hdu``, ``recursive``, ``scale``, ``center``,
        ``size``, ``projection``, ``frame``, ``rotate``, ``max_output_pixels``, ``strict``,
        ``scratch``.

    Returns
    -------
    Result
        ``data`` (read from the file when first asked for), ``coverage``, ``wcs``, ``plan``,
        ``inputs`` and ``stats``.

    Raises
    ------
    zmrs.errors.ZmrsError
        One of its subclasses, with one sentence; nothing is left behind.
    """
    for name, value, known in (
        ("kernel", kernel, KERNELS),
        ("combine", combine, COMBINES),
        ("match", match, MATCHES),
    ):
        if value not in known:
            raise UsageError(f"{name}: '{value}' is not one of {', '.join(known)}.")
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    given_plan = None if plan is None else Plan.from_phase5(plan)
    chosen = Options(
        memory=parse_size(memory) if isinstance(memory, str) else memory,
        threads=threads,
        kernel=kernel,
        combine=combine,
        match=match,
        overwrite=overwrite,
        wcs=wcs if isinstance(wcs, str) else None,
        **options,
    )
    grid = None
    if wcs is not None and not isinstance(wcs, str | Path):
        if shape is None:
            raise UsageError("shape: an output WCS needs the shape (H, W) of the output with it.")
        grid = (wcs, shape)
    return make_mosaic(
        inputs,
        None if output is None else Path(output),
        chosen,
        grid=grid,
        weights=weights,
        plan=given_plan,
        held_bytes=probe.resident_bytes(),
        listener=progress,
    )
