"""Runs on a GPU: what is chosen, what is said, and what comes when it fails.

The GPU is a stand-in for CuPy whose kernels are compiled by the C compiler; whole commands run with
it, in processes of their own.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import sky
from child import Outcome, clean_env, run, tree
from kernel_library import COMPILER

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="NOT RUN: there is no C compiler for the kernels"
)

FAKE = Path(__file__).parents[1] / "fake_cupy"
SHAPE = (3, 150, 180)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver that can do nothing, but is there."""
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run(
        [str(COMPILER), "-x", "c", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", "-"],
        input=b"int cuda_is_not_here;", check=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour frames in two columns and four rows, each sixty pixels over the next."""
    folder = tmp_path_factory.mktemp("frames")
    whole = sky.frame_wcs((500, 340))
    rng = np.random.default_rng(4)
    for k in range(12):
        origin = (110 * (k // 3), 75 * (k % 3))
        wcs = sky.shifted_wcs(whole, origin, SHAPE[1:])
        image = rng.normal(400 + 3 * k, 5, SHAPE).astype("f4")
        image[:, 20:23, 30:33] = 9e3
        sky.write_image(folder / f"{k:02}.fits", image, wcs)
    return folder


def on_gpu(
    driver: Path, *args: object, command: tuple[str, ...] | None = None, **fake: int
) -> Outcome:
    """A command on a machine with the stand-in; that of zmrs, or another of Python."""
    more = {f"FAKE_GPU_{name.upper()}": str(value) for name, value in fake.items()}
    paths = f"{FAKE}:{FAKE.parent}"
    env = clean_env(PYTHONPATH=paths, LD_LIBRARY_PATH=str(driver), ZMRS_MATCH="offset", **more)
    return run(*args, env=env) if command is None else run(*args, command=command, env=env)


def planes(path: Path) -> list[bytes]:
    with fits.open(path) as hdus:
        return [h.data.tobytes() for h in hdus if h.is_image and h.data is not None]


def backend_of(path: Path) -> str:
    return str(fits.getheader(path)["ZMBACK"])


@pytest.fixture(scope="module")
def on_cpu(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the CPU makes of some jobs."""
    folder = tmp_path_factory.mktemp("cpu")
    made = {}
    for name, words in JOBS.items():
        made[name] = folder / f"{len(made)}.fits"
        done = run("mosaic", frames, "-o", made[name], "--gpu", "off", "--match", "offset", *words)
        assert done.status == 0, done.err
    return made


TWO_PASS = ("--two-pass", "--two-pass-sigma", 9)
JOBS: dict[str, tuple[object, ...]] = {
    "mean": (),
    "two passes": TWO_PASS,
    "rejection": ("--combine", "winsorized", "--kernel", "lanczos3", "--kappa", "2"),
    "variance": ("--variance", "--combine", "median", *TWO_PASS),
    "two sweeps": ("--combine", "kappa-sigma-stream", "--kappa", "1.5", *TWO_PASS),
    "batches": ("--mode", "sds", "--batch", 4, *TWO_PASS),
}


@pytest.mark.parametrize("job", JOBS)
def test_the_same_pixels(
    job: str, frames: Path, driver: Path, on_cpu: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.fits"
    done = on_gpu(driver, "mosaic", frames, "-o", out, "-v", *JOBS[job])
    assert done.status == 0, done.err
    assert "the GPU is NVIDIA Fake" in done.err
    assert "plan=phase5 " in done.err
    assert "use_gpu=True" in done.err
    assert backend_of(out) == "gpu"
    assert planes(out) == planes(on_cpu[job])
    if "--two-pass" in JOBS[job]:
        (line,) = re.findall(r"\[TwoPass\] plan=.*", done.err)
        assert line.startswith("[TwoPass] plan=phase5 ")
        assert "use_gpu=True" in line
    assert tree(tmp_path) == {"out.fits"}


def test_gpu_memory_bounds_the_chunks(frames: Path, driver: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    words = ("--gpu-memory", "24MiB", "--combine", "median")
    done = on_gpu(driver, "mosaic", frames, "-o", out, *words)
    assert done.status == 0, done.err
    plan = fits.getheader(out)["ZMPLAN"]
    assert "gpu_max_chunk_mb=24.00" in plan
    assert "gpu_memory_asked" in plan
    assert backend_of(out) == "gpu"


def test_out_of_memory_means_smaller_chunks(
    frames: Path, driver: Path, on_cpu: dict[str, Path], tmp_path: Path
) -> None:
    """A device that promises more than it gives."""
    out = tmp_path / "out.fits"
    done = on_gpu(driver, "mosaic", frames, "-o", out, "--gpu-memory", "24MiB", memory=3_000_000)
    assert done.status == 0, done.err
    tries = re.findall(
        r"the GPU ran out of memory .*; trying chunks of (\d+) MiB and (\d+) rows", done.err
    )
    assert [int(mib) for mib, _ in tries][:2] == [17, 16][: len(tries)]
    assert len(tries) >= 1
    assert backend_of(out) == "gpu"
    assert "gpu_out_of_memory" in fits.getheader(out)["ZMPLAN"]
    assert planes(out) == planes(on_cpu["mean"])


@pytest.mark.parametrize("job", JOBS)
def test_without_memory_the_cpu_computes(
    job: str, frames: Path, driver: Path, on_cpu: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.fits"
    done = on_gpu(driver, "mosaic", frames, "-o", out, *JOBS[job], memory=100_000)
    assert done.status == 0, done.err
    assert done.err.count("the CPU computes everything again") == 1
    assert backend_of(out) == "cpu"
    assert "gpu_failed" in fits.getheader(out)["ZMPLAN"]
    assert planes(out) == planes(on_cpu[job])


@pytest.mark.parametrize("job", ["two passes", "batches"])
def test_a_failure_in_the_middle(
    job: str, frames: Path, driver: Path, on_cpu: dict[str, Path], tmp_path: Path
) -> None:
    """Wherever it is: also in the second pass, and while the journal is written."""
    counted = on_gpu(driver, "mosaic", frames, "-o", tmp_path / "0.fits", *JOBS[job], tells=1)
    last = int(counted.err.rpartition("launches: ")[2])
    (line,) = re.findall(r"kernels: (.*)", counted.err)
    kernels = line.split()
    assert len(kernels) == last
    # Of the work on the coverage: the map, and the counts.
    between = [1 + kernels.index(name) for name in ("rows_scale", "count_leading", "count_within")]
    seen = set()
    for number in (1, 2, last // 2, *between, last - 1, last, last + 1):
        out = tmp_path / f"{number}.fits"
        words = (*JOBS[job], "--journal-after", 0 if number % 2 else 30)
        done = on_gpu(driver, "mosaic", frames, "-o", out, *words, fails_at=number)
        assert done.status == 0, done.err
        assert planes(out) == planes(on_cpu[job])
        failed = "the GPU failed (cudaErrorIllegalAddress: an illegal memory access)" in done.err
        assert backend_of(out) == ("cpu" if failed else "gpu")
        assert done.err.count("the CPU computes everything again") == int(failed)
        asked = done.err.find("[TwoPass] plan")
        at = done.err.find("the GPU failed")
        stage = "never" if not failed else "second" if -1 < asked < at else "first"
        assert number not in between or stage == "second"
        seen.add(stage)
    assert seen == {"first", "second", "never"}
    assert not [name for name in tree(tmp_path) if not name.endswith(".fits")]


@pytest.mark.parametrize(
    ("words", "fake", "status", "said"),
    [
        ((), {"fails_at": 3}, 1, "the GPU failed (cudaErrorIllegalAddress"),
        ((), {"memory": 100_000}, 1, "the GPU failed ("),
        ((), {"devices": 0}, 2, "there is no usable GPU (cudaErrorNoDevice"),
        (("--memory", "400MiB"), {}, 2, "a GPU context would take more of the memory limit than"),
    ],
)
def test_a_gpu_that_is_demanded(
    words: tuple[str, ...], fake: dict[str, int], status: int, said: str,
    frames: Path, driver: Path, tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "out.fits"
    done = on_gpu(driver, "mosaic", frames, "-o", out, "--gpu", "on", *words, **fake)
    assert done.status == status, done.err
    sentence = done.err.strip().splitlines()[-1]
    assert sentence.startswith("zmrs: --gpu on: ")
    assert said in sentence
    assert "use --gpu auto" in sentence
    assert "Traceback" not in done.err
    assert tree(tmp_path) == set()


@pytest.mark.parametrize(
    ("words", "fake", "reason"),
    [
        ((), {"devices": 0}, "gpu_unavailable"),
        (("--memory", "400MiB"), {}, "gpu_host_memory"),
        (("--gpu", "off"), {}, "gpu_off"),
        (("--gpu-memory", "10KiB"), {}, "gpu_does_not_fit"),
    ],
)
def test_a_gpu_that_is_not_used(
    words: tuple[str, ...], fake: dict[str, int], reason: str,
    frames: Path, driver: Path, tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "out.fits"
    done = on_gpu(driver, "mosaic", frames, "-o", out, *words, **fake)
    assert done.status == 0, done.err
    header = fits.getheader(out)
    assert header["ZMBACK"] == "cpu"
    assert reason in header["ZMPLAN"].partition("reasons=")[2].split(",")


@pytest.mark.parametrize(
    ("spare", "said"), [(2 << 30, "True ()"), (1 << 29, "False ('gpu_host_memory',)")]
)
def test_a_context_must_leave_enough_for_the_job(
    spare: int, said: str, frames: Path, driver: Path
) -> None:
    """Without one the job fits either way, and so it is not opened where it would not."""
    done = on_gpu(driver, frames, spare, command=("-c", _LARGE))
    assert done.status == 0, done.err
    assert done.out.strip() == said


_LARGE = """
import sys
import sky
from pathlib import Path
from zmrs.config import Options
from zmrs.prepare import prepare
shape = (9000, 9000)
paths = sorted(Path(sys.argv[1]).iterdir())
memory = 4 * 4 * 9000 * 9000 + int(sys.argv[2])
grid = (sky.frame_wcs(shape), shape)
plan = prepare(paths, Options(memory=memory), grid=grid, in_memory=True).plan
print(plan.use_gpu, tuple(r for r in plan.reasons if "gpu" in r))
"""


def test_what_one_has_begun_the_other_does_not_finish(
    frames: Path, driver: Path, on_cpu: dict[str, Path], tmp_path: Path
) -> None:
    """A mosaic is all of the GPU or all of the CPU, also over an interruption."""
    out = tmp_path / "out.fits"
    words = ("mosaic", frames, "-o", out, *JOBS["two passes"], "--journal-after", 0)
    counted = on_gpu(driver, *words, tells=1)
    last = int(counted.err.rpartition("launches: ")[2])
    out.unlink()
    stopped = on_gpu(driver, *words, "--gpu", "on", fails_at=last)
    assert stopped.status == 1
    assert "what is finished is kept" in stopped.err
    done = run(*words, "--gpu", "off", "--match", "offset")
    assert done.status == 0, done.err
    assert "starting anew: this is another job: backend was gpu, is cpu" in done.err
    assert planes(out) == planes(on_cpu["two passes"])
    assert tree(tmp_path) == {"out.fits"}


def test_what_the_cpu_has_done_after_a_failure_is_kept(
    frames: Path, driver: Path, on_cpu: dict[str, Path], tmp_path: Path
) -> None:
    """The GPU fails, the CPU takes over and is killed: the same command goes on on the CPU."""
    out = tmp_path / "out.fits"
    words = ("mosaic", frames, "-o", out, *JOBS["batches"], "--journal-after", 0)
    env = clean_env(
        PYTHONPATH=str(FAKE), LD_LIBRARY_PATH=str(driver), ZMRS_MATCH="offset",
        FAKE_GPU_FAILS_AT="1",
    )  # fmt: skip
    stopped = run(*words, command=("-c", _STOPS_IN_PASS_TWO), env=env)
    assert stopped.status == -signal.SIGKILL, stopped.err
    assert "the CPU computes everything again" in stopped.err
    done = on_gpu(driver, *words)
    assert done.status == 0, done.err
    assert "going on with an interrupted run" in done.err
    assert backend_of(out) == "cpu"
    assert "begun_on_cpu" in fits.getheader(out)["ZMPLAN"]
    assert planes(out) == planes(on_cpu["batches"])


_STOPS_IN_PASS_TWO = """
import os, signal, sys
from zmrs import cli, post_stack
def stop(*args, **more):
    os.kill(os.getpid(), signal.SIGKILL)
post_stack._renormalise = stop
cli.run(sys.argv[1:])
"""


def test_an_interrupted_run_goes_on_on_the_gpu(
    frames: Path, driver: Path, on_cpu: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.fits"
    words = ("mosaic", frames, "-o", out, *JOBS["batches"], "--journal-after", 0)
    stopped = on_gpu(driver, *words, "--gpu", "on", fails_at=9)
    assert stopped.status == 1
    done = on_gpu(driver, *words)
    assert done.status == 0, done.err
    assert "going on with an interrupted run" in done.err
    assert backend_of(out) == "gpu"
    assert planes(out) == planes(on_cpu["batches"])


def test_the_doctor(driver: Path) -> None:
    done = on_gpu(driver, "doctor", memory=8 << 30)
    assert done.status == 0, done.err
    assert (
        "GPU         NVIDIA Fake (nvidia), 7373 MiB of 8192 MiB free, a chunk may take" in done.out
    )
    short = on_gpu(driver, "doctor", "--memory", "300MiB")
    assert "a GPU context would take more of the memory limit than is left" in short.out
    assert "GPU         none: " in on_gpu(driver, "doctor", devices=0).out


@pytest.mark.slow
def test_the_benchmark(driver: Path, tmp_path: Path) -> None:
    """It runs from end to end, and says so where it cannot."""
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    env = clean_env(PYTHONPATH=str(FAKE), LD_LIBRARY_PATH=str(driver))
    words = [sys.executable, script, "--small", "--work", tmp_path]
    done = subprocess.run(words, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| 0 | 0.0e+00 | yes |") == 33
    assert "within 1e-05: yes" in done.stdout
    assert "% of copying" in done.stdout
    assert "| zmrs, GPU | " in done.stdout
    without = env | {"FAKE_GPU_DEVICES": "0"}
    done = subprocess.run(words, env=without, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout[:8]) == (77, "NOT RUN:")
