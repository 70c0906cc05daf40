"""The one or two passes of a job, into a file or into arrays.

A second pass takes the place of the first image.  Until it has, the first one lies aside in a
scratch file, or, when arrays are asked for, the second one does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zmrs import _zmrs, limits, post_stack
from zmrs.events import Stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from zmrs.config import Options
    from zmrs.events import Event
    from zmrs.photometry import Matching
    from zmrs.pipeline import Prepared
    from zmrs.post_stack import Targets, TwoPass

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
    """

    image: NDArray[np.float32]
    coverage: NDArray[np.float32]
    counts: NDArray[np.int16] | None

    @classmethod
    def empty(cls, channels: int, shape: tuple[int, int], *, counts: bool) -> Arrays:
        """Arrays to be filled."""
        return cls(
            np.empty((channels, *shape), np.float32),
            np.empty(shape, np.float32),
            np.empty((2, channels, *shape), np.int16) if counts else None,
        )


class Passes:
    """The passes of a prepared job, to be run once.

    Parameters
    ----------
    prepared, matching, options
        The job, the solution of its matching if there is one, and what the user decided.
    scratch
        Gives the path of a new scratch file.
    listener
        Receives `zmrs.events.Event` objects.

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
        scratch: Callable[[], Path],
        listener: Callable[[Event], object] | None,
    ) -> None:
        self.second: TwoPass | None = None
        self._prepared, self._matching, self._options = prepared, matching, options
        self._listener = listener
        self._total = prepared.layout.read_bytes + prepared.layout.write_bytes
        self._stage = Stage(listener, "mosaic", self._total, "bytes")
        self._marks = _zmrs.Marks(scratch()) if options.two_pass else None
        self._aside = post_stack.targets_in(scratch(), prepared) if options.two_pass else []
        self._write_back = limits.near_system_limit(prepared.layout.write_bytes)

    def into_arrays(self) -> tuple[_zmrs.PassStats, Arrays]:
        """Make the mosaic in memory."""
        prepared = self._prepared
        shape = prepared.grid.shape
        arrays = Arrays.empty(prepared.channels, shape, counts=prepared.job.counts_rejected)
        stats = _zmrs.run_pass_into_arrays(
            prepared.job,
            prepared.layout,
            arrays.image,
            arrays.coverage,
            counts=None if arrays.counts is None else arrays.counts.reshape(-1, *shape),
            marks=self._marks,
            progress=self._progress,
        )
        if self._marks is not None:
            planes = (*arrays.image, arrays.coverage)
            bytes_of = [plane.reshape(-1).view(np.uint8) for plane in planes]
            if self._again(_zmrs.Planes.in_memory(shape[1], bytes_of), self._aside):
                post_stack.read_into(self._aside[0][0], arrays.image)
        self._end()
        return stats, arrays

    def into_file(self, targets: Targets) -> _zmrs.PassStats:
        """Make the mosaic at `targets`: the places of its channels, coverage and counts."""
        prepared, channels = self._prepared, self._prepared.channels
        first = [*self._aside, *targets[channels:]] if self._aside else targets
        stats = _zmrs.run_pass_into_files(
            prepared.job,
            prepared.layout,
            first,
            progress=self._progress,
            write_back=self._write_back,
            marks=self._marks,
        )
        if self._marks is not None:
            planes = _zmrs.Planes.in_files(prepared.grid.width, first[: channels + 1])
            if not self._again(planes, targets[:channels]):
                _zmrs.copy_planes(first[0][0], *targets[0], self._write_back)
        self._end()
        return stats

    def _again(self, planes: _zmrs.Planes, targets: Targets) -> bool:
        """Run the second pass over the first one's planes. Whether its image is at `targets`."""
        assert self._marks is not None
        self._prepared.seconds["mosaic"] = self._stage.end()
        self._stage = Stage(self._listener, "two_pass", self._total, "bytes")
        self.second = post_stack.two_pass(
            self._prepared,
            post_stack.FirstPass(planes, self._marks),
            self._matching,
            self._options,
            targets,
            write_back=self._write_back,
            progress=self._progress,
        )
        return self.second.is_applied

    def _progress(self, read_bytes: int, rows_written: int) -> None:
        row_bytes = self._prepared.layout.write_bytes // self._prepared.grid.height
        self._stage.advance(min(read_bytes + rows_written * row_bytes, self._total))

    def _end(self) -> None:
        self._prepared.seconds.setdefault("mosaic", self._stage.end())
