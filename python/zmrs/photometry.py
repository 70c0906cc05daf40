"""Photometry between inputs: gains and sky levels that agree where they overlap."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs import _zmrs
from zmrs.events import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zmrs.config import Options
    from zmrs.events import Event
    from zmrs.prepare import Prepared

__all__ = ["Matching", "match", "rules"]

log = logging.getLogger("zmrs")


@dataclass(frozen=True)
class Matching:
    """Gains and offsets of the inputs.

    Attributes
    ----------
    samples
        The inputs on the common lattice; None once they are not needed again.
    gain_solution
        What their structure leads to; None where only offsets are matched.
    solution
        What their levels lead to, after these gains.
    lattice_px, n_samples
        Spacing of the lattice, and samples of all inputs.
    seconds
        Time that it took.
    is_relative
        Inputs without other gains have no offsets: they agree already.
    """

    samples: _zmrs.LatticeSamples | None
    gain_solution: _zmrs.GainSolution | None
    solution: _zmrs.OffsetSolution
    lattice_px: int
    n_samples: int
    seconds: float
    is_relative: bool = False

    @property
    def gains(self) -> list[list[float]]:
        """Gains by input and channel, without unit; 1 where only offsets are matched."""
        if self.gain_solution is None:
            return [[1.0] * len(offsets) for offsets in self.solution.offsets]
        return self.gain_solution.gains

    def offsets_after(self, gains: Sequence[float]) -> list[list[float]]:
        """Offsets for inputs that are multiplied by matched gains and by others.

        Parameters
        ----------
        gains
            The others, one an input.

        Returns
        -------
        list of lists
            By input and channel, in the inputs' units, to be added after both gains.

        Raises
        ------
        ValueError
            For gains that are not finite, or not as many as inputs.
        """
        assert self.samples is not None
        matched = None if self.gain_solution is None else self.gain_solution.gains
        offsets = self.samples.solve_offsets(gains, matched).offsets
        if not self.is_relative:
            return offsets
        difference = np.subtract(offsets, self.solution.offsets)
        return [[float(value) for value in each] for each in difference]

    @property
    def rejected(self) -> list[tuple[int, int]]:
        """Pairs of inputs whose gains or levels contradict those of the others, in order."""
        by_gain = [] if self.gain_solution is None else self.gain_solution.rejected
        return sorted({*by_gain, *self.solution.rejected})

    def figures(self) -> dict[str, Any]:
        """For the figures of a run."""
        figures = {
            "lattice_px": self.lattice_px,
            "samples": self.n_samples,
            "pairs": self.solution.n_pairs,
            "components": len(set(self.solution.components)),
            "rms": self.solution.rms,
            "greatest_residual": self.solution.greatest_residual,
            "clipped": self.solution.n_clipped,
            "seconds": self.seconds,
        }
        found = self.gain_solution
        if found is None:
            return figures
        gains = found.gains
        return figures | {
            "clipped": self.solution.n_clipped + found.n_clipped,
            "rejected_pairs": self.rejected,
            "gain_pairs": found.n_pairs,
            "gain_groups": found.n_groups,
            "gain_rms": found.rms,
            "gain_range": (float(np.min(gains)), float(np.max(gains))),
        }


def rules(options: Options, *, matches: bool) -> dict[str, Any]:
    """How inputs are matched, if they are, as the engine's job takes it."""
    gains = (*options.match_gain_limits, *options.match_sky)
    return {
        "match_offsets": matches,
        "match_gains": gains if matches and options.match == "gain" else None,
        "most_offset": np.inf if options.match_offset_limit is None else options.match_offset_limit,
    }


def match(
    prepared: Prepared, listener: Callable[[Event], object] | None, *, with_gains: bool
) -> Matching:
    """Solve for the offsets of all inputs, or for their gains and then for the offsets.

    NaN samples and those of no weight take no part.  What is found goes to the log.

    Raises
    ------
    BudgetError
        If the samples do not fit the plan's memory.
    InputError
        If an input cannot be read.
    """
    stage = Stage(listener, "match", len(prepared.placed), "files")
    samples = _zmrs.sample_lattice(
        prepared.job, prepared.plan, progress=lambda _, inputs: stage.advance(inputs)
    )
    found = samples.solve_gains() if with_gains else None
    solution = samples.solve_offsets(matched=None if found is None else found.gains)
    matching = Matching(samples, found, solution, samples.spacing, samples.count, stage.end())
    figures = matching.figures()
    log.info(
        "matched %d inputs by %d overlaps, connected groups: %d, rms %.3g",
        len(prepared.placed),
        figures["pairs"],
        figures["components"],
        figures["rms"],
    )
    if figures["clipped"]:
        log.warning("%d gains or offsets are at their limits", figures["clipped"])
    if found is not None:
        _tell_of_gains(figures, [placed.image.name for placed in prepared.placed])
    return matching


def _tell_of_gains(figures: dict[str, Any], names: Sequence[str]) -> None:
    """Log what gains were found, and which pairs contradict the others."""
    if not figures["gain_pairs"]:
        log.warning("no overlap shows enough structure to measure gains; they stay at 1")
    log.info(
        "gains %.4f to %.4f from %d overlaps, connected groups: %d, rms %.3g; pairs rejected: %d",
        *figures["gain_range"],
        figures["gain_pairs"],
        figures["gain_groups"],
        figures["gain_rms"],
        len(figures["rejected_pairs"]),
    )
    for i, j in figures["rejected_pairs"]:
        log.debug("rejected: %s and %s contradict the other overlaps", names[i], names[j])
