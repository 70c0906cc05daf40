"""Hold rejecting combines against simulated contaminants, and write the tables of docs/combines.md.

    python benchmarks/rejection.py [--small]

Beside zmrs stand `astropy.stats.sigma_clip` and `ccdproc.Combiner` (pip install ccdproc), on the
same stacks with the same kappas.  It takes a few minutes; with --small, a trial, nothing is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
from pathlib import Path

from bench import rejection
from bench.report import table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "combines.md"
BEGIN, END = "<!-- from benchmarks/rejection.py -->", "<!-- to here -->"
STACKS = {3: 40, 5: 40, 10: 20, 30: 6, 300: 1}
"""How many stacks of each depth: as many samples, more or less."""

COLUMNS = ("satellites", "planes", "hot pixels", "cosmic rays", "all", "lost", "noise")


def percent(part: float) -> str:
    """A part with so many digits that a hundredth of a percent is seen."""
    return f"{100 * part:.2f}" if part < 0.1 else f"{100 * part:.1f}"


def tables(stacks: dict[int, int], names: list[str]) -> list[str]:
    """One for each depth, as lines."""
    lines = []
    for depth, number in stacks.items():
        scores = rejection.evaluate(depth, number, names)
        rows = []
        for name, score in scores.items():
            removed = [percent(score.removed(kind)) for kind in score.hit]
            rows.append([name, *removed, percent(score.lost_part), f"{score.noise:.3f}"])
            print(depth, *rows[-1], flush=True)
        lines += ["", f"{depth} frames:", *table(["method", *COLUMNS], rows)]
    return lines


def main() -> None:
    """Make the tables and put them in their place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a trial, of which nothing is kept")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    names = list(rejection.METHODS)
    if importlib.util.find_spec("ccdproc") is None:
        print("ccdproc is not installed and not compared")
        names = [name for name in names if "ccdproc" not in name]
    lines = tables({5: 2, 10: 1} if options.small else STACKS, names)
    if not options.small:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text("\n".join([before + BEGIN, *lines, "", END + after]))


if __name__ == "__main__":
    main()
