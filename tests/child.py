"""zmrs as users run it: in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20

# What an undisturbed run logs.
_INFO = ("grid ", "plan=", "mosaic of ")


@dataclass(frozen=True)
class Outcome:
    """How a process ended, and what it said."""

    status: int
    out: str
    err: str
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def remarks(self) -> list[str]:
        """Lines of standard error without those of an undisturbed run."""
        return [line for line in self.err.splitlines() if not line.startswith(_INFO)]


def bare_env(**more: str) -> dict[str, str]:
    """The environment without anything that zmrs looks at, and with ``more``."""
    return {k: v for k, v in os.environ.items() if not k.startswith("ZMRS_")} | more


def clean_env(**more: str) -> dict[str, str]:
    """The same with inputs unmatched."""
    return bare_env(ZMRS_MATCH="none") | more


def run(
    *args: object, command: Sequence[str] = ("-m", "zmrs"), timeout: float = 120, **more: Any
) -> Outcome:
    """Run ``python -m zmrs`` with these arguments; keywords go to `subprocess.run`."""
    words = [sys.executable, *command, *map(str, args)]
    more.setdefault("env", clean_env())
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=timeout, **more
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def start(*args: object, **more: Any) -> subprocess.Popen[str]:
    """Start ``python -m zmrs`` with both outputs on pipes."""
    more.setdefault("env", clean_env())
    return subprocess.Popen(
        [sys.executable, "-m", "zmrs", *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


# The command line, with the figures of the run and the peak that the kernel has seen in a file.
_WITNESS = """
import atexit, json, sys
from pathlib import Path
from zmrs import cli, pipeline

report, made, found = Path(sys.argv.pop(1)), pipeline.make_mosaic, {}

def make_mosaic(*args, **more):
    result = made(*args, **more)
    found.update(result.stats)
    return result

@atexit.register
def tell():
    status = Path("/proc/self/status").read_text()
    found["hwm_bytes"] = int(status.split("VmHWM:")[1].split()[0]) << 10
    report.write_text(json.dumps(found))

pipeline.make_mosaic = make_mosaic
cli.run(sys.argv[1:])
"""


def run_witnessed(report: Path, *args: object, **more: Any) -> Outcome:
    """Run zmrs and learn, besides, the figures of the run and its peak resident memory."""
    done = run(report, *args, command=("-c", _WITNESS), **more)
    stats = json.loads(report.read_text()) if report.exists() else {}
    return Outcome(done.status, done.out, done.err, stats)


def run_code(code: str, *args: object, **more: Any) -> Outcome:
    """Run a Python program."""
    return run(*args, command=("-c", code), **more)


def tree(folder: Path) -> set[str]:
    """Names of all that lies in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
