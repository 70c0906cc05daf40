"""Buffers of a device by their names, within a limit for all together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs.errors import DeviceMemoryError

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from zmrs.backends.base import Buffer, Hardware

__all__ = ["ROUNDING_BYTES", "Buffered"]

ROUNDING_BYTES = 64 << 10
"""What buffers may take more than was asked for, all together."""


class Buffered:
    """What works on a device with buffers that have names and grow as they must.

    Parameters
    ----------
    hardware
        The device.
    limit_bytes
        Device memory that all buffers together may take.
    scratch
        Names of buffers that hold nothing for long, and give way to others.
    """

    def __init__(self, hardware: Hardware, limit_bytes: int, scratch: Collection[str] = ()) -> None:
        self._hardware, self._limit_bytes = hardware, limit_bytes
        self._scratch = scratch
        self._buffers: dict[str, Buffer] = {}

    def _room(self, name: str, nbytes: int) -> Buffer:
        """The buffer of a name, with room for so many bytes."""
        found = self._buffers.get(name)
        if found is None or found.nbytes < nbytes:
            # What is being computed may look at buffers that go.
            self._hardware.wait()
            # First the old one goes: both may not fit.
            found = None
            self._buffers.pop(name, None)
            if self._taken() + nbytes > self._limit_bytes and name not in self._scratch:
                # They hold nothing from one step to the next, and take what is left.
                self._drop(*self._scratch)
            taken = self._taken()
            if taken + nbytes > self._limit_bytes:
                raise DeviceMemoryError(
                    f"{taken + nbytes >> 20} MiB of device memory are needed, and "
                    f"{self._limit_bytes >> 20} allowed"
                )
            found = self._buffers[name] = self._hardware.allocate(max(nbytes, 16))
        return found

    def _taken(self, *without: str) -> int:
        """Bytes of all buffers, but for some."""
        return sum(b.nbytes for name, b in self._buffers.items() if name not in without)

    def _drop(self, *names: str) -> None:
        """Let buffers go, if they are there."""
        for name in names:
            self._buffers.pop(name, None)

    def _put(self, name: str, array: NDArray[Any]) -> Buffer:
        """The buffer of a name, with an array in it."""
        array = np.ascontiguousarray(array)
        buffer = self._room(name, array.nbytes)
        if array.nbytes:
            self._hardware.upload_array(buffer, array)
        return buffer
