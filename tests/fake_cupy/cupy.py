"""As much of CuPy as zmrs uses, without a GPU: its memory is the process's, its kernels are C.

Environment: ``FAKE_GPU_MEMORY`` is the memory of the device in bytes, ``FAKE_GPU_FREE`` what it
says is free of that, ``FAKE_GPU_FAILS_AT`` the number of the launch that fails, counted from 1;
``FAKE_GPU_DEVICES`` how many devices there are; with ``FAKE_GPU_TELLS`` it says at the end which
kernels were launched, and how many that were.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from kernel_library import library

__version__ = "0"

_TOTAL_BYTES = int(os.environ.get("FAKE_GPU_MEMORY", "8589934592"))
_FREE_BYTES = int(os.environ.get("FAKE_GPU_FREE", _TOTAL_BYTES * 9 // 10))
_FAILS_AT = int(os.environ.get("FAKE_GPU_FAILS_AT", "0"))


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


class _Entered:
    def __enter__(self) -> _Entered:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Device(_Entered):
    def __init__(self, number: int) -> None:
        if number >= _device_count():
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")


class Stream(_Entered):
    pointers: ClassVar[list[int]] = []

    def __init__(self, non_blocking: bool = False) -> None:
        assert non_blocking
        self.ptr = 7 + len(self.pointers)
        self.pointers.append(self.ptr)

    def synchronize(self) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        assert event.recorded in self.pointers
        assert event.recorded != self.ptr


class Event:
    def __init__(self, disable_timing: bool = False) -> None:
        assert disable_timing
        self.recorded = 0

    def record(self, stream: Stream) -> None:
        self.recorded = stream.ptr


class _Pointer:
    def __init__(self, pool: MemoryPool, nbytes: int) -> None:
        self._pool, self._array = pool, np.full(nbytes, 0xA5, np.uint8)
        self.ptr = self._array.ctypes.data
        pool.used += nbytes
        pool.peak = max(pool.peak, pool.used + pool.kept)

    def __del__(self) -> None:
        self._pool.used -= self._array.nbytes
        self._pool.kept += self._array.nbytes


class MemoryPool:
    """It keeps what is given back, and counts that, until it is told to let it go."""

    pools: ClassVar[list[MemoryPool]] = []

    def __init__(self) -> None:
        self.used = self.kept = self.peak = 0
        self._limit = _TOTAL_BYTES
        self.pools.append(self)

    def set_limit(self, size: int) -> None:
        self._limit = size

    def malloc(self, nbytes: int) -> _Pointer:
        if self.used + self.kept + nbytes > min(self._limit, _TOTAL_BYTES):
            raise OutOfMemoryError(f"Out of memory allocating {nbytes:,} bytes")
        return _Pointer(self, nbytes)

    def free_all_blocks(self) -> None:
        self.kept = 0

    def total_bytes(self) -> int:
        return self.peak


def _device_count() -> int:
    return int(os.environ.get("FAKE_GPU_DEVICES", "1"))


def _copy(target: int, source: int, nbytes: int, kind: int, stream: int) -> None:
    assert kind in (1, 2, 3)
    assert stream in Stream.pointers
    ctypes.memmove(target, source, nbytes)


def _copy_rows(
    target: int, to: int, source: int, pitch: int, width: int, rows: int, kind: int, stream: int
) -> None:
    for row in range(rows):
        _copy(target + row * to, source + row * pitch, width, kind, stream)


_registered: set[int] = set()


def _register(place: int, nbytes: int, flags: int) -> None:
    assert (nbytes > 0, flags) == (True, 0)
    assert place not in _registered
    _registered.add(place)


runtime = SimpleNamespace(
    memcpyHostToDevice=1,
    memcpyDeviceToHost=2,
    memcpyDeviceToDevice=3,
    getDeviceCount=_device_count,
    getDevice=lambda: 0,
    getDeviceProperties=lambda number: {"name": b"NVIDIA Fake", "totalGlobalMem": _TOTAL_BYTES},
    memGetInfo=lambda: (
        _FREE_BYTES - sum(pool.used + pool.kept for pool in MemoryPool.pools),
        _TOTAL_BYTES,
    ),
    deviceSynchronize=lambda: None,
    memcpyAsync=_copy,
    memcpy2DAsync=_copy_rows,
    hostRegister=_register,
    hostUnregister=_registered.remove,
)


launched: list[str] = []


def _compile_using_nvrtc(text: str, options: tuple[str, ...]) -> tuple[bytes, None]:
    assert "--fmad=false" in options
    macros = (o[2:].partition("=") for o in options if o.startswith("-D"))
    return json.dumps([text, [(name, int(value)) for name, _, value in macros]]).encode(), None


class Module:
    def load(self, code: bytes) -> None:
        text, macros = json.loads(code)
        self._library = library(text, tuple((name, value) for name, value in macros))

    def get_function(self, name: str) -> Any:
        function = getattr(self._library, name)
        function.restype = None

        def launch(grid: tuple[int], block: tuple[int], args: tuple[Any, ...]) -> None:
            launched.append(name)
            if len(launched) == _FAILS_AT:
                raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access")
            assert grid[0] * block[0] >= args[0] > (grid[0] - 1) * block[0]
            kinds = {np.int64: ctypes.c_longlong, np.uint64: ctypes.c_void_p}
            function(*(kinds.get(type(a), ctypes.c_double)(a.item()) for a in args))

        return launch


if os.environ.get("FAKE_GPU_TELLS"):
    told = "kernels: {}\nlaunches: {}"
    atexit.register(lambda: print(told.format(" ".join(launched), len(launched)), file=sys.stderr))

cuda = SimpleNamespace(
    Device=Device,
    Stream=Stream,
    Event=Event,
    MemoryPool=MemoryPool,
    runtime=runtime,
    compiler=SimpleNamespace(compile_using_nvrtc=_compile_using_nvrtc),
    function=SimpleNamespace(Module=Module),
)
