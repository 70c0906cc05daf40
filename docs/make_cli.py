"""Write docs/cli.md from the option table and the commands."""

from __future__ import annotations

from pathlib import Path

import click

from zmrs.cli import cli

EXITS = """\
## Exit statuses

| status | when |
| --- | --- |
| 0 | done, also where inputs were left out; each is named with its reason |
| 1 | anything unforeseen: one sentence, with `--debug` where it came from |
| 2 | the command line, or the output: its folder is missing or read-only, the file is there already, or is an input; `--gpu on` where there is none |
| 3 | does not fit: into the memory limit (the sentence names the smallest that works), the output grid, or `--scratch-max` |
| 4 | no input can be used; with `--strict`, one cannot |
| 5 | the disk is full; the run can be gone on with |
| 130, 143 | interrupted or terminated; the run can be gone on with |
"""


def page() -> str:
    """The page, as Markdown."""
    lines = ["# Command line", "", "Made by `make docs` from the option table.", ""]
    context = click.Context(cli, info_name="zmrs")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        sub = click.Context(command, info_name=name, parent=context)
        lines += [f"## zmrs {name}", "", "```text", command.get_help(sub), "```", ""]
    lines += [EXITS]
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page())
