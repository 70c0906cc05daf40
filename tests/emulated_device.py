"""A device that is none: the text of the kernels, compiled by the C compiler into loops.

What it computes is what a GPU with the same arithmetic computes; how fast, and whether a driver and
its compiler do as they should, only a GPU can tell.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernel_library import library
from zmrs.errors import DeviceError, DeviceMemoryError


class Memory:
    """A buffer of the emulated device."""

    def __init__(self, hardware: Emulated, nbytes: int) -> None:
        self.nbytes, self._hardware = nbytes, hardware
        # Whoever relies on what was there is found out.
        self.array = np.full(nbytes, 0xA5, np.uint8)
        hardware.held += nbytes
        hardware.peak = max(hardware.peak, hardware.held)

    def __del__(self) -> None:
        self._hardware.held -= self.nbytes

    @property
    def place(self) -> int:
        return self.array.ctypes.data


class Emulated:
    """Hardware as `zmrs.backends.base.Hardware` says, and as lazy as it may be.

    Nothing is done before it is waited for.  What is brought comes at once, before all that was
    called earlier, or as late as it may: whoever relies on more is found out.

    Parameters
    ----------
    memory_bytes
        What it has; an allocation beyond fails.
    fails_at
        Number of the launch that fails, counted from 1.
    brings_late
        Whether what is brought comes late.
    """

    name = "emulated"

    def __init__(
        self, memory_bytes: int = 1 << 40, fails_at: int = 0, *, brings_late: bool = True
    ) -> None:
        self.memory_bytes, self.fails_at, self.brings_late = memory_bytes, fails_at, brings_late
        self.held = self.peak = self.launched = self.uploaded = 0
        self._queue: list[Callable[[], object]] = []
        self._bringing: list[Callable[[], object]] = []
        self.pinned: set[int] = set()
        self.allowed: list[int] = []
        self._library: Any = None

    def free_bytes(self) -> int:
        return self.memory_bytes - self.held

    def allow(self, nbytes: int) -> None:
        assert self.held == 0, "buffers of another pass are left"
        self.allowed.append(nbytes)

    def compile(self, text: str, defines: Mapping[str, int], kernels: Sequence[str]) -> None:
        self._library = library(text, tuple(defines.items()))
        assert all(hasattr(self._library, name) for name in kernels)

    def warm(self) -> None:
        pass

    def allocate(self, nbytes: int) -> Memory:
        if self.held + nbytes > min(self.memory_bytes, *self.allowed[-1:], 1 << 60):
            raise DeviceMemoryError(f"{nbytes} bytes do not fit")
        return Memory(self, nbytes)

    def upload(self, buffer: Memory, place: int, nbytes: int, at: int = 0) -> None:
        assert at + nbytes <= buffer.nbytes
        self._queue.append(_copying(buffer, at, place, nbytes))
        self.uploaded += nbytes

    def upload_array(self, buffer: Memory, array: np.ndarray, at: int = 0) -> None:
        assert array.flags.c_contiguous
        assert at + array.nbytes <= buffer.nbytes
        target = buffer.array
        self._queue.append(lambda: _move(target, at, array.ctypes.data, array.nbytes))
        self.uploaded += array.nbytes

    def bring(self, buffer: Memory, place: int, nbytes: int) -> None:
        assert nbytes <= buffer.nbytes
        copy = _copying(buffer, 0, place, nbytes)
        if self.brings_late:
            self._bringing.append(copy)
        else:
            copy()
        self.uploaded += nbytes

    def join(self) -> None:
        self._queue += self._bringing
        self._bringing.clear()

    def download(
        self, buffer: Memory, at: int, place: int, row_bytes: int, rows: int, pitch: int
    ) -> None:
        assert at + row_bytes * rows <= buffer.nbytes
        source = buffer.array

        def copy() -> None:
            for row in range(rows):
                of_row = source.ctypes.data + at + row * row_bytes
                ctypes.memmove(place + row * pitch, of_row, row_bytes)

        self._queue.append(copy)

    def launch(self, kernel: str, count: int, arguments: Sequence[Any]) -> None:
        self.launched += 1
        number, function = self.launched, getattr(self._library, kernel)
        function.restype = None
        # A buffer that is given back is not used by others before all is done.
        kept = [argument.array for argument in arguments if isinstance(argument, Memory)]
        given: list[Any] = [ctypes.c_longlong(count)]
        for argument in arguments:
            if isinstance(argument, Memory):
                given.append(ctypes.c_void_p(argument.place))
            elif isinstance(argument, float):
                given.append(ctypes.c_double(argument))
            else:
                given.append(ctypes.c_longlong(int(argument)))

        def run() -> None:
            if number == self.fails_at:
                raise DeviceError("an illegal memory access was encountered")
            function(*given)
            kept.clear()

        self._queue.append(run)

    def pin(self, place: int, nbytes: int) -> None:
        assert nbytes > 0
        self.pinned.add(place)

    def unpin(self) -> None:
        self._queue.clear()
        self._bringing.clear()
        self.pinned.clear()

    def wait(self) -> None:
        queue, self._queue = self._queue, []
        for work in queue:
            work()


def _copying(buffer: Memory, at: int, place: int, nbytes: int) -> Callable[[], object]:
    target = buffer.array
    return lambda: _move(target, at, place, nbytes)


def _move(target: np.ndarray, at: int, place: int, nbytes: int) -> None:
    ctypes.memmove(target.ctypes.data + at, place, nbytes)
