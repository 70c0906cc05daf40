"""What a job has made: the mosaic, what became of every input, and the run in numbers."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from zmrs import limits
from zmrs.config import OPTION_CARDS
from zmrs.finished import UNIT_CARDS
from zmrs.io import cards
from zmrs.io.output import Image
from zmrs.plan import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from astropy.io.fits import Header
    from numpy.typing import NDArray

    from zmrs.config import Options
    from zmrs.passes import Arrays
    from zmrs.photometry import Matching
    from zmrs.plan import Plan
    from zmrs.post_stack import TwoPass
    from zmrs.prepare import Prepared
    from zmrs.sds import MegaTiles
    from zmrs.stretch import Totals

_Number = TypeVar("_Number", bound=np.generic)

__all__ = [
    "Result",
    "Run",
    "all_rows",
    "figures_of",
    "header_of",
    "images_of",
    "log_result",
    "rows_of",
]

log = logging.getLogger("zmrs")

_ALWAYS_TOLD = ("kernel", "match", "weight_by")


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
    _arrays: Arrays | None = field(repr=False)

    @cached_property
    def data(self) -> NDArray[np.float32]:
        """Image, (H, W) or (C, H, W) float32; NaN where nothing covers. Read when asked for."""
        if self._arrays is not None:
            return _squeezed(self._arrays.image)
        return self._read(0, np.float32)

    @cached_property
    def coverage(self) -> NDArray[np.float32]:
        """Sum of weights, (H, W) float32; 0 where nothing covers."""
        if self._arrays is not None:
            return self._arrays.coverage
        return self._read("COVERAGE", np.float32)

    @cached_property
    def variance(self) -> NDArray[np.float32] | None:
        """Variance of each pixel, of the image's shape; None unless it was asked for.

        NaN where the image is NaN, and where the noise of some input is not known.  Its unit is the
        square of the image's.
        """
        if self._arrays is not None:
            variance = self._arrays.variance
            return None if variance is None else _squeezed(variance)
        try:
            return self._read("VAR", np.float32)
        except KeyError:
            return None

    @cached_property
    def rejected_low(self) -> NDArray[np.int16] | None:
        """Samples rejected below, of the image's shape; None unless the combine counts them."""
        return self._counts("REJLOW", 0)

    @cached_property
    def rejected_high(self) -> NDArray[np.int16] | None:
        """Samples rejected above, likewise."""
        return self._counts("REJHIGH", 1)

    def _counts(self, name: str, half: int) -> NDArray[np.int16] | None:
        if self._arrays is not None:
            counts = self._arrays.counts
            return None if counts is None else _squeezed(counts[half])
        try:
            return self._read(name, np.int16)
        except KeyError:
            return None

    def _read(self, hdu: int | str, kind: type[_Number]) -> NDArray[_Number]:
        from astropy.io import fits  # noqa: PLC0415  (imported long before, with astropy.wcs)

        with fits.open(self.path, memmap=False) as hdus:
            return np.asarray(hdus[hdu].data, dtype=kind)


def _squeezed(planes: NDArray[_Number]) -> NDArray[_Number]:
    """(H, W) of a single channel."""
    return planes[0] if len(planes) == 1 else planes


@dataclass(frozen=True)
class Run:
    """What the passes of a job have said.

    Attributes
    ----------
    stats
        The first pass.
    matching
        Gains and offsets of the inputs, if they were matched.
    second
        What came of the second pass, if there was one.
    made
        The stacks of batches that the passes combined, if they did.
    """

    stats: Totals
    matching: Matching | None
    second: TwoPass | None
    made: MegaTiles | None

    def second_of(self, place: int) -> tuple[float, list[float] | None]:
        """Gain and offsets by channel of the second pass for an input; the latter if matched."""
        if self.second is None or (self.made and self.made.batch_of[place] < 0):
            return 1.0, None
        where = self.made.batch_of[place] if self.made else place
        offsets = self.second.offsets
        return self.second.gains[where], None if offsets is None else offsets[where]


def rows_of(prepared: Prepared, run: Run) -> list[cards.InputRow]:
    """What became of every input."""
    source = run.made or run.stats
    rows = []
    for place, placed in enumerate(prepared.placed):
        samples, rejected = source.samples[place], source.rejected[place]
        row = cards.InputRow.of(placed.image.name, prepared.channels)
        row.weight, row.n_samples = placed.weight, samples
        row.rejected_fraction = rejected / max(samples * prepared.channels, 1)
        row.geometry_error_px = placed.geometry.error_px
        if placed.image.meta.exptime is not None:
            row.exposure_s = placed.image.meta.exptime
        if not samples:
            row.reason = f"{row.name}: it has no valid pixel on the output grid; look at it."
        gain, offsets = run.second_of(place)
        row.two_pass_gain = gain
        if run.matching is not None:
            row.gain = run.matching.gains[place]
            row.offset = run.matching.offsets[place]
        if offsets is not None and run.made is None:
            # Those that the pixels were made with.
            row.offset = offsets
        elif offsets is not None:
            row.offset = [gain * a + b for a, b in zip(row.offset, offsets, strict=True)]
        rows.append(row)
    rows += [
        cards.InputRow.of(left.name, prepared.channels, left.reason) for left in prepared.left_out
    ]
    for row in rows:
        row.quality = prepared.selection.qualities.get(row.name)
    return rows


def all_rows(prepared: Prepared, rows: Sequence[cards.InputRow]) -> list[cards.InputRow]:
    """Rows of everything that is in the mosaic, given those of the inputs of this run.

    A mosaic that was updated has no row itself: those of its own inputs stand for it.
    """
    return list(rows) if prepared.base is None else prepared.base.rows_with(rows[1:])


def images_of(prepared: Prepared, primary: Header) -> list[Image]:
    """The image HDUs of the output; `primary` is the header of the first."""
    channels, shape = prepared.channels, prepared.grid.shape
    wcs = prepared.grid.to_header()
    weights = "sum of weights of the inputs that count"
    images = [
        Image(primary, channels),
        Image(cards.extension_header("COVERAGE", weights, 1, shape, wcs), 1),
    ]
    if prepared.job.counts_rejected:
        for name, comment in (("REJLOW", "samples rejected below"), ("REJHIGH", "and above")):
            header = cards.extension_header(name, comment, channels, shape, wcs, bitpix=16)
            images.append(Image(header, channels, sample_bytes=2))
    if prepared.job.has_variance:
        unit = cards.squared_unit(primary.get("BUNIT", ""))
        header = cards.extension_header(
            "VAR", "variance of each pixel", channels, shape, wcs, unit=unit
        )
        images.append(Image(header, channels))
    return images


def header_of(
    prepared: Prepared,
    rows: Sequence[cards.InputRow],
    options: Options,
    second: TwoPass | None = None,
) -> Any:
    """Header of the mosaic, given what became of its inputs."""
    from zmrs import __version__  # noqa: PLC0415  (the package imports this module)

    used = zip(prepared.placed, rows, strict=False)
    metas = [placed.image.meta for placed, row in used if row.status == "used"]
    mib = 2**20
    software = [
        ("SOFTNAME", "zmrs", "program that made this"),
        ("SOFTVERS", __version__, "its version"),
        ("COMBINET", options.combine, "how samples were combined"),
        *_batch_cards(prepared, options),
        *_option_cards(options),
        ("ZMTWOP", bool(second and second.is_applied), "coverage renormalisation"),
        ("ZMFLUX", "SB", "values are surface brightness: no Jacobian"),
        ("ZMBACK", "gpu" if prepared.plan.use_gpu else "cpu", "where the pixels were computed"),
        ("ZMPLAN", describe(prepared.plan), ""),
        ("ZMMEM", round(prepared.allowed.bytes / mib, 2), "[MiB] memory that was allowed"),
        ("ZMPEAK", round(limits.peak_resident_bytes() / mib, 2), "[MiB] peak resident memory"),
    ]
    solved = sum(getattr(placed.image, "solution", None) is not None for placed in prepared.placed)
    if solved:
        software.append(("ZMSOLVED", solved, "inputs whose WCS a solver has found"))
    if prepared.weight_unit is not None:
        keyword, comment = UNIT_CARDS[options.weight_by]
        software.append((keyword, prepared.weight_unit, comment))
    grid, base = prepared.grid, prepared.base
    n_before = None if base is None else base.n_combined
    wcs = grid.to_header()
    return cards.primary_header(prepared.channels, grid.shape, wcs, metas, software, n_before)


def _option_cards(options: Options) -> list[tuple[str, Any, str]]:
    """What an update takes over; options with their default only if they always stand there."""
    plain = type(options)()
    return [
        (keyword, value, comment)
        for name, (keyword, comment) in OPTION_CARDS.items()
        if (value := getattr(options, name)) != getattr(plain, name) or name in _ALWAYS_TOLD
    ]


def _batch_cards(prepared: Prepared, options: Options) -> list[tuple[str, Any, str]]:
    told: list[tuple[str, Any, str]] = []
    if prepared.batches:
        told = [
            ("ZMBATCH", len(prepared.batches), "batches whose stacks were combined"),
            ("ZMSTACK", options.sds_combine, "how the stacks of batches were combined"),
        ]
    if options.mode == "sds" and options.sds_min_coverage_keep > 0:
        least = options.sds_min_coverage_keep
        told.append(("ZMKEEP", least, "part of the coverage below which all is empty"))
    return told


def figures_of(prepared: Prepared, run: Run) -> dict[str, Any]:
    """The run in numbers."""
    stats, second, made = run.stats, run.second, run.made
    stored = prepared.job.input_bytes
    more = {} if second is None else {"two_pass": second.figures()}
    if run.matching is not None:
        more["match"] = run.matching.figures()
    if made is not None:
        sizes = [len(batch.subs) for batch in prepared.batches]
        more["batches"] = {"count": len(sizes), "least": min(sizes), "most": max(sizes)}
    if prepared.selection.condition is not None:
        more["select"] = prepared.selection.figures()
    first_read = made.read_bytes if made else stats.read_bytes
    return more | {
        "seconds": prepared.seconds,
        "workers": min(stats.workers, made.workers) if made else stats.workers,
        "bands": prepared.layout.bands,
        "blocks": prepared.layout.blocks,
        "samples": sum((made or stats).samples),
        "input_bytes": stored,
        "read_bytes": stats.read_bytes
        + (made.read_bytes if made else 0)
        + (second.read_bytes if second else 0)
        + prepared.matching_bytes
        + prepared.compressed_bytes
        + prepared.selection.read_bytes
        + prepared.survey_bytes,
        "read_amplification": first_read / stored if stored else 0.0,
        "write_bytes": prepared.layout.write_bytes,
        "scratch_bytes": prepared.scratch_bytes,
        "files_opened": stats.files_opened + (made.files_opened if made else 0),
        "allowed_bytes": prepared.allowed.bytes,
        "reserved_bytes": prepared.reserved_bytes,
        "projected_bytes": prepared.worst.projected_bytes,
        "leased_peak_bytes": max(stats.ledger_peak, made.leased_peak_bytes if made else 0),
        "chunk_peak_bytes": max(stats.chunk_peak, made.chunk_peak_bytes if made else 0),
        "peak_bytes": limits.peak_resident_bytes(),
        "forecast_s": prepared.forecast_s,
    }


def log_result(result: Result) -> None:
    """One line for the log."""
    stats, used = result.stats, sum(row.status == "used" for row in result.inputs)
    again = stats.get("two_pass", {})
    gains = ""
    if again.get("applied"):
        share, found = again["replaced_fraction"], again["gains"]
        gains = f"; gains {min(found):.4g} to {max(found):.4g} on {share:.1%} of the pixels"
    log.info(
        "mosaic of %d inputs in %.2f s (pass %.2f s); read %.0f MiB (%.2f of the input a pass), "
        "wrote %.0f MiB; peak %.0f of %.0f MiB%s",
        used,
        stats["seconds"]["total"],
        stats["seconds"]["mosaic"],
        stats["read_bytes"] / 2**20,
        stats["read_amplification"],
        stats["write_bytes"] / 2**20,
        stats["peak_bytes"] / 2**20,
        stats["allowed_bytes"] / 2**20,
        gains,
    )
