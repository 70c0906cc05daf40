"""`zmrs.two_pass` on arrays of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zmrs import two_pass
from zmrs.errors import UsageError

SHAPE = (20, 30)
ONES = np.ones(SHAPE)
STEP = np.where(np.arange(30) < 15, 2.0, 4.0) * ONES


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("sigma_px", [0.0, 1.0, 50.0])
def test_nothing_is_blurred_to_nothing(shape: tuple[int, int], sigma_px: float) -> None:
    assert two_pass.coverage_blur(np.ones(shape), sigma_px).shape == shape


def test_more_threads_than_rows() -> None:
    """No memory is taken for workers without work."""
    many = two_pass.coverage_blur(STEP, 2.0, threads=10**9)
    assert np.array_equal(many, two_pass.coverage_blur(STEP, 2.0, threads=1))


@pytest.mark.parametrize("kind", [">f4", "u1", "f8", "F", "strided"])
def test_any_real_array_is_a_coverage(kind: str) -> None:
    wanted = two_pass.coverage_blur(STEP.astype(np.float32), 2.0)
    given: Any
    if kind == "F":
        given = np.asfortranarray(STEP)
    elif kind == "strided":
        given = np.repeat(STEP, 2, axis=1)[::-1, ::2][::-1]
    else:
        given = STEP.astype(kind)
    assert np.array_equal(two_pass.coverage_blur(given, 2.0), wanted)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float64, list])
def test_masks_of_any_kind(kind: Any) -> None:
    """Numbers are no indices."""
    mask = np.zeros(SHAPE, bool)
    mask[:, 13:] = True
    given = mask.tolist() if kind is list else mask.astype(kind)
    (gain,) = two_pass.tile_gains([given], STEP, sigma_px=3, clip=(0.1, 5))
    blurred = two_pass.coverage_blur(STEP, 3)
    assert gain == pytest.approx(np.median((blurred / STEP)[mask]), rel=1e-6)
    assert gain != 1.0
    assert two_pass.gain_of(given, STEP, blurred, clip=(0.1, 5)) == gain


@pytest.mark.parametrize(
    "call",
    [
        lambda: two_pass.coverage_blur(np.ones(5), 3),
        lambda: two_pass.coverage_blur(ONES, 3, threads=0),
        lambda: two_pass.coverage_blur(ONES, 3, threads=-1),
        lambda: two_pass.scale_map(ONES, np.ones((3, 3))),
        lambda: two_pass.tile_gains([np.ones((3, 3))], ONES),
        lambda: two_pass.tile_gains([ONES], ONES, clip=(0, 1)),
        lambda: two_pass.tile_gains([ONES], ONES, clip=(float("nan"), 1)),
        lambda: two_pass.tile_gains([ONES], ONES, clip=(1, float("inf"))),
        lambda: two_pass.tile_gains([ONES], ONES, clip=(1, 2, 3)),  # type: ignore[arg-type]
        lambda: two_pass.tile_gains([ONES], ONES, threshold=float("nan")),
        lambda: two_pass.gain_of(ONES, ONES, ONES, clip=(-3, -1)),
        lambda: two_pass.gain_of(ONES, ONES, ONES, clip=None),  # type: ignore[arg-type]
        lambda: two_pass.coverage_renorm((ONES, ONES), (ONES[1:], ONES)),
        lambda: two_pass.coverage_renorm((ONES, ONES[1:]), (ONES, ONES[1:])),
        lambda: two_pass.coverage_renorm((np.ones((3, 20, 30)), ONES), (ONES, ONES)),
    ],
    ids=range(15),
)
def test_nonsense_is_refused(call: Any) -> None:
    with pytest.raises(UsageError, match=r"\.$"):
        call()


def test_a_first_pass_without_a_value_is_kept() -> None:
    nothing = np.full(SHAPE, np.nan)
    for first in ((nothing, ONES), (ONES, nothing), (ONES[:0], ONES[:0])):
        image, coverage, part = two_pass.coverage_renorm(first, first)
        assert part == 0.0
        assert np.array_equal(image, first[0], equal_nan=True)
        assert np.array_equal(coverage, first[1], equal_nan=True)


def test_infinity_replaces_nothing() -> None:
    second = ONES.copy()
    second[:, :10] = np.inf
    image, _, part = two_pass.coverage_renorm((2 * ONES, ONES), (second, ONES))
    assert (image[:, :10] == 2).all()
    assert (image[:, 10:] == 1).all()
    assert part == pytest.approx(2 / 3)
