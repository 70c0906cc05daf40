"""Real control groups (version 1 or 2) for processes under test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

_LIMITS = {
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "cpu": ("cpu.cfs_quota_us", "cpu.max"),
}
PERIOD_US = 100_000


def _own_folder(controller: str) -> Path:
    """The folder of this process's group, or that of the whole machine."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            root = Path("/sys/fs/cgroup") / controller
        elif controllers == "":
            root = Path("/sys/fs/cgroup")
        else:
            continue
        for folder in (root / path.lstrip("/"), root):
            if (folder / "cgroup.procs").exists() and list(folder.glob(f"{controller}.*")):
                return folder
    pytest.fail(f"NOT TESTED: this machine has no {controller} control groups")


@contextmanager
def _group(controller: str, limit: int) -> Iterator[Path]:
    """A group with a limit: bytes of memory, or microseconds of a processor in every 100 000."""
    version_1, version_2 = _LIMITS[controller]
    folder = _own_folder(controller) / f"zmrs-test-{os.getpid()}"
    try:
        folder.mkdir(exist_ok=True)
        file = folder / version_1
        (file if file.exists() else folder / version_2).write_text(str(limit))
    except OSError as error:
        pytest.fail(f"NOT TESTED: no {controller} control group can be made here ({error})")
    try:
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + 5
    while folder.exists():
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def confined(memory_bytes: int, processors: float | None = None) -> Iterator[Callable[[], None]]:
    """Gives a function that confines the process that calls it, for ``preexec_fn``."""
    with ExitStack() as stack:
        folders = [stack.enter_context(_group("memory", memory_bytes))]
        if processors is not None:
            folders.append(stack.enter_context(_group("cpu", round(processors * PERIOD_US))))

        def enter() -> None:
            for folder in dict.fromkeys(folders):
                (folder / "cgroup.procs").write_text(str(os.getpid()))

        yield enter
