"""What decides the result of a job, as plain values: two jobs that agree in it are one."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmrs.config import as_text
from zmrs.scan import InputImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from zmrs.config import Options
    from zmrs.io.storage import Storage
    from zmrs.prepare import Prepared

__all__ = ["identity_of"]

_WITHOUT_EFFECT = (
    "memory",
    "threads",
    "recursive",
    "overwrite",
    "strict",
    "scratch",
    "scratch_max",
    "max_output_pixels",
    "resume",
    "journal_after",
    "gpu",
    "gpu_memory",
    "solver",
    "solver_timeout",
)
"""Options that say how, where or whether a job runs, never what comes of it; what a solver has
found is in the identity itself."""


def identity_of(prepared: Prepared, options: Options) -> Callable[[], dict[str, Any]] | None:
    """What tells a job from others; None where a caller's arrays are part of it.

    Files are known by path, size, time of change and header, which is read when the identity is
    asked for.
    """
    from zmrs import __version__  # noqa: PLC0415  (the package imports this module)

    stored = []
    for placed in prepared.placed:
        image = getattr(placed.image, "storage", None)
        if image is None or (placed.weight_map is not None and placed.map_storage is None):
            return None
        stored.append((image, placed.map_storage))
    solutions = {
        str(placed.image.name): placed.image.solution
        for placed in prepared.placed
        if isinstance(placed.image, InputImage) and placed.image.solution is not None
    }
    stamps = {path: _stamp(path) for pair in stored for path in _paths(*pair)}
    weights = [[one.own_weight, one.weight] for one in prepared.placed]
    chosen = {
        option.name: as_text(getattr(options, option.name))
        for option in fields(options)
        if option.name not in _WITHOUT_EFFECT
    }
    grid = {keyword: value for keyword, value, _ in prepared.grid.to_header()}
    threshold = prepared.plan.two_pass_coverage_threshold

    def identity() -> dict[str, Any]:
        return {
            "version": __version__,
            "options": chosen,
            "grid": grid | {"shape": list(prepared.grid.shape)},
            "two_pass_coverage_threshold": threshold,
            "inputs": {path: [*stamp, _header(path)] for path, stamp in stamps.items()},
            "solutions": solutions,
            "weights": weights,
            "is_update": prepared.base is not None,
            # They agree closely, not to the bit on every device: a mosaic is of one of them.
            "backend": "gpu" if prepared.plan.use_gpu else "cpu",
        }

    return identity


def _paths(image: Storage, weights: Storage | None) -> list[str]:
    return [str(Path(store.path).absolute()) for store in (image, weights) if store is not None]


def _stamp(path: str) -> list[int]:
    try:
        status = Path(path).stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _header(path: str) -> str:
    """Digest of the first blocks of a file, where its first header is."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.blake2b(file.read(5760), digest_size=8).hexdigest()
    except OSError:
        return ""
