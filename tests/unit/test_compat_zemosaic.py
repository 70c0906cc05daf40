"""ZeMosaic's own functions, called as their callers do: with anything."""

from __future__ import annotations

import logging
import re
import tracemalloc
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

import sky
from zmrs import _zmrs
from zmrs.compat import zemosaic

Array = np.ndarray[Any, Any]

SHAPE, TILE = (120, 160), (80, 100)
ORIGINS = ((0, 0), (0, 60), (40, 0), (40, 60), (20, 30))
GRID = sky.frame_wcs(SHAPE)
WCSS = [sky.shifted_wcs(GRID, origin, TILE) for origin in ORIGINS]
TILES = [np.full(TILE, 100.0 + n, np.float32) for n in range(5)]
ONES = [np.ones(TILE, np.float32)] * 5
WEIGHTS = [1.0, 1.0, 1.0, 1.0, 2.0]


def coverage(weights: Any = (1.0,) * 5) -> Array:
    plane = np.zeros(SHAPE, np.float32)
    for (y, x), weight in zip(ORIGINS, weights, strict=True):
        plane[y : y + TILE[0], x : x + TILE[1]] += weight
    return plane


def gains(tiles: Any = TILES, **more: Any) -> list[float]:
    return zemosaic.compute_per_tile_gains_from_coverage(
        tiles, WCSS, GRID, coverage(), **{"sigma_px": 5, "gain_clip": (0.85, 1.18)} | more
    )


def second(tiles: Any = TILES, **more: Any) -> tuple[Array, Array] | None:
    common: dict[str, Any] = {"sigma_px": 5, "gain_clip": (0.85, 1.18)}
    return zemosaic.run_second_pass_coverage_renorm(
        tiles, WCSS, GRID, coverage(), SHAPE, **common | more
    )


def apply(first: Any = None, **more: Any) -> tuple[Any, Any]:
    first = (np.full(SHAPE, 50, np.float32), coverage()) if first is None else first
    common: dict[str, Any] = {
        "two_pass_enabled": True,
        "two_pass_sigma_px": 5,
        "gain_clip_tuple": (0.85, 1.18),
        "final_output_wcs": GRID,
        "final_output_shape_hw": SHAPE,
        "use_gpu_two_pass": False,
        "logger": None,
        "collected_tiles": list(zip(TILES, WCSS, strict=True)),
    }
    return zemosaic.apply_two_pass_coverage_renorm_if_requested(*first, **common | more)


def assert_renormalised(image: Array) -> None:
    np.testing.assert_allclose(image, 101.2599, atol=2e-4, rtol=0)


# ---------------------------------------------------------------------------------------- plans


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError(name)


NONSENSE = [
    {"cpu_workers": "4"},
    {"max_chunk_bytes": "1e6", "gpu_max_chunk_bytes": float("nan")},
    {"cpu_workers": np.array([1, 2]), "use_gpu": np.array([True, False])},
    {"rows_per_chunk": -5, "cpu_workers": True},
    {"two_pass_coverage_threshold": "high"},
    SimpleNamespace(two_pass_coverage_threshold=float("nan")),
    [1, 2],
    "phase5",
    Hostile(),
]


@pytest.mark.parametrize("plan", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_in_a_plan_is_left_out(plan: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    image, _ = apply(parallel_plan=plan)
    assert_renormalised(image)
    (line,) = [text for text in caplog.messages if text.startswith("[TwoPass] plan=")]
    figures = r"cpu_workers=- use_gpu=\w+ max_chunk_mb=- gpu_max_chunk_mb=- rows=- gpu_rows=-"
    assert re.search(figures, line)


def test_any_object_may_be_a_plan() -> None:
    image, _ = apply(parallel_plan=MagicMock(two_pass_coverage_threshold=2))
    assert_renormalised(image)


class _Spy:
    """Notes the plan that each coadd of the engine runs on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: list[Any] = []
        self._run = _zmrs.run_pass_into_arrays
        monkeypatch.setattr(_zmrs, "run_pass_into_arrays", self)

    def __call__(self, job: Any, layout: Any, *rest: Any) -> Any:
        self.plans.append(layout.plan)
        return self._run(job, layout, *rest)


def test_the_engine_keeps_within_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = _Spy(monkeypatch)
    wanted = second()
    most = spy.plans[-1].max_chunk_bytes
    plan = {"cpu_workers": 3, "rows_per_chunk": 40, "max_chunk_bytes": most // 2}
    got = second(parallel_plan=plan)
    assert wanted is not None
    assert got is not None
    assert all(map(np.array_equal, got, wanted))
    used = spy.plans[-1]
    assert used.cpu_workers == 3
    assert used.rows_per_chunk <= 40
    assert used.max_chunk_bytes <= most // 2


def test_a_plan_too_small_for_anything_gets_the_smallest_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = _Spy(monkeypatch)
    made = second(parallel_plan={"max_chunk_bytes": 10})
    assert made is not None
    assert_renormalised(made[0])
    assert (spy.plans[-1].cpu_workers, spy.plans[-1].rows_per_chunk) == (1, 1)


# ---------------------------------------------------------------------------------------- tiles


def test_tiles_masks_and_weights_may_be_arrays() -> None:
    made = second(np.stack(TILES), tiles_coverage=np.stack(ONES), tile_weights=np.array(WEIGHTS))
    assert made is not None
    assert_renormalised(made[0])
    assert np.array_equal(made[1], coverage(WEIGHTS))
    assert gains(np.stack(TILES), tiles_coverage=np.stack(ONES)) == gains()


def test_missing_masks_are_all_ones_and_missing_weights_one() -> None:
    made = second(tiles_coverage=ONES[:2], tile_weights=[3.0])
    assert made is not None
    assert np.array_equal(made[1], coverage([3.0, 1.0, 1.0, 1.0, 1.0]))
    assert gains(tiles_coverage=ONES[:2]) == gains()


def test_infinite_coverage_is_none() -> None:
    masks = [one.copy() for one in ONES]
    masks[0][:20, :20] = np.inf
    made = second(tiles_coverage=masks)
    assert made is not None
    assert not made[1][:20, :20].any()
    assert (made[1][20:40, :20] == 1).all()
    nothing = [np.full(TILE, np.inf), *ONES[1:]]
    assert gains(tiles_coverage=nothing)[0] == 1.0


def test_a_loader_with_short_columns_loses_no_tile() -> None:
    loaded = (TILES, WCSS, ONES[:1], WEIGHTS[:2])
    image, depth = apply(collected_tiles=None, fallback_tile_loader=lambda: loaded)
    assert_renormalised(image)
    assert np.array_equal(depth, coverage())


def test_one_mask_is_held_at_a_time() -> None:
    def peak(times: int) -> int:
        tracemalloc.start()
        zemosaic.compute_per_tile_gains_from_coverage(
            TILES * times, WCSS * times, GRID, coverage(), sigma_px=5, gain_clip=(0.85, 1.18)
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)  # imports
    assert peak(20) - peak(1) < 10 * SHAPE[0] * SHAPE[1]


# ------------------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize(
    "more",
    [
        {"final_output_shape_hw": (-1, 160)},
        {"final_output_shape_hw": (120.0, 160.0)},
        {"final_output_shape_hw": (120, 160, 3)},
        {"final_output_shape_hw": "large"},
        {"final_output_wcs": "here"},
        {"collected_tiles": [(np.zeros((3, 4, 5, 6)), WCSS[0])]},
        {"collected_tiles": [(np.full(TILE, np.nan), WCSS[0])]},
        {"collected_tiles": [(TILES[0], sky.shifted_wcs(GRID, (5000, 5000), TILE))]},
    ],
    ids=range(8),
)
def test_whatever_fails_leaves_the_first_pass(
    more: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    first = (np.full(SHAPE, 50, np.float32), coverage())
    image, depth = apply(first, **more)
    assert image is first[0]
    assert depth is first[1]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


@pytest.mark.parametrize(
    "first",
    [
        (np.full(SHAPE, np.nan, np.float32), coverage()),
        (np.full(SHAPE, 50, np.float32), np.full(SHAPE, np.nan)),
        (np.full(SHAPE, 50, np.float32), np.zeros(SHAPE)),
    ],
)
def test_a_first_pass_of_nothing_is_kept(first: Any) -> None:
    image, depth = apply(first)
    assert image is first[0]
    assert depth is first[1]


@pytest.mark.parametrize("spoilt", ["a wcs", "a tile", "a mask"])
def test_a_tile_of_no_use_has_no_gain(spoilt: str, caplog: pytest.LogCaptureFixture) -> None:
    tiles, wcss, masks = list(TILES), list(WCSS), list[Any](ONES)
    if spoilt == "a wcs":
        wcss[1] = None
    elif spoilt == "a tile":
        tiles[1] = np.zeros(7, np.float32)
    else:
        masks[1] = np.full(TILE, "x")
    found = zemosaic.compute_per_tile_gains_from_coverage(
        tiles, wcss, GRID, coverage(), sigma_px=5, gain_clip=(0.85, 1.18), tiles_coverage=masks,
        logger=logging.getLogger("somebody.else"),
    )  # fmt: skip
    assert found == [1.0 if n == 1 else gain for n, gain in enumerate(gains())]
    (warning,) = caplog.records
    assert (warning.name, warning.levelname) == ("somebody.else", "WARNING")
    assert warning.getMessage().startswith("[TwoPass] the gain of tile 1 is 1: ")


def test_a_blur_beyond_all_bounds() -> None:
    assert gains(sigma_px=10**9) == gains(sigma_px=16384)


# ---------------------------------------------------------------------------------- what is said


def test_a_second_pass_by_itself_says_what_it_runs_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("somebody.else")
    second(logger=logger, parallel_plan={"use_gpu": False}, use_gpu_two_pass=True)
    assert caplog.messages == [
        "[TwoPass] Second pass requested (sigma=5, clip=(0.85, 1.18)); coverage shape=(120, 160)",
        "[TwoPass] plan=dict cpu_workers=- use_gpu=False max_chunk_mb=- gpu_max_chunk_mb=- rows=- "
        "gpu_rows=-",
        "[TwoPass] GPU requested but disabled by plan.use_gpu=False -> forcing CPU",
    ]
    assert {record.name for record in caplog.records} == {"somebody.else"}
