"""The commands and the Python interface do what `interface.md` promises."""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import NDData
from astropy.wcs import WCS
from PIL import Image

import zmrs
from child import clean_env, run, run_code, tree
from sky import alive, constant_frames, frame_wcs, shifted_wcs, unmatched, write_image, write_tiles
from zmrs.config import Options, as_text
from zmrs.errors import InputError, UsageError, ZmrsError
from zmrs.plan import describe

SHAPE = (48, 60)
CARDS = {"FILTER": "L", "EXPTIME": 30.0, "OBJECT": "M 31", "BUNIT": "adu", "TELESCOP": "refractor"}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three frames of 1, 2 and 4, a third in common, the last one made of five exposures."""
    folder = tmp_path_factory.mktemp("frames")
    paths = []
    for n, (image, wcs) in enumerate(alive(constant_frames([1.0, 2.0, 4.0], SHAPE))):
        more: dict[str, Any] = {"DATE-OBS": f"2026-01-0{3 - n}T20:00:00", "INSTRUME": f"camera {n}"}
        if n == 2:
            more["STACKCNT"] = 5
        name = folder / f"f{(9, 10, 11)[n]}.fits"
        paths.append(write_image(name, image, wcs, **CARDS, **more))
    return paths


@pytest.fixture(scope="module")
def made(frames: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their mosaic, made by the command."""
    out = tmp_path_factory.mktemp("made") / "out.fits"
    outcome = run("mosaic", *frames, "-o", out, "--memory", "300MiB", "--threads", 2)
    assert (outcome.status, outcome.out, outcome.remarks) == (0, f"{out}\n", []), outcome.err
    return out


# ------------------------------------------------------------------------------ the output file


def test_the_file_is_good_fits(made: Path) -> None:
    assert made.stat().st_size % 2880 == 0
    with fits.open(made) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "COVERAGE", "INPUTS"]
        assert hdus[0].header["EXTEND"]
    raw = made.read_bytes()
    for at in range(0, 2880, 80):
        assert re.fullmatch(rb"[ -~]{80}", raw[at : at + 80])


def test_the_images(made: Path) -> None:
    with fits.open(made) as hdus:
        image, coverage = hdus[0].data, hdus["COVERAGE"].data
        assert image.dtype == coverage.dtype == np.dtype(">f4")
        assert image.shape == coverage.shape == hdus[0].shape
        for hdu in (hdus[0], hdus["COVERAGE"]):
            assert "BSCALE" not in hdu.header
            assert "BZERO" not in hdu.header
            assert WCS(hdu.header).has_celestial
            for key in ("CTYPE1", "CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CDELT1", "RADESYS"):
                assert hdu.header[key] == hdus[0].header[key]
    assert np.array_equal(np.isnan(image), coverage == 0)
    assert set(np.unique(coverage)) == {0.0, 1.0, 2.0} or set(np.unique(coverage)) == {1.0, 2.0}
    assert set(np.unique(image[coverage == 2])) == {1.5, 3.0}


def test_the_table(made: Path, frames: list[Path]) -> None:
    with fits.open(made) as hdus:
        table, header = hdus["INPUTS"].data, hdus["INPUTS"].header
        formats = {column.name: column.format for column in hdus["INPUTS"].columns}
        assert list(formats) == [
            "NAME", "STATUS", "REASON", "WEIGHT", "GAIN", "OFFSET", "TWOPGAIN", "NPIX", "GEOMERR",
            "EXPTIME", "REJFRAC",
        ]  # fmt: skip
        kinds = [re.sub(r"^\d+(?=A$)|^1(?=D$)", "", form) for form in formats.values()]
        assert kinds == ["A", "A", "A", "D", "D", "D", "D", "K", "D", "D", "D"]
        assert header["TUNIT9"] == "pix"
        assert header["TUNIT10"] == "s"
        assert list(table["NAME"]) == [str(path) for path in frames]
        assert set(table["STATUS"]) == {"used"}
        assert set(table["REASON"]) == {""}
        for name in ("WEIGHT", "GAIN", "TWOPGAIN"):
            assert np.all(table[name] == 1)
        assert np.all(table["OFFSET"] == 0)
        assert np.all(table["REJFRAC"] == 0)
        assert np.all(table["EXPTIME"] == 30)
        assert np.all((table["GEOMERR"] >= 0) & (table["GEOMERR"] <= 1e-4))
        assert table["NPIX"].sum() == np.nansum(hdus["COVERAGE"].data)


def test_the_cards(made: Path) -> None:
    header = fits.getheader(made)
    expected = {
        "NCOMBINE": 3, "STACKCNT": 7, "EXPTOTAL": 90.0, "DATE-OBS": "2026-01-01T20:00:00",
        "BUNIT": "adu", "FILTER": "L", "OBJECT": "M 31", "TELESCOP": "refractor",
        "SOFTNAME": "zmrs", "SOFTVERS": zmrs.__version__, "COMBINET": "mean", "ZMKERN": "bilinear",
        "ZMMATCH": "none", "ZMTWOP": False, "ZMFLUX": "SB", "ZMBACK": "cpu", "ZMMEM": 300.0,
    }  # fmt: skip
    assert {key: header[key] for key in expected} == expected
    assert "INSTRUME" not in header, "the inputs disagree"
    assert header["MJD-OBS"] == pytest.approx(61041.8333333, abs=1e-6)
    assert 10 < header["ZMPEAK"] <= header["ZMMEM"]
    assert re.fullmatch(
        r"phase5 cpu_workers=2 use_gpu=False max_chunk_mb=[\d.]+ gpu_max_chunk_mb=- rows=\d+ "
        r"gpu_rows=- memory_mb=300\.00 reasons=workers_asked,gpu_unavailable,memory_asked",
        header["ZMPLAN"],
    )


def test_a_colour_mosaic(tmp_path: Path) -> None:
    paths = write_tiles(tmp_path, alive(constant_frames([1.0, 3.0], SHAPE, channels=3)))
    result = unmatched(paths, tmp_path / "out.fits")
    with fits.open(tmp_path / "out.fits") as hdus:
        hdus.verify("exception")
        assert hdus[0].data.shape == (3, *hdus["COVERAGE"].data.shape)
        formats = {column.name: column.format for column in hdus["INPUTS"].columns}
        assert formats["GAIN"] == formats["OFFSET"] == "3D"
        assert hdus["INPUTS"].data["GAIN"].shape == (2, 3)
        assert WCS(hdus[0].header).celestial.naxis == 2
    assert result.data.shape[0] == 3
    assert result.inputs[0].gain == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(
    umask: int, mode: int, frames: list[Path], tmp_path: Path
) -> None:
    run("mosaic", frames[0], "-o", tmp_path / "out.fits", umask=umask)
    assert (tmp_path / "out.fits").stat().st_mode & 0o777 == mode


def test_two_runs_make_the_same_pixels(made: Path, frames: list[Path], tmp_path: Path) -> None:
    outcome = run("mosaic", *frames, "-o", tmp_path / "out.fits", "--threads", 1)
    assert outcome.status == 0
    for name in (0, "COVERAGE"):
        again, before = fits.getdata(tmp_path / "out.fits", name), fits.getdata(made, name)
        assert again.tobytes() == before.tobytes()


def test_mixtures_are_warned_of(frames: list[Path], tmp_path: Path) -> None:
    other = write_image(
        tmp_path / "ha.fits", np.ones(SHAPE, np.float32), frame_wcs(SHAPE), FILTER="Ha", EXPTIME=5.0
    )
    outcome = run("plan", *frames, other)
    assert [line.split(" (")[0] for line in outcome.remarks] == [
        "warning: the inputs have 2 different filters",
        "warning: the inputs have 2 different exposure times",
    ]


# ------------------------------------------------------------------------------ naming the inputs


def names_in(path: Path) -> list[str]:
    return [Path(name).name for name in fits.getdata(path, "INPUTS")["NAME"]]


@pytest.mark.parametrize("how", ["folder", "glob", "list", "mix"])
def test_ways_to_name_inputs(how: str, frames: list[Path], tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("# my nights\n" + "\n".join(str(path) for path in frames[::-1]) + "\n\n")
    folder = frames[0].parent
    given, expected = {
        "folder": ([folder], ["f9.fits", "f10.fits", "f11.fits"]),
        "glob": ([folder / "f1?.fits"], ["f10.fits", "f11.fits"]),
        "list": ([f"@{listing}"], ["f11.fits", "f10.fits", "f9.fits"]),
        "mix": ([folder / "f*1.fits", f"@{listing}"], ["f11.fits", "f10.fits", "f9.fits"]),
    }[how]
    outcome = run("mosaic", *given, "-o", tmp_path / "out.fits")
    assert outcome.status == 0, outcome.err
    assert names_in(tmp_path / "out.fits") == expected
    assert len(outcome.remarks) == (how == "mix")


def test_folders_and_subfolders(frames: list[Path], tmp_path: Path) -> None:
    night = tmp_path / "nights" / "first"
    night.mkdir(parents=True)
    for path in frames:
        (night / path.name).symlink_to(path)
    out = night.parent / "out.fits"
    assert run("mosaic", night.parent, "-o", out).status == 4
    assert run("mosaic", night.parent, "-o", out, "--recursive").status == 0
    # Again: the mosaic of the first time lies among the inputs now and is not one of them.
    outcome = run("mosaic", night.parent, "-o", out, "--recursive", "--overwrite")
    assert outcome.status == 0, outcome.err
    assert [line for line in outcome.remarks if str(out) in line]
    assert fits.getval(out, "NCOMBINE") == 3


def test_relative_names(frames: list[Path], tmp_path: Path) -> None:
    for path in frames:
        (tmp_path / path.name).symlink_to(path)
    outcome = run("mosaic", ".", "-o", "out.fits", cwd=tmp_path)
    assert (outcome.status, outcome.out) == (0, "out.fits\n")
    assert "out.fits" in tree(tmp_path)


# ------------------------------------------------------------------------------------------- plan


def test_the_plan_as_json(frames: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.fits").write_text("no")
    before = tree(tmp_path)
    outcome = run(
        "plan", *frames, tmp_path / "bad.fits", "--json", "--memory", "256MiB", cwd=tmp_path
    )
    assert outcome.status == 0, outcome.err
    plan = json.loads(outcome.out)
    assert set(plan) == {
        "grid", "plan", "backend", "batches", "bands", "memory", "read_bytes", "write_bytes",
        "scratch_bytes", "time_s", "inputs",
    }  # fmt: skip
    assert set(plan["grid"]) == {"width", "height", "wcs"}
    assert WCS(fits.Header(plan["grid"]["wcs"])).has_celestial
    assert zmrs.Plan.from_phase5(plan["plan"]).to_dict() == plan["plan"]
    memory = plan["memory"]
    assert set(memory) == {"allowed_bytes", "reserved_bytes", "projected_bytes", "terms"}
    assert memory["allowed_bytes"] == plan["plan"]["memory_bytes"] == 256 << 20
    assert memory["projected_bytes"] == sum(memory["terms"].values()) <= memory["allowed_bytes"]
    assert memory["terms"]["process"] == memory["reserved_bytes"]
    assert plan["backend"] == "cpu"
    pixels = plan["grid"]["width"] * plan["grid"]["height"]
    assert plan["write_bytes"] == 2 * 4 * pixels
    # 32 rows to look at them, all for the pass.
    assert plan["read_bytes"] == 3 * 4 * (32 + SHAPE[0]) * SHAPE[1]
    assert plan["scratch_bytes"] == 0
    assert plan["inputs"]["used"] == 3
    [left] = plan["inputs"]["left_out"]
    assert left["name"] == str(tmp_path / "bad.fits")
    assert left["reason"].startswith(left["name"])
    assert tree(tmp_path) == before


def test_what_is_planned_is_what_runs(frames: list[Path], tmp_path: Path) -> None:
    words = ("--memory", "200MiB", "--threads", 2, "--scale", 0.2)
    planned = json.loads(run("plan", *frames, *words, "--json").out)
    outcome = run("mosaic", *frames, *words, "-o", tmp_path / "out.fits")
    with fits.open(tmp_path / "out.fits") as hdus:
        grid = planned["grid"]
        assert hdus[1].data.shape == (grid["height"], grid["width"])
        assert f"rows={planned['plan']['rows_per_chunk']} " in hdus[0].header["ZMPLAN"]
    line = describe(zmrs.Plan.from_phase5(planned["plan"]))
    assert f"plan={line} (memory: as asked)" in outcome.err


def test_the_plan_as_text(frames: list[Path]) -> None:
    outcome = run("plan", *frames, "--memory", "256MiB")
    assert outcome.status == 0
    words = [line.split()[0] for line in outcome.out.splitlines() if not line.startswith(" ")]
    assert words == ["grid", "inputs", "plan", "bands", "read", "write", "scratch", "time",
                     "memory"]  # fmt: skip
    assert "of 256.0 MiB allowed (as asked)" in outcome.out


# ------------------------------------------------------------------------------ preview and demo


def test_preview(made: Path, tmp_path: Path) -> None:
    before = tree(made.parent)
    outcome = run("preview", made)
    pictures = [Path(line) for line in outcome.out.splitlines()]
    assert (outcome.status, outcome.err) == (0, "")
    assert [p.name for p in pictures] == ["out_preview.png", "out_coverage.png"]
    assert tree(made.parent) - before == {p.name for p in pictures}
    for picture in pictures:
        with Image.open(picture) as image:
            image.load()
            assert image.size == fits.getdata(made).shape[::-1]
        picture.unlink()
    outcome = run("preview", made, "-o", tmp_path / "small.png", "--max-side", 20)
    assert outcome.status == 0, outcome.err
    with Image.open(tmp_path / "small.png") as image:
        assert max(image.size) <= 20


@pytest.mark.parametrize("mode", ["normal", "sds"])
def test_demo(mode: str, tmp_path: Path) -> None:
    outcome = run("demo", "-o", tmp_path / "demo", "--frames", 2, "--mode", mode)
    assert outcome.status == 0, outcome.err
    named = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert list(named) == ["mosaic", "preview", "coverage"]
    assert all(Path(name).stat().st_size for name in named.values())
    with fits.open(named["mosaic"]) as hdus:
        hdus.verify("exception")
        assert hdus[0].header["NCOMBINE"] == 2
        assert ("ZMBATCH" in hdus[0].header) == (mode == "sds")
        assert np.isfinite(hdus[0].data).any()


# ---------------------------------------------------------------------------------------- options


def test_the_dumped_options_can_be_loaded(frames: list[Path], tmp_path: Path) -> None:
    text = run("config", "--dump").out
    names = [field.name.replace("_", "-") for field in fields(Options)]
    assert re.findall(r"^(?:# )?([a-z-]+) = ", text, re.MULTILINE) == names
    given = tomllib.loads(text)
    assert all(
        as_text(getattr(Options(), key.replace("-", "_"))).lower() == str(value).lower()
        for key, value in given.items()
    )
    file = tmp_path / "zmrs.toml"
    file.write_text(text)
    assert run("plan", *frames, "--config", file).status == 0
    # With every line switched on and given a value.
    values = {
        "memory": '"300MiB"', "threads": "2", "hdu": "0", "wcs": None, "scale": "1.5",
        "center": "[150.0, 30.0]", "size": '"50x40"', "projection": '"SIN"', "frame": '"icrs"',
        "rotate": "10", "max-output-pixels": "1000000", "scratch": f'"{tmp_path}"',
    }  # fmt: skip
    for key, value in values.items():
        if value is not None:
            text, count = re.subn(rf"^# ({key}) = .*$", rf"\1 = {value}", text, flags=re.MULTILINE)
            assert count == 1
    file.write_text(text)
    outcome = run("plan", *frames, "--config", file, "--json")
    assert outcome.status == 0, outcome.err
    plan = json.loads(outcome.out)
    assert (plan["grid"]["width"], plan["grid"]["height"]) == (50, 40)
    assert plan["grid"]["wcs"]["CTYPE1"].endswith("SIN")
    assert plan["plan"]["cpu_workers"] == 2
    assert plan["memory"]["allowed_bytes"] == 300 << 20


def test_flag_over_environment_over_file_over_default(frames: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "zmrs.toml"
    file.write_text('kernel = "nearest"\nthreads = 5\nmax-output-pixels = 123456\n')

    def kernel(*words: object, **variables: str) -> str:
        out = tmp_path / "out.fits"
        given = ("mosaic", frames[0], "-o", out, "--overwrite", *words)
        outcome = run(*given, env=clean_env(**variables))
        assert outcome.status == 0, outcome.err
        value: str = fits.getval(out, "ZMKERN")
        return value

    flag, config = ("--kernel", "lanczos2"), ("--config", file)
    assert kernel() == "bilinear"
    assert kernel(*config) == "nearest"
    assert kernel(*config, ZMRS_KERNEL="bicubic") == "bicubic"
    assert kernel(*config, *flag, ZMRS_KERNEL="bicubic") == "lanczos2"


def test_a_flag_can_be_set_everywhere(frames: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    out.write_text("old")
    for value in ("0", "false"):
        assert run("mosaic", *frames, "-o", out, env=clean_env(ZMRS_OVERWRITE=value)).status == 2
    (tmp_path / "zmrs.toml").write_text("overwrite = true")
    words = ("mosaic", *frames, "-o", out, "--config", tmp_path / "zmrs.toml")
    assert run(*words, env=clean_env(ZMRS_OVERWRITE="no")).status == 2
    assert run(*words).status == 0


# ------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kappa", "2"), "--kappa is without effect: it needs --combine kappa-sigma or "),
        (("--two-pass-sigma", "9"), "--two-pass-sigma is without effect: it needs --two-pass"),
        (("--no-autocrop",), "--no-autocrop is without effect: it needs --mode sds"),
        (("--match-sky", "5,60"), "--match-sky is without effect: it needs --match gain"),
        (("--gpu", "off", "--gpu-memory", "1GiB"), "--gpu-memory is without effect: it needs "),
        (("--kappa", "2", "--combine", "winsorized"), ""),
        (("--kappa", "3"), ""),
        (("--preset", "zemosaic", "--no-two-pass"), ""),
        (("--mode", "sds", "--sds-min-batch", "2"), ""),
    ],
)
def test_options_without_effect_are_named(
    words: tuple[str, ...], said: str, frames: list[Path]
) -> None:
    done = run("plan", *frames, *words)
    assert done.status == 0, done.err
    vain = [line for line in done.remarks if "without effect" in line]
    assert len(vain) == (1 if said else 0)
    assert all(line.startswith(f"warning: {said}") for line in vain)


def test_progress_as_json(frames: list[Path], tmp_path: Path) -> None:
    outcome = run("mosaic", *frames, "-o", tmp_path / "out.fits", "-q", "--progress", "json")
    events = [json.loads(line) for line in outcome.err.splitlines()]
    keys = ["event", "stage", "done", "total", "unit", "eta_s", "rss_mib"]
    assert all(list(event) == keys for event in events)
    told = [(e["stage"], e["event"]) for e in events if e["event"] != "progress"]
    stages = ("geometry", "survey", "mosaic")
    assert told == [(s, e) for s in stages for e in ("start", "end")]
    for stage in stages:
        done = [event["done"] for event in events if event["stage"] == stage]
        total = {event["total"] for event in events if event["stage"] == stage}
        assert done == sorted(done)
        assert total == {done[-1]}
    assert all(event["rss_mib"] > 10 for event in events)


def test_verbosity(frames: list[Path], tmp_path: Path) -> None:
    out, log = tmp_path / "out.fits", tmp_path / "log.txt"
    words = ("mosaic", *frames, frames[0], "-o", out, "--overwrite")
    quiet = run(*words, "-q")
    assert [line.split(":")[0] for line in quiet.err.splitlines()] == ["warning"]
    usual = run(*words, "--log-file", log)
    assert [line.split()[0] for line in usual.err.splitlines()] == [
        "warning:", "grid", "plan=phase5", "mosaic",
    ]  # fmt: skip
    assert usual.out == quiet.out == f"{out}\n"
    wordy = run(*words, "-v")
    assert set(quiet.err.splitlines()) <= set(usual.err.splitlines())
    assert len(wordy.err.splitlines()) >= len(usual.err.splitlines())
    logged = log.read_text().splitlines()
    assert len(logged) >= 4
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [A-Z]+ ", line) for line in logged)


def test_the_log_file_is_detailed_also_when_quiet(frames: list[Path], tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    run("mosaic", *frames, "-o", tmp_path / "out.fits", "-q", env=clean_env(ZMRS_LOG_FILE=str(log)))
    assert "plan=phase5" in log.read_text()


def test_version_and_help() -> None:
    assert run("--version").out == f"zmrs {zmrs.__version__}\n"
    for words in (["--help"], ["-h"]):
        outcome = run(*words)
        assert outcome.status == 0
        commands = re.findall(r"^  ([a-z]+)  ", outcome.out.split("Commands:")[1], re.MULTILINE)
        assert commands == ["mosaic", "update", "plan", "doctor", "preview", "demo", "config"]
    for command in commands:
        outcome = run(command, "--help")
        assert outcome.status == 0
        assert outcome.out.startswith(f"Usage: zmrs {command}")
    flags = run("mosaic", "--help").out
    for field in fields(Options):
        assert f"--{field.name.replace('_', '-')}" in flags


def test_help_is_immediate() -> None:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        run("--help")
        seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds) <= 0.3


# ----------------------------------------------------------------------------- the Python interface


def test_the_result_of_a_file(frames: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    result = unmatched(frames, out, memory="512MiB", threads=1)
    assert result.path == out
    assert result.data.dtype == result.coverage.dtype == np.float32
    assert result.data.dtype.isnative
    assert np.array_equal(result.data, fits.getdata(out), equal_nan=True)
    assert np.array_equal(result.coverage, fits.getdata(out, 1))
    assert result.plan.cpu_workers == 1
    assert result.wcs.has_celestial
    assert [row.name for row in result.inputs] == [str(path) for path in frames]
    assert {row.status for row in result.inputs} == {"used"}
    for name in ("peak_bytes", "projected_bytes", "allowed_bytes", "read_bytes", "files_opened"):
        assert result.stats[name] > 0
    assert result.stats["seconds"]["total"] > 0


def test_the_result_in_memory(frames: list[Path], tmp_path: Path) -> None:
    in_memory = unmatched(frames)
    in_file = unmatched(frames, tmp_path / "out.fits")
    assert in_memory.path is None
    assert in_memory.data.tobytes() == in_file.data.tobytes()
    assert in_memory.coverage.tobytes() == in_file.coverage.tobytes()


def test_all_kinds_of_inputs_are_one(frames: list[Path]) -> None:
    expected = unmatched(frames)
    kinds: dict[str, list[Any]] = {"text": [str(path) for path in frames]}
    kinds |= {name: [] for name in ("pair", "swapped", "hdu", "nddata", "doubles", "mix")}
    for path in frames:
        with fits.open(path, memmap=False) as hdus:
            image, wcs = hdus[0].data, WCS(hdus[0].header)
            kinds["hdu"].append(hdus[0].copy())
        kinds["swapped"].append((image, wcs))
        kinds["pair"].append((image.astype(np.float32), wcs))
        kinds["doubles"].append((image.astype(np.float64), wcs))
        kinds["nddata"].append(NDData(image.astype(np.float32), wcs=wcs))
    kinds["mix"] = [kinds["pair"][0], frames[1], kinds["nddata"][2]]
    for name, given in kinds.items():
        result = unmatched(given)
        assert result.data.tobytes() == expected.data.tobytes(), name
        assert result.coverage.tobytes() == expected.coverage.tobytes(), name
    assert [row.name for row in unmatched(kinds["mix"]).inputs] == [
        "input 1", str(frames[1]), "input 3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f2", "f4", ">i2", ">f8"]
)
def test_array_types(dtype: str) -> None:
    image = np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) % 100
    before = image.astype(dtype)
    given = before.copy()
    wcs = frame_wcs(SHAPE)
    result = unmatched([(given, wcs)], wcs=wcs, shape=SHAPE)
    assert np.array_equal(result.data, image)
    assert np.array_equal(given, before)


def test_arrays_with_gaps() -> None:
    wcs = frame_wcs(SHAPE)
    image = np.ones((2 * SHAPE[0], 2 * SHAPE[1]), np.float32)
    view = image[::2, ::-2]
    assert np.all(unmatched([(view, wcs)], wcs=wcs, shape=SHAPE).data == 1)
    mask = np.zeros(SHAPE, bool)
    mask[10, 20] = True
    masked = NDData(np.ones(SHAPE, np.int16), mask=mask, wcs=wcs)
    result = unmatched([masked], wcs=wcs, shape=SHAPE, kernel="nearest")
    assert np.array_equal(np.isnan(result.data), mask)
    assert np.array_equal(result.coverage == 0, mask)


def test_weights() -> None:
    wcs = frame_wcs(SHAPE)
    pair = [(np.full(SHAPE, 1.0), wcs), (np.full(SHAPE, 4.0), wcs)]
    result = unmatched(pair, wcs=wcs, shape=SHAPE, weights=[1.0, 3.0])
    assert np.allclose(result.data, 3.25)
    assert np.all(result.coverage == 4)
    plane = np.ones(SHAPE, np.float32)
    plane[:, :30] = 0
    result = unmatched(pair, wcs=wcs, shape=SHAPE, weights=[None, plane], kernel="nearest")
    assert np.all(result.data[:, :30] == 1)
    assert np.all(result.data[:, 30:] == 2.5)
    for bad in ([1.0], [0.0, 1.0], [np.nan, 1.0], [np.ones((2, 2)), None]):
        with pytest.raises(ZmrsError):
            unmatched(pair, wcs=wcs, shape=SHAPE, weights=bad)


def test_left_out_inputs_are_in_the_result(frames: list[Path], tmp_path: Path) -> None:
    far = write_image(
        tmp_path / "far.fits",
        np.ones(SHAPE, np.float32),
        shifted_wcs(frame_wcs(SHAPE), (500, 0), SHAPE),
    )
    result = unmatched([*frames, far, "no.fits"], center=(150.0, 30.0), size=(60, 48))
    status = {Path(row.name).name: (row.status, row.reason) for row in result.inputs}
    assert status["far.fits"][0] == status["no.fits"][0] == "left_out"
    assert "does not touch" in status["far.fits"][1]
    assert "no such file" in status["no.fits"][1]


class StopError(Exception):
    """Raised by listeners of these tests."""


@pytest.mark.parametrize("stage", ["geometry", "mosaic"])
def test_what_a_listener_raises_stops_the_job(
    stage: str, frames: list[Path], tmp_path: Path
) -> None:
    def listener(event: zmrs.events.Event) -> None:
        if event.stage == stage:
            raise StopError

    with pytest.raises(StopError):
        unmatched(frames, tmp_path / "out.fits", progress=listener)
    assert not tree(tmp_path)


def test_a_listener_stops_the_pass(frames: list[Path], tmp_path: Path) -> None:
    began = 0.0

    def listener(event: zmrs.events.Event) -> None:
        nonlocal began
        if event.stage == "mosaic" and event.event == "progress":
            assert any(name.endswith(".part") for name in tree(tmp_path))
            began = time.perf_counter()
            raise StopError

    with pytest.raises(StopError):
        unmatched(
            frames, tmp_path / "out.fits", progress=listener, scale=0.01, kernel="lanczos3",
            max_output_pixels=10**12, threads=1, memory="512MiB",
        )  # fmt: skip
    assert time.perf_counter() - began < 1
    assert not tree(tmp_path)


def test_a_plan_of_somebody_else(frames: list[Path]) -> None:
    result = unmatched(frames, plan={"cpu_workers": 1, "rows_per_chunk": 7, "name": "mine"})
    assert (result.plan.name, result.plan.rows_per_chunk) == ("mine", 7)
    assert result.stats["workers"] == 1
    assert result.stats["bands"] == -(-result.data.shape[0] // 7)
    assert result.plan.memory_bytes is not None, "a plan without a limit gets one"
    both = unmatched(frames, plan={"cpu_workers": 1, "memory_bytes": 1 << 33}, memory="1GiB")
    assert both.plan.memory_bytes == both.stats["allowed_bytes"] < 1 << 33
    own = unmatched(frames, plan={"cpu_workers": 1, "memory_bytes": 1 << 33})
    assert own.plan.memory_bytes == own.stats["allowed_bytes"] == 1 << 33


@pytest.mark.parametrize(
    ("error", "inputs", "words"),
    [
        (UsageError, None, {"kernel": "cubist"}),
        (UsageError, None, {"combine": "average"}),
        (UsageError, None, {"memory": "300"}),
        (UsageError, None, {"wcs": frame_wcs(SHAPE)}),
        (ZmrsError, None, {"memory": 1}),
        (ZmrsError, None, {"plan": {"cpu_workers": 0}}),
        (InputError, [], {}),
        (InputError, [3], {}),
        (InputError, [(np.ones(5), frame_wcs(SHAPE))], {}),
        (InputError, [(np.ones(SHAPE, complex), frame_wcs(SHAPE))], {}),
        (InputError, [(np.ones(SHAPE), None)], {}),
        (InputError, [(np.ones(SHAPE), WCS(naxis=2))], {}),
        (InputError, [(np.full(SHAPE, np.nan), frame_wcs(SHAPE))], {}),
        (UsageError, None, {"colour": "red"}),
    ],
)  # fmt: skip
def test_misuse(
    error: type[Exception], inputs: list[Any] | None, words: dict[str, Any], frames: list[Path]
) -> None:
    with pytest.raises(error):
        unmatched(frames if inputs is None else inputs, **words)


def test_importing_does_not_touch_signals() -> None:
    code = "import signal, zmrs.cli; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    assert run_code(code).out == "True\n"


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("zmrs")
    assert command.exists()
    assert os.access(command, os.X_OK)
