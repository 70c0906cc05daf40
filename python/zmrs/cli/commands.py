"""The commands: each reads its options, calls one function of the package, and reports."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from zmrs import config as options_table
from zmrs.cli.flags import (
    job_options,
    option_flags,
    options_from,
    talk_options,
    update_options,
)
from zmrs.cli.talk import logging_to, progress_to
from zmrs.errors import UsageError

__all__ = ["config", "demo", "doctor", "mosaic", "plan", "preview", "update"]

_path = click.Path(path_type=Path)

_DEMO_OVERLAP = {"normal": 0.28, "sds": 0.6}
"""Share of a frame's side that neighbours have in common: subs are many over one place."""


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", type=_path, required=True, metavar="OUT.fits", help="File to make")
@job_options
@talk_options
def mosaic(
    inputs: tuple[str, ...],
    output: Path,
    config_file: Path | None,
    progress: str,
    verbose: bool,
    quiet: bool,
    debug: bool,
    log_file: Path | None,
    **flags: Any,
) -> None:
    """Make one mosaic of many overlapping FITS images.

    INPUT: files, folders, globs and @lists, in any mix.
    """
    from zmrs.pipeline import make_mosaic  # noqa: PLC0415  (brings astropy)

    del debug  # looked at where errors are told
    logging_to(verbose=verbose, quiet=quiet, log_file=log_file)
    options = options_from(flags, config_file)
    with progress_to(progress, quiet=quiet) as listener:
        make_mosaic(inputs, output, options, listener=listener)
    click.echo(os.fsencode(output))


@click.command()
@click.argument("mosaic_file", type=_path, metavar="OUT.fits")
@click.argument("inputs", nargs=-1, required=True, metavar="NEW...")
@click.option(
    "-o",
    "--output",
    type=_path,
    metavar="OTHER.fits",
    help="File to make instead of replacing OUT.fits",
)
@update_options
@talk_options
def update(
    mosaic_file: Path,
    inputs: tuple[str, ...],
    output: Path | None,
    config_file: Path | None,
    progress: str,
    verbose: bool,
    quiet: bool,
    debug: bool,
    log_file: Path | None,
    **flags: Any,
) -> None:
    """Add frames to a finished mean mosaic, without the old ones.

    NEW: files, folders, globs and @lists, in any mix; those that OUT.fits has already are left out.
    OUT.fits is replaced when the new one is complete.  Kernel, matching and weights are those by
    which it was made, unless options say otherwise.
    """
    from zmrs.finished import read_finished  # noqa: PLC0415  (brings astropy)
    from zmrs.pipeline import make_mosaic  # noqa: PLC0415

    del debug
    logging_to(verbose=verbose, quiet=quiet, log_file=log_file)
    base = read_finished(mosaic_file)
    options = options_from(flags, config_file, base.defaults)
    target = base.target(output)
    with progress_to(progress, quiet=quiet) as listener:
        make_mosaic(inputs, target, options, listener=listener, base=base)
    click.echo(os.fsencode(output or mosaic_file))


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    type=_path,
    metavar="OUT.fits",
    help="The file that would be made (without effect)",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@job_options
@talk_options
def plan(
    inputs: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    config_file: Path | None,
    progress: str,
    verbose: bool,
    quiet: bool,
    debug: bool,
    log_file: Path | None,
    **flags: Any,
) -> None:
    """Say what a mosaic would take; pixels are looked at for --select only."""
    from zmrs.cli.foretell import as_dict, as_text  # noqa: PLC0415
    from zmrs.placing import scratch_folder  # noqa: PLC0415
    from zmrs.prepare import prepare  # noqa: PLC0415

    del debug, output
    logging_to(verbose=verbose, quiet=quiet, log_file=log_file)
    options = options_from(flags, config_file)
    with (
        scratch_folder(options.scratch) as scratch,
        progress_to(progress, quiet=quiet) as listener,
    ):
        prepared = prepare(inputs, options, scratch=scratch, listener=listener)
        click.echo(json.dumps(as_dict(prepared), indent=2) if as_json else as_text(prepared))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@option_flags("memory", "threads")
@click.option("--debug", is_flag=True, help="Show tracebacks")
def doctor(as_json: bool, config_file: Path | None, debug: bool, **flags: Any) -> None:
    """Show the machine, its limits, and the plan that they lead to."""
    from zmrs.cli.doctor import as_dict, as_text, examine  # noqa: PLC0415

    del debug
    found = examine(options_from(flags, config_file))
    click.echo(json.dumps(as_dict(found), indent=2) if as_json else as_text(found))


@click.command()
@click.argument("mosaic_file", type=_path, metavar="OUT.fits")
@click.option(
    "-o",
    "--output",
    type=_path,
    metavar="OUT.png",
    help="Picture to make [default: OUT_preview.png and OUT_coverage.png]",
)
@click.option(
    "--max-side",
    type=click.IntRange(min=16),
    default=2048,
    metavar="PX",
    help="Longest side of the pictures [default: 2048]",
)
@click.option(
    "--alpha",
    type=click.Choice(["none", "footprint", "coverage"]),
    default="none",
    help="Transparent where nothing was observed, or in proportion to the coverage [default: none]",
)
@click.option("--debug", is_flag=True, help="Show tracebacks")
def preview(mosaic_file: Path, output: Path | None, max_side: int, alpha: str, debug: bool) -> None:
    """Make pictures of a mosaic and of its coverage."""
    from zmrs.report.preview import write_previews  # noqa: PLC0415

    del debug
    for picture in write_previews(mosaic_file, output, max_side=max_side, alpha=alpha):
        click.echo(picture)


@click.command()
@click.option(
    "-o",
    "--output",
    type=_path,
    default=Path("zmrs-demo"),
    metavar="DIR",
    help="Folder for everything [default: zmrs-demo]",
)
@click.option(
    "--frames",
    type=click.IntRange(min=1),
    default=12,
    metavar="N",
    help="Simulated frames [default: 12]",
)
@click.option(
    "--mode",
    type=click.Choice(tuple(options_table.MODES)),
    default="normal",
    help="How they are combined [default: normal]",
)
@click.option("--debug", is_flag=True, help="Show tracebacks")
def demo(output: Path, frames: int, mode: str, debug: bool) -> None:
    """Simulate a sky and make its mosaic."""
    from zmrs import simulate  # noqa: PLC0415
    from zmrs.pipeline import make_mosaic  # noqa: PLC0415
    from zmrs.report.preview import write_previews  # noqa: PLC0415

    del debug
    logging_to(verbose=False, quiet=False, log_file=None)
    folder = output / "frames"
    is_ours = (folder / "truth_frames.ecsv").exists()
    if not is_ours and (folder.exists() or (output / "mosaic.fits").exists()):
        raise UsageError(f"{output}: holds files of somebody else; name another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output}: cannot be made ({error.strerror}).") from error
    click.echo(f"simulating {frames} frames in {folder}", err=True)
    overlap = _DEMO_OVERLAP[mode]
    paths = simulate.demo_set(folder, frames, overlap=overlap)
    options = options_table.with_preset({"mode": mode, "overwrite": True})
    file = output / "mosaic.fits"
    with progress_to("auto", quiet=False) as listener:
        make_mosaic(paths, file, options, listener=listener)
    picture, coverage = write_previews(file)
    click.echo(f"mosaic    {file}\npreview   {picture}\ncoverage  {coverage}")


@click.command()
@click.option("--dump", is_flag=True, required=True, help="Print a TOML file of all options")
def config(dump: bool) -> None:
    """Show every option with its default and a comment, as TOML."""
    del dump
    click.echo(options_table.dump_toml())
