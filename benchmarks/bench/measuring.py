"""Processes, timed and watched from outside."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 2**20


class FailedError(Exception):
    """A command has failed; the message has its last words."""


@dataclass(frozen=True)
class Run:
    """Figures of one finished process; `stats` are its own, when it tells any."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> dict[str, float]:
        """Seconds of the steps of its Two-Pass, which must not have been given up."""
        if not self.stats["two_pass"]["applied"]:
            raise FailedError(f"the Two-Pass was given up: {self.stats['two_pass']['reason']}")
        return dict(self.stats["two_pass"]["seconds"])

    @property
    def two_pass_s(self) -> float:
        """Seconds of its Two-Pass."""
        return sum(self.steps.values())

    @property
    def pass_one_s(self) -> float:
        """Seconds of its first pass."""
        return float(self.stats["seconds"]["mosaic"])


@dataclass
class Command:
    """A contestant: what to run, what to remove before, how often, where it leaves its figures."""

    name: str
    argv: list[str]
    outputs: list[Path]
    rounds: int
    figures: Path | None = None
    runs: list[Run] = field(default_factory=list)

    def median(self, figure: str) -> float:
        return statistics.median(getattr(run, figure) for run in self.runs)

    def clean(self) -> None:
        """Remove what it makes."""
        for path in [*self.outputs, *([self.figures] if self.figures else [])]:
            path.unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    """As programs run that were installed: Python keeps what it has compiled."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def measure(
    command: Command,
    folder: Path,
    look: Callable[[int], object] | None = None,
    pause_s: float = 0.005,
) -> Run:
    """Run a command once, from outside; `look` is called with its number again and again."""
    command.clean()
    with (folder / "log.txt").open("wb") as log:
        began = time.perf_counter()
        child = subprocess.Popen(
            command.argv, cwd=folder, stdout=log, stderr=log, env=_environment()
        )
        try:
            peak_kib = 0
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                peak_kib = max(peak_kib, peak_of(child.pid))
                if look is not None:
                    look(child.pid)
                time.sleep(pause_s)
            wall_s = time.perf_counter() - began
            child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if child.returncode is None:
                # It cleans up behind itself before it ends.
                child.terminate()
                child.wait()
    if child.returncode != 0:
        words = (folder / "log.txt").read_text()[-2000:]
        raise FailedError(f"{command.name} failed with status {child.returncode}:\n{words}")
    stats = json.loads(command.figures.read_text()) if command.figures else {}
    # The last look comes a moment before the end.
    peak_mib = max(peak_kib / 1024, stats.get("hwm_bytes", 0) / MIB)
    return Run(wall_s, usage.ru_utime + usage.ru_stime, peak_mib, stats)


def peak_of(pid: int) -> int:
    """Peak resident memory of a living process, KiB."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def run_all(commands: list[Command], folder: Path) -> None:
    """Each command as often as it wants, in turn."""
    for number in range(max(command.rounds for command in commands)):
        for command in commands:
            if number < command.rounds:
                command.runs.append(measure(command, folder))
                last = command.runs[-1]
                print(f"{command.name}: {last.wall_s:.2f} s, {last.peak_mib:.0f} MiB", flush=True)
    for command in commands:
        command.clean()
