"""The ``zmrs`` command.

Results go to standard output; logs, progress and errors to standard error.  An error is one
sentence and an exit status (`zmrs.errors`); tracebacks appear with ``--debug`` only.
"""

from __future__ import annotations

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
    "plan": "Say what a mosaic would take, without reading a pixel.",
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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="zmrs", message="%(prog)s %(version)s")
def cli() -> None:
    """Sky mosaics from many overlapping FITS images, inside a memory limit that holds."""


class Terminated(BaseException):
    """SIGTERM arrived."""


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def run(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    signal.signal(signal.SIGTERM, _terminate)
    status = 1
    try:
        outcome: Any = cli.main(args=args, prog_name="zmrs", standalone_mode=False)
        # Click gives back the status of --help and of exits.
        status = outcome if isinstance(outcome, int) else 0
        sys.stdout.flush()
    except click.exceptions.Abort:
        status = _say("interrupted; nothing was left behind.", 130)
    except KeyboardInterrupt:
        status = _say("interrupted; nothing was left behind.", 130)
    except Terminated:
        status = _say("terminated; nothing was left behind.", 143)
    except click.ClickException as error:
        hint = f"; see {error.ctx.command_path} --help" if getattr(error, "ctx", None) else ""
        status = _say(f"{error.format_message().rstrip('.')}{hint}.", 2)
    except ZmrsError as error:
        status = _say(str(error), error.exit_status)
    except BrokenPipeError:
        # Whoever read our output has gone; that is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except FileNotFoundError as error:
        status = _say(str(error), 4)
    except MemoryError:
        status = _say("the system gave no more memory; set a lower --memory.", 3)
    except Exception as error:
        status = _say(f"unforeseen: {type(error).__name__}: {error}; --debug shows more.", 1)
    sys.exit(status)


def _say(sentence: str, status: int) -> int:
    if "--debug" in sys.argv:
        import traceback  # noqa: PLC0415

        traceback.print_exc()
    click.echo(f"zmrs: {' '.join(sentence.split())}", err=True)
    return status
