"""What --select asks for: grammar, medians, what is not known, and what is refused."""

from __future__ import annotations

import math

import pytest

from zmrs.config import Options
from zmrs.criterion import QUANTITIES, Criterion, Usual
from zmrs.errors import UsageError

UNIT = dict.fromkeys(QUANTITIES, 1.0)


def frames(**columns: list[float]) -> list[dict[str, float]]:
    """Figures of frames from columns; what is not given is 1."""
    count = len(next(iter(columns.values())))
    return [UNIT | {name: column[k] for name, column in columns.items()} for k in range(count)]


def chosen(text: str, all_figures: list[dict[str, float]]) -> list[int]:
    usual, criterion = Usual(all_figures), Criterion(text)
    return [k for k, one in enumerate(all_figures) if not criterion.failing(one, usual)]


FIVE = frames(fwhm=[2.0, 2.2, 2.4, 5.0, math.nan], stars=[100, 90, 20, 80, 0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fwhm < 3", [0, 1, 2]),
        ("fwhm <= 2.2", [0, 1]),
        ("3 > fwhm", [0, 1, 2]),
        ("stars == 20", [2]),
        ("stars != 20", [0, 1, 3, 4]),
        # The median of the four that are known is 2.3, that of all five star counts 80.
        ("fwhm < median", [0, 1]),
        ("fwhm < 1.5*median", [0, 1, 2]),
        ("fwhm < 1.5*median and stars > 0.5*median", [0, 1]),
        ("fwhm > 4 or stars < 50", [2, 3, 4]),
        ("2.1 < fwhm < 3", [1, 2]),
        ("0.9*median < fwhm < 1.1*median", [1, 2]),
        ("stars > median(stars) / 2 + 10", [0, 1, 3]),
        ("stars/fwhm > median(stars)/median(fwhm)", [0, 1]),
        ("stars - -1 > 80", [0, 1, 3]),
        ("fwhm <= percentile(fwhm, 50)", [0, 1]),
        ("stars >= percentile(stars, 100)", [0]),
        ("stars >= percentile(stars, 40)", [0, 1, 3]),
        ("not stars < 50 and fwhm < 3", [0, 1]),
        ("not (stars < 50 and fwhm < 3)", [0, 1, 3, 4]),
        ("stars > 2 * 40 - 10 / 2", [0, 1, 3]),
        ("stars > 2 * (40 - 10) / 2", [0, 1, 3]),
        ("fwhm < 3 and stars > 95 or stars < 10", [0, 4]),
        ("fwhm < 3 and (stars > 95 or stars < 10)", [0]),
        # What is not known compares with nothing, not even as different.
        ("fwhm == fwhm", [0, 1, 2, 3]),
        ("fwhm != 2", [1, 2, 3]),
        ("not fwhm > 3", [0, 1, 2, 4]),
        ("stars / 0 > 1 or stars > 95", [0]),
        ("  fwhm\n<\t3 ", [0, 1, 2]),
    ],
)
def test_what_is_chosen(text: str, expected: list[int]) -> None:
    assert chosen(text, FIVE) == expected


def test_nobody_has_a_median_of_what_nobody_knows() -> None:
    assert chosen("fwhm < 2*median", frames(fwhm=[math.nan, math.nan])) == []


def test_percentiles_lie_between_neighbours() -> None:
    usual = Usual(frames(noise=[4.0, 1.0, 2.0]))
    assert usual.percentile("noise", 75) == 3.0
    assert usual.percentile("noise", 0) == 1.0
    assert usual.median("noise") == 2.0
    assert Usual(frames(noise=[4.0, 1.0])).median("noise") == 2.5


def test_only_what_fails_is_told() -> None:
    usual = Usual(FIVE)
    criterion = Criterion("fwhm < 2*median and (stars>50 or noise < 0.5) and not roundness > 0.9")
    failing = criterion.failing(FIVE[2], usual)
    assert [one.text for one in failing] == ["stars>50", "noise < 0.5", "not roundness > 0.9"]
    assert [one.names for one in failing] == [("stars",), ("noise",), ("roundness",)]
    # A part that holds makes good for the other side of its "or".
    assert [one.text for one in criterion.failing(FIVE[0], usual)] == ["not roundness > 0.9"]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "empty"),
        ("fwmh < 3", "'fwmh'"),
        ("fwhm", "'fwhm' is no comparison"),
        ("3", "'3' is no comparison"),
        ("fwhm < 3 and stars", "'stars' is no comparison"),
        ("fwhm < ", "cannot be read"),
        ("fwhm = 3", "cannot be read"),
        ("fwhm < 3; stars > 1", "cannot be read"),
        ("fwhm < 2**3", "'2**3'"),
        ("fwhm in 3", "'fwhm in 3'"),
        ("fwhm is 3", "'fwhm is 3'"),
        ("fwhm < '3'", "'3'"),
        ("fwhm < True", "'True'"),
        ("fwhm < 3j", "'3j'"),
        ("fwhm < 1e999", "too large"),
        ("fwhm < " + "9" * 400, "too large"),
        ("fwhm < x.y", "'x.y'"),
        ("fwhm < stars[0]", "'stars[0]'"),
        ("fwhm < (3 if stars > 2 else 4)", "is no number"),
        ("(fwhm < 3) < 4", "'fwhm < 3' is no number"),
        ("fwhm < 3 if stars else 4", "is no comparison"),
        ("(lambda: 3)() < fwhm", "is no number"),
        ("__import__('os').system('false') < 1", "is no number"),
        ("exec('1') < 1", "exec"),
        ("median(fwhm, stars) < 1", "median(fwhm, stars)"),
        ("median(3) < fwhm", "median(3)"),
        ("median(median(fwhm)) < fwhm", "median"),
        ("percentile(fwhm) > 1", "percentile(fwhm)"),
        ("percentile(fwhm, 101) > 1", "101"),
        ("fwhm < percentile(fwhm, stars)", "percentile(fwhm, stars)"),
        ("median < 3", "0 quantities"),
        ("fwhm < median*stars", "2 quantities"),
        ("fwhm < median(stars) * median + noise", "2 quantities"),
        ("fwhm < max(stars, key=1)", "max"),
        ("fwhm < 1 " + "or fwhm < 1 " * 100, "more than 1000 characters"),
        ("(" * 400, "cannot be read"),
        ("not " * 240 + "x", "'x"),
        ("-" * 990 + "1 < fwhm", ""),
        ("fwhm\0 < 1", ""),
        ("fwhm < \N{GREEK SMALL LETTER MU}", "\N{GREEK SMALL LETTER MU}"),
    ],
)
def test_what_is_refused(text: str, fragment: str) -> None:
    with pytest.raises(UsageError) as error:
        Options(select=text)
    sentence = str(error.value)
    assert sentence.startswith("--select: ")
    assert fragment in sentence
    assert "\n" not in sentence
    # It names what exists.
    assert "background, noise, stars, fwhm, roundness" in sentence


@pytest.mark.parametrize("value", [3, True, ["fwhm < 3"]])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="no text"):
        Options(select=value)  # type: ignore[arg-type]
