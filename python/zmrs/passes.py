"""The one or two passes of a job, into a file or into arrays.

A second pass takes the place of the first image.  Until it has, the first one lies aside in a
scratch file, or, when arrays are asked for, the second one does.  Every pass may be two sweeps
over the inputs, the engine knows which; they share a scratch file too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zmrs import _zmrs, limits, post_stack
from zmrs.events import Stage
from zmrs.stretch import Totals, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from zmrs.config import Options
    from zmrs.events import Event
    from zmrs.io.journal import Journal
    from zmrs.photometry import Matching
    from zmrs.post_stack import Targets, TwoPass
    from zmrs.prepare import Prepared

__all__ = ["Arrays", "Passes"]


@dataclass(frozen=True)
class Arrays:
    """A mosaic in memory.

    Attributes
    ----------
    image
        (C, H, W) float32; NaN where nothing covers.
    coverage
        (H, W) float32: sum of weights.
    counts
        (2, C, H, W) int16: samples rejected below and above; None unless the combine counts them.
    variance
        (C, H, W) float32, NaN where the image is; None unless it is wanted.
    """

    image: NDArray[np.float32]
    coverage: NDArray[np.float32]
    counts: NDArray[np.int16] | None
    variance: NDArray[np.float32] | None

    @classmethod
    def empty(
        cls, channels: int, shape: tuple[int, int], *, counts: bool, variance: bool
    ) -> Arrays:
        """Arrays to be filled."""
        return cls(
            np.empty((channels, *shape), np.float32),
            np.empty(shape, np.float32),
            np.empty((2, channels, *shape), np.int16) if counts else None,
            np.empty((channels, *shape), np.float32) if variance else None,
        )


class Passes:
    """The passes of a prepared job, to be run once.

    Parameters
    ----------
    prepared, matching, options
        The job, the solution of its matching if there is one, and what the user decided.
    scratch
        Gives the path of a scratch file from its name.
    journal
        Knows how far an interrupted run has come, and is told of the passes into a file.
    listener
        Receives `zmrs.events.Event` objects.
    depth_at
        Scratch file for how many inputs cover each pixel, where the coverage does not say so.

    Attributes
    ----------
    second
        What came of the second pass; None without one.
    """

    def __init__(
        self,
        prepared: Prepared,
        matching: Matching | None,
        options: Options,
        scratch: Callable[[str], Path],
        journal: Journal,
        listener: Callable[[Event], object] | None,
        depth_at: Path | None,
    ) -> None:
        self.second: TwoPass | None = None
        self._prepared, self._matching, self._options = prepared, matching, options
        self._journal, self._listener, self._depth_at = journal, listener, depth_at
        self._total = prepared.layout.read_bytes + prepared.layout.write_bytes
        self._stage = Stage(listener, "mosaic", self._total, "bytes")
        self._marks_at = scratch("marks") if options.two_pass else None
        self._aside = post_stack.targets_in(scratch("image"), prepared) if options.two_pass else []
        self._variance_aside = []
        if options.two_pass and options.variance:
            self._variance_aside = post_stack.targets_in(scratch("variance"), prepared)
        self._bounds = None
        if prepared.layout.bounds_bytes:
            self._bounds = scratch("bounds")
        # Outskirts that few inputs cover are left empty before the second pass looks at them.
        is_masked = options.mode == "sds"
        self._least_part = options.sds_min_coverage_keep if is_masked else 0.0
        dirty_bytes = max(prepared.layout.write_bytes, prepared.layout.bounds_bytes)
        self._write_back = limits.near_system_limit(dirty_bytes)

    def into_arrays(self) -> tuple[Totals, Arrays]:
        """Make the mosaic in memory."""
        prepared = self._prepared
        shape = prepared.grid.shape
        job = prepared.job
        arrays = Arrays.empty(
            prepared.channels, shape, counts=job.counts_rejected, variance=job.has_variance
        )
        marks = None if self._marks_at is None else _zmrs.Marks(self._marks_at)
        stats = _zmrs.run_pass_into_arrays(
            prepared.job,
            prepared.layout,
            arrays.image,
            arrays.coverage,
            counts=None if arrays.counts is None else arrays.counts.reshape(-1, *shape),
            variance=arrays.variance,
            write_back=self._write_back,
            marks=marks,
            bounds=self._bounds,
            device=prepared.device_for(prepared.job, prepared.layout),
            progress=self._progress,
        )
        if self._least_part > 0:
            _zmrs.blank_low_coverage_of_arrays(arrays.image, arrays.coverage, self._least_part)
            if arrays.variance is not None:
                np.copyto(arrays.variance, np.nan, where=np.isnan(arrays.image))
        if marks is not None:
            planes = _in_memory((*arrays.image, arrays.coverage))
            variance = None if arrays.variance is None else _in_memory(arrays.variance)
            targets = self._targets_again(self._aside, self._variance_aside)
            if self._again(planes, marks, variance, targets):
                post_stack.read_into(self._aside[0][0], arrays.image)
                if arrays.variance is not None:
                    post_stack.read_into(self._variance_aside[0][0], arrays.variance)
        self._end()
        return Totals.of(stats), arrays

    def into_file(self, targets: Targets) -> Totals:
        """Make the mosaic at `targets`: the places of its channels, coverage, counts, variance."""
        prepared, channels = self._prepared, self._prepared.channels
        variances = targets[len(targets) - channels :] if prepared.job.has_variance else []
        first = targets
        if self._aside:
            between = targets[channels : len(targets) - len(variances)]
            first = [*self._aside, *between, *self._variance_aside]
        stats, marks = run_pass(
            "pass one",
            prepared.job,
            prepared.layout,
            [*first],
            self._journal,
            shape=prepared.grid.shape,
            marks=self._marks_at,
            bounds=self._bounds,
            progress=self._progress,
            write_back=self._write_back,
            device_for=prepared.device_for,
        )
        if self._least_part > 0:
            images = [*first[:channels], *first[len(first) - len(variances) :]]
            _zmrs.blank_low_coverage(images, first[channels], prepared.grid.shape, self._least_part)
        if marks is not None:
            width = prepared.grid.width
            planes = _zmrs.Planes.in_files(width, first[: channels + 1])
            variance = _zmrs.Planes.in_files(width, self._variance_aside) if variances else None
            again = self._targets_again(targets[:channels], variances)
            if not self._again(planes, marks, variance, again):
                _zmrs.copy_planes(first[0][0], *targets[0], self._write_back)
                if variances:
                    _zmrs.copy_planes(self._variance_aside[0][0], *variances[0], self._write_back)
        self._end()
        return stats

    def _targets_again(self, image: Targets, variance: Targets) -> post_stack.SomeTargets:
        """Places for the planes of the second pass: the coverage and the counts stay."""
        job = self._prepared.job
        staying = 1 + (2 * self._prepared.channels if job.counts_rejected else 0)
        return [*image, *([None] * staying if variance else []), *variance]

    def _again(
        self,
        planes: _zmrs.Planes,
        marks: _zmrs.Marks,
        variance: _zmrs.Planes | None,
        targets: post_stack.SomeTargets,
    ) -> bool:
        """Run the second pass over the first one's planes. Whether its image is at `targets`."""
        self._prepared.seconds["mosaic"] = self._stage.end()
        self._stage = Stage(self._listener, "two_pass", self._total, "bytes")
        self.second = post_stack.two_pass(
            self._prepared,
            post_stack.FirstPass(planes, marks, self._depth_at, variance),
            self._matching,
            self._options,
            targets,
            self._journal,
            write_back=self._write_back,
            bounds=self._bounds,
            progress=self._progress,
        )
        return self.second.is_applied

    def _progress(self, read_bytes: int, rows_written: int) -> None:
        layout = self._prepared.layout
        row_bytes = layout.write_bytes // (self._prepared.grid.height * layout.sweeps)
        self._stage.advance(min(read_bytes + rows_written * row_bytes, self._total))

    def _end(self) -> None:
        self._prepared.seconds.setdefault("mosaic", self._stage.end())


def _in_memory(arrays: Iterable[NDArray[np.float32]]) -> _zmrs.Planes:
    """Planes (H, W) of a caller's memory, as the engine reads them."""
    planes = list(arrays)
    bytes_of = [plane.reshape(-1).view(np.uint8) for plane in planes]
    return _zmrs.Planes.in_memory(planes[0].shape[1], bytes_of)
