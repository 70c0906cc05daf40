"""A program of others, run for a limited time, and ended with all that it has started."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zmrs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Ran", "run"]

_SAID_BYTES = 1 << 16


@dataclass(frozen=True)
class Ran:
    """How a program ended.

    Attributes
    ----------
    status
        Its exit status; None if it was still running when its time was over.
    said
        The end of what it wrote on standard output and standard error.
    """

    status: int | None
    said: str

    @property
    def last_line(self) -> str:
        """The last line that is not blank, shortened."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        return lines[-1][:120].rstrip(".") if lines else "it said nothing"


def run(command: Sequence[str], folder: Path, limit_s: float) -> Ran:
    """Run a program in a folder for at most so many seconds.

    What it writes goes to a file there, so that no program, nor one that it leaves behind, blocks
    on a pipe or makes us wait for one.  It is the first of a process group of its own: Ctrl-C
    reaches us alone, and whatever ends the waiting ends the group.

    Raises
    ------
    UsageError
        It cannot be started.
    """
    log = folder / "said"
    with log.open("wb") as said:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise UsageError(
                f"{command[0]}: it cannot be run ({error.strerror}); install it anew, or choose "
                "another --solver."
            ) from error
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - _SAID_BYTES, 0))
        return Ran(status, file.read().decode("utf-8", "replace"))
