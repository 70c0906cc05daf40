"""The plan, byte for byte as ZeMosaic 4.5 makes it (figures observed by running that program)."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from zmrs.gpu_safety import (
    GpuContext,
    apply_gpu_safety,
    bump_gpu_rows,
    clamp_gpu_chunks,
    gpu_context,
    phase5_vram_budget,
    shrink_after_oom,
)
from zmrs.plan import Plan, auto_tune_plan
from zmrs.probe import Capabilities

MIB, GIB = 1 << 20, 1 << 30

MACHINE_A = Capabilities(
    cpu_logical_cores=16,
    cpu_cores=8,
    ram_total_bytes=32 * GIB,
    ram_available_bytes=24 * GIB,
    gpu_available=True,
    gpu_vram_total_bytes=8 * GIB,
    gpu_vram_free_bytes=7 * GIB,
)
SMALL_MACHINE = Capabilities(
    cpu_logical_cores=4, ram_total_bytes=4 * GIB, ram_available_bytes=1 * GIB
)
WITHOUT_VRAM = Capabilities(
    cpu_logical_cores=16, cpu_cores=8, ram_total_bytes=32 * GIB, ram_available_bytes=24 * GIB,
    gpu_available=True,
)  # fmt: skip

CAREFUL = {
    "parallel_target_cpu_load": 0.90,
    "parallel_target_ram_fraction": 0.82,
    "parallel_gpu_vram_fraction": 0.72,
}
PANEL, SURVEY = (6000, 8000), (10000, 12000)

# Machine, shape, images, configuration → workers, memmap, chunk, rows, GPU, GPU rows, GPU chunk.
TUNED: list[tuple[Any, ...]] = [
    (MACHINE_A, PANEL, 20, {}, 15, False, 1683627180, 2630, True, 6000, 6184752906),
    (MACHINE_A, PANEL, 20, CAREFUL, 14, False, 1803886264, 2818, True, 6000, 5566277615),
    (MACHINE_A, SURVEY, 200, {}, 15, True, 1683627180, 175, True, 644, 6184752906),
    (MACHINE_A, None, 0, {}, 15, False, 1683627180, None, True, None, None),
    (MACHINE_A, PANEL, 20, {"parallel_autotune_enabled": False},
     16, False, 1578400481, 2466, False, None, None),
    (MACHINE_A, PANEL, 20, {"parallel_max_cpu_workers": 3},
     3, False, 8418135900, 6000, True, 6000, 6184752906),
    (WITHOUT_VRAM, PANEL, 20, {}, 15, False, 1683627180, 2630, False, None, None),
    (SMALL_MACHINE, PANEL, 20, {}, 4, True, 263066746, 411, False, None, None),
]  # fmt: skip


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("as_object", [True, False])
@pytest.mark.parametrize("case", TUNED, ids=range(len(TUNED)))
def test_the_tuner(case: tuple[Any, ...], as_object: bool, reference: bool) -> None:
    caps, shape, n_frames, config, workers, memmap, chunk, rows, gpu, gpu_rows, gpu_chunk = case
    settings = SimpleNamespace(**config) if as_object else config
    plan = auto_tune_plan(
        "global_reproject", shape, n_frames, 4, settings, caps, reference=reference
    )
    assert plan == Plan(
        name="phase5",
        cpu_workers=workers,
        use_memmap=memmap,
        max_chunk_bytes=chunk,
        rows_per_chunk=rows,
        tiles_per_chunk=None,
        use_gpu=gpu,
        gpu_rows_per_chunk=gpu_rows,
        gpu_max_chunk_bytes=gpu_chunk,
        reasons=plan.reasons,
    )


def test_no_shape_may_be_zeros() -> None:
    nothing = auto_tune_plan("global", None, 0, 4, {}, MACHINE_A)
    assert auto_tune_plan("global", (0, 0), 0, 4, {}, MACHINE_A) == nothing
    assert nothing.name == "global"


# ------------------------------------------------------------------------------ safety clamp


def laptop(**more: Any) -> Capabilities:
    """Machine A as a Windows laptop with hybrid graphics."""
    fields = {name: getattr(MACHINE_A, name) for name in MACHINE_A.__dataclass_fields__}
    windows = {
        "system": "windows", "gpu_name": "NVIDIA GeForce RTX 3060", "is_hybrid_graphics": True,
        "has_battery": True, "power_plugged": True,
    }  # fmt: skip
    return Capabilities(**(fields | windows | more))


ON_BATTERY = laptop(power_plugged=False, on_battery=True)
ROOMY = {"gpu_vram_total_bytes": 12 * GIB, "gpu_vram_free_bytes": 11 * GIB}


@pytest.mark.parametrize(
    ("caps", "is_safe_mode", "reason"),
    [(ON_BATTERY, True, "safe_mode_clamp"), (laptop(), False, "hybrid_vram_guard")],
)
@pytest.mark.parametrize("reference", [True, False])
def test_the_clamp(caps: Capabilities, is_safe_mode: bool, reason: str, reference: bool) -> None:
    plan = auto_tune_plan("phase5", PANEL, 20, 4, {}, MACHINE_A)
    context = gpu_context(caps, reference=reference)
    assert context.safe_mode is is_safe_mode
    clamped, after, returned = clamp_gpu_chunks(plan, context)
    assert (clamped.gpu_max_chunk_bytes, clamped.gpu_rows_per_chunk) == (128 * MIB, 130)
    assert clamped == plan.replace(gpu_max_chunk_bytes=128 * MIB, gpu_rows_per_chunk=130)
    assert returned == reason
    assert after.reasons == (*context.reasons, "vram_cap")
    whole, outcome = apply_gpu_safety(plan, caps, {}, "phase5", reference=reference)
    assert whole == clamped
    assert outcome.reasons == (*after.reasons, reason)


@pytest.mark.parametrize("caps", [laptop(is_hybrid_graphics=False), laptop(**ROOMY)])
def test_no_clamp(caps: Capabilities) -> None:
    plan = auto_tune_plan("phase5", PANEL, 20, 4, {}, MACHINE_A)
    context = gpu_context(caps, reference=True)
    assert clamp_gpu_chunks(plan, context) == (plan, context, None)


# ------------------------------------------------------------------------------- VRAM budget


def power(free_mib: float | None = 6144, **more: Any) -> GpuContext:
    free = None if free_mib is None else int(free_mib * MIB)
    name = {"gpu_available": True, "gpu_name": "NVIDIA GeForce RTX 3060"}
    return gpu_context(Capabilities(**name, gpu_vram_free_bytes=free, **more), reference=True)


HYBRID = {"power_plugged": True, "has_battery": True, "is_hybrid_graphics": True}
DISCRETE = {"power_plugged": True, "has_battery": True, "is_hybrid_graphics": False}
BATTERY = {"power_plugged": False, "has_battery": True, "on_battery": True}

# Situation, configuration, cap of the plan in MiB → MiB, tags.
BUDGETS: list[tuple[GpuContext | None, dict[str, Any], int | None, int, tuple[str, ...]]] = [
    (power(**HYBRID), {}, None, 3072, ()),
    (power(**HYBRID), {"phase5_chunk_mb": 128}, None, 128, ("ui_chunk_cap",)),
    (power(**DISCRETE), {}, None, 4096, ()),
    (power(**BATTERY), {}, None, 1280, ()),
    (power(), {}, None, 1280, ()),
    (power(**HYBRID, gpu_safe_mode=True), {}, None, 1280, ()),
    (power(None, **DISCRETE), {}, None, 1024, ("probe_unknown",)),
    (power(None, **HYBRID), {}, None, 512, ("probe_unknown",)),
    (power(None, **BATTERY), {}, None, 128, ("probe_unknown",)),
    (power(600, **DISCRETE), {}, None, 128, ("min_clamp",)),
    (power(**HYBRID), {"phase5_vram_hard_cap_mb": 64}, None, 64, ("hard_cap", "min_clamp")),
    (power(**HYBRID), {"phase5_chunk_mb": 64}, None, 64, ("ui_chunk_cap", "min_clamp")),
    (power(**BATTERY), {}, 96, 96, ("plan_cap", "min_clamp")),
    (power(**HYBRID), {}, 96, 3072, ("plan_cap_ignored_on_ac",)),
    (None, {}, None, 128, ("probe_unknown",)),
]


# What the repaired faults give instead: a size for manual chunks does not bind automatic ones, and
# a desktop without a battery is on the mains.
REPAIRED = {1: 3072, 4: 4096, 11: 3072}


@pytest.mark.parametrize("row", range(len(BUDGETS)))
def test_the_budget_with_its_faults_repaired(row: int) -> None:
    context, config, cap_mib, expected_mib, tags = BUDGETS[row]
    if context is not None:
        mains = context.power_plugged is True or (row == 4 and context.power_plugged is None)
        context = replace(context, is_on_mains=mains)
    cap = None if cap_mib is None else cap_mib * MIB
    budget = phase5_vram_budget(config, context, plan_cap_bytes=cap)
    assert budget.bytes == REPAIRED.get(row, expected_mib) * MIB
    assert budget.reasons == (*(() if row in REPAIRED else tags), "budget_policy")


@pytest.mark.parametrize("case", BUDGETS, ids=range(len(BUDGETS)))
def test_the_budget(case: tuple[Any, ...]) -> None:
    context, config, cap_mib, expected_mib, tags = case
    cap = None if cap_mib is None else cap_mib * MIB
    for settings in (config, SimpleNamespace(**config)):
        budget = phase5_vram_budget(settings, context, plan_cap_bytes=cap, reference=True)
        assert budget.budget_bytes == budget.bytes == expected_mib * MIB
        assert budget.reasons == (*tags, "budget_policy")
        assert budget.mode == "auto"


@pytest.mark.parametrize(
    ("situation", "fraction"), [(HYBRID, 0.60), (DISCRETE, 0.80), (BATTERY, 0.25), ({}, 0.25)]
)
def test_the_fractions(situation: dict[str, Any], fraction: float) -> None:
    budget = phase5_vram_budget({}, power(**situation), reference=True)
    assert (budget.fraction, budget.usable_bytes) == (fraction, 5120 * MIB)


# ----------------------------------------------------------------------- rows up, chunks down


@pytest.mark.parametrize(
    ("chunk_mib", "n_inputs", "rows"), [(128, 20, 104), (1024, 4, 256)]
)  # fmt: skip
def test_the_row_bump(chunk_mib: int, n_inputs: int, rows: int) -> None:
    plan = Plan(use_gpu=True, gpu_rows_per_chunk=32, gpu_max_chunk_bytes=chunk_mib * MIB)
    fed = gpu_context(laptop(gpu_safe_mode=True))
    assert bump_gpu_rows(plan, fed, 8000, n_inputs) == plan.replace(gpu_rows_per_chunk=rows)
    for unchanged in (gpu_context(laptop()), gpu_context(ON_BATTERY)):
        assert bump_gpu_rows(plan, unchanged, 8000, n_inputs) is plan


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((128 * MIB, 512), (93952409, 358)),
        ((None, None), (16 * MIB, 32)),
        ((20 * MIB, 40), (16 * MIB, 32)),
    ],
)
def test_shrinking(before: tuple[int | None, int | None], after: tuple[int, int]) -> None:
    assert shrink_after_oom(*before) == after
