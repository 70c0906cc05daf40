"""From the option table to command-line flags."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zmrs import config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from dataclasses import Field

__all__ = ["job_options", "option_flags", "options_from", "talk_options", "update_options"]


def _flag_of(option: Field[Any], origin: str | None = None) -> Callable[[Any], Any]:
    """The click option of one field of the table; `origin` is where another default is from."""
    flag = "--" + option.name.replace("_", "-")
    metadata = option.metadata
    text = metadata["help"]
    if origin is not None:
        text = f"{text.partition(' [default')[0]} [default: as {origin}]"
    elif metadata["kind"] != "flag" and option.default not in (None, False):
        text += f" [default: {config.as_text(option.default)}]"
    if metadata["kind"] == "flag":
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=text)
    metavar = metadata.get("metavar") or "|".join(metadata.get("choices", ()))

    def read(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
        return None if value is None else config.parse(option, value)

    return click.option(flag, default=None, metavar=metavar, callback=read, help=text)


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every option of the table and ``--config``."""
    return option_flags(*config.option_names())(command)


def update_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that a finished mosaic leaves open, and ``--config``."""
    names = [name for name in config.option_names() if name not in config.SETTLED]
    return option_flags(*names, inherited_from="OUT.fits")(command)


def option_flags(
    *names: str, inherited_from: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command some options of the table and ``--config``.

    `inherited_from` is whose header tells the defaults of those that have a card.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(fields(config.Options)):
            if option.name in names:
                origin = inherited_from if option.name in config.OPTION_CARDS else None
                command = _flag_of(option, origin)(command)
        return click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML file with options (zmrs config --dump shows one)",
        )(command)

    return decorate


def talk_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say how it talks."""
    for decorate in (
        click.option(
            "--progress",
            type=click.Choice(config.PROGRESS),
            default="auto",
            envvar="ZMRS_PROGRESS",
            help="How progress is told [default: auto]",
        ),
        click.option("-v", "--verbose", is_flag=True, envvar="ZMRS_VERBOSE", help="Log details"),
        click.option("-q", "--quiet", is_flag=True, envvar="ZMRS_QUIET", help="Only warnings"),
        click.option("--debug", is_flag=True, help="Show tracebacks"),
        click.option(
            "--log-file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            envvar="ZMRS_LOG_FILE",
            help="Write a detailed log there too",
        ),
    ):
        command = decorate(command)
    return command


def options_from(
    values: Mapping[str, Any],
    config_file: Path | None,
    defaults: Mapping[str, Any] | None = None,
) -> config.Options:
    """The options of a call from its flags, the environment and the file.

    `defaults` go before those of the table.
    """
    flags = {name: values[name] for name in config.option_names() if name in values}
    return config.resolve(flags, config_file, defaults=defaults)
