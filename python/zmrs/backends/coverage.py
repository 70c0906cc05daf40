"""The work on the coverage between the passes, on a device: blur, scale map, counts of scales.

The engine hands over rows of the coverage once, from top to bottom; they stay in a ring as long as
the blur looks at them.  What is computed is the engine's arithmetic in the engine's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from zmrs import _zmrs
from zmrs.backends.buffers import ROUNDING_BYTES, Buffered
from zmrs.backends.gpu import guarded, kernel_text
from zmrs.errors import DeviceMemoryError

if TYPE_CHECKING:
    from zmrs.backends.base import Buffer, Hardware

__all__ = ["CoverageRoom", "GpuCoverage", "coverage_kernels_of", "room_for_coverage"]

FORMS = ("nothing", "taps", "waves")
"""How the blur is done, in the order of the numbers in the kernels."""

_LEAST_ROWS = 16
"""Rows of the map that must fit, if it has so many: with fewer the workers are faster."""

_ABOVE = 2
"""Source rows beyond the radius that the first row of a band looks at, and lie in the ring."""

_THREADS = 32
"""Threads that share a mark."""

_OF_MAP = ("table", "ring", "filtered", "states", "scales")

_NOTHING = (1 << 32) - 1
"""The greatest number of 32 bits: no key, and as far as pixels are counted."""


class CoverageRoom(NamedTuple):
    """What is done at once, at most.

    Attributes
    ----------
    map_rows
        Rows of the scale map that are computed.
    inputs
        Inputs whose scales are counted.
    rows
        Rows of the map in which they are.
    marks
        Marks in these.
    """

    map_rows: int
    inputs: int
    rows: int
    marks: int


def coverage_kernels_of(job: _zmrs.Job) -> tuple[str, dict[str, int], list[str]] | None:
    """The kernels for the coverage of a job: text, macros, names; None without a second pass."""
    told = _zmrs.describe_blur(job)
    if told is None:
        return None
    macros = {
        "FORM": FORMS.index(told["form"]),
        "WAVES": told["waves"],
        "SEGMENT": told["segment"][1],
        "BINS": told["bins"],
        "THREADS": _THREADS,
    }
    filtering = {"nothing": [], "taps": ["columns_filter"]}
    filtering["waves"] = ["columns_begin", "columns_filter"]
    names = [*filtering[told["form"]], "rows_scale", "set_all", "count_leading", "count_within"]
    return kernel_text("coverage"), macros, names


def room_for_coverage(job: _zmrs.Job, limit_bytes: int) -> CoverageRoom | None:
    """What fits into so many bytes of device memory; None if that is too little to begin with."""
    told = _zmrs.describe_blur(job)
    return None if told is None else _room_within(told, limit_bytes - ROUNDING_BYTES)


def _room_within(told: dict[str, Any], limit_bytes: int) -> CoverageRoom | None:
    height, width = told["shape"]
    if height * width > _NOTHING:
        return None
    least_rows, least_marks = told["task"]
    kept, each_row = _map_bytes(told)
    map_rows = min((limit_bytes - kept) // each_row, told["segment"][0], height)
    each_input = 4 * (told["bins"] + 1) + 12
    inputs = max(1, min(limit_bytes // 2 // each_input, told["inputs"]))
    # Rows and marks of so many tasks of the engine's workers.
    task_bytes = 4 * width * least_rows + 16 * least_marks
    tasks = min((limit_bytes - inputs * each_input) // task_bytes, told["segment"][0] // least_rows)
    if map_rows < min(_LEAST_ROWS, height) or tasks < 1:
        return None
    return CoverageRoom(map_rows, inputs, tasks * least_rows, tasks * least_marks)


def _map_bytes(told: dict[str, Any]) -> tuple[int, int]:
    """Device memory that the map takes: in any case, and for each row that is computed at once."""
    width = told["shape"][1]
    around = 4 * width * (2 * told["radius"] + _ABOVE)
    if told["form"] == "nothing":
        return around, 8 * width
    states = 32 * told["waves"] * width if told["form"] == "waves" else 0
    return told["table"].nbytes + around + states, 24 * width


class GpuCoverage(Buffered):
    """The work on the coverage of a job, done on a device: a `zmrs.backends.base.CoverageDevice`.

    Parameters
    ----------
    hardware
        The device.
    job
        A job with a second pass.
    limit_bytes
        Device memory that all buffers together may take.

    Raises
    ------
    zmrs.errors.DeviceMemoryError
        When that is too little; by every method when memory runs out on the device.
    zmrs.errors.DeviceError
        By every method, when the device fails.
    """

    def __init__(self, hardware: Hardware, job: _zmrs.Job, limit_bytes: int) -> None:
        super().__init__(hardware, limit_bytes)
        told, kernels = _zmrs.describe_blur(job), coverage_kernels_of(job)
        assert told is not None
        assert kernels is not None
        room = _room_within(told, limit_bytes - ROUNDING_BYTES)
        if room is None:
            raise DeviceMemoryError(
                f"{limit_bytes >> 20} MiB of device memory are too few for the coverage"
            )
        self._told, self._allotted = told, room
        self._width: int = told["shape"][1]
        self._radius: int = told["radius"]
        self._slots = room.map_rows + 2 * self._radius + _ABOVE
        self._inputs = range(0)
        self._has_bins = False
        hardware.compile(*kernels)

    @guarded()
    def room(self) -> CoverageRoom:
        """See `zmrs.backends.base.CoverageDevice`."""
        return self._allotted

    # -------------------------------------------------------------------------------------- the map

    @guarded()
    def put(self, first: int, rows: tuple[int, int]) -> None:
        """See `zmrs.backends.base.CoverageDevice`."""
        row_bytes = 4 * self._width
        ring = self._room("ring", row_bytes * self._slots)
        place, count = rows[0], rows[1] // self._width
        self._hardware.pin(place, row_bytes * count)
        slot = (first + self._radius + _ABOVE) % self._slots
        # Up to the end of the ring, and what is left to its beginning.
        head = min(count, self._slots - slot)
        self._hardware.upload(ring, place, row_bytes * head, row_bytes * slot)
        if count > head:
            self._hardware.upload(ring, place + row_bytes * head, row_bytes * (count - head))
        self._hardware.wait()

    @guarded()
    def scales(self, first: int, past: int, place: int) -> None:
        """See `zmrs.backends.base.CoverageDevice`."""
        rows, width, form = past - first, self._width, self._told["form"]
        segment_rows, segment_columns = self._told["segment"]
        scales = self._room("scales", 4 * width * self._allotted.map_rows)
        where = [self._buffers["ring"], self._slots, width, self._radius, first]
        launch = self._hardware.launch
        shown: list[Buffer | int | float] = [float(self._told["threshold"]), scales]
        if form == "nothing":
            launch("rows_scale", rows * width, [*where, *shown])
        else:
            table = self._buffers.get("table") or self._put("table", self._told["table"])
            filtered = self._room("filtered", 16 * width * self._allotted.map_rows)
            if form == "taps":
                launch("columns_filter", 2 * width * rows, [*where, rows, table, filtered])
                across = width
            else:
                states = self._room("states", 32 * self._told["waves"] * width)
                if first % segment_rows == 0:
                    launch("columns_begin", 2 * width, [*where, table, states])
                launch("columns_filter", 2 * width, [*where, rows, table, filtered, states])
                across = -(-width // segment_columns)
            launch("rows_scale", rows * across, [*where, rows, table, filtered, *shown])
        row_bytes = 4 * width
        self._hardware.download(scales, 0, place, row_bytes, rows, row_bytes)
        self._hardware.wait()

    # ----------------------------------------------------------------------------------- the counts

    @guarded()
    def begin(self, first: int, past: int, bins: int | None) -> None:
        """See `zmrs.backends.base.CoverageDevice`."""
        self._drop(*_OF_MAP)
        self._inputs, self._has_bins = range(first, past), bins is not None
        n, of_each = past - first, self._told["bins"] + 1
        counts, least = self._room("counts", 4 * n * of_each), self._room("least", 4 * n)
        self._hardware.launch("set_all", n * of_each, [counts, 0])
        self._hardware.launch("set_all", n, [least, _NOTHING])
        if bins is not None:
            self._hardware.upload(self._room("bins", 8 * n), bins, 8 * n)
            self._hardware.wait()

    @guarded()
    def count(self, first: int, rows: tuple[int, int], marks: tuple[int, int]) -> None:
        """See `zmrs.backends.base.CoverageDevice`."""
        room, held = self._allotted, self._buffers
        lines = self._room("rows", 4 * self._width * room.rows)
        found = self._room("marks", 16 * room.marks)
        for buffer, place, nbytes in (
            (lines, rows[0], 4 * rows[1]),
            (found, marks[0], 16 * marks[1]),
        ):
            self._hardware.pin(place, nbytes)
            self._hardware.upload(buffer, place, nbytes)
        inputs = [self._inputs.start, len(self._inputs)]
        given: list[Buffer | int | float] = [
            found,
            lines,
            first,
            self._width,
            *inputs,
            held["counts"],
        ]
        if self._has_bins:
            given += [held["bins"], held["least"]]
        kernel = "count_within" if self._has_bins else "count_leading"
        self._hardware.launch(kernel, _THREADS * marks[1], given)
        self._hardware.wait()

    @guarded()
    def counted(self, counts: int, least: int) -> None:
        """See `zmrs.backends.base.CoverageDevice`."""
        n, held = len(self._inputs), self._buffers
        each = 4 * (self._told["bins"] + 1)
        self._hardware.download(held["counts"], 0, counts, each, n, each)
        self._hardware.download(held["least"], 0, least, 4, n, 4)
        self._hardware.wait()

    def release(self) -> None:
        """See `zmrs.backends.base.CoverageDevice`."""
        self._hardware.unpin()
