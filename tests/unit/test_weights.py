"""Weights of inputs as a whole, and where the weights of their pixels are said to be."""

from __future__ import annotations

import math

import pytest

from zmrs.config import Options, resolve, with_preset
from zmrs.errors import UsageError
from zmrs.weight_rule import WeightRule, weight_rule
from zmrs.weights import exposure_weights, frame_weights, noise_weights


def test_exposures_weigh_by_their_median() -> None:
    assert exposure_weights([30, 60, 60, 120]).tolist() == [0.5, 1.0, 1.0, 2.0]


@pytest.mark.parametrize("weights", [frame_weights, exposure_weights])
def test_what_is_no_number_weighs_1(weights: object) -> None:
    found = weights([math.nan, 4.0, 0.0, 4.0, -1.0, math.inf])  # type: ignore[operator]
    assert found.tolist() == [1.0] * 6
    assert weights([math.nan, 0.0]).tolist() == [1.0, 1.0]  # type: ignore[operator]


def test_noise_weighs_by_its_inverse_variance() -> None:
    weights, scale = noise_weights([1.0, 2.0, 4.0])
    assert weights.tolist() == [4.0, 1.0, 0.25]
    assert scale == 0.25
    weights, scale = noise_weights([[3.0, 4.0], [0.0, 0.0], [math.nan, 1.0]])
    assert weights.tolist() == [1.0, 1.0, 1.0]
    assert scale == pytest.approx(1 / 12.5)
    weights, scale = noise_weights([0.0])
    assert weights.tolist() == [1.0]
    assert math.isnan(scale)


def test_an_unknown_curve() -> None:
    with pytest.raises(UsageError, match="'cubic' is not one of sqrt, log, softcap"):
        frame_weights([1], curve="cubic")


# ------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (None, WeightRule("alpha", "ALPHA", is_optional=True)),
        ("none", WeightRule("rms", is_optional=True)),
        ("WHT", WeightRule("rms", "WHT")),
        ("sci_weights", WeightRule("rms", "sci_weights")),
        ("s", WeightRule("rms", "s")),
        ("2", WeightRule("rms", "2")),
        ("s/a/b/", WeightRule("rms", change=("a", "b"))),
        ("s/a/b", WeightRule("rms", change=("a", "b"))),
        ("s/a//", WeightRule("rms", change=("a", ""))),
        ("s,/sci/,/wht/,", WeightRule("rms", change=("/sci/", "/wht/"))),
    ],
)
def test_how_weights_are_said(text: str | None, rule: WeightRule) -> None:
    assert weight_rule(text, "rms") == rule


@pytest.mark.parametrize("text", ["s/a", "s//b/", "s/a/a/", "s/a/b/c/", "", "  "])
def test_what_says_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="--weights: "):
        weight_rule(text, "weight")


def test_names_of_weight_files() -> None:
    assert weight_rule("s/.fits/.weight.fits/", "rms").beside("d/a.fits") == "d/a.weight.fits"
    assert weight_rule("s/.fits/.w.fits/", "rms").beside("a.fits.fz") == "a.w.fits.fz"
    # The first time, in the name only, as plain text.
    assert weight_rule("s/sci/wht/", "rms").beside("sci/sci_sci.fits") == "sci/wht_sci.fits"
    assert weight_rule("s/.i/w/", "rms").beside("axi.fits") is None
    folders = weight_rule("s,/sci/,/wht/,", "rms")
    assert folders.beside("/data/sci/a.fits") == "/data/wht/a.fits"
    assert folders.beside("/data/a.fits") is None


# ------------------------------------------------------------------------------------- presets


def test_a_preset_gives_other_defaults() -> None:
    assert with_preset({}) == Options()
    assert with_preset({"preset": "science"}) == Options()
    chosen = with_preset({"preset": "zemosaic"})
    assert (chosen.two_pass, chosen.weight_by) == (True, "n_frames")
    chosen = with_preset({"preset": "zemosaic", "two_pass": False})
    assert (chosen.two_pass, chosen.weight_by) == (False, "n_frames")
    with pytest.raises(UsageError, match="'amateur' is not one of science, zemosaic"):
        with_preset({"preset": "amateur"})


def test_what_is_said_anywhere_beats_the_preset() -> None:
    environ = {"ZMRS_PRESET": "zemosaic", "ZMRS_TWO_PASS": "no"}
    assert not resolve({}, None, environ).two_pass
    assert resolve({"two_pass": True}, None, environ).two_pass
    assert resolve({"preset": "science"}, None, environ).weight_by == "none"
