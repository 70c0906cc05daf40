"""How well rejecting combines do: what they remove, and what it costs.

Frames of one sky are dithered by whole pixels, so samples keep their values on the way to the grid
and every method gets the same stack. What has hit which sample is known from the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import zmrs
from zmrs.simulate import Contaminants, FrameSpec, Sky, make_frame_wcs, render

SHAPE = (160, 200)
DITHER_PX = 12
NOISE = 10.0
CONTAMINANTS = Contaminants(
    satellites=0.5, planes=0.1, hot=1e-3, cosmic_rays=300.0, peak_adu=(100.0, 20000.0)
)
HIT = 3.0
"""A sample is hit by more light than so many times its noise, and good with less than `GOOD`."""
GOOD = 0.5
NEAR = 3.0
"""A pixel is clean when it is within so many standard deviations of the mean of all samples."""


@dataclass(frozen=True)
class Stack:
    """Frames of one sky, and what is true of them.

    Attributes
    ----------
    inputs
        As zmrs takes them: (h, w) float32 with their WCS.
    wcs
        Of the grid, whose shape is `SHAPE`.
    boxes
        Where the grid lies in each frame.
    light
        Of each kind of contaminant, (N, H, W), adu.
    truth
        (H, W): the sky without noise.
    """

    inputs: list[tuple[np.ndarray, Any]]
    wcs: Any
    boxes: list[tuple[slice, slice]]
    light: dict[str, np.ndarray]
    truth: np.ndarray

    @property
    def samples(self) -> np.ndarray:
        """The frames on the grid, (N, H, W)."""
        on_grid = zip(self.inputs, self.boxes, strict=True)
        return np.stack([frame[box] for (frame, _), box in on_grid])


def make_stack(depth: int, seed: int, contaminants: Contaminants = CONTAMINANTS) -> Stack:
    """A stack of so many frames; sky, noise and contaminants follow from the seed."""
    rng = np.random.default_rng([seed, depth])
    center, full = (150.0, 30.0), tuple(length + 2 * DITHER_PX for length in SHAPE)
    wcs = make_frame_wcs(center, 2.0, 0.0, SHAPE)
    sky = Sky.random(seed, center, 0.1, 60, nebula_peak=100.0)
    inputs, boxes, lights = [], [], []
    for number in range(depth):
        y, x = (int(shift) for shift in rng.integers(0, 2 * DITHER_PX + 1, 2))
        moved, box = wcs.deepcopy(), (slice(y, y + SHAPE[0]), slice(x, x + SHAPE[1]))
        moved.wcs.crpix += (x, y)
        spec = FrameSpec(moved, full, noise_sigma=NOISE, contaminants=contaminants)
        inputs.append((render(sky, spec, (seed, number)), moved))
        boxes.append(box)
        lights.append(contaminants.light(full, 1, (seed, number)))
    light = {
        kind: np.stack([one[kind][0][box] for one, box in zip(lights, boxes, strict=True)])
        for kind in lights[0]
    }
    return Stack(inputs, wcs, boxes, light, render(sky, FrameSpec(wcs, SHAPE)).astype(float))


@dataclass(frozen=True)
class Made:
    """What a method makes of a stack: the image (H, W), and which samples it rejects (N, H, W)."""

    image: np.ndarray
    rejected: np.ndarray


def by_zmrs(combine: str, kappa: float = 3.0) -> Callable[[Stack], Made]:
    """A combine of zmrs."""

    def make(stack: Stack) -> Made:
        result = zmrs.mosaic(
            stack.inputs, wcs=stack.wcs, shape=SHAPE, combine=combine, kappa=(kappa, kappa),
            kernel="nearest", match="none", memory="2GiB", threads=2,
        )  # fmt: skip
        # Only samples at the ends are rejected, so their numbers say which.
        place = np.argsort(np.argsort(stack.samples, axis=0), axis=0)
        low, high = result.rejected_low, result.rejected_high
        none = np.zeros(SHAPE, int)
        low, high = (none if counts is None else counts for counts in (low, high))
        return Made(result.data, (place < low) | (place >= len(stack.inputs) - high))

    return make


def by_astropy(stack: Stack) -> Made:
    """`astropy.stats.sigma_clip` about the median, five times, and the mean of what is left."""
    from astropy.stats import sigma_clip

    clipped = sigma_clip(stack.samples, sigma=3.0, maxiters=5, cenfunc="median", axis=0)
    return Made(clipped.mean(axis=0).filled(np.nan), np.ma.getmaskarray(clipped))


def by_ccdproc(stack: Stack) -> Made:
    """`ccdproc.Combiner` as its own guide clips: once, about the median."""
    from ccdproc import CCDData, Combiner

    combiner = Combiner([CCDData(image, unit="adu") for image in stack.samples])
    combiner.sigma_clipping(low_thresh=3, high_thresh=3, func="median", dev_func="std")
    return Made(np.asarray(combiner.average_combine().data), np.ma.getmaskarray(combiner.data_arr))


METHODS: dict[str, Callable[[Stack], Made]] = {
    "mean": by_zmrs("mean"),
    "median": by_zmrs("median"),
    "kappa-sigma": by_zmrs("kappa-sigma"),
    "kappa-sigma --kappa 2": by_zmrs("kappa-sigma", 2.0),
    "kappa-sigma-stream": by_zmrs("kappa-sigma-stream"),
    "winsorized": by_zmrs("winsorized"),
    "winsorized-reference": by_zmrs("winsorized-reference"),
    "winsor-percentile": by_zmrs("winsor-percentile"),
    "astropy sigma_clip": by_astropy,
    "ccdproc Combiner": by_ccdproc,
}


@dataclass
class Score:
    """Counts of pixels and samples, over several stacks.

    Attributes
    ----------
    hit, clean
        Pixels of the grid in which some sample was hit by each kind, and those of them that came
        out clean.
    good, lost
        Good samples, and those of them that were rejected.
    squares, pixels
        Sum of squared errors of stacks that nothing has hit, in units of the variance of a mean of
        all samples, and the number of their pixels.
    """

    hit: dict[str, int] = field(default_factory=dict)
    clean: dict[str, int] = field(default_factory=dict)
    good: int = 0
    lost: int = 0
    squares: float = 0.0
    pixels: int = 0

    def add(self, stack: Stack, made: Made) -> None:
        """Count what a method has made of a stack."""
        near = np.abs(error(stack, made)) <= NEAR
        everything = np.sum(list(stack.light.values()), axis=0)
        for kind, light in [*stack.light.items(), ("all", everything)]:
            hit = (light > HIT * NOISE).any(axis=0)
            self.hit[kind] = self.hit.get(kind, 0) + int(hit.sum())
            self.clean[kind] = self.clean.get(kind, 0) + int((hit & near).sum())
        good = everything < GOOD * NOISE
        self.good += int(good.sum())
        self.lost += int((good & made.rejected).sum())

    def add_quiet(self, stack: Stack, made: Made) -> None:
        """Count what it has made of a stack that nothing has hit."""
        off = error(stack, made)
        self.squares += float((off**2).sum())
        self.pixels += off.size

    def removed(self, kind: str) -> float:
        """Part of the pixels hit that came out clean; NaN when none was hit."""
        return self.clean[kind] / self.hit[kind] if self.hit[kind] else float("nan")

    @property
    def lost_part(self) -> float:
        """Part of the good samples that was rejected."""
        return self.lost / self.good

    @property
    def noise(self) -> float:
        """Noise where nothing has hit, over that of a mean of all samples."""
        return float(np.sqrt(self.squares / self.pixels))


def error(stack: Stack, made: Made) -> np.ndarray:
    """Off the truth, (H, W), in standard deviations of a mean of all samples."""
    return (made.image - stack.truth) / (NOISE / np.sqrt(len(stack.inputs)))


def evaluate(depth: int, stacks: int, names: Sequence[str] | None = None) -> dict[str, Score]:
    """Scores of the methods over so many stacks of a depth."""
    scores = {name: Score() for name in names or METHODS}
    for seed in range(1, stacks + 1):
        stack, quiet = make_stack(depth, seed), make_stack(depth, seed, Contaminants())
        for name, score in scores.items():
            score.add(stack, METHODS[name](stack))
            score.add_quiet(quiet, METHODS[name](quiet))
    return scores
