"""One plan: what is foretold, logged, written, returned and used is the same."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import zmrs
from child import MIB, run, run_code, run_witnessed, tree
from sky import alive, constant_frames, frame_wcs, write_image
from zmrs.cli.doctor import as_dict, as_text, examine
from zmrs.config import Options
from zmrs.plan import REASONS, Plan, describe, phase5_plan
from zmrs.probe import Capabilities


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for number, (image, wcs) in enumerate(alive(constant_frames([1.0, 2.0, 4.0], (300, 200)))):
        write_image(folder / f"{number}.fits", image, wcs)
    return folder


CASES: list[tuple[str, ...]] = [
    ("--memory", "300MiB", "--threads", "2"),
    ("--memory", "300MiB", "--threads", "1", "--kernel", "lanczos3"),
    ("--memory", "300MiB", "--threads", "2", "--combine", "kappa-sigma-stream"),
    (),
]


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_one_plan(words: tuple[str, ...], frames: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out.fits", tmp_path / "log"
    told = json.loads(run("plan", frames, "--json", *words).out)
    foretold = Plan(**told["plan"])
    done = run_witnessed(tmp_path / "stats", "mosaic", frames, "-o", out, "--log-file", log, *words)
    assert done.status == 0, done.err
    header = fits.getheader(out)
    line = header["ZMPLAN"]
    (logged,) = [text for text in done.err.splitlines() if text.startswith("plan=")]
    assert logged.startswith(f"plan={line} (memory: ")
    assert f"INFO {logged}" in log.read_text()
    # What is free changes from one process to the next.
    if not words:
        foretold = foretold.replace(memory_bytes=round(header["ZMMEM"] * MIB))
        line, foretold_line = (text.split("memory_mb=")[0] for text in (line, describe(foretold)))
        assert line == foretold_line
    else:
        assert line == describe(foretold)
    # The engine's own counts.
    assert done.stats["workers"] == foretold.cpu_workers
    assert done.stats["bands"] == -(-header["NAXIS2"] // (foretold.rows_per_chunk or 0))
    assert done.stats["chunk_peak_bytes"] == foretold.max_chunk_bytes
    assert done.stats["leased_peak_bytes"] <= done.stats["allowed_bytes"]
    for figure in ("read_bytes", "write_bytes", "scratch_bytes"):
        assert done.stats[figure] == told[figure], figure


@pytest.mark.parametrize("kernel", ["nearest", "lanczos3"])
def test_bytes_of_turned_and_smaller_frames_are_foretold(kernel: str, tmp_path: Path) -> None:
    """Windows that stick out of the frame, and rows of which only a part is needed."""
    rng = np.random.default_rng(4)
    (tmp_path / "in").mkdir()
    for k, angle in enumerate((0.0, 3.0, 48.0, 91.0)):
        wcs = frame_wcs((110, 141), angle)
        wcs.wcs.crpix += rng.uniform(-60, 60, 2)
        image = rng.normal(100.0, 5.0, (110, 141)).astype(np.float32)
        write_image(tmp_path / "in" / f"{k}.fits", image, wcs)
    for more in ([], ["--memory", "100MiB", "--two-pass"]):
        words = [tmp_path / "in", "--kernel", kernel, "--rotate", "33", "--scale", "2.9", *more]
        told = json.loads(run("plan", *words, "--json").out)
        out = ["-o", tmp_path / "out.fits", "--overwrite"]
        done = run_witnessed(tmp_path / "stats", "mosaic", *words, *out)
        assert done.status == 0, done.err
        assert done.stats["read_bytes"] == told["read_bytes"]
        assert done.stats["scratch_bytes"] == told["scratch_bytes"]


def test_two_sweeps_are_foretold(frames: Path, tmp_path: Path) -> None:
    """Twice the bytes are read, and two planes a channel lie in scratch; in each of two passes."""
    as_is = ["--zero-is-blank", "off"]
    words = ["--combine", "kappa-sigma-stream", "--memory", "300MiB", "--threads", "2", *as_is]
    plain = json.loads(run("plan", frames, "--json", *as_is).out)
    canvas = 4 * plain["grid"]["width"] * plain["grid"]["height"]
    for more, passes in ([], 1), (["--two-pass"], 2):
        told = json.loads(run("plan", frames, "--json", *words, *more).out)
        assert told["read_bytes"] == 2 * passes * plain["read_bytes"]
        assert told["write_bytes"] == 3 * canvas
        mean = json.loads(run("plan", frames, "--json", *as_is, *more).out)
        assert told["scratch_bytes"] == mean["scratch_bytes"] + 2 * canvas
        assert told["memory"]["terms"]["bounds"] > 0
        out = ["-o", tmp_path / "out.fits", "--overwrite"]
        done = run_witnessed(tmp_path / "stats", "mosaic", frames, *out, *words, *more)
        assert done.status == 0, done.err
        assert done.stats["read_bytes"] == told["read_bytes"]
    assert tree(tmp_path) == {"out.fits", "stats"}


def test_bytes_of_compressed_inputs_are_read_too(frames: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.fits.gz"
    packed.write_bytes(gzip.compress((frames / "0.fits").read_bytes()))
    told = json.loads(run("plan", packed, frames / "1.fits", "--json").out)
    plain, looked_at = 4 * 300 * 200, 4 * 32 * 200
    assert told["read_bytes"] == packed.stat().st_size + plain + looked_at


def test_the_plan_of_a_result(frames: Path, tmp_path: Path) -> None:
    result = zmrs.mosaic(frames, tmp_path / "out.fits", memory="200MiB", threads=2)
    assert fits.getheader(tmp_path / "out.fits")["ZMPLAN"] == describe(result.plan)
    assert result.plan.reasons == ("workers_asked", "gpu_unavailable", "memory_asked")
    assert set(result.plan.reasons) <= set(REASONS)
    assert result.plan.memory_bytes == result.stats["allowed_bytes"]
    assert result.plan.max_chunk_bytes == result.stats["chunk_peak_bytes"]
    assert result.plan.cpu_workers == result.stats["workers"]


def test_a_plan_that_is_given_is_kept(frames: Path) -> None:
    given = {
        "name": "night", "cpu_workers": 1, "rows_per_chunk": 7, "use_gpu": True, "colour": "red",
        "memory_bytes": 2**31, "gpu_max_chunk_bytes": 5,
    }  # fmt: skip
    result = zmrs.mosaic(frames, plan=given)
    plan = result.plan
    assert (plan.name, plan.cpu_workers, plan.rows_per_chunk) == ("night", 1, 7)
    assert plan.memory_bytes == 2**31
    # What is logged is what runs, on no GPU; its figures stay, as the plan is the caller's.
    assert (plan.use_gpu, plan.gpu_max_chunk_bytes) == (False, 5)
    assert plan.reasons == ("gpu_unavailable", "memory_planned")
    assert result.stats["allowed_bytes"] == 2**31
    other = zmrs.mosaic(frames, threads=3)
    assert np.array_equal(result.data, other.data, equal_nan=True)


def test_the_plan_of_a_result_serves_again(frames: Path) -> None:
    """Its reasons stay true, and do not pile up."""
    first = zmrs.mosaic(frames, memory="300MiB", threads=2).plan
    again = zmrs.mosaic(frames, plan=first).plan
    assert again.reasons == ("workers_asked", "gpu_not_planned", "memory_planned")
    third = zmrs.mosaic(frames, plan=again, threads=1, memory="200MiB", gpu="off")
    assert third.plan.reasons == ("workers_asked", "gpu_off", "memory_asked")
    assert third.plan.cpu_workers == third.stats["workers"] == 1
    fourth = zmrs.mosaic(frames, plan=third.plan.replace(use_gpu=True))
    assert fourth.plan.reasons == ("workers_asked", "gpu_unavailable", "memory_planned")


@pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: there is no ulimit -v")
def test_a_planned_limit_that_the_system_cuts(frames: Path) -> None:
    code = (
        "import resource, sys, zmrs; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30));"
        "plan = zmrs.mosaic(sys.argv[1], plan={'memory_bytes': 2**40}).plan;"
        "print(plan.memory_bytes, *plan.reasons)"
    )
    done = run_code(code, frames)
    assert done.status == 0, done.err
    size, *reasons = done.out.split()
    assert int(size) < 2**30
    assert reasons == ["gpu_unavailable", "memory_cut_to_system_limit"]


def test_more_memory_than_there_is(frames: Path, tmp_path: Path) -> None:
    done = run("mosaic", frames, "-o", tmp_path / "out.fits", "--memory", "900TiB")
    assert done.status == 0
    (warning,) = done.remarks
    assert warning.startswith("warning: ")
    assert "the system may swap" in warning


def test_workers_that_there_is_no_room_for(frames: Path, tmp_path: Path) -> None:
    """Asked for 300 of them in a small memory, the job runs with fewer, and says so."""
    out = tmp_path / "out.fits"
    done = run_witnessed(
        tmp_path / "stats", "mosaic", frames, "-o", out, "--threads", 300, "--memory", "200MiB"
    )
    assert done.status == 0, done.err
    assert 1 <= done.stats["workers"] < 100
    assert "workers_memory" in fits.getheader(out)["ZMPLAN"]
    assert done.stats["hwm_bytes"] <= done.stats["projected_bytes"] <= 200 * MIB


# -------------------------------------------------------------------------------- the doctor


def doctor(*words: str, **more: Any) -> dict[str, Any]:
    done = run("doctor", "--json", *words, **more)
    assert (done.status, done.err) == (0, "")
    report: dict[str, Any] = json.loads(done.out)
    return report


def test_the_doctor() -> None:
    report = doctor()
    assert list(report) == ["version", "build", "capabilities", "limits", "gpu", "plan"]
    assert report["version"] == zmrs.__version__
    assert report["capabilities"]["cpu_logical_cores"] >= 1
    plan = Plan(**report["plan"])
    assert plan.name == "global"
    assert plan.memory_bytes is not None
    assert all(limit["bytes"] > plan.memory_bytes for limit in report["limits"])
    assert set(plan.reasons) | set(report["gpu"]["reasons"]) <= set(REASONS)
    text = run("doctor").out
    assert f"workers     {plan.cpu_workers}\n" in text
    assert re.search(r"limit       \d+ MiB of memory: 60% of the ", text)


def test_the_doctor_listens(tmp_path: Path) -> None:
    assert doctor("--memory", "300MiB", "--threads", "7")["plan"] | {"reasons": []} == Plan(
        name="global", cpu_workers=7, memory_bytes=300 * MIB, max_chunk_bytes=300 * MIB // 7,
    ).to_dict()  # fmt: skip
    file = tmp_path / "zmrs.toml"
    file.write_text('memory = "400MiB"\n')
    assert doctor("--config", str(file))["plan"]["memory_bytes"] == 400 * MIB


MACHINE = {
    "cpu_logical_cores": 16, "cpu_cores": 8, "ram_total_bytes": 2**35, "gpu_available": True,
    "gpu_name": "NVIDIA GeForce RTX 3060", "gpu_vram_total_bytes": 2**33,
    "gpu_vram_free_bytes": 6 * 2**30, "system": "windows", "is_hybrid_graphics": True,
}  # fmt: skip
BATTERY = {"has_battery": True, "power_plugged": False, "on_battery": True}


@pytest.mark.parametrize(
    ("more", "chunk_mib", "reasons"),
    [
        ({"is_hybrid_graphics": False}, 4096, {"budget_policy"}),
        (BATTERY, 128, {"on_battery_clamp", "safe_mode_clamp", "vram_cap", "plan_cap"}),
        ({"gpu_name": "Intel UHD", "is_hybrid_graphics": False}, None, {"disable_intel_only_gpu"}),
        ({"gpu_available": False, "gpu_note": "CuPy is not installed"}, None, {"gpu_unavailable"}),
    ],
)
def test_the_doctor_explains_the_gpu(
    more: dict[str, Any], chunk_mib: int | None, reasons: set[str]
) -> None:
    """What it says is what a plan for that machine would take."""
    found = examine(Options(), Capabilities(**(MACHINE | more)))
    report = as_dict(found)["gpu"]
    assert report["max_chunk_bytes"] == (chunk_mib and chunk_mib * MIB)
    assert report["used"] is (chunk_mib is not None)
    plan = phase5_plan((6000, 8000), 20, None, Capabilities(**(MACHINE | more)))
    assert plan.gpu_max_chunk_bytes == report["max_chunk_bytes"]
    assert set(report["reasons"]) >= reasons
    text = as_text(found)
    if chunk_mib:
        assert f"a chunk may take {chunk_mib} MiB" in text
    for reason in set(report["reasons"]) - {"gpu_unavailable"}:
        assert REASONS[reason] in text


_WITHOUT_ANYTHING = """
import builtins, pathlib, sys
real = builtins.__import__
def gone(*args, **more):
    raise OSError("no such thing on this machine")
def narrow(name, *args, **more):
    if name.split(".")[0] in ("psutil", "cupy", "resource"):
        raise ImportError(name)
    return real(name, *args, **more)
builtins.__import__ = narrow
pathlib.Path.read_text = gone
import os
os.sched_getaffinity = gone
os.cpu_count = lambda: None
from zmrs import cli
cli.run(["doctor"])
"""


def test_the_doctor_of_a_machine_that_says_nothing() -> None:
    done = run_code(_WITHOUT_ANYTHING)
    assert done.status == 0, done.err
    assert "1 GiB, because no limit of the system is known" in done.out
