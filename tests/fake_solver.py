"""A solver that does as it is told, to be put on the PATH in the place of a real one."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from astropy.wcs import WCS

# Outcomes lie in a folder, one file for each call: 1.solved, 2.hangs, 3.fails, … What has none does
# not solve. The words of every call are noted there.
_SCRIPT = """#!/bin/sh
cd {folder}
echo x >> calls
n=$(wc -l < calls)
n=$((n))
echo "$@" >> words
while [ $# -gt 0 ]; do
    case "$1" in
        --wcs) out="$2" ;;
        -o) out="$2.wcs"; ini="$2.ini" ;;
    esac
    shift
done
if [ -e $n.hangs ]; then
    sleep 600 &
    echo $! > child
    wait
fi
if [ -e $n.fails ]; then
    echo "first words" >&2
    echo "no index files." >&2
    exit 5
fi
if [ -e $n.solved ]; then
    [ -z "$ini" ] || echo "PLTSOLVD=T" > "$ini"
    cp $n.solved "$out"
else
    [ -z "$ini" ] || printf 'PLTSOLVD=F\\r\\nERROR=Too few stars.\\r\\n' > "$ini"
    echo "Did not solve."
fi
"""


class FakeSolver:
    """The outcomes of its calls, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._outcomes = 0
        self.folder.mkdir()

    def install(self, name: str = "solve-field") -> Path:
        """Make the program; the folder that it is in."""
        programs = self.folder / "bin"
        programs.mkdir()
        script = programs / name
        script.write_text(_SCRIPT.format(folder=shlex.quote(str(self.folder))))
        script.chmod(0o755)
        return programs

    def solves(self, wcs: WCS) -> None:
        """The next call finds this."""
        header = wcs.to_header(relax=True)
        header.insert(0, ("SIMPLE", True))
        header.insert(1, ("BITPIX", 8))
        header.insert(2, ("NAXIS", 0))
        self._outcome("solved").write_text(header.tostring(padding=True))

    def writes(self, content: bytes) -> None:
        """The next call writes this as its solution."""
        self._outcome("solved").write_bytes(content)

    def gives_up(self) -> None:
        """The next call finds nothing."""
        self._outcome("no-match").touch()

    def hangs(self) -> None:
        """The next call, and a process that it has started, does not end."""
        self._outcome("hangs").touch()

    def fails(self) -> None:
        """The next call ends with status 5."""
        self._outcome("fails").touch()

    def _outcome(self, what: str) -> Path:
        self._outcomes += 1
        return self.folder / f"{self._outcomes}.{what}"

    @property
    def calls(self) -> list[str]:
        """The words of every call."""
        words = self.folder / "words"
        return words.read_text().splitlines() if words.exists() else []

    def child(self) -> int:
        """The process that the call that hangs has started, once it has."""
        file = self.folder / "child"
        for _ in range(2000):
            if file.exists() and file.read_text().endswith("\n"):
                return int(file.read_text())
            time.sleep(0.01)
        raise AssertionError("the solver has not been called")


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and not just its name on the list of the dead."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
