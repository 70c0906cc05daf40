"""A pass on a device: tables of what lies where, and the kernels launched with them.

What the kernels compute is the engine's arithmetic in the engine's order, so the pixels are those
of the CPU.  Memory is bounded: buffers grow to what the largest step needs, and combines that hold
all samples of a pixel take the pixels of a step in slices.
"""

from __future__ import annotations

import contextlib
import logging
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from zmrs import _zmrs
from zmrs.backends.buffers import ROUNDING_BYTES, Buffered
from zmrs.errors import DeviceError, ZmrsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from zmrs.backends.base import Buffer, Hardware

__all__ = [
    "METHODS",
    "N_RUNNING",
    "GpuPass",
    "guarded",
    "kernel_text",
    "kernels_of",
    "pass_text",
]

METHODS = (
    "mean",
    "sum",
    "min",
    "max",
    "first",
    "last",
    "median",
    "kappa-sigma",
    "winsorized",
    "winsorized-reference",
    "winsor-percentile",
    "kappa-sigma-stream",
)
"""Combines in the order of their numbers in the kernels."""

log = logging.getLogger("zmrs")

N_RUNNING = 6
"""The first of them, which need running values only."""

_OF_ALL_SAMPLES = METHODS[N_RUNNING:-1]

_TAPS = {"nearest": 1, "bilinear": 2, "bicubic": 4, "lanczos2": 4, "lanczos3": 6}
_SAMPLES = {"values": 4, "weights": 8, "sources": 4, "sorted": 4, "beside": 8, "shares": 4}
"""Buffers of combines that hold all samples, and bytes of a sample; those of the first and the last
are there for each channel."""

_MEANINGS = ("weight", "variance", "rms", "mask", "alpha")
"""What the values of weight maps mean, in the order of their numbers in the kernels."""

_NO_BLANK = np.iinfo(np.int64).min
"""No sample is this."""


def kernel_text(*parts: str) -> str:
    """The texts of kernels that follow those which all begin with."""
    folder = resources.files("zmrs.backends") / "kernels"
    return "\n".join((folder / f"{part}.cu").read_text("ascii") for part in ("common", *parts))


def pass_text(method: str) -> str:
    """The text of the kernels of a combine, which macros choose from."""
    return kernel_text("scene", "decode", "positions", "samples", *_combining(method)[0])


def kernels_of(job: _zmrs.Job) -> tuple[str, dict[str, int], list[str]]:
    """The text of the kernels, the macros that make those of a job of it, and their names."""
    told = _zmrs.describe_job(job)
    method = told["method"]
    macros = {
        "CHANNELS": told["shape"][0],
        "TAPS": _TAPS[told["kernel"]],
        "METHOD": METHODS.index(method),
        "SATURATES": int(told["gives_way"]),
        "VARIANCE": int(told["variance"]),
        "STRIP": told["strip"],
    }
    return pass_text(method), macros, ["decode", "place_rows", "cover", *_combining(method)[1]]


def _combining(method: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The parts of the text that combine samples by a method, and the kernels in them."""
    if method in _OF_ALL_SAMPLES:
        return ("estimators", "stack"), ("stack",)
    if METHODS.index(method) < N_RUNNING:
        return ("running",), ("run",)
    return ("sweeps",), ("moments", "within")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Whatever goes wrong on the way to a device is its failure: the CPU can do its work."""
    try:
        yield
    except ZmrsError:
        raise
    except Exception as error:
        log.debug("the device's driver failed", exc_info=True)
        raise DeviceError(f"{type(error).__name__}: {error}") from error


class GpuPass(Buffered):
    """One pass of a job, computed on a device.

    Parameters
    ----------
    hardware
        The device.
    job
        What is computed.
    limit_bytes
        Device memory that all buffers together may take.

    Raises
    ------
    zmrs.errors.DeviceError
        By every method, when the device fails; `zmrs.errors.DeviceMemoryError` when memory runs
        out.
    """

    def __init__(self, hardware: Hardware, job: _zmrs.Job, limit_bytes: int) -> None:
        super().__init__(hardware, limit_bytes, scratch=_SAMPLES)
        told = _zmrs.describe_job(job)
        self._channels, _, self._width = told["shape"]
        self._n_inputs, self._strip = told["inputs"], told["strip"]
        self._least_slice = told["least_slice"]
        self._method = METHODS.index(told["method"])
        self._rules = (*told["kappa"], *told["winsor"], int(told["together"]))
        self._has_maps = int(told["has_maps"])
        self._has_variance = bool(told["variance"])
        hardware.compile(*kernels_of(job))
        self._put("taps", np.array(told["tap_table"], np.float32))
        zeros = np.zeros(self._n_inputs, np.uint64)
        self._counters = [self._put(name, zeros) for name in ("samples", "rejected")]
        self._tell_inputs(job)
        self._scene: list[Buffer | int | float] = []
        self._windows: _zmrs.Windows
        self._turn = 0

    # ------------------------------------------------------------------------------ before the pass

    def _tell_inputs(self, job: _zmrs.Job) -> None:
        """Bring what determines the samples of the inputs to the device."""
        n, channels = self._n_inputs, self._channels
        table, weightings = np.empty((n, 22), np.int64), np.empty((n, 8))
        gains, offsets, variances = np.empty((3, n, channels))
        node = cell = 0
        for k in range(n):
            told = _zmrs.describe_input(job, k)
            across, down = told["cells_across_down"]
            shift = told["spacing"].bit_length() - 1
            place = (*told["origin"], shift, across, down, node, cell)
            (image, of_map), (meaning, full) = told["storage"]
            means = (told["map"], _MEANINGS.index(meaning), told["zero_is_blank"])
            stored = (_NO_BLANK if v is None else v for s in (image, of_map) for v in s[:3])
            table[k] = (*place, *told["frame"], *told["border"], *means, *stored)
            weighting = told["weight"], told["feather"], told["saturation"]
            weightings[k] = (*weighting, *image[3:], *of_map[3:], full)
            gains[k], offsets[k] = told["gain"], told["offset"]
            variances[k] = told["variance"]
            node += (across + 3) * (down + 3)
            cell += across * down
        self._shift, self._across = table[:, 2].copy(), table[:, 3].copy()
        self._planes = channels + (table[:, 13] != 0)
        self._weights_differ = np.ptp(weightings[:, 0]) > 0
        self._put("inputs", table)
        self._put("weightings", weightings)
        self._put("gains", gains)
        self._put("offsets", offsets)
        self._put("variances", variances)
        self._records: dict[int, NDArray[np.uint32]] = {}
        nodes, cells = self._room("nodes", 16 * node), self._room("cells", cell)
        for k in range(n):
            grid, kinds, records = _zmrs.grid_of_input(job, k)
            self._hardware.upload_array(nodes, grid, 16 * int(table[k, 5]))
            self._hardware.upload_array(cells, kinds, int(table[k, 6]))
            self._hardware.wait()
            if records is not None:
                self._records[k] = records

    # -------------------------------------------------------------------------------- in the pass

    @guarded()
    def bring(self, turn: int, windows: _zmrs.Windows) -> None:
        """See `zmrs.backends.base.Device`."""
        self._turn, self._windows = turn, windows
        for name, (place, count), size in (
            ("loaded", windows.pixels, 4),
            ("exact", windows.exact, 8),
        ):
            # What is computed meanwhile looks at the buffer of the other turn.
            buffer = self._room(f"{name} {turn}", size * count)
            if count:
                self._hardware.pin(place, size * count)
                self._hardware.bring(buffer, place, size * count)

    @guarded()
    def start(self, step: _zmrs.Step) -> None:
        """See `zmrs.backends.base.Device`."""
        x0, y0, x1, y1 = step.rect
        area = (x1 - x0) * (y1 - y0)
        self._hardware.join()
        self._look(step)
        out = self._room("out", 4 * len(step.planes) * area if step.is_last else 0)
        if METHODS[self._method] in _OF_ALL_SAMPLES:
            self._stack(area, out)
        else:
            self._run(step, area, out)
        if step.is_last:
            self._fetch(out, step, area)

    @guarded()
    def finish(self) -> None:
        """See `zmrs.backends.base.Device`."""
        self._hardware.wait()

    def _run(self, step: _zmrs.Step, area: int, out: Buffer) -> None:
        """Bring the samples of a step into running values."""
        n, with_variance = self._channels, self._channels * self._has_variance
        more: list[Buffer | int | float]
        both = [int(step.is_first), int(step.is_last)]
        is_whole = step.is_first and step.is_last

        def kept(values: int) -> Buffer:
            return self._room("kept", 0 if is_whole else 8 * values * area)

        if self._method < N_RUNNING:
            more = [*both, kept(n + with_variance + 1), out, self._counters[0]]
            self._hardware.launch("run", area, [*self._scene, *more])
        elif not step.bounds:
            more = [*map(float, self._rules[:2]), *both, kept(2 * n + 1), out]
            self._hardware.launch("moments", area, [*self._scene, *more])
        else:
            bounds = self._room("bounds", 4 * area * len(step.bounds))
            for number, place in enumerate(step.bounds):
                self._hardware.upload(bounds, place, 4 * area, 4 * area * number)
            more = [bounds, self._rules[4], *both, kept(3 * n + with_variance), out]
            self._hardware.launch("within", area, [*self._scene, *more, *self._counters])

    def _look(self, step: _zmrs.Step) -> None:
        """Find out where the output pixels of a step fall in its windows, and decode these."""
        # It would keep buffers of the step before that are too small for this one.
        self._scene = []
        x0, y0, x1, y1 = step.rect
        rows = y1 - y0
        windows, held = self._windows.table, self._buffers
        n_windows, of = len(windows), windows[:, 0]
        table = np.empty((n_windows, 13), np.int64)
        table[:, :5] = windows[:, :5]
        table[:, 5:7] = windows[:, 5:7] - windows[:, 3:5]
        table[:, 7:9] = windows[:, 7:9]
        table[:, 9] = -1
        records = self._exact_places(table)
        areas = table[:, 5] * table[:, 6]
        table[:, 10] = np.cumsum(areas) - areas
        table[:, 11:] = windows[:, [7, 9]]
        loaded = pixels = held[f"loaded {self._turn}"]
        is_stored = windows[:, 9].any()
        if is_stored:
            values = areas * self._planes[of]
            table[:, 7] = np.cumsum(values) - values
            pixels = self._room("pixels", 4 * int(values.sum()))
        # Columns of cells that a window may touch at most.
        served = np.minimum(windows[:, 2], x1) - np.maximum(windows[:, 1], x0)
        spans = np.minimum((np.maximum(served, 0) >> self._shift[of]) + 2, self._across[of])
        columns = int(spans.max(initial=1))
        listed, strips = _over_strips(windows, x0, x1, self._strip)
        self._depth = int(np.diff(strips).max(initial=0))
        told = self._put("windows", table)
        cubics = self._room("cubics", 64 * n_windows * rows * columns)
        launch = self._hardware.launch
        if is_stored:
            how = (held["inputs"], held["weightings"], loaded, pixels)
            launch("decode", int(areas.sum()), [told, n_windows, *how])
        where = (held["inputs"], held["nodes"], x0, y0, rows, columns)
        launch("place_rows", n_windows * rows * columns, [told, *where, cubics])
        tables = ("inputs", "weightings", "gains", "offsets", "variances", "cells")
        self._scene = [
            told,
            *(held[name] for name in tables),
            cubics,
            held[f"exact {self._turn}"],
            self._put("records", records),
            pixels,
            held["taps"],
            self._put("listed", listed),
            self._put("strips", strips),
            x0,
            y0,
            x1 - x0,
            rows,
            columns,
        ]

    def _exact_places(self, table: NDArray[np.int64]) -> NDArray[np.int32]:
        """For windows with exact cells: the place of each cell's coordinates among the window's."""
        places, begin = [np.empty(0, np.int32)], 0
        for window, numbers in self._windows.exact_cells:
            records = self._records[int(table[window, 0])]
            place = np.minimum(np.searchsorted(numbers, records), len(numbers) - 1)
            places.append(np.where(numbers[place] == records, place, -1).astype(np.int32))
            table[window, 9] = begin
            begin += len(records)
        return np.concatenate(places)

    def _stack(self, area: int, out: Buffer) -> None:
        """Combine all samples of the pixels of a step, in slices that fit."""
        sizes = [*_SAMPLES.values()]
        sizes[0] *= self._channels
        sizes[-1] *= self._channels if self._has_variance else 0
        depth = max(self._depth, 1)
        spare = self._limit_bytes - self._taken(*_SAMPLES) - ROUNDING_BYTES
        pixels = min(area, max(spare // (depth * sum(sizes)), self._least_slice))
        room: list[Buffer | int | float] = [
            self._room(name, size * depth * pixels)
            for name, size in zip(_SAMPLES, sizes, strict=True)
        ]
        rules = [*map(float, self._rules[:4]), self._rules[4]]
        differ = int(self._weights_differ or self._has_maps)
        for first in range(0, area, pixels):
            more = [first, area, depth, *rules, self._has_maps, differ, *room, out]
            count = min(pixels, area - first)
            self._hardware.launch("stack", count, [*self._scene, *more, *self._counters])

    def _fetch(self, out: Buffer, step: _zmrs.Step, area: int) -> None:
        """Bring the planes of a step back."""
        x0, y0, x1, y1 = step.rect
        for number, place in enumerate(step.planes):
            # Rows of the band are as wide as the canvas.
            pitch = 4 * self._width
            # Copies to memory that is not pinned would be waited for here.
            self._hardware.pin(place, pitch * (y1 - y0))
            at = 4 * number * area
            self._hardware.download(out, at, place + 4 * x0, 4 * (x1 - x0), y1 - y0, pitch)

    @guarded()
    def cover(self, window: int, part: tuple[int, int, int, int], place: int) -> None:
        """See `zmrs.backends.base.Device`."""
        x0, y0, x1, y1 = part
        count = (x1 - x0) * (y1 - y0)
        covered = self._room("covered", count)
        more: list[Buffer | int | float] = [x0, y0, x1 - x0, covered]
        self._hardware.launch("cover", count, [window, *self._scene, *more])
        self._hardware.download(covered, 0, place, count, 1, count)
        self._hardware.wait()

    @guarded()
    def counts(self) -> tuple[list[int], list[int]]:
        """See `zmrs.backends.base.Device`."""
        nothing = np.zeros(self._n_inputs, np.uint64)
        found = np.empty((2, self._n_inputs), np.uint64)
        for row, buffer in zip(found, self._counters, strict=True):
            self._hardware.download(buffer, 0, row.ctypes.data, row.nbytes, 1, row.nbytes)
            self._hardware.upload_array(buffer, nothing)
        self._hardware.wait()
        samples, rejected = found.tolist()
        return samples, rejected

    def release(self) -> None:
        """See `zmrs.backends.base.Device`."""
        self._hardware.unpin()


def _over_strips(
    windows: NDArray[np.int64], x0: int, x1: int, strip: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The windows over each strip of columns, in job order, and where those of each strip begin."""
    lists = [
        np.flatnonzero((windows[:, 1] < min(first + strip, x1)) & (windows[:, 2] > first))
        for first in range(x0, x1, strip)
    ]
    begins = np.concatenate([[0], np.cumsum([len(one) for one in lists])])
    return np.concatenate(lists).astype(np.int32), begins.astype(np.int32)
