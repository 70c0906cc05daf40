"""The plan never changes, takes every sensible source, and refuses nonsense by name."""

from __future__ import annotations

import copy
import json
import pickle
from collections import UserDict, defaultdict
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from zmrs.errors import PlanError, UsageError, ZmrsError
from zmrs.limits import MemoryLimit
from zmrs.memory import AUTO_FRACTION, allowance, parse_size
from zmrs.plan import Plan

FIELDS: dict[str, Any] = {
    "name": "night",
    "cpu_workers": 3,
    "use_memmap": True,
    "max_chunk_bytes": 32 << 20,
    "rows_per_chunk": 64,
    "tiles_per_chunk": 4,
    "use_gpu": True,
    "gpu_rows_per_chunk": 128,
    "gpu_max_chunk_bytes": 64 << 20,
    "two_pass_coverage_threshold": 0.0,
    "memory_bytes": 1 << 30,
    "reasons": ("memory_asked", "gpu_unavailable"),
}


# ------------------------------------------------------------------------------- immutability


@pytest.mark.parametrize("name", [*FIELDS, "something_new"])
def test_nothing_can_be_set_or_deleted(name: str) -> None:
    plan = Plan(**FIELDS)
    before = plan.to_dict()
    for attempt in (
        lambda: setattr(plan, name, 1),
        lambda: delattr(plan, name),
        lambda: object.__setattr__(plan, name, 1),
        lambda: object.__delattr__(plan, name),
        lambda: plan.__dict__.update({name: 1}),
    ):
        with pytest.raises((AttributeError, TypeError)):
            attempt()
    assert plan.to_dict() == before


def test_what_it_gives_away_is_a_copy() -> None:
    plan = Plan(**FIELDS)
    plan.to_dict()["cpu_workers"] = 99
    assert plan.cpu_workers == 3


def test_replace_makes_another() -> None:
    plan = Plan(**FIELDS)
    other = plan.replace(cpu_workers=8, max_chunk_bytes=None)
    assert (plan.cpu_workers, plan.max_chunk_bytes) == (3, 32 << 20)
    assert (other.cpu_workers, other.max_chunk_bytes) == (8, None)
    assert other.replace(cpu_workers=3, max_chunk_bytes=32 << 20) == plan
    with pytest.raises(TypeError, match="colour"):
        plan.replace(colour="red")
    with pytest.raises(PlanError, match="cpu_workers"):
        plan.replace(cpu_workers=0)


# ------------------------------------------------------------------------ equality and copies


@pytest.mark.parametrize(
    "remake",
    [
        lambda plan: pickle.loads(pickle.dumps(plan)),
        lambda plan: pickle.loads(pickle.dumps(plan, protocol=2)),
        copy.copy,
        copy.deepcopy,
        lambda plan: Plan.from_json(plan.to_json()),
        lambda plan: Plan(**plan.to_dict()),
        Plan.from_phase5,
        lambda plan: Plan.from_phase5(plan.to_dict()),
        lambda plan: plan.replace(),
        lambda plan: eval(repr(plan), {"Plan": Plan}),
    ],
)
@pytest.mark.parametrize("fields", [{}, FIELDS])
def test_remaking(remake: Any, fields: dict[str, Any]) -> None:
    plan = Plan(**fields)
    other = remake(plan)
    assert type(other) is Plan
    assert other == plan
    assert hash(other) == hash(plan)
    assert other.to_dict() == plan.to_dict()


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_counts_in_comparisons(name: str) -> None:
    plan = Plan(**FIELDS)
    assert plan != Plan(**{key: value for key, value in FIELDS.items() if key != name})
    assert getattr(plan, name) == FIELDS[name]
    assert plan != FIELDS
    assert len({plan, Plan(**FIELDS)}) == 1


def test_json_is_plain() -> None:
    assert json.loads(Plan(**FIELDS).to_json()) == FIELDS | {"reasons": [*FIELDS["reasons"]]}
    assert list(Plan().to_dict()) == list(FIELDS)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"colour": 1}', '{"cpu_workers": 0}', "{'a"])
def test_json_that_is_no_plan(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_equal_plans_have_equal_hashes() -> None:
    zeros = [Plan(two_pass_coverage_threshold=zero) for zero in (0.0, -0.0, 0)]
    assert len(set(zeros)) == 1
    assert len({Plan(cpu_workers=n) for n in range(1, 200)}) == 199


# -------------------------------------------------------------------------------- from_phase5


@dataclass
class Foreign:
    """A plan of another program."""

    cpu_workers: int = 5
    max_chunk_bytes: int | None = 1000
    use_gpu: bool = False
    gpu_rows_hint: int = 7
    comment: str = "unknown to us"


class Slotted:
    __slots__ = ("cpu_workers", "rows_per_chunk")

    def __init__(self) -> None:
        self.cpu_workers, self.rows_per_chunk = 5, 17


@pytest.mark.parametrize(
    "source",
    [
        Foreign(),
        SimpleNamespace(cpu_workers=5, max_chunk_bytes=1000, other=object()),
        {"cpu_workers": 5, "max_chunk_bytes": 1000, "other": None, 3: 4},
        MappingProxyType({"cpu_workers": np.int64(5), "max_chunk_bytes": 1e3}),
        UserDict(cpu_workers=np.uint8(5), max_chunk_bytes=np.float64(1000)),
    ],
    ids=lambda source: type(source).__name__,
)
def test_sources(source: Any) -> None:
    assert Plan.from_phase5(source) == Plan(cpu_workers=5, max_chunk_bytes=1000)


def test_sources_with_little_to_say() -> None:
    for nothing in ({}, {"colour": 3}, SimpleNamespace(name=None, cpu_workers=None, use_gpu=None)):
        assert Plan.from_phase5(nothing) == Plan()
    assert Plan.from_phase5(Slotted()) == Plan(cpu_workers=5, rows_per_chunk=17)


@pytest.mark.parametrize(
    "source", [None, "hello", b"x", 5, 1.5, True, [1, 2], (), range(3), object(), print]
)
def test_what_cannot_be_a_plan(source: Any) -> None:
    with pytest.raises(PlanError, match="plan"):
        Plan.from_phase5(source)


def test_the_alias_of_the_threshold() -> None:
    threshold = "two_pass_coverage_threshold"
    assert getattr(Plan.from_phase5({"coverage_threshold": 0}), threshold) == 0
    both = {"coverage_threshold": 3.0, threshold: 1.5}
    assert getattr(Plan.from_phase5(both), threshold) == 1.5


THRESHOLDS = (-0.1, float("nan"), float("inf"), True, np.True_, np.array("4"))
NONSENSE: list[tuple[str, Any]] = [
    *(
        (name, value)
        for name in FIELDS
        if name not in ("name", "reasons")
        for value in ("12", b"1", [], object())
    ),
    *(
        (name, value)
        for name, right in FIELDS.items()
        if type(right) is int
        for value in (-1, 0, 1.5, float("nan"), float("inf"), True, 2**64, -(2**70))
    ),
    *(("two_pass_coverage_threshold", value) for value in THRESHOLDS),
    *((name, value) for name in ("use_gpu", "use_memmap") for value in (1, 0.0, "True")),
    ("name", ""),
    *(("name", value) for value in (3, "nuit é", "a\nb", "\x00")),
    *(("reasons", value) for value in ("memory_asked", 3, [1], [""], ["a,b"], ["é"])),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE, ids=lambda value: repr(value)[:24])
def test_nonsense_is_refused_by_name(name: str, value: Any) -> None:
    for make in (
        lambda: Plan.from_phase5({name: value}),
        lambda: Plan.from_phase5(SimpleNamespace(**{name: value})),
        lambda: Plan(**{name: value}),
    ):
        with pytest.raises(PlanError, match=f"'{name}'"):
            make()


def test_a_mapping_with_defaults_stays_as_it_is() -> None:
    source = defaultdict(int, cpu_workers=2)
    assert Plan.from_phase5(source) == Plan(cpu_workers=2)
    assert dict(source) == {"cpu_workers": 2}


def test_an_error_of_the_source_is_not_swallowed() -> None:
    class Broken:
        @property
        def cpu_workers(self) -> int:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Plan.from_phase5(Broken())


def test_the_figures_of_the_log() -> None:
    assert Plan(**FIELDS).figures() == (
        "cpu_workers=3 use_gpu=True max_chunk_mb=32.00 gpu_max_chunk_mb=64.00 rows=64 gpu_rows=128"
    )
    assert Plan().figures() == (
        "cpu_workers=1 use_gpu=False max_chunk_mb=- gpu_max_chunk_mb=- rows=- gpu_rows=-"
    )


def test_an_error_of_a_plan_is_an_error_of_zmrs() -> None:
    assert issubclass(PlanError, ZmrsError)


# ------------------------------------------------------------------------- sizes and allowances


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 << 20), ("2GB", 2 * 10**9), (" 1.5 GiB ", 3 << 29), ("64m", 64 << 20),
        ("1T", 1 << 40), ("7kb", 7000), (".5gib", 1 << 29), ("1024B", 1024), ("50%", 0.5),
        ("100%", 1.0), ("0.5%", 0.005),
    ],
)  # fmt: skip
def test_sizes(text: str, size: float) -> None:
    assert parse_size(text) == size
    assert type(parse_size(text)) is type(size)


@pytest.mark.parametrize(
    "text",
    ["", "300", "MiB", "-1MiB", "1 MiB MiB", "1XB", "0%", "101%", "0MiB", "nan", "1e3MiB", "½GB"],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert text.strip() in str(caught.value)


LIMITS = [MemoryLimit("the barn", 1000), MemoryLimit("the stable", 800)]


@pytest.mark.parametrize(
    ("asked", "held", "size", "word"),
    [
        (500, 0, 500, "asked"),
        (500, 100, 600, "asked"),
        (0.5, 0, 400, "stable"),
        (None, 0, int(800 * AUTO_FRACTION), "stable"),
        (None, 300, 300 + int(500 * AUTO_FRACTION), "stable"),
    ],
)
def test_the_allowance(asked: float | None, held: int, size: int, word: str) -> None:
    allowed = allowance(asked, LIMITS, held)
    assert allowed.bytes == size
    assert word in allowed.reason


def test_without_any_limit_there_is_a_modest_one() -> None:
    assert allowance(None, []).bytes == 1 << 30
