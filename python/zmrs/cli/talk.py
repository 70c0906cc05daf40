"""Logs and progress on standard error."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

from zmrs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zmrs.events import Event

__all__ = ["logging_to", "progress_to"]

_STAGES = {
    "solve": "solving frames",
    "select": "measuring inputs",
    "geometry": "placing inputs",
    "decompress": "decompressing",
    "match": "matching inputs",
    "mosaic": "making the mosaic",
    "two_pass": "second pass",
}
_LINE_EVERY_S = 5.0


def logging_to(*, verbose: bool, quiet: bool, log_file: Path | None) -> None:
    """Send the log to standard error, and in full detail to a file if one is named."""
    logger = logging.getLogger("zmrs")
    logger.handlers.clear()
    logger.setLevel(logging.DEBUG)
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    screen.setFormatter(_Plain())
    logger.addHandler(screen)
    if log_file is not None:
        try:
            detailed = logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UsageError(f"{log_file}: cannot be written ({error.strerror}).") from error
        detailed.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(detailed)


class _Plain(logging.Formatter):
    """The message alone, with its level when that is worth a word."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            return f"{record.levelname.lower()}: {message}"
        return message


@contextlib.contextmanager
def progress_to(how: str, *, quiet: bool) -> Iterator[Callable[[Event], object] | None]:
    """A listener that tells progress: a bar on a terminal, lines in a pipe, or JSON."""
    if how == "auto":
        how = "bar" if sys.stderr.isatty() else "lines"
    if how == "json":
        yield lambda event: _print(json.dumps(event.as_dict()))
    elif how == "none" or quiet:
        yield None
    elif how == "lines":
        yield _Lines()
    else:
        with _bar() as listener:
            yield listener


class _Lines:
    """Now and then a line, for logs of long runs; short runs say nothing."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.event != "progress" or now - self._last < _LINE_EVERY_S:
            return
        self._last = now
        share = event.done / max(event.total, 1)
        eta = "" if event.eta_s is None else f", {_time(event.eta_s)} left"
        name = _STAGES.get(event.stage, event.stage)
        _print(f"{name}: {share:.0%}{eta}, {event.rss_mib:.0f} MiB")


def _print(line: str) -> None:
    """A line for whoever listens; the job goes on when nobody does."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Event], object]]:
    # rich takes 0.1 s to import, so only where there is a terminal to use it on.
    from rich import progress as rich  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    columns: list[Any] = [
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TextColumn("{task.fields[eta]} left  {task.fields[rss]:.0f} MiB"),
    ]
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, rich.TaskID] = {}

        def listen(event: Event) -> None:
            if event.stage not in tasks:
                name = _STAGES.get(event.stage, event.stage)
                tasks[event.stage] = bar.add_task(name, total=event.total, eta="?", rss=0.0)
            eta = "?" if event.eta_s is None else _time(event.eta_s)
            bar.update(tasks[event.stage], completed=event.done, eta=eta, rss=event.rss_mib)

        yield listen
