"""Photometry between inputs: gains and sky levels that agree where they overlap."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs import _zmrs
from zmrs.events import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from zmrs.config import Options
    from zmrs.events import Event
    from zmrs.prepare import Prepared

__all__ = ["Matching", "connected", "match", "rules"]

log = logging.getLogger("zmrs")

_ANY_GAIN = (1e-6, 1e6)
"""Limits of gains that are none, as the engine takes them."""


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
    gains, offsets
        By input and channel, without unit (1 where only offsets are matched) and in the inputs'
        units, to be added after the gains.
    n_clipped
        How many are at their limits.
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
    gains: list[list[float]]
    offsets: list[list[float]]
    n_clipped: int
    lattice_px: int
    n_samples: int
    seconds: float
    is_relative: bool = False

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
        matched = None if self.gain_solution is None else self.gains
        offsets = self.samples.solve_offsets(gains, matched).offsets
        if not self.is_relative:
            return offsets
        difference = np.subtract(offsets, self.offsets)
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
            "clipped": self.n_clipped,
            "seconds": self.seconds,
        }
        found = self.gain_solution
        if found is None:
            return figures
        return figures | {
            "rejected_pairs": self.rejected,
            "gain_pairs": found.n_pairs,
            "gain_groups": found.n_groups,
            "gain_rms": found.rms,
            "gain_range": (float(np.min(self.gains)), float(np.max(self.gains))),
        }


def rules(options: Options, *, matches: bool, is_update: bool) -> dict[str, Any]:
    """How inputs are matched, if they are, as the engine's job takes it.

    Its limits are those of inputs about their mean; in an update they are about the mosaic, which
    is seen to when all is solved.
    """
    limits = _ANY_GAIN if is_update else options.match_gain_limits
    return {
        "match_offsets": matches,
        "match_gains": (*limits, *options.match_sky)
        if matches and options.match == "gain"
        else None,
        "most_offset": np.inf if is_update else _most_offset(options),
    }


def _most_offset(options: Options) -> float:
    return np.inf if options.match_offset_limit is None else options.match_offset_limit


def match(
    prepared: Prepared,
    options: Options,
    listener: Callable[[Event], object] | None,
    *,
    with_gains: bool,
) -> Matching:
    """Solve for the offsets of all inputs, or for their gains and then for the offsets.

    NaN samples and those of no weight take no part.  A mosaic that is updated stays as it is, and
    the others are brought to it.  What is found goes to the log.

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
    if prepared.base is None:
        gains = None if found is None else found.gains
        solution = samples.solve_offsets(matched=gains)
        offsets = solution.offsets
        n_clipped = solution.n_clipped + (0 if found is None else found.n_clipped)
    else:
        gains, solution, offsets, n_clipped = _about_the_first(samples, found, options)
    matching = Matching(
        samples,
        found,
        solution,
        gains or [[1.0] * prepared.channels for _ in offsets],
        offsets,
        n_clipped,
        samples.spacing,
        samples.count,
        stage.end(),
    )
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


def _about_the_first(
    samples: _zmrs.LatticeSamples, found: _zmrs.GainSolution | None, options: Options
) -> tuple[list[list[float]] | None, _zmrs.OffsetSolution, list[list[float]], int]:
    """Gains and offsets that leave the first input as it is, and how many are at their limits.

    A solution is only known up to a common gain of each group of inputs that share structure, and
    up to a common level of each that overlap: in its own groups the first input has 1 and 0.
    """
    gains, n_clipped = None, 0
    if found is not None:
        relative = np.array(found.gains)
        for channel in range(relative.shape[1]):
            links = [(i, j) for i, j, _, errors, _ in found.pairs if np.isfinite(errors[channel])]
            group = connected(0, links)
            relative[group, channel] /= relative[0, channel]
        gains, n_clipped = _clipped(relative, *options.match_gain_limits)
    solution = samples.solve_offsets(matched=gains)
    shifted = np.array(solution.offsets)
    group = [k for k, c in enumerate(solution.components) if c == solution.components[0]]
    shifted[group] -= shifted[0].copy()
    most = _most_offset(options)
    offsets, more = _clipped(shifted, -most, most)
    return gains, solution, offsets, n_clipped + more


def _clipped(values: NDArray[np.float64], low: float, high: float) -> tuple[list[list[float]], int]:
    """Values within limits, and how many were not."""
    within = np.clip(values, low, high)
    return [[float(value) for value in each] for each in within], int((within != values).sum())


def connected(start: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """What links lead to from `start`, and that itself, in ascending order."""
    neighbours: dict[int, list[int]] = {}
    for i, j in links:
        neighbours.setdefault(i, []).append(j)
        neighbours.setdefault(j, []).append(i)
    found, pending = {start}, [start]
    while pending:
        new = set(neighbours.get(pending.pop(), ())) - found
        found |= new
        pending += new
    return sorted(found)


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
