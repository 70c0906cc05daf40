"""RESULTS.md, table by table."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contestants import MEMORY, SIGMA_PX
from bench.measuring import Command
from bench.sets import OVERLAP, TURN_DEG

MEAN = "mean; mosaic and weight plane written"
STEPS = ("gains", "percentile", "matching", "second pass")
MOST_TIMES = 4.4
"""Of the canvas that is four times as large: a tenth more than in proportion."""


@dataclass(frozen=True)
class Pair:
    """Two commands that were run in turn, and what some seconds of theirs have to do with another.

    Attributes
    ----------
    words
        First cells of the row that tells of them.
    first, second
        The commands, run equally often.
    figure
        The seconds that count, of a `Run`.
    """

    words: list[str]
    first: Command
    second: Command
    figure: str = "wall_s"

    @property
    def cells(self) -> list[str]:
        """Both medians, their ratio, and the least and greatest ratio of a single round."""
        medians = [command.median(self.figure) for command in (self.first, self.second)]
        both = zip(self.first.runs, self.second.runs, strict=True)
        rounds = [getattr(two, self.figure) / getattr(one, self.figure) for one, two in both]
        times = f"{medians[1] / medians[0]:.2f} ({min(rounds):.2f} to {max(rounds):.2f})"
        return [*(f"{seconds:.2f}" for seconds in medians), times]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, with an empty one before it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return ["", *(f"| {' | '.join(line)} |" for line in lines)]


def machine() -> str:
    """The machine and the build, in a few lines."""
    from importlib.metadata import version

    from zmrs import _zmrs

    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    build = _zmrs.build_info()
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "astropy", "reproject"))
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True)
    return (
        f"{cpu}, {len(os.sched_getaffinity(0))} processors, {ram:.0f} GiB, "
        f"{platform.system()}; Python {platform.python_version()}, {packages};"
        f" {rustc.stdout.split('(')[0].strip()}, {build['profile']} build, {build['simd']}"
    )


def heading(command: str, load: float | None = None) -> list[str]:
    """What the file is and where its figures come from; `load` is that of others at the start."""
    made = f"Made by `{command}` on {time.strftime('%Y-%m-%d')}: {machine()}."
    if load is not None:
        made += f" Load before: {load:.1f}."
    return ["# Measured", "", made]


def field(words: str, grid: dict[str, int]) -> str:
    """What is combined, on what canvas."""
    pixels = grid["width"] * grid["height"] / 1e6
    return (
        f"{words}, overlap {100 * OVERLAP:.0f} %, turned by up to {TURN_DEG:g} degrees, onto one "
        f"canvas of {pixels:.0f} Mpix ({grid['width']} x {grid['height']})"
    )


def whole_commands(title: str, about: str, commands: list[Command], how: str = MEAN) -> list[str]:
    """Wall time, processor time and peak of each command, and its time over the first one's."""
    base = commands[0].median("wall_s")
    rows = []
    for command in commands:
        walls = [run.wall_s for run in command.runs]
        rows.append(
            [
                command.name,
                f"{len(walls)}",
                f"{command.median('wall_s'):.2f} ({min(walls):.2f} to {max(walls):.2f})",
                f"{command.median('cpu_s'):.2f}",
                f"{command.median('peak_mib'):.0f}",
                f"{command.median('wall_s') / base:.2f}",
            ]
        )
    text = (
        f"{about}; {how}; files in the page cache; two threads; zmrs with `--memory {MEMORY}`."
        f" Medians; `times` is wall time over that of {commands[0].name}."
    )
    columns = ["command", "runs", "wall s (min to max)", "CPU s", "peak MiB", "times"]
    return ["", f"## {title}", "", text, *table(columns, rows)]


def rejecting(about: str, commands: list[Command]) -> list[str]:
    """Wall time of combines that look at all samples, and that of others over the first one's."""
    how = (
        f"turned by up to {TURN_DEG:g} degrees; clipped at three standard deviations (CLIPPED of"
        " SWarp is a kind of its own); ccdproc stacks the frames as they are and resamples nothing"
    )
    return whole_commands("Rejecting", about, commands, how)


def two_pass(pairs: list[Pair]) -> list[str]:
    """What the Two-Pass adds to whole commands and to their first pass, step by step."""
    rows = []
    for pair in pairs:
        runs = pair.second.runs
        again = statistics.median(run.two_pass_s / run.pass_one_s for run in runs)
        first, added = pair.second.median("pass_one_s"), pair.second.median("two_pass_s")
        steps = [statistics.median(run.steps[step] for run in runs) for step in STEPS]
        rows.append(
            [
                *pair.words,
                *pair.cells,
                *(f"{seconds:.2f}" for seconds in (first, added)),
                f"{again:.2f}",
                *(f"{seconds:.2f}" for seconds in steps),
            ]
        )
    text = (
        f"The runs above without and with `--two-pass` (`--two-pass-sigma {SIGMA_PX}`). `times` is"
        " the whole command over that without, in brackets that of single rounds; `of pass one` is"
        " the Two-Pass alone over the first pass of the same run. Seconds of its steps are those"
        " that the runs tell. Medians."
    )
    columns = ["inputs", "matching", "without, s", "with, s", "times (min to max)", "pass one s"]
    columns += ["Two-Pass s", "of pass one", *(f"{step} s" for step in STEPS)]
    return ["", "## The Two-Pass", "", text, *table(columns, rows)]


def scaling(about: str, pairs: list[Pair]) -> list[str]:
    """Times on a canvas and on one of four times its size."""
    rows = [[*pair.words, f"{len(pair.second.runs)}", *pair.cells] for pair in pairs]
    text = (
        f"{about}; the same field in pixels of half the size, run in turn. Medians; `times` is the"
        " ratio of the seconds, in brackets that of single rounds. In proportion it would be 4; the"
        f" aim for whole commands is at most {MOST_TIMES}. Processor time does not wait for disks"
        " and for others. The passes are those of the command with Two-Pass, without the program's"
        " start."
    )
    columns = ["time of", "runs", "small, s", "large, s", "times (min to max)"]
    return ["", "## Four times the canvas", "", text, *table(columns, rows)]


def stages(rows: list[tuple[str, float, float]]) -> list[str]:
    """Stages in memory."""
    text = (
        "One thread, from `cargo bench`. `decode`: stored samples to float32. `colours`:"
        " raw frames to three channels. `pass`: four"
        " frames turned by three degrees onto 1024 x 1024 pixels, coordinates, sampling and"
        " combining together, in memory."
    )
    columns = ["stage", "ns a sample", "million samples a second"]
    cells = [[name, f"{ns:.2f}", f"{rate:.0f}"] for name, ns, rate in rows]
    return ["", "## Stages", "", text, *table(columns, cells)]
