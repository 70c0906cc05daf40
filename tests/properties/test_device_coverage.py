"""The work on the coverage is the same on a device, to the bit: gains, range and bytes of the map.

On the emulated device the kernels are compiled by the C compiler; on a GPU, where there is one, by
CUDA.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sky
from emulated_device import Emulated
from zmrs import _zmrs
from zmrs.backends.choose import Backend
from zmrs.backends.coverage import GpuCoverage, room_for_coverage
from zmrs.config import Options
from zmrs.errors import DeviceError, DeviceMemoryError
from zmrs.prepare import Prepared, prepare

GIB = 1 << 30
BIG = (1100, 2301)
"""More than two segments of rows and of columns, and not a multiple of eight."""

Found = tuple[list[float], tuple[float, float], bytes]


def prepared(
    shape: tuple[int, int],
    sigma: float,
    inputs: int = 7,
    chunk_mib: int | None = None,
    plan: _zmrs.Plan | None = None,
) -> Prepared:
    """A job of so many inputs, which themselves do not matter here."""
    tile = (np.ones((8, 8), "f4"), sky.frame_wcs((8, 8)))
    options = Options(
        memory=GIB, threads=2, match="none", two_pass=True, two_pass_sigma=sigma,
        two_pass_gain_clip=(0.1, 10.0),
    )  # fmt: skip
    grid = (sky.frame_wcs(shape), shape)
    job = prepare([tile] * inputs, options, grid=grid, plan=plan, in_memory=True)
    if chunk_mib is not None:
        tight = job.plan.replace(max_chunk_bytes=chunk_mib << 20, rows_per_chunk=None)
        layout = _zmrs.fit(job.job, tight, job.room.reserved_bytes, 0, 0, True)
        object.__setattr__(job, "layout", layout)
    return job


def ragged(shape: tuple[int, int]) -> np.ndarray:
    """Seams, holes, lone pixels, and things that do not count."""
    rng = np.random.default_rng([4, *shape])
    y, x = np.indices(shape, sparse=True)
    steps = (x // 17 + y // 23) % 4 * 1.25 + x // 400 + y // 300 + 2.0
    plane = (steps + rng.integers(0, 9, shape) * 0.01).astype("f4")
    plane[(x > 900) & (y > 300) & (x < 1500)] = 0.0
    plane[(x - 1200) ** 2 + (y - 700) ** 2 < 30] = 3.0
    kinds = rng.integers(0, 250, shape)
    for kind, value in enumerate((np.nan, np.inf, -3.0, -np.inf, 0.0, 1e-9, 1e-41)):
        plane[kinds == kind] = value
    return plane


def stored(folder: Path, groups: list[tuple[int, int, list[tuple[int, ...]]]]) -> _zmrs.Marks:
    """Marks in a file as a pass writes them: first and past the last row, and what lies there."""
    saved, at = [], 0
    with (folder / "marks").open("wb") as file:
        for first, past, rows in groups:
            saved.append((first, past, at, len(rows)))
            at += file.write(np.array(rows, "<u4").tobytes())
    (folder / "saved").write_bytes(np.array(saved, "<u8").tobytes())
    return _zmrs.Marks.reopen(folder / "marks", folder / "saved")


def marks_of(folder: Path, shape: tuple[int, int], inputs: int, size: int) -> _zmrs.Marks:
    """Each input is a rectangle with holes; the last one has next to no pixels."""
    rng = np.random.default_rng([8, *shape])
    height, width = shape
    corners = rng.integers(-size // 2, (height, width), (inputs - 1, 2)).tolist()
    groups = []
    for top in range(0, height, 32):
        past = min(top + 32, height)
        rows: list[tuple[int, ...]] = [(inputs - 1, 0, 0, min(10, width))] if top == 0 else []
        for k, (y0, x0) in enumerate(corners):
            for y in range(max(top, y0, 0), min(past, y0 + size)):
                hole = x0 + (3 * y + 50 * k) % size
                for begin, end in ((x0, hole), (hole + 3, x0 + size)):
                    run = max(begin, 0), min(end, width)
                    if run[0] < run[1]:
                        rows.append((k, y, *run))
        groups += [(top, past, rows[i : i + 4096]) for i in range(0, len(rows), 4096)]
    return stored(folder, groups)


def measured(
    job: Prepared, plane: np.ndarray, marks: _zmrs.Marks, folder: Path, device: Any
) -> Found:
    place = folder / "map"
    # It need not lie at the beginning of its file.
    place.write_bytes(b"before")
    planes = _zmrs.Planes.in_memory(plane.shape[1], [plane.reshape(-1).view("u1")])
    found = _zmrs.measure_gains(job.job, job.layout, planes, marks, (place, 6), device=device)
    return found.gains, found.scales, place.read_bytes()


def assert_same(
    job: Prepared, hardware: Any, folder: Path, limit: int = GIB, plane: np.ndarray | None = None
) -> Found:
    """The same with and without a device of so many bytes."""
    shape = job.grid.shape
    plane = ragged(shape) if plane is None else plane
    marks = marks_of(folder, shape, len(job.placed), max(2, min(200, *shape)))
    ours = measured(job, plane, marks, folder, None)
    its = measured(job, plane, marks, folder, GpuCoverage(hardware, job.job, limit))
    assert len(ours[2]) == 6 + 4 * plane.size
    assert ours[2] == its[2]
    assert ours == its
    return ours


SIGMAS = (0.0, 0.3, 3.0, 4.1, 4.2, 5.0, 50.0, 300.0)
SMALL = ((1, 1), (3, 2), (1, 90), (90, 1), (70, 50), (512, 24), (513, 1025))


@pytest.mark.parametrize("sigma", [0.0, 0.3, 3.0, 5.0, 50.0, 300.0])
def test_large_planes(sigma: float, hardware: Any, tmp_path: Path) -> None:
    gains, scales, _ = assert_same(prepared(BIG, sigma), hardware, tmp_path)
    assert gains[-1] == 1.0
    if sigma > 0:
        assert len(set(gains)) > 4
        assert scales[0] < 1.0 < scales[1]


@pytest.mark.parametrize("shape", SMALL)
def test_small_planes(shape: tuple[int, int], hardware: Any, tmp_path: Path) -> None:
    """Also those of which a blur sees all and its mirror images."""
    for sigma in SIGMAS:
        assert_same(prepared(shape, sigma), hardware, tmp_path)


def limits(job: Prepared) -> Iterator[int]:
    """Device memory that leads to few rows at once, from the least on."""
    low, high = 0, GIB
    while high - low > 1:
        middle = (low + high) // 2
        if room_for_coverage(job.job, middle) is None:
            low = middle
        else:
            high = middle
    yield high
    yield 3 * high // 2


@pytest.mark.parametrize("sigma", [0.0, 3.0, 20.0])
def test_narrow_bands(sigma: float, hardware: Any, tmp_path: Path) -> None:
    """Several bands a segment, of which the last is lower, and never more memory than allowed."""
    job = prepared((600, 1100), sigma)
    rows = []
    for limit in limits(job):
        found = room_for_coverage(job.job, limit)
        assert found is not None
        rows.append(found.map_rows)
        hardware.allow(limit)
        assert_same(job, hardware, tmp_path, limit)
    assert rows[0] < rows[1]
    if sigma == 20.0:
        assert rows[0] == 16


def test_batches_of_inputs(hardware: Any, tmp_path: Path) -> None:
    """Fewer at once than there are, for the device's memory or for that of the process."""
    job = prepared((200, 300), 3.0, inputs=40)
    limit = 1 << 20
    found = room_for_coverage(job.job, limit)
    assert found is not None
    assert 1 < found.inputs < 40
    many = assert_same(job, hardware, tmp_path, limit)
    assert len(set(many[0])) > 30
    job = prepared((200, 300), 3.0, inputs=150, chunk_mib=1)
    begun: list[int] = []

    class Watched(GpuCoverage):
        def begin(self, first: int, past: int, bins: int | None) -> None:
            begun.append(past - first)
            super().begin(first, past, bins)

    marks = marks_of(tmp_path, (200, 300), 150, 200)
    plane, device = ragged((200, 300)), Watched(hardware, job.job, GIB)
    its = measured(job, plane, marks, tmp_path, device)
    assert its == measured(job, plane, marks, tmp_path, None)
    assert sum(begun) == 2 * 150
    assert len(begun) > 2


def test_middle_values_of_two_bins(hardware: Any, tmp_path: Path) -> None:
    """Scales about 1, where bins meet: as many in the one as in the other, and none alike."""
    shape = (60, 900)
    job = prepared(shape, 9.0)
    plane = (3.0 + np.random.default_rng(6).normal(0, 2e-5, shape)).astype("f4")
    nowhere = measured(job, plane, _zmrs.Marks(tmp_path / "none"), tmp_path, None)
    scales = np.frombuffer(nowhere[2], "f4", offset=6).reshape(shape)
    groups = []
    for k in range(7):
        surplus = np.cumsum([0, *np.where(scales[5 * k] < 1, 1, -1)])
        runs = [np.flatnonzero(surplus == value)[[0, -1]] for value in np.unique(surplus)]
        begin, past = max(map(tuple, runs), key=lambda run: int(run[1] - run[0]))
        assert past - begin > 200
        groups.append((5 * k, 5 * k + 1, [(k, 5 * k, begin, past)]))
    marks = stored(tmp_path, groups)
    ours = measured(job, plane, marks, tmp_path, None)
    assert 0.9999 < min(ours[0]) < max(ours[0]) < 1.0001
    assert ours == measured(job, plane, marks, tmp_path, GpuCoverage(hardware, job.job, GIB))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 3.0])
@pytest.mark.parametrize("sigma", [0.0, 2.0, 9.0])
def test_coverage_of_one_kind(value: float, sigma: float, hardware: Any, tmp_path: Path) -> None:
    job = prepared((130, 150), sigma)
    plane = np.full((130, 150), value, "f4")
    gains, scales, _ = assert_same(job, hardware, tmp_path, plane=plane)
    assert gains == [1.0] * 7
    assert scales == ((1.0, 1.0) if value == 3.0 else (np.inf, -np.inf))


def test_flat_coverage_at_the_threshold(hardware: Any, tmp_path: Path) -> None:
    """Its blur differs from it in the last digits, which do not decide."""
    value = np.float32(2.1)
    plan = _zmrs.Plan(two_pass_coverage_threshold=float(value))
    job, plane = prepared((130, 150), 9.0, plan=plan), np.full((130, 150), value)
    assert assert_same(job, hardware, tmp_path, plane=plane)[1] == (1.0, 1.0)


def test_no_marks(hardware: Any, tmp_path: Path) -> None:
    job = prepared((40, 50), 5.0)
    marks, plane = _zmrs.Marks(tmp_path / "none"), ragged((40, 50))
    found = measured(job, plane, marks, tmp_path, GpuCoverage(hardware, job.job, GIB))
    assert found == measured(job, plane, marks, tmp_path, None)
    assert found[0] == [1.0] * 7


@pytest.mark.parametrize("sigma", [0.0, 3.0, 20.0])
def test_each_row_comes_once(sigma: float, tmp_path: Path) -> None:
    """In their order, and beyond the edges those of the mirror image."""
    put: list[tuple[int, int]] = []

    class Watched(GpuCoverage):
        def put(self, first: int, rows: tuple[int, int]) -> None:
            put.append((first, rows[1]))
            super().put(first, rows)

    shape = (600, 1100)
    job, hardware = prepared(shape, sigma), Emulated()
    least = next(limits(job))
    told = _zmrs.describe_blur(job.job)
    assert told is not None
    device = Watched(hardware, job.job, least)
    measured(job, ragged(shape), _zmrs.Marks(tmp_path / "none"), tmp_path, device)
    radius = told["radius"]
    at = -(radius + 2)
    for first, count in put:
        assert (first, count % shape[1]) == (at, 0)
        at += count // shape[1]
    assert at == shape[0] + radius
    rows = shape[0] + 2 * radius + 2
    bins = 8 * 7
    assert hardware.uploaded == 4 * shape[1] * rows + told["table"].nbytes + bins
    assert hardware.peak <= least
    assert not hardware.pinned


@pytest.mark.parametrize("launch", [1, 2, 3, 4, 6, 9])
def test_a_failure_comes_out_as_it_was(launch: int, tmp_path: Path) -> None:
    job, hardware = prepared((90, 70), 9.0), Emulated(fails_at=launch)
    plane, marks = ragged((90, 70)), marks_of(tmp_path, (90, 70), 7, 50)
    device = GpuCoverage(hardware, job.job, GIB)
    with pytest.raises(DeviceError, match="an illegal memory access was encountered"):
        measured(job, plane, marks, tmp_path, device)
    assert not hardware.pinned


def test_memory_that_runs_out(tmp_path: Path) -> None:
    job, hardware = prepared((90, 70), 9.0), Emulated(memory_bytes=100_000)
    plane, marks = ragged((90, 70)), marks_of(tmp_path, (90, 70), 7, 50)
    with pytest.raises(DeviceMemoryError):
        measured(job, plane, marks, tmp_path, GpuCoverage(hardware, job.job, GIB))


def test_too_little_memory_is_the_workers_turn(caplog: pytest.LogCaptureFixture) -> None:
    job, hardware = prepared((200, 300), 20.0), Emulated()
    least = next(limits(job))
    backend = Backend(hardware)
    plan = job.plan.replace(use_gpu=True, gpu_max_chunk_bytes=least)
    assert isinstance(backend.coverage_for(job.job, plan), GpuCoverage)
    with caplog.at_level(logging.DEBUG, "zmrs"):
        assert backend.coverage_for(job.job, plan.replace(gpu_max_chunk_bytes=least - 1)) is None
    assert "the CPU blurs it" in caplog.text
    assert backend.coverage_for(job.job, plan.replace(use_gpu=False)) is None
    assert Backend().coverage_for(job.job, plan) is None
    with pytest.raises(DeviceMemoryError):
        GpuCoverage(hardware, job.job, least - 1)
