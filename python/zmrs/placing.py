"""Where every input lies on the output grid, and what the engine needs to read it."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmrs import _zmrs, inputs
from zmrs.errors import BudgetError, DiskFullError, ZmrsError
from zmrs.events import Stage
from zmrs.io.storage import Storage
from zmrs.scan import InputImage, LeftOut
from zmrs.weights import border_margins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from zmrs.config import Options
    from zmrs.coordinates import Geometry
    from zmrs.events import Event
    from zmrs.grid import Grid

__all__ = ["Placed", "no_scratch", "place", "scratch_folder"]

log = logging.getLogger("zmrs")

_MOST_UNPACKED_BYTES = 64 << 20
"""Compressed inputs that take more are decompressed into scratch.  It does not follow the memory
limit, so that what fits into one fits into a larger one."""

_MODEST_BYTES = 16 << 20
"""Coordinates that take less are not worth a refusal of their own."""


@dataclass(frozen=True)
class Placed:
    """An input that touches the output: its image, where output pixels fall in it, its weights.

    Attributes
    ----------
    image, geometry, source
        The image, where output pixels fall in it, and its pixels as the engine reads them.
    weight
        Of the whole; `own_weight` is what a caller has given it.
    weight_map, map_kind, map_storage
        Weights of its pixels, what they mean, and where they stand if in a file.
    alpha_full
        Value of an opaque pixel, where they are opacities.
    border_px
        Columns and rows that are left out at each of its edges.
    feather_px
        Width of the ramp at the edges of what is left, in its pixels.
    zero_is_blank
        Whether pixels of exactly 0 are invalid.
    noise
        Variance of the noise of its pixels by channel, NaN if it cannot be told; None before it is
        looked for, or where `has_variances`.
    unpacked_at, map_unpacked_at
        Scratch files into which its pixels and weights are decompressed, if they are.
    is_base
        Whether it is the finished mosaic that is updated: its pixels weigh by its coverage, and its
        level stays.
    """

    image: inputs.Image
    geometry: Geometry
    source: _zmrs.Source
    weight: float = 1.0
    own_weight: float = 1.0
    weight_map: _zmrs.Source | None = None
    map_kind: str = "weight"
    map_storage: Storage | None = None
    alpha_full: float = 1.0
    border_px: tuple[int, int] = (0, 0)
    feather_px: float = 0.0
    zero_is_blank: bool = False
    noise: tuple[float, ...] | None = None
    unpacked_at: Path | None = None
    map_unpacked_at: Path | None = None
    is_base: bool = False

    @property
    def has_variances(self) -> bool:
        """Whether its weights say the variances of its pixels, not just their proportions."""
        return self.weight_map is not None and self.map_kind in ("variance", "rms")

    @property
    def has_unknown_scale(self) -> bool:
        """Whether only a look at its weights tells which value means opaque."""
        return (
            self.map_kind == "alpha" and self.map_storage is not None
        ) and self.map_storage.bitpix > 0

    def packed(self) -> list[inputs.Packed]:
        """What the engine cannot read in place: its image, its weights, both or neither."""
        stored = [(self.weight_map, self.map_storage, self.map_unpacked_at)]
        if isinstance(self.image, InputImage):
            stored.insert(0, (self.source, self.image.storage, self.unpacked_at))
        return [
            inputs.Packed(source, store, at)
            for source, store, at in stored
            if source is not None and store is not None and store.compressed
        ]

    def for_engine(self) -> _zmrs.Input:
        """The input as the engine takes it."""
        return _zmrs.Input(
            os.fsencode(self.image.name).decode(errors="replace"),
            self.source,
            self.geometry.grid,
            weight=self.weight,
            weight_map=self.weight_map,
            map_kind=self.map_kind,
            alpha_full=self.alpha_full,
            border_px=self.border_px,
            feather_px=self.feather_px,
            zero_is_blank=self.zero_is_blank,
            saturation=self.image.meta.saturate,
            noise=self.noise,
        )


def place(
    images: Sequence[inputs.Image],
    weights: Sequence[Any],
    grid: Grid,
    options: Options,
    scratch: Callable[[str], Path],
    spare_bytes: int,
    listener: Callable[[Event], object] | None,
) -> tuple[list[Placed], list[LeftOut]]:
    """Where every input lies on the grid; those that do not touch it are left out."""
    from zmrs.coordinates import NODE_BYTES, TooManyNodesError, locate  # noqa: PLC0415

    stage = Stage(listener, "geometry", len(images), "files")
    placed, left_out = [], []
    for number, image in enumerate(images):
        where = (image.wcs, inputs.shape_of(image))
        # With next to nothing left the engine refuses the job, and names a limit that works.
        most_nodes = max(spare_bytes, _MODEST_BYTES) // NODE_BYTES
        try:
            exact = partial(scratch, f"coordinates-{number}")
            geometry = locate((grid.wcs, grid.shape), where, exact, most_nodes=most_nodes)
        except OSError as error:
            raise DiskFullError(
                f"{image.name}: its exact coordinates cannot be kept on disk ({error}); name a "
                "roomier folder with --scratch."
            ) from error
        except TooManyNodesError as error:
            needed = error.n_nodes * NODE_BYTES
            raise BudgetError(
                f"{image.name}: its coordinates alone would take about {needed >> 20} MiB, and "
                f"{spare_bytes >> 20} MiB are left; set a coarser --scale, or a --memory larger by "
                f"{(needed - spare_bytes >> 20) + 1} MiB."
            ) from error
        if geometry is None:
            reason = (
                f"{image.name}: it does not touch the output grid; leave it out, or make a mosaic "
                "whose grid holds it."
            )
            left_out.append(LeftOut(image.name, reason))
        else:
            placed.append(_placed(image, geometry, weights[number], options))
            if geometry.exact_fraction > 0.5:
                log.warning(
                    "%s: its distortion does not interpolate to the bound; exact "
                    "coordinates are kept on disk (slower)",
                    image.name,
                )
            log.debug(
                "%s: coordinates every %d px, error %.1e px, exact cells %.1f %%",
                image.name,
                geometry.grid.spacing,
                geometry.error_px,
                100 * geometry.exact_fraction,
            )
        stage.advance(number + 1)
    stage.end()
    unpacked_bytes = sum(packed.source.stored_bytes for one in placed for packed in one.packed())
    if unpacked_bytes > _MOST_UNPACKED_BYTES:
        placed = [_to_scratch(one, number, scratch) for number, one in enumerate(placed)]
    return placed, left_out


def _to_scratch(one: Placed, number: int, scratch: Callable[[str], Path]) -> Placed:
    """An input that is decompressed into scratch, where it is compressed."""
    changes: dict[str, Any] = {}
    for packed in one.packed():
        if packed.source is one.source:
            at = scratch(f"unpacked-{number}")
            saturation = one.image.meta.saturate
            changes["source"] = inputs.stored_source(packed.storage, saturation, at)
            changes["unpacked_at"] = at
        else:
            at = scratch(f"unpacked-weights-{number}")
            changes["weight_map"] = inputs.stored_source(packed.storage, unpacked_at=at)
            changes["map_unpacked_at"] = at
    return replace(one, **changes)


def _placed(image: inputs.Image, geometry: Geometry, weight: Any, options: Options) -> Placed:
    weights = inputs.weights_of(weight, image, options.weight_type)
    stored = weights.storage
    rows, columns = border_margins(inputs.shape_of(image), options.border_mask)
    return Placed(
        image,
        geometry,
        inputs.source_of(image),
        weight=weights.scalar,
        own_weight=weights.scalar,
        weight_map=weights.source,
        map_kind=weights.kind,
        map_storage=stored,
        alpha_full=255.0 if stored is not None and stored.bitpix == 8 else 1.0,
        border_px=(columns, rows),
        feather_px=options.feather,
        zero_is_blank=options.zero_is_blank == "on",
    )


def no_scratch(name: str) -> Path:
    """Refuse: nobody said where scratch files may be."""
    del name
    raise ZmrsError("a scratch file is needed but there is no place for one; give --scratch.")


@contextlib.contextmanager
def scratch_folder(parent: str | Path | None) -> Iterator[Callable[[str], Path]]:
    """A folder for scratch files that appears with the first of them and is always removed.

    What it gives turns a name into a path.
    """
    with contextlib.ExitStack() as stack:
        folder: list[Path] = []

        def path_of(name: str) -> Path:
            if not folder:
                made = tempfile.TemporaryDirectory(dir=parent, prefix=".zmrs-scratch-")
                folder.append(Path(stack.enter_context(made)))
            return folder[0] / name

        yield path_of
