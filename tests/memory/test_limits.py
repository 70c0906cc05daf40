"""measured ≤ projected ≤ allowed, in processes of their own.

The peak is ``VmHWM`` of the process itself.  Nothing here is skipped: where the machine cannot
make the conditions of a test, the test fails and says what is missing.
"""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import sky
from cgroups import confined
from child import MIB, Outcome, clean_env, run, run_code, run_witnessed
from zmrs.memory import AUTO_FRACTION
from zmrs.simulate import dither_pattern

pytestmark = [
    pytest.mark.memory,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: peaks are read from /proc"),
]

SIDE = 2048
MARGIN_MIB = 4.0  # how much the resident size of an idle interpreter differs between two runs


# ------------------------------------------------------------------------------------- the sets


def write_set(
    folder: Path, panels: tuple[int, int], shape: tuple[int, ...], *, sparse: bool = False,
    **pattern: Any,
) -> Path:  # fmt: skip
    """Frames of one and the same noise (or of nothing at all) on different places of the sky."""
    rng = np.random.default_rng(7)
    data = (100.0 + rng.standard_normal(shape, dtype=np.float32)).astype(">f4")
    body = data.tobytes() + bytes(-data.nbytes % 2880)
    folder.mkdir()
    frames = dither_pattern(panels, (shape[-2], shape[-1]), 1.0, **pattern)
    for number, wcs in enumerate(frames, start=1):
        header = fits.PrimaryHDU(np.zeros((1,) * len(shape), ">f4")).header
        for axis, length in enumerate(reversed(shape), start=1):
            header[f"NAXIS{axis}"] = length
        header.extend(wcs.to_header(relax=True), update=True)
        head = header.tostring(padding=True).encode("ascii")
        with (folder / f"frame_{number:04d}.fits").open("wb") as file:
            file.write(head)
            if sparse:
                file.truncate(len(head) + len(body))
            else:
                file.write(body)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A place for gigabytes, which does not outlive these tests."""
    folder = tmp_path_factory.mktemp("limits")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tiles_36(work: Path) -> Path:
    return write_set(work / "36", (6, 6), (SIDE, SIDE), overlap=0.3, max_rotation_deg=3.0)


@contextmanager
def passing(folder: Path) -> Iterator[Path]:
    """A set that is removed after use."""
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Case:
    """A run and what is to be shown of it."""

    outcome: Outcome

    def __getattr__(self, name: str) -> Any:
        return self.outcome.stats[name]

    def assert_kept(self, label: str, allowed_mib: float | None = None) -> None:
        """The promise, told so that ``pytest -rP`` shows the figures."""
        assert self.outcome.status == 0, self.outcome.err
        figures = [
            self.outcome.stats[name] / MIB
            for name in ("hwm_bytes", "projected_bytes", "allowed_bytes")
        ]
        print(
            "{}: measured {:.1f} ≤ projected {:.1f} ≤ allowed {:.1f} MiB".format(label, *figures),
            f"({self.outcome.stats['seconds']['total']:.2f} s, {self.bands} bands,",
            f"read {self.read_amplification:.2f}, opened {self.files_opened})",
        )
        assert figures == sorted(figures)
        if allowed_mib is not None:
            assert figures[-1] == allowed_mib


def mosaic(given: object, work: Path, *words: object, **more: Any) -> Case:
    """Make the mosaic of a set in a process of its own, and throw it away."""
    out = work / "out.fits"
    try:
        words = ("mosaic", given, "-o", out, "--overwrite", *words)
        return Case(run_witnessed(work / "report.json", *words, timeout=280, **more))
    finally:
        out.unlink(missing_ok=True)
        (work / "report.json").unlink(missing_ok=True)
        assert not list(work.glob(".*")), "something was left behind"


# ---------------------------------------------------------------------------------- the promise


@pytest.mark.parametrize("limit_mib", [128, 256, 1024])
def test_36_tiles(limit_mib: int, tiles_36: Path, work: Path) -> None:
    case = mosaic(tiles_36, work, "--memory", f"{limit_mib}MiB")
    case.assert_kept(f"36 tiles, {limit_mib} MiB", limit_mib)
    if limit_mib >= 256:
        assert case.read_amplification <= 1.2


@pytest.mark.parametrize(
    "words",
    [
        ("--match", "offset"),
        ("--match", "gain"),
        ("--two-pass",),
        ("--match", "offset", "--two-pass"),
        ("--match", "gain", "--two-pass"),
    ],
)
def test_36_tiles_matched_and_twice(words: tuple[str, ...], tiles_36: Path, work: Path) -> None:
    case = mosaic(tiles_36, work, "--memory", "256MiB", *words)
    case.assert_kept(f"36 tiles, 256 MiB, {' '.join(words)}", 256)
    assert "--two-pass" not in words or case.two_pass["applied"]


STREAM = ("--combine", "kappa-sigma-stream")


@pytest.mark.parametrize("words", [(), ("--match", "offset", "--two-pass")])
def test_36_tiles_in_two_sweeps(words: tuple[str, ...], tiles_36: Path, work: Path) -> None:
    case = mosaic(tiles_36, work, "--memory", "256MiB", *STREAM, *words)
    case.assert_kept(f"36 tiles, 256 MiB, {' '.join(STREAM + words)}", 256)
    assert case.read_amplification <= 2.4
    assert "--two-pass" not in words or case.two_pass["applied"]


@pytest.mark.parametrize(
    "words",
    [
        ("--match", "offset"),
        ("--match", "offset", "--two-pass"),
        ("--match", "gain"),
        ("--match", "gain", "--two-pass"),
        STREAM,
    ],
)
def test_the_smallest_limit_of_longer_ways(
    words: tuple[str, ...], tiles_36: Path, work: Path
) -> None:
    """With blurring and matching at their narrowest."""
    refused = run("plan", tiles_36, "--memory", "50MiB", *words)
    limit = smallest_limit(refused)
    case = mosaic(tiles_36, work, "--memory", f"{limit}MiB", *words)
    case.assert_kept(f"36 tiles, {' '.join(words)}, the smallest limit", limit)


def test_bounds_in_a_cgroup(tiles_36: Path, work: Path) -> None:
    """They are written before the output is: dirty pages, too."""
    with confined(256 * MIB) as enter:
        case = mosaic(tiles_36, work, "--memory", "256MiB", *STREAM, preexec_fn=enter)
    case.assert_kept("36 tiles in two sweeps, cgroup of 256 MiB", 256)
    assert case.scratch_bytes > 256 * MIB


def test_the_limit_changes_no_pixel(tiles_36: Path, work: Path) -> None:
    first: list[np.ndarray] = []
    for memory, threads in (("128MiB", 1), ("400MiB", 3)):
        out = work / "pixels.fits"
        done = run("mosaic", tiles_36, "-o", out, "--memory", memory, "--threads", threads)
        assert done.status == 0, done.err
        with fits.open(out) as hdus:
            planes = [hdus[n].data.view(">u4").copy() for n in (0, 1)]
        out.unlink()
        for before, now in zip(first, planes, strict=False):
            other = np.argwhere(before != now)
            assert not len(other), f"{len(other)} pixels, {other.min(0)} to {other.max(0)}"
        first = first or planes


def test_100_tiles(work: Path) -> None:
    pattern = {"overlap": 0.3, "max_rotation_deg": 3.0}
    with passing(write_set(work / "100", (10, 10), (SIDE, SIDE), **pattern)) as tiles:
        mosaic(tiles, work, "--memory", "256MiB").assert_kept("100 tiles", 256)


def test_36_tiles_in_colour(work: Path) -> None:
    pattern = {"overlap": 0.3, "max_rotation_deg": 3.0}
    with passing(write_set(work / "rgb", (6, 6), (3, SIDE, SIDE), **pattern)) as tiles:
        mosaic(tiles, work, "--memory", "384MiB").assert_kept("36 RGB tiles", 384)
        mosaic(tiles, work, "--memory", "384MiB", "--kernel", "lanczos3").assert_kept(
            "36 RGB tiles, lanczos3", 384
        )
        case = mosaic(tiles, work, "--memory", "384MiB", *STREAM, "--reject-together")
        case.assert_kept("36 RGB tiles in two sweeps", 384)


def test_strongly_turned_and_distorted_tiles(work: Path) -> None:
    pattern = {"overlap": 0.5, "max_rotation_deg": 45.0, "sip_strength": 3.0}
    with passing(write_set(work / "turned", (4, 4), (SIDE, SIDE), **pattern)) as tiles:
        mosaic(tiles, work, "--memory", "256MiB").assert_kept("16 turned tiles", 256)


def test_the_automatic_limit(tiles_36: Path, work: Path) -> None:
    mosaic(tiles_36, work).assert_kept("36 tiles, automatic")


# ---------------------------------------------------------------------- limits of the system


@pytest.mark.parametrize("limit_mib", [128, 256])
def test_inside_a_cgroup_of_that_size(limit_mib: int, tiles_36: Path, work: Path) -> None:
    """Dirty pages of the output count there too; the kernel would kill us."""
    with confined(limit_mib * MIB) as enter:
        case = mosaic(tiles_36, work, "--memory", f"{limit_mib}MiB", preexec_fn=enter)
    case.assert_kept(f"36 tiles, cgroup of {limit_mib} MiB", limit_mib)


def test_a_cgroup_is_noticed(tiles_36: Path, work: Path) -> None:
    with confined(300 * MIB) as enter:
        case = mosaic(tiles_36, work, preexec_fn=enter)
    case.assert_kept("36 tiles, automatic in a cgroup of 300 MiB")
    assert case.allowed_bytes == 180 * MIB
    assert "cgroup" in case.outcome.err


_HOLDER = "import time; held = b'x' * (110 << 20); print(1, flush=True); time.sleep(120)"


@pytest.mark.parametrize("words", [("--memory", "150MiB"), ("--memory", "2GiB"), ()])
def test_a_neighbour_in_the_cgroup(words: tuple[str, ...], work: Path) -> None:
    """What others hold is not ours: the kernel would kill the one who takes it."""
    with (
        passing(write_set(work / "few", (3, 3), (1024, 1024))) as tiles,
        confined(300 * MIB) as enter,
    ):
        holder = subprocess.Popen(
            [sys.executable, "-c", _HOLDER],
            stdout=subprocess.PIPE,
            preexec_fn=enter,  # noqa: PLW1509
        )
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            case = mosaic(tiles, work, *words, preexec_fn=enter)
            case.assert_kept(f"beside 110 MiB in a cgroup of 300 MiB, {' '.join(words)}")
            assert case.allowed_bytes < 195 * MIB
        finally:
            holder.kill()
            holder.communicate()


@pytest.mark.parametrize("ulimit_kib", [250_000, 300_000, 400_000])
@pytest.mark.parametrize("memory", ["110MiB", "100%", "1GiB"])
def test_more_memory_never_breaks_what_less_did(memory: str, ulimit_kib: int, work: Path) -> None:
    """Under an address-space limit: threads must not reserve what buffers need."""
    words = ("--memory", memory)
    with passing(write_set(work / "few", (4, 4), (768, 768))) as tiles:
        case = mosaic(tiles, work, *words, preexec_fn=address_space(ulimit_kib << 10))
    case.assert_kept(f"ulimit -v {ulimit_kib}, {memory}")


def test_a_refusal_names_what_can_be_changed(work: Path) -> None:
    with passing(write_set(work / "few", (4, 4), (768, 768))) as tiles:
        out = work / "out.fits"
        # How much libraries reserve differs between builds of Python: the limit
        # is raised from what starts nothing to the first that serves.
        refusals = []
        for kib in range(150_000, 400_000, 4_000):
            enter = address_space(kib << 10)
            outcome = run("mosaic", tiles, "-o", out, "--memory", "1GiB", preexec_fn=enter)
            if outcome.status == 0:
                break
            assert outcome.status == 3
            assert "ulimit -v" in outcome.err
            refusals.append(outcome.err)
        assert outcome.status == 0
        code = "import sys, zmrs; zmrs.mosaic(sys.argv[1], plan={'memory_bytes': 50 << 20})"
        planned = run_code(code, tiles)
    assert "libraries alone take" in refusals[0]
    assert "the smallest limit that works is one of the address-space limit" in refusals[-1]
    assert "a plan with memory_bytes of" in planned.err


def test_a_laptop_of_512_mib_and_one_processor(tiles_36: Path, work: Path) -> None:
    """The doctor sees it, and a mosaic without any option ends inside it."""
    with confined(512 * MIB, processors=1) as enter:
        report = json.loads(run("doctor", "--json", preexec_fn=enter).out)
        case = mosaic(tiles_36, work, preexec_fn=enter)
    limit = {"source": "cgroup memory limit", "bytes": 512 * MIB, "others_bytes": 0}
    assert limit | {"is_hard": True} in report["limits"]
    found = report["capabilities"]
    assert (found["cpu_logical_cores"], found["cpu_cores"]) == (1, 1)
    assert found["ram_total_bytes"] == 512 * MIB
    assert found["ram_available_bytes"] < 512 * MIB
    assert report["plan"]["cpu_workers"] == 1
    assert report["plan"]["memory_bytes"] == int(512 * MIB * AUTO_FRACTION)
    case.assert_kept("36 tiles, cgroup of 512 MiB and one processor")
    assert case.workers == 1
    assert case.allowed_bytes == report["plan"]["memory_bytes"]


def address_space(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.parametrize("limit_mib", [600, 1200])
@pytest.mark.parametrize("words", [(), ("--memory", "256MiB"), ("--memory", "4GiB")])
def test_under_ulimit_v(words: tuple[str, ...], limit_mib: int, tiles_36: Path, work: Path) -> None:
    """Also when more is asked for than there is: an allocation that fails would end the process."""
    case = mosaic(tiles_36, work, *words, preexec_fn=address_space(limit_mib * MIB))
    case.assert_kept(f"36 tiles, ulimit -v {limit_mib} MiB, {' '.join(words) or 'automatic'}")


def test_the_doctor_under_ulimit_v(tiles_36: Path, work: Path) -> None:
    enter = address_space(1024 * MIB)
    report = json.loads(run("doctor", "--json", preexec_fn=enter).out)
    (limit,) = [one["bytes"] for one in report["limits"] if "ulimit -v" in one["source"]]
    assert 700 * MIB < limit < 1024 * MIB, "what is mapped already is not resident"
    assert report["capabilities"]["ram_total_bytes"] == limit
    assert report["plan"]["memory_bytes"] == int(limit * AUTO_FRACTION)
    case = mosaic(tiles_36, work, preexec_fn=enter)
    case.assert_kept("36 tiles, ulimit -v 1 GiB, no options")


# ---------------------------------------------------------------------------------- refusals


def smallest_limit(outcome: Outcome) -> int:
    """The limit in MiB that a refusal names."""
    assert outcome.status == 3, outcome.err
    found = re.search(r"the smallest limit that works is --memory (\d+)MiB", outcome.err)
    assert found, outcome.err
    return int(found[1])


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
def test_a_refusal_is_true(kernel: str, tiles_36: Path, work: Path) -> None:
    """The limit that it names works, and no smaller one does."""
    words = ("--kernel", kernel, "--threads", 2)
    refused = run("mosaic", tiles_36, "-o", work / "out.fits", "--memory", "50MiB", *words)
    limit = smallest_limit(refused)
    case = mosaic(tiles_36, work, "--memory", f"{limit}MiB", *words)
    case.assert_kept(f"36 tiles, {kernel}, the smallest limit", limit)
    below = limit - math.ceil(MARGIN_MIB)
    refused = run("mosaic", tiles_36, "-o", work / "out.fits", "--memory", f"{below}MiB", *words)
    assert abs(smallest_limit(refused) - limit) <= MARGIN_MIB


def test_a_refusal_is_quick(tiles_36: Path) -> None:
    began = time.monotonic()
    smallest_limit(run("plan", tiles_36, "--memory", "50MiB"))
    assert time.monotonic() - began < 2


def test_a_refusal_of_900_tiles_takes_no_longer_than_their_plan(work: Path) -> None:
    """The files hold no pixels (they are sparse), and none is read."""
    with passing(write_set(work / "900", (30, 30), (1024, 1024), sparse=True)) as tiles:
        seconds = []
        for memory in ("1GiB", "50MiB"):
            began = time.monotonic()
            run("plan", tiles, "--memory", memory)
            seconds.append(time.monotonic() - began)
    assert seconds[1] < seconds[0] + 1


def test_the_smallest_limit_works_every_time(tiles_36: Path, work: Path) -> None:
    """The size of an idle interpreter varies from run to run."""
    for _ in range(5):
        refused = run("plan", tiles_36, "--memory", "50MiB")
        again = run("plan", tiles_36, "--memory", f"{smallest_limit(refused)}MiB")
        assert again.status == 0, again.err


# ------------------------------------------------------------------------------- 1,000 inputs


@pytest.fixture(scope="module")
def thousand(work: Path) -> Path:
    """A thousand small frames over one small field."""
    return write_set(work / "1000", (40, 25), (128, 128), overlap=0.97, max_rotation_deg=3.0)


def watch(process: subprocess.Popen[str], look: Callable[[Path], int]) -> int:
    """The most that ``look`` at the process's folder in /proc has seen."""
    most = 0
    folder = Path("/proc", str(process.pid))
    while process.poll() is None:
        try:
            most = max(most, look(folder))
        except OSError:
            continue
        time.sleep(0.002)
    return most


def start_quiet(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "zmrs", *map(str, words)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, env=clean_env(),
    )  # fmt: skip


def test_a_thousand_inputs_with_few_open_files(thousand: Path, work: Path) -> None:
    out = work / "out.fits"
    process = start_quiet("mosaic", thousand, "-o", out, "--memory", "256MiB")
    most = watch(process, lambda folder: sum(1 for _ in (folder / "fd").iterdir()))
    assert process.returncode == 0
    out.unlink()
    print(f"1,000 inputs: at most {most} open files")
    assert 20 < most <= 64


def test_a_thousand_inputs_are_opened_once(thousand: Path, work: Path) -> None:
    case = mosaic(thousand, work, "--memory", "512MiB")
    case.assert_kept("1,000 inputs", 512)
    assert case.bands == 1
    assert case.files_opened <= 2000
    assert case.read_amplification <= 1.2


def test_a_thousand_inputs_in_two_sweeps(thousand: Path, work: Path) -> None:
    """Loaded in turn, each is read once a sweep; a stack would need all at once."""
    case = mosaic(thousand, work, "--memory", "192MiB", *STREAM)
    case.assert_kept("1,000 inputs in two sweeps", 192)
    assert case.bands == 1
    assert case.files_opened <= 2 * 2000
    assert case.read_amplification <= 2.4


# ------------------------------------------------------------------------------ the plan is obeyed

_WITH_PLAN = """
import json, sys
import zmrs
given, out, plan = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
result = zmrs.mosaic(given, out, plan=plan, memory="1GiB", overwrite=True)
print(json.dumps({"plan": result.plan.to_dict()} | result.stats))
"""


def helpers_of(folder: Path) -> int:
    """Threads that help the one of the pass (newborn ones bear its name for a moment)."""
    names = [(task / "comm").read_text().strip() for task in (folder / "task").iterdir()]
    return sum(re.fullmatch(r"zmrs-\d+", name) is not None for name in names)


@pytest.mark.parametrize("workers", [1, 3])
def test_as_many_threads_as_planned(workers: int, tiles_36: Path, work: Path) -> None:
    out = work / "out.fits"
    words = (tiles_36, out, json.dumps({"cpu_workers": workers}))
    process = subprocess.Popen(
        [sys.executable, "-c", _WITH_PLAN, *map(str, words)],
        stdout=subprocess.PIPE, text=True, env=clean_env(),
    )  # fmt: skip
    most = watch(process, helpers_of)
    text, _ = process.communicate()
    stats = json.loads(text)
    out.unlink()
    assert process.returncode == 0
    assert most + 1 == stats["workers"] == stats["plan"]["cpu_workers"] == workers


@pytest.mark.parametrize("chunk_mib", [32, 48])
def test_no_chunk_is_larger_than_planned(chunk_mib: int, tiles_36: Path, work: Path) -> None:
    plan = json.dumps({"cpu_workers": 2, "max_chunk_bytes": chunk_mib * MIB})
    done = run_code(_WITH_PLAN, tiles_36, work / "out.fits", plan)
    (work / "out.fits").unlink()
    assert done.status == 0, done.err
    stats = json.loads(done.out)
    assert stats["chunk_peak_bytes"] <= stats["plan"]["max_chunk_bytes"] <= chunk_mib * MIB
    assert stats["chunk_peak_bytes"] > chunk_mib * MIB / 4, "the engine used what it may"
    assert stats["leased_peak_bytes"] <= stats["projected_bytes"]


# ------------------------------------------------------------------------- the Python interface

_ADDS = """
import json, sys
from pathlib import Path
import numpy as np
import zmrs

def status(field):
    text = Path("/proc/self/status").read_text()
    return int(text.split(field + ":")[1].split()[0]) << 10

ballast = np.ones(300 << 17)
before = status("VmRSS")
keywords = json.loads(sys.argv[3])
result = zmrs.mosaic(sys.argv[1], sys.argv[2] or None, memory="160MiB", **keywords)
print(json.dumps({"added": status("VmHWM") - before} | result.stats))
"""


@pytest.mark.parametrize("into_a_file", [True, False])
def test_a_call_adds_no_more_than_allowed(into_a_file: bool, tiles_36: Path, work: Path) -> None:
    """What the process held before is not counted, the arrays of the result are."""
    out = work / "out.fits"
    size = {"size": [6000, 6000]} if into_a_file else {"size": [2500, 2500]}
    done = run_code(_ADDS, tiles_36, out if into_a_file else "", json.dumps(size))
    out.unlink(missing_ok=True)
    assert done.status == 0, done.err
    stats = json.loads(done.out)
    print(f"added {stats['added'] / MIB:.1f} of 160 MiB, {stats['bands']} bands")
    assert stats["added"] <= 160 * MIB
    assert stats["allowed_bytes"] > 400 * MIB
    assert stats["peak_bytes"] <= stats["projected_bytes"] <= stats["allowed_bytes"]


def test_result_arrays_that_do_not_fit_are_refused(tiles_36: Path) -> None:
    code = "import sys, zmrs; zmrs.mosaic(sys.argv[1], memory='256MiB')"
    done = run_code(code, tiles_36)
    assert done.status == 1
    assert "zmrs.errors.BudgetError" in done.err
    assert "result arrays" in done.err


def test_coordinates_count_before_they_are_made(work: Path) -> None:
    """A fine scale makes more nodes than there is memory for: refused, not made and regretted."""
    path = sky.write_image(
        work / "one.fits", np.ones((64, 64), np.float32), sky.frame_wcs((64, 64))
    )
    grids = ["--scale", "0.0006", "--max-output-pixels", "100000000000"]
    outcome = run_witnessed(work / "seen.json", "plan", path, *grids, "--memory", "150MiB")
    assert outcome.status == 3
    assert "its coordinates alone" in outcome.err
    assert outcome.stats["hwm_bytes"] <= 150 * MIB
