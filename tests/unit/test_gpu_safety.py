"""What a plan may take of a GPU: rules kept, faults repaired, and the one choice of a plan."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from zmrs.errors import UsageError
from zmrs.gpu_safety import (
    GpuContext,
    apply_gpu_safety,
    effective_gpu,
    gpu_context,
    phase5_vram_budget,
    vendor_of,
)
from zmrs.limits import MemoryLimit
from zmrs.memory import Allowance
from zmrs.plan import (
    REASONS,
    Plan,
    auto_tune_plan,
    check_gpu,
    describe,
    given_plan,
    global_plan,
    phase5_plan,
    select_two_pass_plan,
)
from zmrs.probe import Capabilities

MIB, GIB = 1 << 20, 1 << 30

DESKTOP = Capabilities(
    system="linux",
    cpu_logical_cores=16,
    ram_total_bytes=32 * GIB,
    ram_available_bytes=24 * GIB,
    limits=(MemoryLimit("available memory", 24 * GIB),),
    gpu_available=True,
    gpu_name="NVIDIA GeForce RTX 3060",
    gpu_vram_total_bytes=8 * GIB,
    gpu_vram_free_bytes=6 * GIB,
    has_battery=False,
)
LAPTOP = replace(
    DESKTOP, system="windows", has_battery=True, power_plugged=True, is_hybrid_graphics=True
)
UNPLUGGED = replace(LAPTOP, power_plugged=False, on_battery=True)
GPU_PLAN = Plan(use_gpu=True, gpu_max_chunk_bytes=GIB, gpu_rows_per_chunk=512)


def budget_mib(config: Any, caps: Capabilities, **more: Any) -> float:
    context = gpu_context(caps, reference=more.get("reference", False))
    return phase5_vram_budget(config, context, **more).bytes / MIB


# ------------------------------------------------------------------------------- repaired faults


def test_a_size_for_manual_chunks_does_not_bind_automatic_ones() -> None:
    shipped = {"phase5_chunk_mb": 128}
    assert budget_mib(shipped, LAPTOP, reference=True) == 128
    assert budget_mib(shipped, LAPTOP) == budget_mib({}, LAPTOP) == 3072
    unknown = replace(LAPTOP, gpu_vram_free_bytes=None)
    assert budget_mib(shipped, unknown, reference=True) == 128
    assert budget_mib(shipped, unknown) == 512


@pytest.mark.parametrize("has_battery", [False, None])
def test_a_desktop_without_a_battery_is_on_the_mains(has_battery: bool | None) -> None:
    desktop = replace(DESKTOP, has_battery=has_battery)
    assert budget_mib({}, desktop, reference=True) == 1280
    assert budget_mib({}, desktop) == 4096
    assert budget_mib({}, desktop, plan_cap_bytes=96 * MIB, reference=True) == 96
    assert budget_mib({}, desktop, plan_cap_bytes=96 * MIB) == 4096
    assert budget_mib({}, replace(desktop, gpu_vram_free_bytes=None)) == 1024


def test_a_windows_desktop_with_two_gpus_needs_no_safe_mode() -> None:
    desktop = replace(LAPTOP, has_battery=False, power_plugged=None)
    assert gpu_context(desktop, reference=True).safe_mode
    assert not gpu_context(desktop).safe_mode
    assert gpu_context(desktop).reasons == ("hybrid_graphics",)


def test_forcing_the_gpu_on_the_mains_acts() -> None:
    force, reluctant = {"phase5_force_gpu_on_ac": True}, Plan(use_gpu=False)
    context = gpu_context(DESKTOP)
    assert effective_gpu(reluctant, context, force) == (True, ("gpu_forced_on_ac",))
    assert effective_gpu(reluctant, context, force, reference=True) == (False, ())
    assert effective_gpu(reluctant, context) == (False, ())
    for caps in (
        UNPLUGGED,
        replace(DESKTOP, gpu_safe_mode=True),
        replace(DESKTOP, gpu_available=False),
        replace(DESKTOP, on_battery=True, has_battery=True),
    ):
        assert not effective_gpu(reluctant, gpu_context(caps), force)[0]
    assert effective_gpu(reluctant, context, force, requested=False) == (False, ("gpu_off",))
    plan = phase5_plan((3000, 4000), 9, force | {"parallel_autotune_enabled": False}, DESKTOP)
    assert plan.use_gpu
    assert "gpu_forced_on_ac" in plan.reasons


def test_the_floors_of_the_reference_break_small_limits() -> None:
    tiny = Capabilities(cpu_logical_cores=16, ram_total_bytes=GIB, ram_available_bytes=100 * MIB)
    shape = (2, 4000)
    floors = auto_tune_plan("phase5", shape, 1, 4, {}, tiny, reference=True)
    ours = auto_tune_plan("phase5", shape, 1, 4, {}, tiny)
    assert (floors.max_chunk_bytes, floors.rows_per_chunk) == (32 * MIB, 4)
    assert (ours.max_chunk_bytes, ours.rows_per_chunk) == (int(100 * MIB * 0.98) // 15, 2)
    nearly_nothing = replace(tiny, cpu_logical_cores=2, ram_available_bytes=10 * MIB)
    floors = auto_tune_plan("phase5", shape, 1, 4, {}, nearly_nothing, reference=True)
    assert floors.max_chunk_bytes == 128 * MIB


# ----------------------------------------------------------------------------------- rules kept


@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia"), ("GeForce GTX 1060", "nvidia"),
        ("Quadro P400", "nvidia"), ("Intel(R) Iris(R) Xe", "intel"), ("AMD Radeon RX", "amd"),
        ("Advanced Micro Devices, Inc.", "amd"), ("Apple M2", "apple"), ("Tesla T4", "unknown"),
        (None, "unknown"), ("", "unknown"),
    ],
)  # fmt: skip
def test_vendors(name: str | None, vendor: str) -> None:
    assert vendor_of(name) == vendor
    assert Capabilities(gpu_name=name).gpu_vendor == vendor


@pytest.mark.parametrize(
    ("caps", "config", "reasons", "uses_gpu"),
    [
        (DESKTOP, {}, (), True),
        (replace(DESKTOP, gpu_available=False), {}, ("gpu_unavailable",), False),
        (replace(DESKTOP, gpu_name="Intel UHD"), {},
         ("intel_only_gpu", "disable_intel_only_gpu"), False),
        (replace(DESKTOP, gpu_name="Tesla T4"), {}, ("unknown_gpu_vendor",), True),
        (UNPLUGGED, {},
         ("on_battery_clamp", "hybrid_unplugged_clamp", "vram_cap", "safe_mode_clamp"), True),
        (LAPTOP, {}, ("hybrid_graphics", "battery_present", "vram_cap", "hybrid_vram_guard"),
         True),
        (LAPTOP, {"gpu_hybrid_vram_guard": False},
         ("hybrid_graphics", "battery_present", "hybrid_vram_guard_disabled_by_user"), True),
        (replace(UNPLUGGED, system="linux"), {}, (), True),
        (replace(DESKTOP, gpu_safe_mode=True), {},
         ("safe_mode_asked", "vram_cap", "safe_mode_clamp"), True),
    ],
)  # fmt: skip
def test_reasons_in_order(
    caps: Capabilities, config: dict[str, Any], reasons: tuple[str, ...], uses_gpu: bool
) -> None:
    plan, context = apply_gpu_safety(GPU_PLAN, caps, config, "phase5")
    assert context.reasons == reasons
    assert context.operation == "phase5"
    assert plan.use_gpu is uses_gpu
    if not uses_gpu:
        assert (plan.gpu_max_chunk_bytes, plan.gpu_rows_per_chunk) == (None, None)
    assert apply_gpu_safety(None, caps, config)[0] is None


def test_the_clamp_without_figures() -> None:
    bare = Plan(use_gpu=True)
    unknown = replace(UNPLUGGED, gpu_vram_free_bytes=None, gpu_vram_total_bytes=None)
    plan, context = apply_gpu_safety(bare, unknown)
    assert (plan.gpu_max_chunk_bytes, plan.gpu_rows_per_chunk) == (128 * MIB, 256)
    assert "vram_cap" not in context.reasons
    scarce = replace(UNPLUGGED, gpu_vram_free_bytes=100 * MIB)
    plan, _ = apply_gpu_safety(GPU_PLAN, scarce)
    assert plan.gpu_max_chunk_bytes == 40 * MIB
    scarcer = replace(UNPLUGGED, gpu_vram_free_bytes=10 * MIB)
    plan, _ = apply_gpu_safety(GPU_PLAN, scarcer)
    assert (plan.gpu_max_chunk_bytes, plan.gpu_rows_per_chunk) == (32 * MIB, 32)


def test_safe_mode_wants_a_gpu_that_it_knows() -> None:
    no = (False, ("safe_mode_unknown_gpu",))
    assert effective_gpu(GPU_PLAN, gpu_context(replace(UNPLUGGED, gpu_name="Tesla T4"))) == no
    mute = replace(UNPLUGGED, gpu_vram_free_bytes=None, gpu_vram_total_bytes=None)
    assert effective_gpu(GPU_PLAN, gpu_context(mute)) == no
    assert effective_gpu(GPU_PLAN, gpu_context(UNPLUGGED)) == (True, ())
    intel = gpu_context(replace(DESKTOP, gpu_name="Intel UHD"))
    assert effective_gpu(GPU_PLAN, intel) == (False, ("intel_only",))


@pytest.mark.parametrize(
    ("config", "caps", "mib", "reasons"),
    [
        ({}, DESKTOP, 128, ()),
        ({"phase5_chunk_mb": 1000}, DESKTOP, 1000, ()),
        ({"phase5_chunk_mb": 10}, DESKTOP, 64, ()),
        ({"phase5_chunk_mb": 10**6}, DESKTOP, 4096, ("budget_cap",)),
        ({"phase5_chunk_mb": 2000}, UNPLUGGED, 1280, ("budget_cap",)),
        ({"phase5_chunk_mb": 2000, "phase5_vram_hard_cap_mb": 300}, DESKTOP, 300,
         ("hard_cap", "budget_cap")),
        ({"phase5_chunk_mb": "many"}, DESKTOP, 128, ()),
        ({"phase5_chunk_mb": True}, DESKTOP, 128, ()),
    ],
)  # fmt: skip
def test_chunks_by_hand(
    config: dict[str, Any], caps: Capabilities, mib: int, reasons: tuple[str, ...]
) -> None:
    budget = phase5_vram_budget({"phase5_chunk_auto": False} | config, gpu_context(caps))
    assert (budget.bytes, budget.mode) == (mib * MIB, "user")
    assert budget.reasons == reasons
    assert budget.requested_bytes is not None


def test_a_live_look_at_the_vram_wins() -> None:
    assert budget_mib({}, DESKTOP, free_bytes=2 * GIB) == int(1024 * MIB * 0.8) / MIB
    assert budget_mib({}, DESKTOP, free_bytes=0) == 4096


@pytest.mark.parametrize(
    ("config", "fraction", "reserve_mib"),
    [
        ({"phase5_vram_frac_ac": 5}, 0.90, 1024),
        ({"phase5_vram_frac_ac": 0.0}, 0.05, 1024),
        ({"phase5_vram_frac_ac": "0.5"}, 0.5, 1024),
        ({"phase5_vram_frac_ac": ""}, 0.80, 1024),
        ({"phase5_vram_frac_ac": True}, 0.80, 1024),
        ({"phase5_vram_frac_ac": float("nan")}, 0.80, 1024),
        ({"phase5_vram_reserve_mb": -5}, 0.80, 0),
    ],
)
def test_settings_that_cannot_be_read(
    config: dict[str, Any], fraction: float, reserve_mib: int
) -> None:
    budget = phase5_vram_budget(config, gpu_context(DESKTOP))
    assert (budget.fraction, budget.reserve_bytes) == (fraction, reserve_mib * MIB)


def test_a_context_cannot_be_changed() -> None:
    context = gpu_context(DESKTOP)
    with pytest.raises(AttributeError):
        context.safe_mode = True  # type: ignore[misc]
    assert context.because("vram_cap", "vram_cap").reasons == ("vram_cap",)
    assert GpuContext().reasons == ()


# ------------------------------------------------------------------------------- the whole plan


def test_a_plan_for_a_desktop() -> None:
    plan = phase5_plan((6000, 8000), [None] * 20, {}, DESKTOP)
    assert (plan.name, plan.cpu_workers, plan.use_gpu) == ("phase5", 15, True)
    assert plan.gpu_max_chunk_bytes == 4096 * MIB
    assert plan.memory_bytes == int(24 * GIB * 0.6)
    assert plan.reasons == (
        "workers_load_target", "plan_cap_ignored_on_ac", "budget_policy", "memory_automatic",
    )  # fmt: skip
    assert describe(plan).endswith(" reasons=" + ",".join(plan.reasons))


def test_what_is_asked_for_wins() -> None:
    config = SimpleNamespace(memory="512MiB", threads=3, gpu="off")
    plan = phase5_plan(SimpleNamespace(shape=(6000, 8000)), 20, config, DESKTOP)
    assert (plan.cpu_workers, plan.memory_bytes, plan.use_gpu) == (3, 512 * MIB, False)
    assert plan.reasons == ("workers_asked", "gpu_off", "memory_asked")
    assert (
        phase5_plan((60, 80), 2, config, DESKTOP, without_gpu="gpu_unavailable").reasons
        == plan.reasons
    )


# ----------------------------------------------------------------- who keeps a job from the GPU

USES = Plan(use_gpu=True, gpu_rows_per_chunk=9)
FORBIDS = Plan(use_gpu=False, gpu_rows_per_chunk=9)

WISHES: list[tuple[str, Plan | None, bool, str | None]] = [
    ("auto", None, True, None),
    ("auto", None, False, "gpu_unavailable"),
    ("auto", USES, True, None),
    ("auto", USES, False, "gpu_unavailable"),
    ("auto", FORBIDS, True, "gpu_not_planned"),
    ("auto", FORBIDS, False, "gpu_not_planned"),
    ("on", None, True, None),
    ("on", None, False, "gpu_unavailable"),
    ("on", USES, True, None),
    ("on", USES, False, "gpu_unavailable"),
    ("on", FORBIDS, True, "gpu_not_planned"),
    ("on", FORBIDS, False, "gpu_not_planned"),
    ("off", None, True, "gpu_off"),
    ("off", USES, True, "gpu_off"),
    ("off", FORBIDS, False, "gpu_off"),
]


@pytest.mark.parametrize(("wish", "given", "backend", "reason"), WISHES)
def test_who_keeps_a_job_from_the_gpu(
    wish: str, given: Plan | None, backend: bool, reason: str | None
) -> None:
    """The options before the plan before what this version can; only a demand may fail."""
    config = {"gpu": wish}
    without = "" if backend else "gpu_unavailable"
    if wish == "on" and reason == "gpu_unavailable":
        with pytest.raises(UsageError, match=REASONS["gpu_unavailable"]):
            check_gpu(config, given, without_gpu=without)
    else:
        check_gpu(config, given, without_gpu=without)
    allowed = Allowance(GIB, "as asked")
    if given is None:
        plan = phase5_plan((600, 800), 3, config, DESKTOP, allowed=allowed, without_gpu=without)
    else:
        plan, _ = given_plan(given, config, DESKTOP, allowed, without_gpu=without)
        assert plan.gpu_rows_per_chunk == 9
    assert plan.use_gpu is (reason is None)
    refusals = [
        one for one in plan.reasons if one in ("gpu_off", "gpu_not_planned", "gpu_unavailable")
    ]
    assert refusals == ([reason] if reason else [])


def test_what_an_earlier_run_decided_is_forgotten() -> None:
    earlier = Plan(
        reasons=["vram_cap", "gpu_unavailable", "gpu_off", "gpu_not_planned", "memory_asked"]
    )
    plan, _ = given_plan(earlier, {}, DESKTOP, Allowance(GIB, "as asked"))
    assert plan.reasons == ("vram_cap", "gpu_not_planned", "memory_asked")


def test_the_engine_has_the_last_word() -> None:
    plan = phase5_plan((60, 80), 2, {}, DESKTOP)
    assert (plan.rows_per_chunk, plan.max_chunk_bytes) == (None, None)


def test_the_global_plan() -> None:
    plan = global_plan(None, 0, None, DESKTOP)
    assert (plan.name, plan.rows_per_chunk, plan.use_gpu) == ("global", None, True)
    assert global_plan(None, 0, None, DESKTOP, without_gpu="gpu_unavailable").reasons[-2:] == (
        "gpu_unavailable", "memory_automatic",
    )  # fmt: skip
    low = replace(LAPTOP, gpu_vram_total_bytes=None)
    assert global_plan((10, 4000), 5, None, low).gpu_rows_per_chunk == 10


class AttributeDict(dict[str, Any]):
    """A mapping whose items are attributes too, and which raises KeyError for those it lacks."""

    __getattr__ = dict.__getitem__


class Moody:
    @property
    def memory(self) -> int:
        raise ValueError("not today")


def test_configurations_with_a_mind_of_their_own() -> None:
    for config in (AttributeDict(), Moody(), 3, "text", [1]):
        assert phase5_plan((60, 80), 2, config, DESKTOP) == phase5_plan((60, 80), 2, {}, DESKTOP)
        assert select_two_pass_plan(phase5_plan=None, fallback_plan=7, config=config) == 7
    assert phase5_plan((60, 80), 2, AttributeDict(threads=3), DESKTOP).cpu_workers == 3


@pytest.mark.parametrize("memory", [2.5, -0.5, 0.0, True, float("nan"), [1], "many", 2**60, b"1"])
def test_memory_that_is_none(memory: Any) -> None:
    with pytest.raises(UsageError):
        phase5_plan((60, 80), 2, {"memory": memory}, DESKTOP)


def test_memory_in_numbers_of_numpy() -> None:
    for memory in (np.int64(1 << 29), float(1 << 29), "512MiB"):
        assert phase5_plan((60, 80), 2, {"memory": memory}, DESKTOP).memory_bytes == 1 << 29


@pytest.mark.parametrize(
    ("shape", "n"),
    [
        ((1 << 40, 1), 1), ((1, 1 << 62), 10**30), (np.array([60, 80]), np.int64(3)),
        ((float("nan"), float("inf")), None), ((-5, 80), -3),
    ],
)  # fmt: skip
def test_strange_jobs(shape: Any, n: Any) -> None:
    for plan in (
        auto_tune_plan("phase5", shape, n, 4, {}, DESKTOP),
        phase5_plan(shape, n, {}, DESKTOP),
    ):
        assert plan.cpu_workers == 15


# --------------------------------------------------------------------------------- the selector

FIRST, SECOND, THIRD = Plan(name="phase5"), Plan(name="configured"), Plan(name="global")


@pytest.mark.parametrize("form", [dict, SimpleNamespace])
def test_who_is_selected(form: Any) -> None:
    config = form(parallel_plan_phase5=SECOND)
    for phase5, given_config, chosen in (
        (FIRST, config, FIRST),
        (FIRST, None, FIRST),
        (None, config, SECOND),
        (None, form(parallel_plan_phase5=None), THIRD),
        (None, form(), THIRD),
        (None, None, THIRD),
    ):
        selected = select_two_pass_plan(
            phase5_plan=phase5, fallback_plan=THIRD, config=given_config
        )
        assert selected is chosen
    assert select_two_pass_plan(phase5_plan=None, fallback_plan=None) is None


@pytest.mark.parametrize("plan", [{}, {"cpu_workers": 2}, SimpleNamespace(), 0])
def test_any_object_is_a_plan_but_none(plan: Any) -> None:
    assert select_two_pass_plan(phase5_plan=plan, fallback_plan=THIRD) is plan
    config = {"parallel_plan_phase5": plan}
    assert select_two_pass_plan(phase5_plan=None, fallback_plan=THIRD, config=config) is plan
