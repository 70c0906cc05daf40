"""The Two-Pass, number for number as ZeMosaic 4.5 makes it (figures observed by running it)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sky
from zmrs import two_pass
from zmrs.compat import zemosaic
from zmrs.plan import Plan

Array = np.ndarray[Any, Any]

SHAPE, TILE = (120, 160), (80, 100)
ORIGINS = ((0, 0), (0, 60), (40, 0), (40, 60), (20, 30))
CLIP = (0.85, 1.18)
WEIGHTS = [1.0, 1.0, 1.0, 1.0, 2.0]

GRID = sky.frame_wcs(SHAPE)
WCSS = [sky.shifted_wcs(GRID, origin, TILE) for origin in ORIGINS]
TILES = [np.full(TILE, 100.0 + n, np.float32) for n in range(5)]
ONES = [np.ones(TILE, np.float32) for _ in range(5)]

REQUEST = "[TwoPass] Second pass requested (sigma=5, clip=(0.85, 1.18)); coverage shape=(120, 160)"
GPU_REFUSED = "[TwoPass] GPU requested but disabled by plan.use_gpu=False -> forcing CPU"


def depth(weights: list[float] | None = None) -> Array:
    """Coverage of the five tiles."""
    coverage = np.zeros(SHAPE, np.float32)
    for (y, x), weight in zip(ORIGINS, weights or [1.0] * 5, strict=True):
        coverage[y : y + TILE[0], x : x + TILE[1]] += weight
    return coverage


def gains(sigma_px: Any = 5, **more: Any) -> list[float]:
    return zemosaic.compute_per_tile_gains_from_coverage(
        TILES, WCSS, GRID, depth(), **{"sigma_px": sigma_px, "gain_clip": CLIP} | more
    )


# ---------------------------------------------------------------------------------------- gains


@pytest.mark.parametrize(
    ("sigma_px", "first_four", "fifth", "digits"),
    [(0, 1.0, 1.0, 0.0), (5, 0.99289, 0.992176, 5e-6), (50, 0.85, 0.85, 0.0)],
)
def test_the_gains(sigma_px: int, first_four: float, fifth: float, digits: float) -> None:
    found = gains(sigma_px)
    assert found[:4] == pytest.approx([first_four] * 4, abs=digits, rel=0)
    assert found[4] == pytest.approx(fifth, abs=digits / 10, rel=0)
    assert all(type(gain) is float for gain in found)


THRESHOLDS: list[tuple[Any, float, float]] = [
    (SimpleNamespace(two_pass_coverage_threshold=0), 0.999195, 0.978967),
    (SimpleNamespace(two_pass_coverage_threshold=2), 0.99289, 0.992176),
    (SimpleNamespace(), 0.99289, 0.992176),
    (None, 0.99289, 0.992176),
    (SimpleNamespace(two_pass_coverage_threshold=4), 0.9547, 0.9547),
    ({"coverage_threshold": 4}, 0.9547, 0.9547),
    ({"two_pass_coverage_threshold": 4, "coverage_threshold": 2}, 0.9547, 0.9547),
    ({"two_pass_coverage_threshold": 0}, 0.99289, 0.992176),
    ({"two_pass_coverage_threshold": 0, "coverage_threshold": 4}, 0.9547, 0.9547),
    ({}, 0.99289, 0.992176),
    (Plan(two_pass_coverage_threshold=0.0), 0.999195, 0.978967),
    (Plan(two_pass_coverage_threshold=4.0), 0.9547, 0.9547),
    (Plan(), 0.99289, 0.992176),
]


@pytest.mark.parametrize(("plan", "first_four", "fifth"), THRESHOLDS, ids=range(len(THRESHOLDS)))
def test_the_thresholds(plan: Any, first_four: float, fifth: float) -> None:
    found = gains(parallel_plan=plan)
    assert found[:4] == pytest.approx([first_four] * 4, abs=5e-6, rel=0)
    assert found[4] == pytest.approx(fifth, abs=5e-6, rel=0)


def test_what_is_accepted_without_effect() -> None:
    more = gains(
        logger=logging.getLogger("elsewhere"), use_gpu=True, cpu_workers=3, row_chunk_size=8,
        chunk_bytes_limit=1 << 16, progress_emitter=print, tiles_coverage=ONES,
    )  # fmt: skip
    assert more == gains()


def test_clips() -> None:
    assert gains(50, gain_clip=(1.18, 0.85)) == gains(50)
    assert gains(50, gain_clip=[0.9, 1.1]) == [0.9] * 5
    assert gains(50, gain_clip="nonsense") == gains(50, gain_clip=None) == gains(50)
    assert gains(50, gain_clip=(float("nan"), 2.0)) == gains(50)


def test_sigmas_that_are_none() -> None:
    assert gains("nonsense") == gains(None) == gains(50)
    assert gains("5") == gains(5.9) == gains(5)
    assert gains(-3) == gains(0)


def test_masks() -> None:
    """NaN is nothing, another shape is all, and 63 pixels are too few."""
    few = np.full(TILE, np.nan, np.float32)
    few[30:37, 40:49] = 1.0
    enough = few.copy()
    enough[37, 40] = 1.0
    other = np.zeros((3, 4), np.float32)
    nothing = np.zeros(TILE, np.float32)
    found = gains(tiles_coverage=[few, enough, other, nothing, None])
    plain = gains()
    assert found[0] == found[3] == 1.0
    assert (found[2], found[4]) == (plain[2], plain[4])
    assert found[1] not in (1.0, plain[1])


# ----------------------------------------------------------------------------------------- blur


def test_the_blur() -> None:
    blurred = two_pass.coverage_blur(depth(), 5)
    assert blurred[0, 0] == pytest.approx(1.0, abs=1e-6)
    assert blurred[60, 80] == pytest.approx(4.999893, abs=5e-7)
    assert blurred.dtype == np.float64


def test_the_steps_make_the_gains() -> None:
    """But for flat coverage, where single precision decides which pixels reach the threshold."""
    coverage = depth()
    blurred = two_pass.coverage_blur(coverage, 5)
    for (y, x), gain in zip(ORIGINS, gains(), strict=True):
        mask = np.zeros(SHAPE, bool)
        mask[y : y + TILE[0], x : x + TILE[1]] = True
        assert two_pass.gain_of(mask, coverage, blurred) == pytest.approx(gain, abs=2e-5)


# ---------------------------------------------------------------------------------- second pass


def second(tiles: list[Array] | None = None, **more: Any) -> tuple[Array, Array] | None:
    common = {"sigma_px": 5, "gain_clip": CLIP, "tiles_coverage": ONES, "tile_weights": WEIGHTS}
    return zemosaic.run_second_pass_coverage_renorm(
        tiles or TILES, WCSS, GRID, depth(), SHAPE, **common | more
    )


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_the_second_pass(channels: int) -> None:
    tiles = [np.stack([tile] * channels, axis=-1) if channels else tile for tile in TILES]
    made = second(tiles)
    assert made is not None
    image, coverage = made
    assert image.shape == (*SHAPE, max(channels, 1))
    assert (image.dtype, coverage.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(image, 101.25990, atol=2e-4, rtol=0)
    assert set(np.unique(coverage)) == {1, 2, 3, 4, 6}
    assert np.array_equal(coverage, depth(WEIGHTS))


def test_weights_are_binary_and_may_be_nonsense() -> None:
    soft = [np.full(TILE, 0.3, np.float32) for _ in range(5)]
    made = second(tiles_coverage=soft, tile_weights=[1, -1, float("nan"), None, 2])
    assert made is not None
    assert np.array_equal(made[1], depth(WEIGHTS))


def test_uncovered_pixels_are_nan() -> None:
    tiles = [tile.copy() for tile in TILES]
    tiles[0][:20, :20] = np.nan
    masks = [one.copy() for one in ONES]
    masks[0][20:25, :20] = 0.0
    made = second(tiles, tiles_coverage=masks)
    assert made is not None
    image, coverage = made
    assert np.array_equal(np.isnan(image[..., 0]), coverage == 0)
    # Interpolated linearly, a pixel is valid where all that it is made of is.
    assert not coverage[:25, :20].any()
    assert (coverage[25:40, :20] == 1).all()


@pytest.mark.parametrize("missing", ["tiles", "grid", "coverage", "a wcs", "a tile"])
def test_what_cannot_be_done_is_none(missing: str) -> None:
    given: dict[str, Any] = {"tiles": TILES, "wcss": WCSS, "grid": GRID, "coverage": depth()}
    given |= {
        "tiles": {"tiles": []},
        "grid": {"grid": None},
        "coverage": {"coverage": None},
        "a wcs": {"wcss": [*WCSS[:4], None]},
        "a tile": {"wcss": WCSS[:4]},
    }[missing]
    made = zemosaic.run_second_pass_coverage_renorm(
        given["tiles"], given["wcss"], given["grid"], given["coverage"], SHAPE,
        sigma_px=5, gain_clip=CLIP,
    )  # fmt: skip
    assert made is None


# ---------------------------------------------------------------------------------------- merge

COLLECTED = [(tile, wcs, one, 1.0) for tile, wcs, one in zip(TILES, WCSS, ONES, strict=True)]


def apply(first: tuple[Any, Any], **more: Any) -> tuple[Any, Any]:
    common: dict[str, Any] = {
        "two_pass_enabled": True,
        "two_pass_sigma_px": 5,
        "gain_clip_tuple": CLIP,
        "final_output_wcs": GRID,
        "final_output_shape_hw": SHAPE,
        "use_gpu_two_pass": False,
        "logger": None,
        "collected_tiles": COLLECTED,
    }
    return zemosaic.apply_two_pass_coverage_renorm_if_requested(*first, **common | more)


def flat(value: float, shape: tuple[int, ...] = SHAPE) -> tuple[Array, Array]:
    return np.full(shape, value, np.float32), depth()


@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 1)])
def test_a_dim_first_pass_is_replaced(
    shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = flat(50.0, shape)
    before = first[0].copy()
    image, coverage = apply(first)
    assert image.shape == shape
    np.testing.assert_allclose(image, 101.2599, atol=2e-4, rtol=0)
    assert coverage[60, 80] == 5
    assert np.array_equal(coverage, depth())
    assert np.array_equal(first[0], before), "the first pass was written to"
    assert "fraction=1.0000" in caplog.messages[-1]


def test_colour() -> None:
    rgb = [(np.stack([tile] * 3, axis=-1), *rest) for tile, *rest in COLLECTED]
    image, _ = apply(flat(50.0, (*SHAPE, 3)), collected_tiles=rgb)
    assert image.shape == (*SHAPE, 3)
    np.testing.assert_allclose(image, 101.2599, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("value", "shape"), [(500.0, SHAPE), (50.0, (*SHAPE, 3)), (50.0, (120, 159))]
)
def test_a_first_pass_that_is_kept(
    value: float, shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Too bright everywhere, of other channels, or of another shape."""
    first = np.full(shape, value, np.float32), depth()[: shape[0], : shape[1]]
    image, coverage = apply(first)
    assert image is first[0]
    assert coverage is first[1]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_pixels_are_merged_one_by_one() -> None:
    image, coverage = flat(50.0)
    image[:, :30], coverage[:, :30] = 500.0, 7.0
    coverage[100:, 100:], image[100:, 100:] = 0.0, np.nan
    merged, merged_coverage = apply((image, coverage))
    assert (merged[:, :30] == 500.0).all()
    assert (merged_coverage[:, :30] == 7.0).all()
    assert np.isnan(merged[100:, 100:]).all()
    assert not merged_coverage[100:, 100:].any()
    rest = merged[:100, 30:]
    assert (rest > 90).all()
    assert (rest < 110).all()


# --------------------------------------------------------------------------------- what it says


class Brief:
    """A plan of somebody else's, as an object."""

    cpu_workers = 2
    use_gpu = False
    max_chunk_bytes = 128 << 20
    gpu_max_chunk_bytes = None
    rows_per_chunk = 512
    gpu_rows_per_chunk = 0


FIGURES = {name: value for name, value in vars(Brief).items() if not name.startswith("_")}
BRIEF = (
    "cpu_workers=2 use_gpu=False max_chunk_mb=128.00 gpu_max_chunk_mb=- rows=512 gpu_rows=-"
)  # fmt: skip
BARE = "cpu_workers=- use_gpu=False max_chunk_mb=- gpu_max_chunk_mb=- rows=- gpu_rows=-"

PLANS: list[tuple[Any, str]] = [
    (Plan(name="phase5", **FIGURES | {"gpu_rows_per_chunk": None}), f"phase5 {BRIEF}"),
    (Brief(), f"Brief {BRIEF}"),
    (SimpleNamespace(name="night", **FIGURES), f"night {BRIEF}"),
    (FIGURES | {"name": "phase5"}, f"phase5 {BRIEF}"),
    (FIGURES, f"dict {BRIEF}"),
    ({}, f"dict {BARE}"),
    (None, f"none {BARE}"),
    (
        FIGURES | {"use_gpu": True, "gpu_max_chunk_bytes": 3 << 19, "gpu_rows_per_chunk": 9,
                   "max_chunk_bytes": -1, "rows_per_chunk": None, "cpu_workers": 0},
        "dict cpu_workers=- use_gpu=True max_chunk_mb=- gpu_max_chunk_mb=1.50 rows=- gpu_rows=9",
    ),
]  # fmt: skip


@pytest.mark.parametrize("own_logger", [False, True])
@pytest.mark.parametrize(("plan", "line"), PLANS, ids=range(len(PLANS)))
def test_the_lines(
    plan: Any, line: str, own_logger: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("somebody.else") if own_logger else None
    image, _ = apply(flat(50.0), parallel_plan=plan, logger=logger)
    assert image[0, 0] > 100
    own = [record for record in caplog.records if record.getMessage().startswith("[TwoPass]")]
    said = [record.getMessage() for record in own]
    assert said.count(REQUEST) == said.count(f"[TwoPass] plan={line}") == 1
    assert said[:2] == [REQUEST, f"[TwoPass] plan={line}"]
    assert sum("requested" in text for text in said) == sum("plan=" in text for text in said) == 1
    assert {record.name for record in own} == {"somebody.else" if own_logger else "zmrs"}
    assert {record.levelno for record in own} == {logging.INFO}


@pytest.mark.parametrize(
    ("plan", "refused"),
    [
        (SimpleNamespace(use_gpu=False), True),
        ({"use_gpu": False}, True),
        (Plan(use_gpu=False), True),
        (SimpleNamespace(use_gpu=True), False),
        ({}, False),
        (None, False),
    ],
)
def test_the_gpu_that_the_plan_forbids(
    plan: Any, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    apply(flat(50.0), parallel_plan=plan, use_gpu_two_pass=True)
    assert caplog.messages.count(GPU_REFUSED) == refused
    caplog.clear()
    apply(flat(50.0), parallel_plan=plan, use_gpu_two_pass=False)
    assert GPU_REFUSED not in caplog.messages


@pytest.mark.parametrize(
    "more",
    [
        {"two_pass_enabled": False},
        {"final_output_wcs": None},
        {"final_output_shape_hw": None},
    ],
)
def test_nothing_is_asked(more: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = flat(50.0)
    image, coverage = apply(first, **more)
    assert image is first[0]
    assert coverage is first[1]
    assert apply((None, first[1])) == (None, first[1])
    assert apply((first[0], None)) == (first[0], None)
    assert not caplog.messages


# ------------------------------------------------------------------------------------- the tiles


def load(*columns: Any) -> Callable[[], Any]:
    return lambda: columns


def broken() -> Any:
    raise RuntimeError("the disk has gone")


@pytest.mark.parametrize("loader", [None, broken, load([], []), load(), lambda: None])
def test_there_are_no_tiles(loader: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = flat(50.0)
    image, coverage = apply(first, collected_tiles=[], fallback_tile_loader=loader)
    assert image is first[0]
    assert coverage is first[1]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert caplog.messages[-1] == "[TwoPass] there are no tiles; the first pass is kept"


@pytest.mark.parametrize(
    "columns", [(TILES, WCSS), (TILES, WCSS, None), (TILES, WCSS, ONES), (TILES, WCSS, ONES, None)]
)
@pytest.mark.parametrize("collected", [None, []])
def test_the_loader(columns: tuple[Any, ...], collected: Any) -> None:
    image, coverage = apply(
        flat(50.0), collected_tiles=collected, fallback_tile_loader=load(*columns)
    )
    np.testing.assert_allclose(image, 101.2599, atol=2e-4, rtol=0)
    assert np.array_equal(coverage, depth())


def test_the_loader_has_weights_without_coverages() -> None:
    _, coverage = apply(
        flat(50.0), collected_tiles=None, fallback_tile_loader=load(TILES, WCSS, None, WEIGHTS)
    )
    assert np.array_equal(coverage, depth(WEIGHTS))


def test_the_loader_is_not_asked_without_need() -> None:
    image, _ = apply(flat(50.0), fallback_tile_loader=broken)
    np.testing.assert_allclose(image, 101.2599, atol=2e-4, rtol=0)


def test_tiles_say_no_more_than_they_must() -> None:
    """Without a mask the finite pixels count, without a weight it is 1."""
    for n_items in (2, 3, 4):
        given = [item[:n_items] for item in COLLECTED]
        image, coverage = apply(flat(50.0), collected_tiles=given)
        np.testing.assert_allclose(image, 101.2599, atol=2e-4, rtol=0)
        assert np.array_equal(coverage, depth())


@pytest.mark.parametrize("spoilt", [(None, WCSS[0]), ("text", WCSS[0]), (TILES[0], None), ()])
def test_a_spoilt_tile_keeps_the_first_pass(
    spoilt: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    first = flat(50.0)
    image, coverage = apply(first, collected_tiles=[*COLLECTED, spoilt])
    assert image is first[0]
    assert coverage is first[1]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_the_plan_is_the_very_object() -> None:
    own, other = {"name": "own"}, SimpleNamespace(name="global")
    select = zemosaic.select_two_pass_parallel_plan
    assert select(phase5_plan=own, fallback_plan=other) is own
    configured = SimpleNamespace(parallel_plan_phase5=own)
    assert select(phase5_plan=None, fallback_plan=other, zconfig=configured) is own
    assert select(phase5_plan=None, fallback_plan=other, zconfig=vars(configured)) is own
    assert select(phase5_plan=None, fallback_plan=other, zconfig={}) is other
    assert select(phase5_plan=None, fallback_plan=None) is None
