"""What the machine is: processors, memory, GPU, power.

Every probe may fail, and then says "unknown" (None) instead of raising.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zmrs import limits
from zmrs.gpu_safety import vendor_of
from zmrs.settings import known, positive

if TYPE_CHECKING:
    from collections.abc import Callable

    from zmrs.limits import MemoryLimit

__all__ = ["Capabilities", "detect_capabilities"]

_T = TypeVar("_T")

_PCI_VENDORS = {"0x10de": "nvidia", "0x8086": "intel", "0x1002": "amd"}


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """A machine as this process finds it. None is unknown; ``Capabilities()`` is all unknown.

    Attributes
    ----------
    system
        ``linux``, ``windows``, ``darwin`` …, or empty.
    cpu_logical_cores, cpu_cores
        Logical and physical processors that this process may use: affinity and cgroup quotas
        are respected.
    ram_total_bytes, ram_available_bytes
        Memory, and what of it is free; the limits of the system are respected.
    limits
        Those limits, one by one.
    gpu_available
        Whether CuPy finds a CUDA device.
    gpu_name, gpu_vram_total_bytes, gpu_vram_free_bytes
        The current device.
    gpu_note
        Why there is no device, in words; empty when there is one.
    gpu_safe_mode
        Whether the environment asks for caution with the GPU (``ZMRS_GPU_SAFE_MODE=1``).
    has_battery, power_plugged, on_battery
        Power supply.
    is_hybrid_graphics
        Whether an integrated and a discrete GPU share the work.
    """

    system: str = ""
    cpu_logical_cores: int | None = None
    cpu_cores: int | None = None
    ram_total_bytes: int | None = None
    ram_available_bytes: int | None = None
    limits: tuple[MemoryLimit, ...] = ()
    gpu_available: bool = False
    gpu_name: str | None = None
    gpu_vram_total_bytes: int | None = None
    gpu_vram_free_bytes: int | None = None
    gpu_note: str = ""
    gpu_safe_mode: bool = False
    has_battery: bool | None = None
    power_plugged: bool | None = None
    on_battery: bool = False
    is_hybrid_graphics: bool | None = None

    @property
    def gpu_vendor(self) -> str:
        """``nvidia``, ``intel``, ``amd``, ``apple`` or ``unknown``, from the device's name."""
        return vendor_of(self.gpu_name)


def detect_capabilities(*, gpu: bool = True) -> Capabilities:
    """Look at the machine.

    Parameters
    ----------
    gpu
        False leaves out all that only a choice of GPU needs, and physical cores: asking CuPy
        costs a second and hundreds of megabytes, psutil 20 ms.
    """
    known = tuple(_quietly(limits.memory_limits) or ())
    logical = _quietly(limits.usable_processors)
    found = Capabilities(
        system={"win32": "windows"}.get(sys.platform, sys.platform),
        cpu_logical_cores=logical,
        ram_total_bytes=_least(
            _quietly(limits.total_bytes),
            # The limits are on this process; what is available is one of them, but no total.
            *(limit.bytes for limit in known if limit.source != limits.AVAILABLE),
        ),
        ram_available_bytes=_available_bytes(known),
        limits=known,
        gpu_note="not looked for",
    )
    if not gpu:
        return found
    has_battery, plugged = _quietly(_battery) or (None, None)
    return replace(
        found,
        cpu_cores=_physical_cores(logical),
        has_battery=has_battery,
        power_plugged=plugged,
        on_battery=plugged is False,
        is_hybrid_graphics=_quietly(_is_hybrid),
        gpu_safe_mode=os.environ.get("ZMRS_GPU_SAFE_MODE", "") not in ("", "0"),
        **(_quietly(_gpu) or {"gpu_note": "CuPy fails"}),
    )


def _quietly(probe: Callable[[], _T]) -> _T | None:
    """What a probe finds, or None when it cannot look."""
    try:
        return probe()
    except (Exception, SystemExit):
        return None


def _least(*figures: int | None) -> int | None:
    return min((figure for figure in figures if figure), default=None)


def _available_bytes(known: tuple[MemoryLimit, ...]) -> int | None:
    """What this process could still take, whichever limit comes first."""
    here = _quietly(limits.resident_bytes) or 0
    rooms = [max(limit.room_bytes - here, 0) for limit in known]
    return min(rooms, default=None)


def _physical_cores(logical: int | None) -> int | None:
    def count() -> int:
        import psutil  # noqa: PLC0415  (late: 20 ms)

        return int(psutil.cpu_count(logical=False) or 0)

    if logical is None:
        return None
    cores = _quietly(count) or max(1, logical // 2)
    return min(cores, logical)


def _battery() -> tuple[bool | None, bool | None]:
    """Whether there is a battery, and whether the mains feed the machine."""
    import psutil  # noqa: PLC0415

    sensors = getattr(psutil, "sensors_battery", None)
    if sensors is None:
        return None, None
    battery = sensors()
    return (False, None) if battery is None else (True, battery.power_plugged)


def _is_hybrid() -> bool | None:
    """Whether an Intel GPU works beside one of NVIDIA or AMD.

    More than one adapter alone says that on Windows only: servers have one for their console.
    """
    if sys.platform == "win32":
        names = _windows_adapters()
        vendors, many = {vendor_of(name) for name in names}, len(names)
    else:
        files = sorted(Path("/sys/class/drm").glob("card[0-9]*/device/vendor"))
        cards = {file.resolve(): file.read_text().strip() for file in files}
        vendors, many = {_PCI_VENDORS.get(card, "unknown") for card in cards.values()}, len(cards)
    if "intel" in vendors and vendors & {"nvidia", "amd"}:
        return True
    if sys.platform == "win32" and many > 1:
        return True
    return False if many == 1 else None


def _windows_adapters() -> list[str]:
    """Names of the display adapters of a Windows machine, each once."""
    if sys.platform != "win32":
        return []
    import ctypes  # noqa: PLC0415

    class Device(ctypes.Structure):
        _fields_ = [
            ("size", ctypes.c_uint32),
            ("device_name", ctypes.c_wchar * 32),
            ("name", ctypes.c_wchar * 128),
            ("flags", ctypes.c_uint32),
            ("device_id", ctypes.c_wchar * 128),
            ("device_key", ctypes.c_wchar * 128),
        ]

    names, device = {}, Device(size=ctypes.sizeof(Device))
    while ctypes.windll.user32.EnumDisplayDevicesW(None, len(names), ctypes.byref(device), 0):
        names[len(names)] = device.name
    return list(dict.fromkeys(names.values()))


def _gpu() -> dict[str, Any]:
    """The CUDA device that CuPy would use, or why there is none."""
    try:
        # Nothing that it says on the way may get into our output.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            import cupy  # noqa: PLC0415  (an extra; seconds)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        return {"gpu_note": "CuPy is not installed" if absent else f"CuPy fails: {_line(error)}"}
    except (Exception, SystemExit) as error:
        return {"gpu_note": f"CuPy fails: {_line(error)}"}
    try:
        if cupy.cuda.runtime.getDeviceCount() < 1:
            return {"gpu_note": "CuPy finds no CUDA device"}
    except Exception as error:
        return {"gpu_note": f"CuPy finds no CUDA device: {_line(error)}"}
    # A device whose figures cannot be read is a device all the same.
    properties = _quietly(lambda: _properties(cupy)) or {}
    free = _quietly(lambda: int(cupy.cuda.runtime.memGetInfo()[0]))
    name = properties.get("name")
    text = name.decode(errors="replace") if isinstance(name, bytes) else name
    return {
        "gpu_available": True,
        "gpu_note": "",
        "gpu_name": _printable(str(text)) or None if text else None,
        "gpu_vram_total_bytes": known(properties, "totalGlobalMem"),
        "gpu_vram_free_bytes": positive(free),
    }


def _properties(cupy: Any) -> dict[str, Any]:
    runtime = cupy.cuda.runtime
    return dict(runtime.getDeviceProperties(runtime.getDevice()))


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    text = str(error).strip().splitlines()
    return _printable(text[0]).rstrip(".") if text else type(error).__name__


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable()).strip()
