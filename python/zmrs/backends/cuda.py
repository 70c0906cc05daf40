"""A CUDA device through CuPy, for CUDA 12 or 13: the only module that knows CuPy.

It is imported when a device is opened.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs.errors import DeviceError, DeviceMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from zmrs.backends.base import Buffer

__all__ = ["OPTIONS", "Cuda", "is_out_of_memory"]

_THREADS = 256
"""Of a block: what every device grants a kernel of so many registers."""

_MOST_BLOCKS = 1 << 30

_WARM_BYTES = 64 << 10

OPTIONS = ("--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false")
"""The arithmetic of the engine: nothing fused, nothing approximate."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a device's memory did not suffice: what was raised, or what that was raised from."""
    while error is not None:
        text = f"{type(error).__name__} {error}".lower()
        if any(words in text for words in ("outofmemory", "out of memory", "memoryallocation")):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What CuPy raises, as errors of ours."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        kind = DeviceMemoryError if is_out_of_memory(error) else DeviceError
        raise kind(text) from error


class _Memory:
    """A buffer of the device."""

    def __init__(self, pointer: Any, nbytes: int) -> None:
        self._pointer, self.nbytes = pointer, nbytes

    @property
    def address(self) -> int:
        return int(self._pointer.ptr)


class Cuda:
    """The first CUDA device, as `zmrs.backends.base.Hardware` says.

    Opening it costs a second and some hundred megabytes of the process's memory.

    Raises
    ------
    zmrs.errors.DeviceError
        When there is no CuPy or no device.
    """

    def __init__(self) -> None:
        with _told(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cupy  # noqa: PLC0415  (an extra)

            self._cupy, self._runtime = cupy, cupy.cuda.runtime
            self._device = cupy.cuda.Device(0)
            with self._device:
                self._stream = cupy.cuda.Stream(non_blocking=True)
                self._bringing = cupy.cuda.Stream(non_blocking=True)
                self._brought = cupy.cuda.Event(disable_timing=True)
                self._pool = cupy.cuda.MemoryPool()
                properties = self._runtime.getDeviceProperties(0)
                self._runtime.deviceSynchronize()
        name = properties["name"]
        self._name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        self._made: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._kernels: dict[str, Any] = {}
        self._pinned: dict[int, int] = {}
        self._uploaded: list[NDArray[np.generic]] = []

    @property
    def name(self) -> str:
        """See `zmrs.backends.base.Hardware`."""
        return self._name

    @property
    def peak_bytes(self) -> int:
        """Device memory that the buffers have taken at most: the pool keeps what they give back."""
        return int(self._pool.total_bytes())

    def free_bytes(self) -> int:
        """See `zmrs.backends.base.Hardware`."""
        with _told(), self._device, self._stream:
            # What an earlier pass has given back is kept by the pool.
            self._pool.free_all_blocks()
            return int(self._runtime.memGetInfo()[0])

    def allow(self, nbytes: int) -> None:
        """See `zmrs.backends.base.Hardware`."""
        with _told(), self._device, self._stream:
            self._pool.free_all_blocks()
            self._pool.set_limit(size=nbytes)

    def compile(self, text: str, defines: Mapping[str, int], kernels: Sequence[str]) -> None:
        """See `zmrs.backends.base.Hardware`."""
        key = (text, *defines.items())
        if key not in self._made:
            macros = (f"-D{name}={value}" for name, value in defines.items())
            with _told(), self._device:
                cuda = self._cupy.cuda
                # CuPy's own modules would flush what is subnormal to zero.
                code, _ = cuda.compiler.compile_using_nvrtc(text, (*OPTIONS, *macros))
                module = cuda.function.Module()
                module.load(code)
                self._made[key] = {name: module.get_function(name) for name in kernels}
        self._kernels = self._made[key]

    def warm(self) -> None:
        """See `zmrs.backends.base.Hardware`."""
        array = np.zeros(_WARM_BYTES, np.uint8)
        self.allow(1 << 30)
        buffer = self.allocate(array.nbytes)
        self.upload_array(buffer, array)
        self.wait()
        self.pin(array.ctypes.data, array.nbytes)
        try:
            self.bring(buffer, array.ctypes.data, array.nbytes)
            self.join()
            self.download(buffer, 0, array.ctypes.data, array.nbytes, 1, array.nbytes)
            self.wait()
        finally:
            self.unpin()

    def allocate(self, nbytes: int) -> Buffer:
        """See `zmrs.backends.base.Hardware`."""
        with _told(), self._device, self._stream:
            # Blocks that are kept for later count against what is allowed.
            self._pool.free_all_blocks()
            return _Memory(self._pool.malloc(nbytes), nbytes)

    def upload(self, buffer: Any, place: int, nbytes: int, at: int = 0) -> None:
        """See `zmrs.backends.base.Hardware`."""
        with _told(), self._device:
            kind = self._runtime.memcpyHostToDevice
            target = buffer.address + at
            self._runtime.memcpyAsync(target, place, nbytes, kind, self._stream.ptr)

    def bring(self, buffer: Any, place: int, nbytes: int) -> None:
        """See `zmrs.backends.base.Hardware`."""
        with _told(), self._device:
            kind = self._runtime.memcpyHostToDevice
            self._runtime.memcpyAsync(buffer.address, place, nbytes, kind, self._bringing.ptr)

    def join(self) -> None:
        """See `zmrs.backends.base.Hardware`."""
        with _told(), self._device:
            self._brought.record(self._bringing)
            self._stream.wait_event(self._brought)

    def upload_array(self, buffer: Any, array: NDArray[np.generic], at: int = 0) -> None:
        """See `zmrs.backends.base.Hardware`."""
        # It may be read later than the call returns.
        self._uploaded.append(array)
        self.upload(buffer, array.ctypes.data, array.nbytes, at)

    def copy(self, target: Any, source: Any, nbytes: int) -> None:
        """Copy from one buffer to another: what the device can do at most."""
        with _told(), self._device:
            kind = self._runtime.memcpyDeviceToDevice
            self._runtime.memcpyAsync(
                target.address, source.address, nbytes, kind, self._stream.ptr
            )

    def download(
        self, buffer: Any, at: int, place: int, row_bytes: int, rows: int, pitch: int
    ) -> None:
        """See `zmrs.backends.base.Hardware`."""
        with _told(), self._device:
            source, kind = buffer.address + at, self._runtime.memcpyDeviceToHost
            self._runtime.memcpy2DAsync(
                place, pitch, source, row_bytes, row_bytes, rows, kind, self._stream.ptr
            )

    def launch(self, kernel: str, count: int, arguments: Sequence[Any]) -> None:
        """See `zmrs.backends.base.Hardware`."""
        if count < 1:
            return
        given: list[Any] = [np.int64(count)]
        for argument in arguments:
            if isinstance(argument, _Memory):
                given.append(np.uint64(argument.address))
            elif isinstance(argument, float):
                given.append(np.float64(argument))
            else:
                given.append(np.int64(argument))
        blocks = min(-(-count // _THREADS), _MOST_BLOCKS)
        with _told(), self._device, self._stream:
            self._kernels[kernel]((blocks,), (_THREADS,), tuple(given))

    def pin(self, place: int, nbytes: int) -> None:
        """See `zmrs.backends.base.Hardware`."""
        known = self._pinned.get(place, 0)
        if known >= nbytes:
            return
        with contextlib.suppress(Exception), self._device:
            # Where the system grants no pinned memory, copies are slower.
            if known > 0:
                self._runtime.hostUnregister(place)
            self._pinned[place] = nbytes
            self._runtime.hostRegister(place, nbytes, 0)
            return
        self._pinned[place] = nbytes

    def unpin(self) -> None:
        """See `zmrs.backends.base.Hardware`."""
        places, self._pinned = list(self._pinned), {}
        # Nothing here may hide why a pass has failed.
        for stream in (self._bringing, self._stream):
            with contextlib.suppress(Exception):
                stream.synchronize()
        for place in places:
            with contextlib.suppress(Exception), self._device:
                self._runtime.hostUnregister(place)

    def wait(self) -> None:
        """See `zmrs.backends.base.Hardware`."""
        with _told():
            self._stream.synchronize()
        self._uploaded.clear()
