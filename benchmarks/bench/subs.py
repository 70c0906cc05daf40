"""Many subs: the promises of memory, scratch and open files, checked."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contestants import foretold, zmrs
from bench.giant import Scratch, need_room
from bench.measuring import MIB, Run, measure
from bench.report import table
from bench.sets import Subs

SDS = ["--mode", "sds", "--two-pass"]
AT_ONCE = ["--combine", "winsorized"]
MOST_OPEN = 64


@dataclass
class Made:
    """What was foretold of a mosaic of subs under a limit, and what came of it."""

    subs: Subs
    options: list[str]
    memory: str
    told: dict[str, Any]
    run: Run
    scratch_bytes: int
    most_open: int
    plan_lines: list[str]

    @property
    def broken(self) -> list[str]:
        """The promises that were not kept, in words."""
        stats, peak = self.run.stats, self.run.peak_mib * MIB
        scratch = self.told["scratch_bytes"]
        promises = [
            (peak <= stats["allowed_bytes"], "the peak is above what is allowed"),
            (peak <= stats["projected_bytes"], "the peak is above what was projected"),
            (stats["projected_bytes"] <= stats["allowed_bytes"], "more projected than allowed"),
            (self.scratch_bytes <= scratch, "scratch is more than foretold"),
            (bool(self.scratch_bytes) == bool(scratch), "scratch is not as foretold"),
            (0 < self.most_open <= MOST_OPEN, f"more than {MOST_OPEN} files were open"),
        ]
        if "--two-pass" in self.options:
            on_phase5 = [" plan=phase5 " in line for line in self.plan_lines]
            promises += [
                (stats["two_pass"]["applied"], "the Two-Pass was given up"),
                (on_phase5 == [True], "no single line says that the Two-Pass ran on the plan"),
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


def make(subs: Subs, options: list[str], memory: str, work: Path) -> Made:
    """A mosaic of the subs under a limit, measured, and removed."""
    frames = subs.make(work)
    with tempfile.TemporaryDirectory(dir=work, prefix="subs-") as name:
        folder = Path(name)
        scratch, log = folder / "scratch", folder / "zmrs.log"
        scratch.mkdir()
        words = [*options, "--memory", memory, "--scratch", str(scratch)]
        told = foretold(frames, words)
        need_room(folder, told["write_bytes"] + told["scratch_bytes"], "the mosaic of subs")
        command = zmrs(memory, frames, folder / "out.fits", [*words, "--log-file", str(log)], 1)
        watch = Watch(scratch)
        run = measure(command, folder, watch.look, pause_s=0.02)
        lines = [line for line in log.read_text().splitlines() if "[TwoPass] plan=" in line]
        return Made(subs, options, memory, told, run, watch.most_bytes, watch.most_open, lines)


def report(made: list[Made]) -> list[str]:
    """A table of all runs."""
    text = (
        "`zmrs mosaic` with the options told and `--threads 2`, matched. `peak`: VmHWM; `scratch`: "
        "the most that lay in its folder; `open`: most files that the process had open; both "
        "looked at fifty times a second; GB are 10^9 bytes."
    )
    columns = ["options", "memory", "batches", "peak MiB", "projected", "scratch GB", "foretold"]
    columns += ["open", "read GB", "input GB", "wall s", "subs/s", "match s", "batches s"]
    columns += ["last pass s", "Two-Pass s", "kept"]
    lines = ["", "## Subs", "", text]
    for subs in dict.fromkeys(one.subs for one in made):
        rows = [_row(one) for one in made if one.subs == subs]
        lines += ["", f"{subs.words}:", *table(columns, rows)]
    proofs = [line.split(" INFO ")[-1] for one in made for line in one.plan_lines]
    return [*lines, "", "The lines that prove the plan of the Two-Pass:", ""] + [
        f"    {line}" for line in proofs
    ]


def _row(one: Made) -> list[str]:
    stats, seconds = one.run.stats, one.run.stats["seconds"]
    has_two_passes = "--two-pass" in one.options
    return [
        f"`{' '.join(one.options)}`",
        one.memory,
        str(stats["batches"]["count"]) if "batches" in stats else "-",
        f"{one.run.peak_mib:.1f}",
        f"{stats['projected_bytes'] / MIB:.1f}",
        f"{one.scratch_bytes / 1e9:.3f}",
        f"{one.told['scratch_bytes'] / 1e9:.3f}",
        f"{one.most_open}",
        f"{stats['read_bytes'] / 1e9:.1f}",
        f"{stats['input_bytes'] / 1e9:.1f}",
        f"{one.run.wall_s:.0f}",
        f"{one.subs.number / one.run.wall_s:.1f}",
        *(f"{seconds[step]:.0f}" if step in seconds else "-" for step in ("match", "batches")),
        f"{seconds['mosaic']:.0f}",
        f"{one.run.two_pass_s:.0f}" if has_two_passes else "-",
        "no: " + "; ".join(one.broken) if one.broken else "yes",
    ]
