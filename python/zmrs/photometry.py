"""Photometry between inputs: sky levels that agree where they overlap."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zmrs import _zmrs
from zmrs.events import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zmrs.events import Event
    from zmrs.pipeline import Prepared

__all__ = ["Matching", "match"]

log = logging.getLogger("zmrs")


@dataclass(frozen=True)
class Matching:
    """Offsets of the inputs.

    Attributes
    ----------
    samples
        The inputs on the common lattice; None once they are not needed again.
    solution
        What they lead to.
    lattice_px, n_samples
        Spacing of the lattice, and samples of all inputs.
    seconds
        Time that it took.
    """

    samples: _zmrs.LatticeSamples | None
    solution: _zmrs.OffsetSolution
    lattice_px: int
    n_samples: int
    seconds: float

    def offsets_after(self, gains: Sequence[float]) -> list[list[float]]:
        """Offsets by input and channel, once the inputs are multiplied by gains."""
        assert self.samples is not None
        return self.samples.solve_offsets(gains).offsets

    def figures(self) -> dict[str, Any]:
        """For the figures of a run."""
        return {
            "lattice_px": self.lattice_px,
            "samples": self.n_samples,
            "pairs": self.solution.n_pairs,
            "components": len(set(self.solution.components)),
            "rms": self.solution.rms,
            "seconds": self.seconds,
        }


def match(prepared: Prepared, listener: Callable[[Event], object] | None) -> Matching:
    """Solve for the offsets of all inputs."""
    stage = Stage(listener, "match", len(prepared.placed), "files")
    samples = _zmrs.sample_lattice(
        prepared.job, prepared.plan, progress=lambda _, inputs: stage.advance(inputs)
    )
    solution = samples.solve_offsets()
    matching = Matching(samples, solution, samples.spacing, samples.count, stage.end())
    figures = matching.figures()
    log.info(
        "matched %d inputs by %d overlaps, connected groups: %d, rms %.3g",
        len(prepared.placed),
        figures["pairs"],
        figures["components"],
        figures["rms"],
    )
    return matching
