"""Plans for any machine and any shape: never an exception, never nonsense, never too much."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zmrs import _zmrs
from zmrs.errors import BudgetError
from zmrs.gpu_safety import (
    apply_gpu_safety,
    bump_gpu_rows,
    effective_gpu,
    phase5_vram_budget,
    shrink_after_oom,
)
from zmrs.limits import MemoryLimit
from zmrs.memory import Allowance
from zmrs.plan import REASONS, Plan, auto_tune_plan, global_plan, phase5_plan
from zmrs.probe import Capabilities

MIB = 1 << 20

# ---------------------------------------------------------------------------------- machines

unknown_or = lambda values: st.none() | values  # noqa: E731
sizes = st.integers(0, 1 << 50)
truths = st.sampled_from([None, True, False])

machines = st.builds(
    Capabilities,
    system=st.sampled_from(["", "linux", "windows", "darwin"]),
    cpu_logical_cores=unknown_or(st.integers(1, 1024)),
    cpu_cores=unknown_or(st.integers(1, 512)),
    ram_total_bytes=unknown_or(sizes),
    ram_available_bytes=unknown_or(sizes),
    limits=st.lists(
        st.builds(MemoryLimit, st.just("a limit"), st.integers(1, 1 << 50), st.booleans(), sizes),
        max_size=3,
    ).map(tuple),
    gpu_available=st.booleans(),
    gpu_name=st.sampled_from([None, "", "NVIDIA H100", "Intel UHD", "AMD Radeon", "Tesla T4"]),
    gpu_vram_total_bytes=unknown_or(sizes),
    gpu_vram_free_bytes=unknown_or(sizes),
    gpu_safe_mode=st.booleans(),
    has_battery=truths,
    power_plugged=truths,
    on_battery=st.booleans(),
    is_hybrid_graphics=truths,
)

nonsense = st.sampled_from(
    [None, -1, 0, 1e300, float("nan"), float("inf"), "", "lots", b"8", True, [], 2**70, 1.5]
)
FIELDS = list(Capabilities.__dataclass_fields__)
broken_machines = st.dictionaries(st.sampled_from([f for f in FIELDS if f != "limits"]), nonsense)

SETTINGS = [
    "parallel_autotune_enabled", "parallel_target_cpu_load", "parallel_target_ram_fraction",
    "parallel_gpu_vram_fraction", "parallel_max_cpu_workers", "gpu_hybrid_vram_guard",
    "phase5_vram_reserve_mb", "phase5_vram_frac_battery", "phase5_vram_frac_hybrid_ac",
    "phase5_vram_frac_ac", "phase5_vram_hard_cap_mb", "phase5_chunk_auto", "phase5_chunk_mb",
    "phase5_force_gpu_on_ac", "use_gpu_phase5", "gpu", "threads",
]  # fmt: skip
configs = st.dictionaries(st.sampled_from(SETTINGS), nonsense | st.floats() | st.integers())

shapes = st.tuples(st.integers(1, 1 << 20), st.integers(1, 1 << 20))
counts = st.integers(0, 100_000)


def check(plan: Plan, height: int) -> None:
    assert plan.cpu_workers >= 1
    assert plan.max_chunk_bytes is None or plan.max_chunk_bytes >= 1
    for rows in (plan.rows_per_chunk, plan.gpu_rows_per_chunk):
        assert rows is None or 1 <= rows <= height
    assert plan.use_gpu or (plan.gpu_rows_per_chunk, plan.gpu_max_chunk_bytes) == (None, None)
    assert set(plan.reasons) <= set(REASONS)


@settings(max_examples=400)
@given(machines, configs, shapes, counts, st.booleans())
def test_any_machine_gets_a_plan(
    caps: Capabilities, config: dict[str, Any], shape: tuple[int, int], n: int, backend: bool
) -> None:
    without = "" if backend else "gpu_unavailable"
    for plan in (
        phase5_plan(shape, n, config, caps, without_gpu=without),
        phase5_plan(shape, n, SimpleNamespace(**config), caps, without_gpu=without),
        global_plan(shape, n, config, caps, without_gpu=without),
    ):
        check(plan, shape[0])
        assert plan.memory_bytes is not None
        assert (plan.max_chunk_bytes or 1) <= plan.memory_bytes
        assert backend or not plan.use_gpu


@settings(max_examples=300)
@given(broken_machines, configs, shapes, counts)
def test_no_record_of_a_machine_is_too_strange(
    record: dict[str, Any], config: dict[str, Any], shape: tuple[int, int], n: int
) -> None:
    """A mapping or an object with anything in it: what cannot be read is unknown."""
    for caps in (record, SimpleNamespace(**record)):
        plan = phase5_plan(shape, n, config, caps)
        check(plan, shape[0])
        safe, context = apply_gpu_safety(plan, caps, config, "test")
        assert safe.use_gpu <= plan.use_gpu
        effective_gpu(safe, context, config)
        budget = phase5_vram_budget(config, context, plan_cap_bytes=safe.gpu_max_chunk_bytes)
        assert budget.bytes >= 0
        bump_gpu_rows(safe, context, shape[1], n)


def test_a_machine_of_which_nothing_is_known() -> None:
    plan = phase5_plan((3000, 4000), 10, None, Capabilities())
    check(plan, 3000)
    assert (plan.cpu_workers, plan.memory_bytes, plan.use_gpu) == (1, 1 << 30, False)
    assert {"processors_unknown", "memory_limits_unknown"} <= set(plan.reasons)


@settings(max_examples=200)
@given(machines, configs, shapes, counts, st.integers(1, 1 << 50), st.integers(1, 1 << 50))
def test_more_memory_never_means_smaller_chunks(
    caps: Capabilities, config: dict[str, Any], shape: tuple[int, int], n: int, one: int, two: int
) -> None:
    plans = [
        global_plan(shape, n, config, caps, allowed=Allowance(size, "as told"))
        for size in sorted((one, two))
    ]
    chunks = [plan.max_chunk_bytes or 0 for plan in plans]
    rows = [plan.rows_per_chunk or 0 for plan in plans]
    assert (sorted(chunks), sorted(rows)) == (chunks, rows)
    assert plans[0].cpu_workers == plans[1].cpu_workers


@settings(max_examples=200)
@given(st.integers(1, 1 << 50), st.integers(1, 1 << 50), shapes, counts)
def test_more_ram_never_means_less(one: int, two: int, shape: tuple[int, int], n: int) -> None:
    plans = [
        auto_tune_plan("phase5", shape, n, 4, {}, Capabilities(
            cpu_logical_cores=8, ram_total_bytes=ram, ram_available_bytes=ram
        ))
        for ram in sorted((one, two))
    ]  # fmt: skip
    chunks = [plan.max_chunk_bytes or 0 for plan in plans]
    assert sorted(chunks) == chunks


@given(unknown_or(st.integers(1, 1 << 40)), unknown_or(st.integers(1, 1 << 20)))
def test_shrinking_ends(chunk: int | None, rows: int | None) -> None:
    for _ in range(120):
        before = (chunk, rows)
        chunk, rows = shrink_after_oom(chunk, rows)
        assert before == (None, None) or chunk <= max(before[0] or 0, 16 * MIB)
    assert (chunk, rows) == (16 * MIB, 32)


# ------------------------------------------------------------------------------- the engine


def frame_grid(origin: tuple[int, int], frame: tuple[int, int]) -> _zmrs.CoordGrid:
    """An input that lies on the output as it is, its corner at `origin` (x, y)."""
    spacing = 64
    start = tuple(side // spacing * spacing for side in origin)
    cells = [-(-(o + f - s) // spacing) for o, f, s in zip(origin, frame, start, strict=True)]
    i = np.arange(-1.0, cells[0] + 2) * spacing + start[0] - origin[0]
    j = np.arange(-1.0, cells[1] + 2) * spacing + start[1] - origin[1]
    nodes = np.stack(np.meshgrid(i, j), axis=-1)
    return _zmrs.CoordGrid((start[0], start[1]), spacing, (cells[0], cells[1]), frame, nodes)


@st.composite
def jobs(draw: st.DrawFn) -> _zmrs.Job:
    """Frames strewn over a canvas; no pixels."""
    height, width = draw(st.integers(1, 6000)), draw(st.integers(1, 20_000))
    channels = draw(st.sampled_from([1, 3]))
    across, down = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    inputs = []
    for number in range(draw(st.integers(1, 40))):
        x = draw(st.integers(0, max(width - 1, 0)))
        y = draw(st.integers(0, max(height - 1, 0)))
        source = _zmrs.Source.file("none.fits", 2880, -32, (channels, down, across))
        grid = frame_grid((x, y), (across, down))
        inputs.append(_zmrs.Input(str(number), source, grid))
    kernel = draw(st.sampled_from(["nearest", "bilinear", "lanczos3"]))
    return _zmrs.Job((channels, height, width), kernel, "mean", inputs)


def cut(job: _zmrs.Job, plan: Plan, reserved: int = 80 * MIB) -> _zmrs.Layout | None:
    try:
        return _zmrs.fit(job, plan, reserved, 0, 0, False)
    except BudgetError:
        return None


@settings(max_examples=150, deadline=None)
@given(jobs(), st.integers(1, 200), st.integers(90, 4000), st.integers(1, 4000))
def test_what_the_engine_will_use(
    job: _zmrs.Job, workers: int, memory_mib: int, more_mib: int
) -> None:
    """Never more than is allowed; what fits fits with more memory too, with no fewer workers.

    Rows and chunk bytes may be a little smaller: more workers take their buffers from them, and
    inputs that are loaded one after the other make bands tall.
    """
    plan = Plan(cpu_workers=workers, memory_bytes=memory_mib * MIB)
    layout = cut(job, plan)
    assume(layout is not None)
    assert layout is not None
    done = layout.plan
    assert layout.projected_bytes == sum(layout.terms.values()) <= memory_mib * MIB
    assert 1 <= done.cpu_workers <= workers
    assert 1 <= layout.band_rows <= 6000
    assert done.rows_per_chunk == layout.band_rows
    assert done.max_chunk_bytes == sum(
        layout.terms[name] for name in ("windows", "running values", "output rows")
    )
    assert done.memory_bytes == plan.memory_bytes
    roomier = cut(job, plan.replace(memory_bytes=(memory_mib + more_mib) * MIB))
    assert roomier is not None
    assert roomier.plan.cpu_workers >= done.cpu_workers


@settings(max_examples=60, deadline=None)
@given(jobs(), st.integers(1, 64), st.integers(90, 400))
def test_rows_and_chunks_are_bounds(job: _zmrs.Job, rows: int, chunk_mib: int) -> None:
    plan = Plan(
        cpu_workers=2, memory_bytes=1 << 32, rows_per_chunk=rows, max_chunk_bytes=chunk_mib * MIB
    )
    layout = cut(job, plan)
    assert layout is not None
    assert layout.band_rows <= rows
    assert (layout.plan.max_chunk_bytes or 0) <= chunk_mib * MIB


def test_too_many_workers_for_the_memory_are_sent_home() -> None:
    grid = frame_grid((0, 0), (1000, 1000))
    source = _zmrs.Source.file("none.fits", 2880, -32, (1, 1000, 1000))
    job = _zmrs.Job((1, 1000, 1000), "bilinear", "mean", [_zmrs.Input("one", source, grid)])
    layout = cut(job, Plan(cpu_workers=500, memory_bytes=128 * MIB))
    assert layout is not None
    assert 1 <= layout.plan.cpu_workers < 30
    assert layout.plan.reasons == ("workers_memory",)
    with pytest.raises(BudgetError, match="smallest limit"):
        _zmrs.fit(job, Plan(cpu_workers=500, memory_bytes=70 * MIB), 80 * MIB, 0, 0, False)
