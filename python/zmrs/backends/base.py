"""What the engine asks of a device, and what a device asks of its hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from zmrs import _zmrs

__all__ = ["Buffer", "CoverageDevice", "Device", "Hardware"]


class Device(Protocol):
    """Computes the steps of one pass, one after the other.

    The engine calls it from one thread of its own.
    """

    def bring(self, turn: int, windows: _zmrs.Windows) -> None:
        """Copy the windows of the next step.

        Meanwhile the step before may still be computed, whose turn, 0 or 1, is the other one.
        """

    def start(self, step: _zmrs.Step) -> None:
        """Begin to compute a step, from the windows that were brought last.

        It goes into the planes that the step names, or its running values are kept.
        """

    def finish(self) -> None:
        """Wait until that is done."""

    def cover(self, window: int, part: tuple[int, int, int, int], place: int) -> None:
        """Write where the mask of a window of the present step covers pixels.

        A byte a pixel of the columns and rows `part` (x0, y0, x1, y1), not 0 where it does, at the
        address `place`.
        """

    def counts(self) -> tuple[list[int], list[int]]:
        """Valid samples of each input since this was last asked, and rejected ones."""

    def release(self) -> None:
        """The buffers of the engine are about to go; no address is good any more."""


class CoverageDevice(Protocol):
    """Does the work on the coverage between two passes: first the scale map, then the counts.

    The engine calls it from one thread of its own.  Rows and marks are given
    as their address and their number, of values of single precision and of four unsigned numbers
    of 32 bits (input, row, first column, past the last one).
    """

    def room(self) -> tuple[int, int, int, int]:
        """What it does at once, at most.

        Rows of the map that it computes; inputs whose scales it counts, rows of the map in which it
        does, marks in these.
        """

    def put(self, first: int, rows: tuple[int, int]) -> None:
        """Take the next rows of the coverage, with zeros for what is not valid.

        The first of all is as far above the plane as the blur looks; beyond its edges the plane
        goes on as its mirror image.
        """

    def scales(self, first: int, past: int, place: int) -> None:
        """Compute the next rows of the map, of one segment, to an address: float32, NaN for none.

        All that they look at has been put there.
        """

    def begin(self, first: int, past: int, bins: int | None) -> None:
        """Count nothing yet, of inputs `first` to `past`.

        `bins` is None when scales are counted by their leading bins; else it is the address of two
        32-bit numbers for each input: of scales in the first of these bins the trailing ones are
        counted, of those in the second, if it is another one, the least key is sought.
        """

    def count(self, first: int, rows: tuple[int, int], marks: tuple[int, int]) -> None:
        """Count the scales under marks, which lie in rows of the map from `first` on."""

    def counted(self, counts: int, least: int) -> None:
        """Write counts (inputs, bins + 1) and least keys (inputs) to addresses: uint32."""

    def release(self) -> None:
        """The buffers that it was given until now are about to go."""


class Buffer(Protocol):
    """Memory of the hardware."""

    @property
    def nbytes(self) -> int:
        """Its size."""


class Hardware(Protocol):
    """A device as such: memory, copies, kernels.

    Everything happens in the order of the calls, but for what `bring` does.

    Any call raises `zmrs.errors.DeviceMemoryError` when memory runs out there, and
    `zmrs.errors.DeviceError` for all else.
    """

    @property
    def name(self) -> str:
        """What it is called."""

    def free_bytes(self) -> int:
        """Memory that is free there as of now."""

    def allow(self, nbytes: int) -> None:
        """Let buffers take no more than so much from now on; there are none."""

    def compile(self, text: str, defines: Mapping[str, int], kernels: Sequence[str]) -> None:
        """Make some kernels of a text, with macros defined: those that `launch` finds."""

    def warm(self) -> None:
        """Do a little of everything, so that what that takes of the process's memory is taken."""

    def allocate(self, nbytes: int) -> Buffer:
        """Memory of undefined content; it goes back when nobody holds the buffer."""

    def upload(self, buffer: Buffer, place: int, nbytes: int, at: int = 0) -> None:
        """Copy bytes from an address of the process into a buffer, from byte `at` on."""

    def upload_array(self, buffer: Buffer, array: NDArray[np.generic], at: int = 0) -> None:
        """Copy a contiguous array into a buffer, from byte `at` on."""

    def bring(self, buffer: Buffer, place: int, nbytes: int) -> None:
        """Copy bytes from an address of the process into a buffer, beside whatever happens."""

    def join(self) -> None:
        """Let what is called from now on wait for all that is being brought."""

    def download(
        self, buffer: Buffer, at: int, place: int, row_bytes: int, rows: int, pitch: int
    ) -> None:
        """Copy rows that lie one after the other to an address, `pitch` bytes from one to the next.

        They are there once `wait` has returned.
        """

    def launch(self, kernel: str, count: int, arguments: Sequence[Buffer | int | float]) -> None:
        """Run a kernel, whose first argument is `count`, the number of its threads.

        The others are addresses of buffers, 64 bits of whole numbers, and doubles.
        """

    def pin(self, place: int, nbytes: int) -> None:
        """Say that much will be copied from or to this memory of the process."""

    def unpin(self) -> None:
        """Forget all memory of the process that is pinned."""

    def wait(self) -> None:
        """Wait until all is done, but for what is only being brought."""
