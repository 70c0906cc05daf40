"""Rejecting combines from the command line: how they are asked for, and what lies in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import sky
from child import bare_env, clean_env, run, tree
from sky import unmatched

SHAPE = (40, 50)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine noisy frames of three channels, with a hit of one channel in every third of them."""
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(4)
    for number in range(9):
        image = rng.normal(100.0, 3.0, (3, *SHAPE)).astype(np.float32)
        if number % 3 == 0:
            image[number // 3, 10 + number, :] += 500.0
        wcs = sky.frame_wcs(SHAPE, 2.0 * number)
        sky.write_image(folder / f"f{number}.fits", image, wcs)
    return folder


def planes(path: Path) -> list[Any]:
    with fits.open(path, memmap=False) as hdus:
        return [hdu.data.copy() for hdu in hdus[:4]]


def test_flags_environment_file_and_python_agree(frames: Path, tmp_path: Path) -> None:
    words = ("--combine", "winsorized", "--kappa", "2,2.5", "--reject-together")
    assert run("mosaic", frames, "-o", tmp_path / "flags.fits", *words).status == 0
    settings = tmp_path / "zmrs.toml"
    settings.write_text('combine = "winsorized"\nkappa = [2, 2.5]\nreject-together = true\n')
    told = run("mosaic", frames, "-o", tmp_path / "file.fits", "--config", settings)
    assert told.status == 0, told.err
    said = clean_env(ZMRS_COMBINE="winsorized", ZMRS_KAPPA="2,2.5", ZMRS_REJECT_TOGETHER="yes")
    assert run("mosaic", frames, "-o", tmp_path / "environment.fits", env=said).status == 0
    result = unmatched(frames, combine="winsorized", kappa=(2, 2.5), reject_together=True)
    arrays = [result.data, result.coverage, result.rejected_low, result.rejected_high]
    assert (arrays[3] > 0).any()
    for name in ("flags", "file", "environment"):
        for ours, want in zip(planes(tmp_path / f"{name}.fits"), arrays, strict=True):
            np.testing.assert_array_equal(ours, want)


def test_one_kappa_is_both(frames: Path, tmp_path: Path) -> None:
    settings = tmp_path / "zmrs.toml"
    settings.write_text("kappa = 2.5\n")
    for name, words in (("one", ("--kappa", "2.5")), ("two", ("--kappa", "2.5,2.5")),
                        ("file", ("--config", settings))):  # fmt: skip
        done = run(
            "mosaic", frames, "-o", tmp_path / f"{name}.fits", "--combine", "kappa-sigma", *words
        )
        assert done.status == 0, done.err
    one, two, file = (planes(tmp_path / f"{name}.fits") for name in ("one", "two", "file"))
    for a, b, c in zip(one, two, file, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_the_file_tells_how_it_was_made(frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    assert run("mosaic", frames, "-o", out, "--combine", "winsor-percentile").status == 0
    with fits.open(out) as hdus:
        assert hdus[0].header["COMBINET"] == "winsor-percentile"
        assert [hdu.name for hdu in hdus[1:4]] == ["COVERAGE", "REJLOW", "REJHIGH"]
        assert (hdus["INPUTS"].data["REJFRAC"] > 0.05).all()
    assert run("mosaic", frames, "-o", out, "--overwrite", "--combine", "median").status == 0
    with fits.open(out) as hdus:
        assert [hdu.name for hdu in hdus[1:]] == ["COVERAGE", "INPUTS"]
        assert not hdus["INPUTS"].data["REJFRAC"].any()


def test_two_passes_keep_the_counts_of_the_first(frames: Path, tmp_path: Path) -> None:
    """The second pass makes the image only; file and arrays have the same planes."""
    words = ("--combine", "kappa-sigma", "--kappa", "2", "--two-pass", "--two-pass-sigma", "5")
    out = tmp_path / "out.fits"
    done = run("mosaic", frames, "-o", out, *words)
    assert done.status == 0, done.err
    image, coverage, low, high = planes(out)
    once = unmatched(frames, combine="kappa-sigma", kappa=2)
    twice = unmatched(frames, combine="kappa-sigma", kappa=2, two_pass=True, two_pass_sigma=5)
    for kept, first in ((coverage, once.coverage), (low, once.rejected_low),
                        (high, once.rejected_high)):  # fmt: skip
        np.testing.assert_array_equal(kept, first)
    np.testing.assert_array_equal(image, twice.data)
    assert not np.array_equal(image, once.data, equal_nan=True)


NONSENSE = [
    ("--kappa", "0"),
    ("--kappa", "-1"),
    ("--kappa", "3,0"),
    ("--kappa", "nan"),
    ("--kappa", "3,inf"),
    ("--kappa", "1,2,3"),
    ("--kappa", "2,"),
    ("--winsor", "0.5,0.5"),
    ("--winsor", "0.5,0.1"),
    ("--winsor", "-0.1,0.1"),
    ("--winsor", "0.1"),
    ("--winsor", "nan,0"),
    ("--combine", "kappa_sigma"),
]


@pytest.mark.parametrize("flag", NONSENSE, ids=" ".join)
def test_nonsense(flag: tuple[str, str], frames: Path, tmp_path: Path) -> None:
    """In every form, before anything is made."""
    (tmp_path / "zmrs.toml").write_text(f'{flag[0][2:]} = "{flag[1]}"\n')
    before = tree(tmp_path)
    variable = "ZMRS_" + flag[0][2:].upper()
    for words, env in (
        (flag, bare_env()),
        ((), bare_env(**{variable: flag[1]})),
        (("--config", tmp_path / "zmrs.toml"), bare_env()),
    ):
        done = run("mosaic", frames, "-o", tmp_path / "out.fits", *words, env=env)
        assert done.status == 2, done.err
        (sentence,) = done.err.splitlines()
        assert flag[0][2:] in sentence.lower()
        assert sentence.endswith(".")
        assert tree(tmp_path) == before
