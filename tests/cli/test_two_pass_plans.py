"""The plan of the Two-Pass in real runs: what is logged is whose plan it is, and what ran."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import sky
import zmrs
from child import MIB, clean_env, run, run_code, run_witnessed, tree
from sky import unmatched
from zmrs import _zmrs
from zmrs.errors import PlanError, UsageError
from zmrs.plan import Plan, describe

TILE = (300, 260)
ORIGINS = [(0, 0), (0, 150), (180, 10), (200, 160), (100, 80), (380, 20), (400, 170), (300, 90)]
GPU_REFUSED = "[TwoPass] GPU requested but disabled by plan.use_gpu=False -> forcing CPU"
SIGMA = {"two_pass": True, "two_pass_sigma": 8}


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("mono"), 1)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("colour"), 3)


def write_frames(folder: Path, channels: int) -> Path:
    base = sky.frame_wcs((700, 420))
    full = TILE if channels == 1 else (channels, *TILE)
    for number, origin in enumerate(ORIGINS):
        image = np.random.default_rng(number).normal(200 + number, 3, full)
        wcs = sky.shifted_wcs(base, origin, TILE)
        sky.write_image(folder / f"{number}.fits", image.astype(np.float32), wcs)
    return folder


def two_pass_lines(text: str) -> list[str]:
    """What a log says of the Two-Pass, without time and level."""
    return [line[line.index("[TwoPass]") :] for line in text.splitlines() if "[TwoPass]" in line]


def plan_line(plan: Plan) -> str:
    return f"[TwoPass] plan={plan.name} {plan.figures()}"


# ----------------------------------------------------------------------------- one plan, it runs

CASES: list[tuple[str, int, tuple[str, ...]]] = [
    ("mono", 2, ("--memory", "200MiB")),
    ("colour", 1, ("--memory", "300MiB", "--kernel", "lanczos3", "--match", "offset")),
    ("colour", 5, ("--memory", "400MiB", "--gpu", "off")),
]


@pytest.mark.parametrize(("kind", "threads", "words"), CASES, ids=["2", "1", "5"])
def test_the_plan_that_is_logged_is_the_one_that_runs(
    kind: str, threads: int, words: tuple[str, ...], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    frames = request.getfixturevalue(kind)
    words = (*words, "--threads", str(threads))
    words = ("--two-pass", "--two-pass-sigma", "8", *words)
    out, log = tmp_path / "out.fits", tmp_path / "log"
    foretold = Plan(**json.loads(run("plan", frames, "--json", *words).out)["plan"])
    done = run_witnessed(tmp_path / "stats", "mosaic", frames, "-o", out, "--log-file", log, *words)
    assert done.status == 0, done.err
    header, stats, again = fits.getheader(out), done.stats, done.stats["two_pass"]

    # Once, and the same in the two lines, in the header and in the forecast.
    for text in (done.err, log.read_text()):
        assert len(two_pass_lines(text)) == 2
        assert [line for line in two_pass_lines(text) if " plan=" in line] == [plan_line(foretold)]
    (phase5,) = [line for line in done.err.splitlines() if line.startswith("plan=")]
    assert phase5.startswith(f"plan={foretold.name} {foretold.figures()} ")
    assert header["ZMPLAN"] == describe(foretold)
    assert foretold.name == "phase5"

    # What the engine has counted, in either pass.
    assert foretold.rows_per_chunk is not None
    assert stats["workers"] == again["workers"] == foretold.cpu_workers == threads
    assert stats["bands"] == -(-header["NAXIS2"] // foretold.rows_per_chunk) > 1
    chunks = (again["chunk_peak_bytes"], stats["chunk_peak_bytes"], foretold.max_chunk_bytes)
    assert 0 < chunks[0] <= chunks[1] == chunks[2]
    for leased in (stats["leased_peak_bytes"], again["leased_peak_bytes"]):
        assert 0 < leased <= stats["projected_bytes"]
    assert stats["hwm_bytes"] <= stats["projected_bytes"] <= stats["allowed_bytes"]
    assert stats["allowed_bytes"] == foretold.memory_bytes
    assert again["applied"]
    assert len(set(again["gains"])) > 3


class _Witness:
    """Notes which layouts the steps of a job are given, and lets them run."""

    def __init__(self, patch: pytest.MonkeyPatch, *names: str) -> None:
        self.seen: list[tuple[str, _zmrs.Layout]] = []
        for name in names:
            patch.setattr(_zmrs, name, self._watched(name, getattr(_zmrs, name)))

    def _watched(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def watched(job: _zmrs.Job, layout: _zmrs.Layout, *args: Any, **more: Any) -> Any:
            self.seen.append((name, layout))
            return step(job, layout, *args, **more)

        return watched


def test_every_step_has_the_plan_of_the_first_pass(
    mono: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("run_pass_into_files", "measure_gains", "luminance_percentile")
    witness = _Witness(monkeypatch, *steps)
    result = unmatched(mono, tmp_path / "out.fits", plan={"rows_per_chunk": 50}, **SIGMA)
    assert [name for name, _ in witness.seen] == [*steps, "run_pass_into_files"]
    layouts = [layout for _, layout in witness.seen]
    assert all(layout is layouts[0] for layout in layouts)
    assert layouts[0].plan == result.plan
    assert (layouts[0].band_rows, result.plan.rows_per_chunk) == (50, 50)


# ------------------------------------------------------------------------------- plans as given


@dataclass
class Foreign:
    """A plan of another program: attributes, some of which mean nothing to us."""

    cpu_workers: int = 2
    max_chunk_bytes: int | None = 24 * MIB
    rows_per_chunk: int | None = 64
    use_gpu: bool = True
    gpu_max_chunk_bytes: int | None = 96 * MIB
    gpu_rows_per_chunk: int | None = 40
    use_memmap: bool = False
    gpu_rows_hint: int = 3


FORMS: list[Callable[[Foreign], Any]] = [
    lambda plan: plan,
    vars,
    lambda plan: MappingProxyType(vars(plan)),
    lambda plan: SimpleNamespace(**vars(plan)),
    Plan.from_phase5,
]
every_form = pytest.mark.parametrize(
    "form", FORMS, ids=["object", "dict", "mapping", "namespace", "Plan"]
)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="zmrs")
    return caplog


@every_form
def test_a_given_plan_keeps_its_figures(
    form: Callable[[Foreign], Any], mono: Path, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    """Also those for a GPU that nobody can use yet: the line shows whose plan it is."""
    out = tmp_path / "out.fits"
    result = unmatched(mono, out, plan=form(Foreign()), **SIGMA)
    plan, stats = result.plan, result.stats
    (line,) = [text for text in told.messages if text.startswith("[TwoPass] plan=")]
    assert plan.max_chunk_bytes is not None
    assert line == (
        "[TwoPass] plan=phase5 cpu_workers=2 use_gpu=False "
        f"max_chunk_mb={plan.max_chunk_bytes / MIB:.2f} gpu_max_chunk_mb=96.00 rows=64 gpu_rows=40"
    )
    assert fits.getheader(out)["ZMPLAN"].startswith(line.removeprefix("[TwoPass] plan="))
    assert plan == Plan.from_phase5(form(Foreign())).replace(
        use_gpu=False, max_chunk_bytes=plan.max_chunk_bytes, memory_bytes=stats["allowed_bytes"],
        reasons=("gpu_unavailable", "memory_automatic"),
    )  # fmt: skip
    assert stats["workers"] == stats["two_pass"]["workers"] == 2
    assert stats["bands"] == -(-result.data.shape[0] // 64) > 5
    assert stats["chunk_peak_bytes"] == plan.max_chunk_bytes <= 24 * MIB
    assert 0 < stats["two_pass"]["chunk_peak_bytes"] <= plan.max_chunk_bytes
    assert stats["two_pass"]["applied"]


def test_a_plan_of_a_single_figure(mono: Path, told: pytest.LogCaptureFixture) -> None:
    result = unmatched(mono, plan={"gpu_max_chunk_bytes": 3 << 19}, **SIGMA)
    assert result.plan.gpu_max_chunk_bytes == 3 << 19
    assert told.messages.count(plan_line(result.plan)) == 1
    assert " gpu_max_chunk_mb=1.50 " in plan_line(result.plan)
    assert plan_line(result.plan).endswith(" gpu_rows=-")


@pytest.mark.parametrize("field", ["gpu_max_chunk_bytes", "gpu_rows_per_chunk"])
@pytest.mark.parametrize("form", [dict, SimpleNamespace])
def test_nonsense_for_a_gpu(form: Any, field: str, mono: Path) -> None:
    for value in (0, -1, True, "96MiB"):
        with pytest.raises(PlanError, match=field):
            unmatched(mono, plan=form(**{field: value}), **SIGMA)


def test_the_threshold_of_a_given_plan(mono: Path) -> None:
    """The one figure of a plan, besides the GPU, that bears on the pixels."""
    plain, same, high = (
        unmatched(mono, plan=plan, **SIGMA).stats["two_pass"]["gains"]
        for plan in (None, {"coverage_threshold": 2}, {"coverage_threshold": 100})
    )
    assert plain == same != high
    assert set(high) == {1.0}


_GIVEN = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
import zmrs
given, out, plan, more = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
result = zmrs.mosaic(given, out, plan=plan, two_pass=True, **more)
print(json.dumps({"plan": result.plan.to_dict()} | result.stats))
"""


def test_a_given_plan_in_a_process_of_its_own(mono: Path, tmp_path: Path) -> None:
    fields = vars(Foreign()) | {"name": "night"}
    done = run_code(_GIVEN, mono, tmp_path / "out.fits", json.dumps(fields), "{}")
    assert done.status == 0, done.err
    stats = json.loads(done.out)
    plan = Plan(**stats["plan"])
    assert (plan.gpu_max_chunk_bytes, plan.gpu_rows_per_chunk) == (96 * MIB, 40)
    assert two_pass_lines(done.err)[1:] == [plan_line(plan)]
    assert plan_line(plan).startswith("[TwoPass] plan=night cpu_workers=2 use_gpu=False ")
    assert stats["workers"] == stats["two_pass"]["workers"] == 2


# ----------------------------------------------------------- the GPU: wanted, demanded, forbidden


@every_form
def test_the_plan_forbids_the_gpu_that_is_demanded(
    form: Callable[[Foreign], Any], mono: Path, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out.fits"
    plan = form(Foreign(use_gpu=False))
    result = unmatched(mono, out, plan=plan, gpu="on", **SIGMA)
    said = [text for text in told.messages if "[TwoPass]" in text]
    assert said[1:] == [plan_line(result.plan), GPU_REFUSED]
    assert " use_gpu=False " in said[1]
    assert " gpu_max_chunk_mb=96.00 " in said[1]
    assert result.plan.reasons == ("gpu_not_planned", "memory_automatic")
    header = fits.getheader(out)
    assert (header["ZMBACK"], header["ZMTWOP"]) == ("cpu", True)
    other = unmatched(mono, gpu="off", **SIGMA)
    assert np.array_equal(result.data, other.data, equal_nan=True)


def test_that_line_in_a_process_of_its_own(mono: Path, tmp_path: Path) -> None:
    words = (json.dumps({"use_gpu": False}), json.dumps({"gpu": "on"}))
    done = run_code(_GIVEN, mono, tmp_path / "out.fits", *words)
    assert done.status == 0, done.err
    assert done.err.count(GPU_REFUSED) == 1
    assert len(two_pass_lines(done.err)) == 3
    assert json.loads(done.out)["two_pass"]["workers"] >= 1


@pytest.mark.parametrize(
    ("gpu", "plan", "reason"),
    [
        ("auto", None, "gpu_unavailable"),
        ("auto", {"use_gpu": True}, "gpu_unavailable"),
        ("auto", {"cpu_workers": 1}, "gpu_unavailable"),
        ("auto", {"use_gpu": False}, "gpu_not_planned"),
        ("off", None, "gpu_off"),
        ("off", {"use_gpu": True}, "gpu_off"),
        ("off", {"use_gpu": False}, "gpu_off"),
    ],
)
def test_nothing_was_demanded(
    gpu: str, plan: Any, reason: str, mono: Path, told: pytest.LogCaptureFixture
) -> None:
    """Then the CPU is taken without a word, and the plan says why."""
    result = unmatched(mono, gpu=gpu, plan=plan, **SIGMA)
    said = [text for text in told.messages if "[TwoPass]" in text]
    assert said[1:] == [plan_line(result.plan)]
    known = {"gpu_unavailable", "gpu_off", "gpu_not_planned"}
    assert known & set(result.plan.reasons) == {reason}
    assert result.plan.use_gpu is False


def test_without_a_second_pass_there_is_no_such_line(
    mono: Path, told: pytest.LogCaptureFixture
) -> None:
    result = unmatched(mono, gpu="on", plan=Plan(use_gpu=False))
    assert not any("[TwoPass]" in text for text in told.messages)
    assert "gpu_not_planned" in result.plan.reasons


@pytest.mark.parametrize("plan", [None, {}, {"use_gpu": True}, Foreign(), {"use_gpu": None}])
@pytest.mark.parametrize("two_pass", [False, True])
def test_a_demand_that_nothing_forbids(
    plan: Any, two_pass: bool, mono: Path, tmp_path: Path
) -> None:
    """A plan that is silent on the GPU does not forbid it."""
    with pytest.raises(UsageError, match=r"^--gpu on: there is no usable GPU \(.*\); "):
        zmrs.mosaic(mono, tmp_path / "out.fits", plan=plan, gpu="on", two_pass=two_pass)
    assert not tree(tmp_path)


def test_what_is_no_wish(mono: Path) -> None:
    for gpu in ("maybe", "ON", True, None, 1):
        with pytest.raises(UsageError, match=r"^gpu: '.*' is not one of auto, on, off\.$"):
            zmrs.mosaic(mono, gpu=gpu)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("command", "how"),
    [("mosaic", "flag"), ("plan", "flag"), ("mosaic", "environment"), ("plan", "file")],
)
def test_the_command_that_demands_a_gpu(command: str, how: str, mono: Path, tmp_path: Path) -> None:
    words: list[Any] = [command, mono, "--two-pass"]
    words += ["-o", tmp_path / "out.fits"] if command == "mosaic" else []
    more: dict[str, Any] = {}
    if how == "flag":
        words += ["--gpu", "on"]
    elif how == "environment":
        more["env"] = clean_env(ZMRS_GPU="on")
    else:
        settings = tmp_path / "zmrs.toml"
        settings.write_text('gpu = "on"\n')
        words += ["--config", settings]
    done = run(*words, **more)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("zmrs: --gpu on: there is no usable GPU (")
    assert done.err.endswith("); use --gpu auto.\n")
    assert tree(tmp_path) <= {"zmrs.toml"}
    # A flag goes before environment and file.
    if how != "flag":
        assert run(*words, "--gpu", "auto", **more).status == 0


def test_the_command_with_other_wishes(mono: Path, tmp_path: Path) -> None:
    images = []
    for gpu, reason in (("auto", "gpu_unavailable"), ("off", "gpu_off")):
        out = tmp_path / f"{gpu}.fits"
        done = run("mosaic", mono, "-o", out, "--two-pass", "--gpu", gpu)
        assert done.status == 0, done.err
        assert GPU_REFUSED not in done.err
        assert reason in fits.getheader(out)["ZMPLAN"].split(" reasons=")[1].split(",")
        images.append(fits.getdata(out).tobytes())
    assert images[0] == images[1]
    done = run("mosaic", mono, "-o", tmp_path / "no.fits", "--gpu", "maybe")
    assert done.status == 2
    assert done.err == "zmrs: --gpu: 'maybe' is not one of auto, on, off.\n"


@pytest.mark.parametrize(("gpu", "reason"), [("on", "gpu_unavailable"), ("off", "gpu_off")])
def test_the_doctor_of_those_who_have_set_it(gpu: str, reason: str) -> None:
    """It examines, and refuses nothing."""
    done = run("doctor", "--json", env=clean_env(ZMRS_GPU=gpu))
    assert (done.status, done.err) == (0, "")
    report = json.loads(done.out)
    found = report["gpu"]
    assert found["used"] is False
    assert reason in found["reasons"] or (gpu == "on" and found["available"])
    assert ("gpu_off" in report["plan"]["reasons"]) == (gpu == "off")
