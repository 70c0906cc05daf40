"""Time the stages and whole commands, and write benchmarks/RESULTS.md.

    python benchmarks/run.py [--work DIR] [--rounds N] [--small]
                             [--skip-reproject] [--skip-scaling] [--skip-stages]
    python benchmarks/run.py --rejecting [--work DIR] [--rounds N]
    python benchmarks/run.py --giant [woven] [dense] [--work DIR] [--small]

Whole commands are timed from outside, in turn (A B C, A B C, ...), so that a machine whose speed
drifts is fair to all; medians and the ratios of medians are what to quote.  Peak memory is the
VmHWM of the process itself.  Sets are simulated once and kept in the work folder.

With --rejecting only the combines that reject samples are compared, and nothing is written.

With --giant nothing is compared: canvases of gigapixels are made with Two-Pass inside 256 MiB, and
benchmarks/GIANT.md is written.  A promise that is not kept, or a disk without room, makes the exit
status 1.  One after the other they take up to 33 GB of disk, which are given back.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from bench import giant, report, sets, subs
from bench.contestants import everybody, foretold, rejecting, ways
from bench.measuring import FailedError, run_all
from bench.report import Pair
from bench.stages import stages

HERE = Path(__file__).resolve().parent
GIANTS = {"woven": (giant.woven, 44_000), "dense": (giant.dense, 32_000)}
SMALLER = 8
"""With --small an edge is so many times shorter."""


def compare(options: argparse.Namespace) -> list[str]:
    """All comparisons, as lines of RESULTS.md."""
    work, times = options.work, SMALLER if options.small else 1
    tiles, colour, large = (one.smaller(times) for one in (sets.TILES, sets.COLOUR, sets.LARGE))

    frames, rgb = tiles.make(work), colour.make(work)
    ours, others = everybody(work, frames, options.rounds, skip_reproject=options.skip_reproject)
    run_all(ours + others, work)
    in_colour = ways(work, rgb, options.rounds, ("offset",))
    run_all(in_colour, work)

    about = report.field(tiles.words, foretold(frames, [])["grid"])
    lines = report.whole_commands("Whole commands", about, ours + others)
    about_colour = report.field(colour.words, foretold(rgb, [])["grid"])
    lines += report.whole_commands("In colour", about_colour, in_colour)
    pairs = [Pair([tiles.words, "none"], ours[0], ours[2])]
    pairs += [Pair([tiles.words, "offset"], ours[1], ours[3])]
    pairs += [Pair([colour.words, "offset"], *in_colour)]
    lines += report.two_pass(pairs)
    lines += compare_rejecting(options, times)
    if not options.skip_scaling:
        about += f", and {large.words} onto four times as many"
        lines += report.scaling(
            about, compare_sizes(work, frames, large.make(work), options.rounds)
        )
    return lines


def compare_rejecting(options: argparse.Namespace, times: int) -> list[str]:
    """Combines that reject samples, on frames that all cover the same field."""
    exposures = sets.THIRTY.smaller(times)
    frames = exposures.make(options.work)
    commands = rejecting(options.work, frames, options.rounds)
    run_all(commands, options.work)
    return report.rejecting(exposures.words, commands)


def compare_sizes(work: Path, small: Path, large: Path, rounds: int) -> list[Pair]:
    """The same commands on both canvases, without and with Two-Pass, and the passes alone."""
    one = ways(work, small, rounds, ("offset",), ", small canvas")
    two = ways(work, large, rounds, ("offset",), ", large canvas")
    run_all([one[0], two[0], one[1], two[1]], work)
    return [
        Pair(["`zmrs bilinear --match offset`"], one[0], two[0]),
        Pair(["`zmrs bilinear --match offset --two-pass`"], one[1], two[1]),
        Pair(["the first one's processors"], one[0], two[0], "cpu_s"),
        Pair(["the second one's processors"], one[1], two[1], "cpu_s"),
        Pair(["pass one alone"], one[1], two[1], "pass_one_s"),
        Pair(["the Two-Pass alone"], one[1], two[1], "two_pass_s"),
    ]


def go_giant(options: argparse.Namespace) -> None:
    """Make the giant canvases, write GIANT.md, and exit with the verdict."""
    times = SMALLER if options.small else 1
    names = options.giant or list(GIANTS)
    cases = [make(edge // times) for make, edge in (GIANTS[name] for name in names)]
    load, _, _ = os.getloadavg()
    made, wrong = giant.run_giants(options.work, cases)
    if made:
        lines = report.heading(f"benchmarks/run.py --giant {' '.join(names)}", load)
        write(options, "GIANT.md", lines + giant.report(made))
    sys.exit("\n".join(["", *wrong]) if wrong else 0)


def go_subs(options: argparse.Namespace) -> None:
    """Make the mosaics of subs, write SUBS.md, and exit with the verdict."""
    many, deep = sets.SUBS, sets.DEEP
    if options.small:
        many, deep = sets.Subs(40, shape=(480, 270)), sets.Subs(40, (1, 1), shape=(480, 270))
    load, _, _ = os.getloadavg()
    made = [subs.make(many, subs.SDS, memory, options.work) for memory in ("512MiB", "1GiB")]
    made.append(subs.make(deep, subs.AT_ONCE, "512MiB", options.work))
    write(options, "SUBS.md", report.heading("benchmarks/run.py --subs", load) + subs.report(made))
    sys.exit("\n".join(words for one in made for words in one.broken) or 0)


def write(options: argparse.Namespace, name: str, lines: list[str]) -> None:
    """Show a report, and keep it unless it is only a trial."""
    text = "\n".join(lines) + "\n"
    print(text)
    if not options.small:
        (HERE / name).write_text(text)


def main() -> None:
    """Run everything and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-reproject", action="store_true", help="it takes minutes")
    parser.add_argument("--skip-scaling", action="store_true", help="it takes 10 GB of disk")
    parser.add_argument("--skip-stages", action="store_true")
    parser.add_argument("--giant", nargs="*", choices=list(GIANTS), help="these instead, or all")
    parser.add_argument("--subs", action="store_true", help="only thousands of subs, checked")
    parser.add_argument("--rejecting", action="store_true", help="only combines that reject")
    parser.add_argument(
        "--small", action="store_true", help="a trial on small sets, of which nothing is kept"
    )
    options = parser.parse_args()
    # Gigabytes must not be left behind by whoever stops us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.giant is not None:
        go_giant(options)
    try:
        if options.subs:
            go_subs(options)
        if options.rejecting:
            print("\n".join(compare_rejecting(options, 1)))
            return
        lines = compare(options)
    except FailedError as error:
        sys.exit(str(error))
    lines = report.heading("make bench") + lines
    write(options, "RESULTS.md", lines if options.skip_stages else lines + report.stages(stages()))


if __name__ == "__main__":
    main()
