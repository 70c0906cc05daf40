"""The ``zmrs`` command.

Results go to standard output; logs, progress and errors to standard error.  An error is one
sentence and an exit status (`zmrs.errors`); tracebacks appear with ``--debug`` only.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from zmrs import __version__
from zmrs.errors import ZmrsError

if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

__all__ = ["cli", "run"]

_COMMANDS = {
    "mosaic": "Make one mosaic of many overlapping FITS images.",
    "update": "Add frames to a finished mean mosaic, without the old ones.",
    "plan": "Say what a mosaic would take; pixels are looked at for --select only.",
    "doctor": "Show the machine, its limits, and the plan that they lead to.",
    "preview": "Make pictures of a mosaic and of its coverage.",
    "demo": "Simulate a sky and make its mosaic.",
    "config": "Show every option with its default.",
}


class _Lazy(click.Group):
    """Commands that are imported when they are run, so that ``--help`` is immediate."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        from zmrs.cli import commands  # noqa: PLC0415

        return getattr(commands, cmd_name)  # type: ignore[no-any-return]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # Click would quietly exit with status 1.
            raise UnreadError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="zmrs", message="%(prog)s %(version)s")
def cli() -> None:
    """Sky mosaics from many overlapping FITS images, inside a memory limit that holds."""


class UnreadError(Exception):
    """Whoever read our results has gone."""


class Stopped(BaseException):
    """A signal asks to stop.

    Attributes
    ----------
    signal
        Its number.
    """

    def __init__(self, number: int) -> None:
        self.signal = number


_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # Whoever presses Ctrl-C twice must not interrupt the cleaning up.
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(number)


def run(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    for number in _SIGNALS:
        # What nohup, or a shell without job control, ignores stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    _settle()
    # Closed by whoever started us: then there is nobody to talk to, but work to do.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
    status = 1
    try:
        outcome: Any = cli.main(args=args, prog_name="zmrs", standalone_mode=False)
        # Click gives back the status of --help and of exits.
        status = outcome if isinstance(outcome, int) else 0
        sys.stdout.flush()
    except Stopped as stop:
        how = "interrupted" if stop.signal == signal.SIGINT else "terminated"
        status = _say(f"{how}; nothing was left behind.", 128 + stop.signal)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        status = _say(f"{error.format_message().rstrip('.')}{hint}.", 2)
    except ZmrsError as error:
        status = _say(str(error), error.exit_status)
    except UnreadError:
        # That is no failure of ours.
        _close_stdout()
        status = 0
    except FileNotFoundError as error:
        # Ours are sentences; the system's name the file.
        text = (
            f"{error.filename}: there is no such file; check the name." if error.filename else error
        )
        status = _say(str(text), 4)
    except MemoryError:
        status = _say(
            "the system gave no more memory; set a lower --memory, or raise its limit (ulimit -v).",
            3,
        )
    except ImportError as error:
        if "map segment" not in str(error):
            raise
        status = _say("the system gives too little address space; raise ulimit -v.", 3)
    except Exception as error:
        status = _unforeseen(error)
    # The system takes everything back at once; to collect it object by object takes 0.1 s.
    gc.freeze()
    sys.exit(status)


def _unforeseen(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        if error.filename is None:
            _close_stdout()
        return _say(f"{error.filename or 'standard output'}: the disk is full; free some space.", 5)
    return _say(f"unforeseen: {type(error).__name__}: {error}; --debug shows more.", 1)


def _close_stdout() -> None:
    """Send what is still buffered for standard output nowhere: flushing it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _settle() -> None:
    """Make the interpreter lean: the work is done elsewhere.

    NumPy's linear algebra would start a thread per processor, which spin, for matrices of 3 × 3;
    collecting garbage while modules are imported finds none.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    gc.set_threshold(50_000, 20, 20)


def _say(sentence: str, status: int) -> int:
    if "--debug" in sys.argv:
        import traceback  # noqa: PLC0415

        traceback.print_exc()
    click.echo(f"zmrs: {' '.join(sentence.split())}", err=True)
    return status
