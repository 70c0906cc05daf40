"""Thousands of subs in SDS mode: the promises of memory, scratch and open files, checked."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contestants import foretold, zmrs
from bench.giant import Scratch, need_room
from bench.measuring import MIB, FailedError, Run, measure
from bench.report import table
from bench.sets import Subs

MEMORIES = ("512MiB", "1GiB")
OPTIONS = ["--mode", "sds", "--two-pass"]
MOST_OPEN = 64


@dataclass
class Made:
    """What was foretold of a mosaic of subs under a limit, and what came of it."""

    memory: str
    told: dict[str, Any]
    run: Run
    scratch_bytes: int
    most_open: int
    plan_line: str

    @property
    def broken(self) -> list[str]:
        """The promises that were not kept, in words."""
        stats, peak = self.run.stats, self.run.peak_mib * MIB
        promises = [
            (peak <= stats["allowed_bytes"], "the peak is above what is allowed"),
            (peak <= stats["projected_bytes"], "the peak is above what was projected"),
            (stats["projected_bytes"] <= stats["allowed_bytes"], "more projected than allowed"),
            (0 < self.scratch_bytes <= self.told["scratch_bytes"], "scratch is not as foretold"),
            (0 < self.most_open <= MOST_OPEN, f"more than {MOST_OPEN} files were open"),
            (stats["two_pass"]["applied"], "the Two-Pass was given up"),
            ("plan=phase5 " in self.plan_line, "the Two-Pass ran on another plan"),
        ]
        return [words for is_kept, words in promises if not is_kept]


class Watch(Scratch):
    """Watches a folder, and how many files a process has open."""

    most_open = 0

    def look(self, pid: int) -> None:
        super().look(pid)
        with suppress(OSError):
            opened = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
            files = [name for name in opened if name.startswith("/") and "/dev/" not in name]
            self.most_open = max(self.most_open, len(files))


def make(subs: Path, memory: str, work: Path) -> Made:
    """A mosaic of the subs under a limit, measured, and removed."""
    with tempfile.TemporaryDirectory(dir=work, prefix="subs-") as name:
        folder = Path(name)
        scratch, log = folder / "scratch", folder / "zmrs.log"
        scratch.mkdir()
        words = [*OPTIONS, "--memory", memory, "--scratch", str(scratch)]
        told = foretold(subs, words)
        need_room(folder, told["write_bytes"] + told["scratch_bytes"], "the mosaic of subs")
        command = zmrs(memory, subs, folder / "out.fits", [*words, "--log-file", str(log)], 1)
        watch = Watch(scratch)
        run = measure(command, folder, watch.look, pause_s=0.02)
        lines = [line for line in log.read_text().splitlines() if "[TwoPass] plan=" in line]
        if len(lines) != 1:
            raise FailedError(f"{len(lines)} lines say which plan the Two-Pass runs on")
        return Made(memory, told, run, watch.most_bytes, watch.most_open, lines[0])


def report(subs: Subs, made: list[Made]) -> list[str]:
    """A table of all runs."""
    text = (
        f"{subs.words}: `zmrs mosaic {' '.join(OPTIONS)} --threads 2`, matched. `peak`: VmHWM; "
        "`scratch`: the most that lay in its folder; `open`: most files that the process had open;"
        " both looked at fifty times a second; GB are 10^9 bytes."
    )
    columns = ["memory", "batches", "peak MiB", "projected", "scratch GB", "foretold", "open"]
    columns += ["read GB", "wall s", "subs/s", "match s", "batches s", "Two-Pass s", "kept"]
    rows = []
    for one in made:
        stats, seconds = one.run.stats, one.run.stats["seconds"]
        rows.append(
            [
                one.memory,
                f"{stats['batches']['count']}",
                f"{one.run.peak_mib:.1f}",
                f"{stats['projected_bytes'] / MIB:.1f}",
                f"{one.scratch_bytes / 1e9:.3f}",
                f"{one.told['scratch_bytes'] / 1e9:.3f}",
                f"{one.most_open}",
                f"{stats['read_bytes'] / 1e9:.1f}",
                f"{one.run.wall_s:.0f}",
                f"{subs.number / one.run.wall_s:.1f}",
                *(f"{seconds[step]:.0f}" for step in ("match", "batches")),
                f"{one.run.two_pass_s:.0f}",
                "no: " + "; ".join(one.broken) if one.broken else "yes",
            ]
        )
    return ["", "## Subs", "", text, *table(columns, rows), "", f"    {made[-1].plan_line}"]
