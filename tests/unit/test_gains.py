"""How gains are solved for: `_zmrs.LatticeSamples.solve_gains` and the options of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import clouds
import sky
import zmrs
from zmrs import _zmrs, pipeline
from zmrs.config import Options
from zmrs.errors import UsageError

Tiles = list[sky.Tile]


@cache
def tiles(channels: int = 1) -> Tiles:
    """Five panels with holes, in a row and back."""
    made = clouds.make(5, (200, 260), channels=channels, overlap=0.5, stars=1000).raw()
    for number, (image, _) in enumerate(made):
        image[..., 20 * number : 30 * number, 50:150] = np.nan
    return made


def prepare(given: Any, **more: Any) -> pipeline.Prepared:
    return pipeline.prepare(given, Options(match="gain", threads=2, **more))


def solve(prepared: pipeline.Prepared, plan: Any = None) -> tuple[Any, ...]:
    """All numbers that come of it."""
    samples = _zmrs.sample_lattice(prepared.job, plan or prepared.plan)
    found = samples.solve_gains()
    levels = samples.solve_offsets(matched=found.gains)
    # repr: NaN is not itself.
    return found.gains, repr(found.pairs), found.rejected, found.rms, levels.offsets, levels.pairs


@pytest.mark.parametrize("channels", [1, 3])
def test_the_bits_do_not_depend_on_the_plan(channels: int) -> None:
    prepared = prepare(tiles(channels))
    wanted = solve(prepared)
    assert not np.allclose(wanted[0], 1.0, atol=0.01)
    for workers in (1, 2, 8):
        for memory in (None, 1 << 30, 64 << 20):
            plan = prepared.plan.replace(cpu_workers=workers, memory_bytes=memory)
            assert solve(prepared, plan) == wanted


def test_neither_do_those_of_the_mosaic() -> None:
    first = None
    for plan in ({"cpu_workers": 1}, {"cpu_workers": 3, "rows_per_chunk": 3}):
        result = zmrs.mosaic(tiles(3), match="gain", plan=plan)
        rows = [(row.gain, row.offset) for row in result.inputs]
        got = (result.data.tobytes(), result.coverage.tobytes(), rows)
        first = first or got
        assert got == first


def test_what_is_held_was_foretold() -> None:
    prepared = prepare(tiles(3))
    for workers in (1, 4, 30):
        plan = prepared.plan.replace(cpu_workers=workers, memory_bytes=None)
        foretold = _zmrs.lattice_bytes(prepared.job, plan)
        samples = _zmrs.sample_lattice(prepared.job, plan)
        samples.solve_offsets(matched=samples.solve_gains().gains)
        assert samples.bytes < samples.ledger_peak <= foretold
        solve(prepared, plan.replace(memory_bytes=foretold))


def test_files_give_what_arrays_give(tmp_path: Path) -> None:
    paths = sky.write_tiles(tmp_path, tiles())
    arrays = [
        (image, WCS(fits.getheader(path))) for (image, _), path in zip(tiles(), paths, strict=True)
    ]
    assert solve(prepare(paths)) == solve(prepare(arrays))


def test_each_channel_has_gains_of_its_own() -> None:
    """What one channel finds is what it would find alone."""
    together = solve(prepare(tiles(3)))[0]
    for channel in range(3):
        alone = [(image[channel], wcs) for image, wcs in tiles(3)]
        np.testing.assert_allclose(
            solve(prepare(alone))[0], np.array(together)[:, channel : channel + 1]
        )


def test_pairs_tell_what_was_measured() -> None:
    samples = _zmrs.sample_lattice(prepare(tiles()).job, zmrs.Plan())
    found = samples.solve_gains()
    gains = np.ravel(found.gains)
    measured = 0
    for i, j, logs, errors, residuals in found.pairs:
        assert i < j
        assert np.isfinite(errors[0]) == np.isfinite(residuals[0])
        if np.isfinite(errors[0]):
            measured += 1
            left = np.log(gains[i] / gains[j]) - logs[0]
            np.testing.assert_allclose(residuals[0], left, atol=1e-9)
            assert 0 < errors[0] <= 0.05
    assert measured == found.n_pairs >= 4
    assert set(found.rejected) <= {pair[:2] for pair in found.pairs}


def test_a_job_without_rules_has_no_gains() -> None:
    prepared = pipeline.prepare(tiles(), Options(match="offset"))
    samples = _zmrs.sample_lattice(prepared.job, prepared.plan)
    with pytest.raises(ValueError, match="no rules for gains"):
        samples.solve_gains()


@pytest.mark.parametrize("matched", [[], [[1.0]] * 4, [[1.0, 1.0]] * 5, [[np.nan]] * 5])
def test_matched_gains_that_make_no_sense(matched: Any) -> None:
    prepared = prepare(tiles())
    samples = _zmrs.sample_lattice(prepared.job, prepared.plan)
    with pytest.raises(ValueError, match="gain"):
        samples.solve_offsets(matched=matched)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("match_gain_limits", (0.0, 2.0)),
        ("match_gain_limits", (1.1, 2.0)),
        ("match_gain_limits", (0.5, 0.9)),
        ("match_gain_limits", (0.5, np.inf)),
        ("match_gain_limits", (0.5, np.nan)),
        ("match_gain_limits", (0.5,)),
        ("match_gain_limits", 2.0),
        ("match_sky", (70.0, 30.0)),
        ("match_sky", (-1.0, 30.0)),
        ("match_sky", (30.0, 101.0)),
        ("match_sky", None),
        ("match_offset_limit", -1.0),
        ("match_offset_limit", np.nan),
        ("match_offset_limit", "much"),
    ],
)
def test_nonsense_is_refused(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match="--" + option.replace("_", "-")):
        Options(**{option: value})


@pytest.mark.parametrize(
    "entry",
    [
        (0, 0, 1.0, 0.0, 1.0),
        (0, 3, 1.0, 0.0, 1.0),
        (0, 1, -1.0, 0.0, 1.0),
        (0, 1, 1.0, np.nan, 1.0),
    ],
)
def test_lines_that_make_no_sense(entry: Any) -> None:
    with pytest.raises(ValueError, match="entries need"):
        _zmrs.solve_entries(3, [entry], 0, True)
