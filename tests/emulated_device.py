"""A device that is none: the text of the kernels, compiled by the C compiler into loops.

What it computes is what a GPU with the same arithmetic computes; how fast, and whether a driver and
its compiler do as they should, only a GPU can tell.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
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
    """Hardware as `zmrs.backends.base.Hardware` says.

    Parameters
    ----------
    memory_bytes
        What it has; an allocation beyond fails.
    fails_at
        Number of the launch that fails, counted from 1.
    """

    name = "emulated"

    def __init__(self, memory_bytes: int = 1 << 40, fails_at: int = 0) -> None:
        self.memory_bytes, self.fails_at = memory_bytes, fails_at
        self.held = self.peak = self.launched = self.uploaded = 0
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
        ctypes.memmove(buffer.place + at, place, nbytes)
        self.uploaded += nbytes

    def upload_array(self, buffer: Memory, array: np.ndarray, at: int = 0) -> None:
        assert array.flags.c_contiguous
        self.upload(buffer, array.ctypes.data, array.nbytes, at)

    def download(
        self, buffer: Memory, at: int, place: int, row_bytes: int, rows: int, pitch: int
    ) -> None:
        assert at + row_bytes * rows <= buffer.nbytes
        for row in range(rows):
            ctypes.memmove(place + row * pitch, buffer.place + at + row * row_bytes, row_bytes)

    def launch(self, kernel: str, count: int, arguments: Sequence[Any]) -> None:
        self.launched += 1
        if self.launched == self.fails_at:
            raise DeviceError("an illegal memory access was encountered")
        function = getattr(self._library, kernel)
        function.restype = None
        given: list[Any] = [ctypes.c_longlong(count)]
        for argument in arguments:
            if isinstance(argument, Memory):
                given.append(ctypes.c_void_p(argument.place))
            elif isinstance(argument, float):
                given.append(ctypes.c_double(argument))
            else:
                given.append(ctypes.c_longlong(int(argument)))
        function(*given)

    def pin(self, place: int, nbytes: int) -> None:
        assert nbytes > 0
        self.pinned.add(place)

    def unpin(self) -> None:
        self.pinned.clear()

    def wait(self) -> None:
        pass
