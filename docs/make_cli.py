"""Write docs/cli.md from the option table and the commands."""

from __future__ import annotations

from pathlib import Path

import click

from zmrs.cli import cli


def page() -> str:
    """The page, as Markdown."""
    lines = ["# Command line", "", "Made by `make docs` from the option table.", ""]
    context = click.Context(cli, info_name="zmrs")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        sub = click.Context(command, info_name=name, parent=context)
        lines += [f"## zmrs {name}", "", "```text", command.get_help(sub), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page())
