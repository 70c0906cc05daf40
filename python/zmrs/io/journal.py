"""What of a run is finished, so that an interrupted one can go on.

Beside the output lies a folder, ``OUT.zmrs-state``, which one run at a time may use: it holds what
the run needs for a while and, from a certain second on, a journal.  Each line of the journal says
what is finished; it is written, and sent to the disk, after that itself is there.  A run that ends
well takes the folder away.  One that is interrupted, by whatever, leaves it; the next run of the
same job reads the journal and goes on, and that of another job clears it.

Runs that end before the journal begins have paid nothing for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmrs.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

__all__ = ["Journal", "differences"]

log = logging.getLogger("zmrs")

_FORMAT = 1
_SCRATCH = "scratch"
"""Line that says where the files of a run lie."""

_PATIENCE = 20.0
"""Between two lines of a pass lies at least so many times what writing one has taken."""


class Journal:
    """The state of a run, on disk.

    A context manager.  Leaving it normally takes everything away; leaving it with an exception does
    so unless the journal has begun.

    Parameters
    ----------
    output
        The file that the run makes; None for a run that keeps nothing.
    scratch
        Folder for large files; None is that of the output.
    after_s
        Second of the run with which the journal begins, and seconds between two lines of a pass.
    resumes
        Whether what an interrupted run has left is of use.

    Attributes
    ----------
    temporary
        Where the output is while it is made; None without one.
    goes_on
        Whether an interrupted run is gone on with.
    """

    def __init__(
        self, output: Path | None, scratch: Path | None, *, after_s: float, resumes: bool
    ) -> None:
        self._began, self._after_s, self._resumes = time.monotonic(), after_s, resumes
        self._last_s, self._cost_s = self._began, 0.0
        self._identity: Callable[[], Mapping[str, Any]] | None = None
        self._lines: dict[str, dict[str, Any]] = {}
        self._pending: list[_Line] = []
        self._file: Any = None
        self._lock: Any = None
        self._in_use: set[Path] = set()
        self.goes_on = False
        self.output, self.temporary = output, None
        if output is not None:
            # Absolute, since a run may be gone on with from another folder.
            place = output.absolute()
            self.folder = place.with_name(place.name + ".zmrs-state")
            self.temporary = place.with_name(f".{place.name}.part")
            name = hashlib.blake2b(os.fsencode(place), digest_size=4).hexdigest()
            self._scratch = (
                self.folder
                if scratch is None
                else scratch.absolute() / f".{place.name}-{name}.zmrs-scratch"
            )

    # ------------------------------------------------------------------------------- the folder

    def __enter__(self) -> Journal:
        if self.output is None:
            return self
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = _locked(self.folder / "lock", self.output)
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be made ({error.strerror}).") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.output is None:
            return
        keeps = error is not None and self._file is not None
        if self._file is not None:
            self._file.close()
        if keeps:
            log.info(
                "%s: what is finished is kept; the same command goes on from there", self.output
            )
        else:
            self._in_use.clear()
            self.clear()
        if self._lock is not None:
            self._lock.close()
        if not keeps:
            shutil.rmtree(self.folder, ignore_errors=True)

    def clear(self) -> None:
        """Take away what an earlier run has left, but neither the lock nor files in use."""
        assert self.temporary is not None
        self.temporary.unlink(missing_ok=True)
        kept = {self.folder / "lock", *self._in_use}
        for path in (*self.folder.iterdir(), *self._scratch.glob("*")):
            if path not in kept:
                path.unlink(missing_ok=True)
        if not self._in_use and self._scratch != self.folder:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def scratch(self, name: str) -> Path:
        """Path of a large file, which is in use from now on."""
        self._scratch.mkdir(exist_ok=True)
        path = self._scratch / name
        self._in_use.add(path)
        return path

    def part(self) -> tuple[Path, bool]:
        """Where the output is while it is made, and whether an earlier run has begun it."""
        assert self.temporary is not None
        return self.temporary, self.found("file") is not None

    # ---------------------------------------------------------------------- what an earlier run did

    def open(self, identity: Callable[[], Mapping[str, Any]] | None) -> None:
        """Find what an interrupted run of the same job has finished; clear what another has left.

        Parameters
        ----------
        identity
            Tells everything that decides the result, as plain values by name; asked only when it is
            needed.  None where that cannot be told: nothing is kept then.
        """
        if self.output is None:
            return
        self._identity = identity
        path = self.folder / "journal"
        if not path.exists() or not self._resumes or identity is None:
            self.clear()
            return
        lines = _read(path)
        reason = self._against(lines, identity)
        if reason:
            log.warning("%s: starting anew: %s", self.output, reason)
            self.clear()
            before = _scratch_of(lines)
            if before not in (None, self._scratch, self.folder):
                shutil.rmtree(before, ignore_errors=True)
            return
        self._lines = {line.name: line.what for line in lines[1:]}
        self._begin(lines)
        self.goes_on = True
        log.info("%s: going on with an interrupted run", self.output)

    def has_been_begun(self) -> bool:
        """Whether an interrupted run has left a journal, of whatever job."""
        return self.output is not None and self._resumes and (self.folder / "journal").exists()

    def would_go_on(self, identity: Callable[[], Mapping[str, Any]] | None) -> bool:
        """Whether `open` would find an interrupted run of this job."""
        if identity is None or not self.has_been_begun():
            return False
        return not self._against(_read(self.folder / "journal"), identity)

    def _against(self, lines: list[_Line], identity: Callable[[], Mapping[str, Any]]) -> str:
        """Why an earlier run cannot be gone on with; nothing if it can."""
        if not lines:
            return "the journal of the interrupted run cannot be read"
        changed = differences(lines[0].what, _plain(identity()))
        if changed:
            return f"this is another job: {changed}"
        before = _scratch_of(lines)
        if before != self._scratch:
            # What it has made is there and not here.
            return f"the scratch of the interrupted run is {before}, not in the folder named now"
        for line in {line.name: line for line in lines}.values():
            for name, size in line.files.items():
                try:
                    is_there = Path(name).stat().st_size >= size
                except OSError:
                    is_there = False
                if not is_there:
                    return f"{name}, which the interrupted run has made, is gone"
        return ""

    def found(self, name: str) -> dict[str, Any] | None:
        """What an earlier run, or this one, has noted under a name."""
        return self._lines.get(name)

    def held_bytes(self) -> int:
        """Bytes on disk that an earlier run has left, to be used or cleared."""
        if self.output is None:
            return 0
        assert self.temporary is not None
        files = [self.temporary, *self._scratch.glob("*")]
        return sum(path.stat().st_size for path in files if path.exists())

    # -------------------------------------------------------------------------- what this run does

    def is_due(self) -> bool:
        """Whether a pass under way should pause to be noted."""
        if self.output is None or self._identity is None:
            return False
        now = time.monotonic()
        wait_s = max(self._after_s, _PATIENCE * self._cost_s) if self._file else 0.0
        return now - self._began >= self._after_s and now - self._last_s >= wait_s

    def note(self, name: str, what: dict[str, Any], files: Iterable[Path] = ()) -> None:
        """Note that something is finished, which lies in `files`.

        What is noted before the journal begins is written when it does.
        """
        if self.output is None or self._identity is None:
            return
        self._lines[name] = what
        sizes = {os.fspath(path): Path(path).stat().st_size for path in files}
        self._pending = [line for line in self._pending if line.name != name]
        self._pending.append(_Line(name, what, sizes))
        if self._file is None and time.monotonic() - self._began < self._after_s:
            return
        began = time.monotonic()
        if self._file is None:
            job = _Line("job", _plain(self._identity()), {})
            self._begin([job, _Line(_SCRATCH, {"folder": os.fspath(self._scratch)}, {})])
        for path in dict.fromkeys(path for line in self._pending for path in line.files):
            _sync(Path(path))
        self._file.writelines(line.to_bytes() for line in self._pending)
        self._pending.clear()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._last_s = time.monotonic()
        self._cost_s = self._last_s - began

    def restart(self, identity: Callable[[], Mapping[str, Any]] | None) -> None:
        """Forget all that is noted: it will be made from the beginning, as `identity` says."""
        self._lines.clear()
        self._pending.clear()
        self._identity = identity
        if self._file is not None:
            self._file.close()
            self._file = None
            (self.folder / "journal").unlink(missing_ok=True)

    def _begin(self, lines: Iterable[_Line]) -> None:
        """Write the journal anew, with these lines."""
        path = self.folder / "journal"
        fresh = path.with_name("journal.new")
        with fresh.open("wb") as file:
            file.writelines(line.to_bytes() for line in lines)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        for folder in (self.folder, self._scratch, self.folder.parent):
            with contextlib.suppress(OSError):
                _sync(folder)
        self._file = path.open("ab")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What sets two jobs apart, in a few words; nothing if nothing does.

    Parameters
    ----------
    before, now
        Plain values by name; those that are mappings themselves are compared entry by entry, and
        in their order.
    """
    for part in (*before, *(name for name in now if name not in before)):
        old, new = before.get(part), now.get(part)
        if not (isinstance(old, dict) and isinstance(new, dict)):
            if old == new:
                continue
            return f"{part} was {old}, is {new}"
        if list(old.items()) == list(new.items()):
            continue
        for name in (*old, *(name for name in new if name not in old)):
            if name not in new:
                return f"{part}: {name} is gone"
            if name not in old:
                return f"{part}: {name} is new"
            if old[name] != new[name]:
                words = f"was {old[name]}, is {new[name]}"
                return f"{part}: {name} {words if len(words) < 80 else 'has changed'}"
        return f"{part}: another order"
    return ""


@dataclass(frozen=True)
class _Line:
    """Something finished: its name, what is to be known of it, its files and their sizes."""

    name: str
    what: dict[str, Any]
    files: dict[str, int]

    def to_bytes(self) -> bytes:
        """The line with its sum: a power cut may leave half of the last one."""
        fields = [_FORMAT, self.name, self.what, self.files]
        text = json.dumps(fields, separators=(",", ":")).encode()
        return b"%08x %s\n" % (zlib.crc32(text), text)


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be when it is read back."""
    values: dict[str, Any] = json.loads(json.dumps(identity))
    return values


def _read(path: Path) -> list[_Line]:
    """The complete lines of a journal, up to the first that is not."""
    lines: list[_Line] = []
    try:
        stored = path.read_bytes()
    except OSError:
        return lines
    for line in stored.splitlines():
        total, _, text = line.partition(b" ")
        try:
            if int(total, 16) != zlib.crc32(text):
                break
            version, name, what, files = json.loads(text)
        except ValueError:
            break
        if version != _FORMAT:
            return []
        lines.append(_Line(name, what, files))
    return lines


def _scratch_of(lines: list[_Line]) -> Path | None:
    """Where the files of a run lie; None where its journal does not say."""
    folders = [line.what["folder"] for line in lines if line.name == _SCRATCH]
    return Path(folders[-1]) if folders else None


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked(path: Path, output: Path) -> Any:
    """The lock file, held until it is closed; whoever dies lets it go."""
    file = path.open("a")
    try:
        import fcntl  # noqa: PLC0415  (not on every system)
    except ImportError:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OutputError(
            f"{output}: another run is making it; wait for that, or name another output."
        ) from None
    except OSError:
        # Some network folders have no locks.
        log.debug("%s: cannot be locked", path)
    return file
