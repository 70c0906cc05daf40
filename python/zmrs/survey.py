"""A cheap look at the inputs before the passes: zeros for blank, dead and blown frames, noise.

A few rows of an input are read (32, for its noise 128); all of it only where those leave a doubt.
Nothing is read when nothing depends on it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from zmrs import _zmrs
from zmrs.events import Stage
from zmrs.inputs import ArrayImage
from zmrs.io.names import and_others
from zmrs.scan import LeftOut
from zmrs.weights import noise_variances, warn_of_unknown, weighed

if TYPE_CHECKING:
    from collections.abc import Callable

    from zmrs.config import Options
    from zmrs.events import Event
    from zmrs.placing import Placed
    from zmrs.plan import Plan

__all__ = ["Question", "Survey", "questions", "survey"]

log = logging.getLogger("zmrs")

Question = tuple[int, bool, bool, bool]
"""An input by number; whether its pixels, their noise and the scale of its weights matter."""

_REMEDY = "leave it out, or keep it with --zero-is-blank off."
_NEARLY_ALL = 0.95
"""Part of the valid pixels that is saturated in a blown frame, at least."""
_SCALES_OF_ALPHA = (1.0, 255.0, 65535.0)


@dataclass(frozen=True)
class Survey:
    """What came of a look at the inputs.

    Attributes
    ----------
    placed
        Those that are used, with what is now known of them.
    left_out
        Dead and blown ones.
    read_bytes
        Bytes read from files.
    weight_unit
        What weighs 1, as `zmrs.weights.weighed` says.
    seconds
        Time that it took.
    """

    placed: list[Placed]
    left_out: list[LeftOut]
    read_bytes: int
    weight_unit: float | None
    seconds: float


def questions(placed: Sequence[Placed], options: Options) -> list[Question]:
    """What has to be known of which inputs; none for those of which nothing has."""
    asked = []
    for number, one in enumerate(placed):
        # Arrays of a caller mean what they say, and so do weights.
        is_file = not isinstance(one.image, ArrayImage)
        if one.is_base:
            continue
        zeros = options.zero_is_blank == "auto" and is_file and one.weight_map is None
        noise = options.weight_by == "ivar" or (options.variance and not one.has_variances)
        if zeros or noise or one.has_unknown_scale:
            asked.append((number, zeros or noise, noise, one.has_unknown_scale))
    return asked


def survey(
    job: _zmrs.Job,
    placed: Sequence[Placed],
    plan: Plan,
    options: Options,
    listener: Callable[[Event], object] | None,
    unit: float | None = None,
) -> Survey:
    """Look at the inputs of a job, and draw conclusions; `unit` is what weighs 1, if known."""
    asked = questions(placed, options)
    stage = Stage(listener, "survey", len(asked), "files")
    found, read_bytes = _zmrs.survey_inputs(job, plan, asked, progress=stage.advance)
    findings = {question[0]: one for question, one in zip(asked, found, strict=True)}
    judged = _judged(placed, asked, options)
    # What has one value at its end is both.
    dead = dict(
        sorted((_dead(placed, findings, judged) | _blown(placed, findings, judged)).items())
    )
    alive = [
        _known(one, findings[number], options) if number in findings else one
        for number, one in enumerate(placed)
        if number not in dead
    ]
    _tell_of_zeros(placed, findings, alive)
    numbers = [number for number in range(len(placed)) if number not in dead]
    noises = [_noise(one, findings.get(number)) for number, one in zip(numbers, alive, strict=True)]
    noise = noises if options.weight_by == "ivar" else None
    warn_of_unknown(alive, options.weight_by if noise else "none", noise)
    if options.variance:
        alive = _with_noise(alive, noises)
    alive, found_unit = weighed(alive, options.weight_by, noise, unit)
    return Survey(
        alive,
        [LeftOut(placed[number].image.name, reason) for number, reason in dead.items()],
        read_bytes,
        found_unit,
        stage.end(),
    )


def _noise(one: Placed, seen: _zmrs.Findings | None) -> list[float]:
    """Standard deviations of the noise of an input by channel; none of one not looked at."""
    if seen is None:
        return []
    return seen.noise_without_zeros if one.zero_is_blank else seen.noise


def _with_noise(alive: Sequence[Placed], noises: Sequence[Sequence[float]]) -> list[Placed]:
    """Inputs with the variance of their noise, where their weights do not say it."""
    measured = [number for number, one in enumerate(alive) if not one.has_variances]
    if not measured:
        return list(alive)
    unknown = [
        alive[number].image.name
        for number in measured
        if not all(sigma > 0 for sigma in noises[number])
    ]
    found = noise_variances([noises[number] for number in measured])
    if unknown:
        taken = "that of the others is taken" if np.isfinite(found).all() else "VAR is NaN there"
        log.warning("%s: the noise is not known; %s", and_others(unknown), taken)
    result = list(alive)
    for number, variances in zip(measured, found.tolist(), strict=True):
        result[number] = replace(result[number], noise=tuple(variances))
    return result


def _judged(placed: Sequence[Placed], asked: Sequence[Question], options: Options) -> list[int]:
    """Files whose pixels are looked at, by number: arrays of a caller mean what they say."""
    if options.zero_is_blank == "off":
        return []
    return [
        number
        for number, looked_at_pixels, _, _ in asked
        if looked_at_pixels and not isinstance(placed[number].image, ArrayImage)
    ]


def _dead(
    placed: Sequence[Placed], findings: Mapping[int, _zmrs.Findings], judged: Sequence[int]
) -> dict[int, str]:
    """Files that are dead, by number, and why.

    A file of one value is dead among others that have more; where all are like that, they are
    meant to be.
    """
    dead, constant = {}, {}
    for number in judged:
        name, seen = placed[number].image.name, findings[number]
        if seen.is_constant and seen.valid_share == 0:
            dead[number] = f"{name}: it has no valid pixel; leave it out."
        elif seen.is_constant and seen.zero_share == 1:
            dead[number] = f"{name}: all its pixels are 0; {_REMEDY}"
        elif seen.is_constant:
            constant[number] = f"{name}: all its pixels have one value, a dead frame's; {_REMEDY}"
    if len(constant) + len(dead) == len(judged) and constant:
        log.warning(
            "%s: all pixels have one value; is this a dead frame?",
            and_others([placed[number].image.name for number in constant]),
        )
        return dead
    return dead | constant


def _blown(
    placed: Sequence[Placed], findings: Mapping[int, _zmrs.Findings], judged: Sequence[int]
) -> dict[int, str]:
    """Files whose pixels are nearly all saturated, by number, unless all are like that."""
    blown = {
        number: f"{placed[number].image.name}: nearly all its pixels are saturated; {_REMEDY}"
        for number in judged
        if findings[number].full_share > _NEARLY_ALL * findings[number].valid_share
    }
    if blown and len(blown) == len(judged):
        log.warning(
            "%s: nearly all pixels are saturated; is this meant to be?",
            and_others([placed[number].image.name for number in blown]),
        )
        return {}
    return blown


def _known(one: Placed, seen: _zmrs.Findings, options: Options) -> Placed:
    """An input with what was found out about its zeros and its weights."""
    if one.has_unknown_scale:
        one = replace(one, alpha_full=_full(seen.map_greatest))
    is_asked = options.zero_is_blank == "auto" and not isinstance(one.image, ArrayImage)
    if is_asked and one.weight_map is None and seen.has_blank_zeros:
        one = replace(one, zero_is_blank=True)
    return one


def _tell_of_zeros(
    placed: Sequence[Placed], findings: Mapping[int, _zmrs.Findings], alive: Sequence[Placed]
) -> None:
    """Say which inputs have zeros that now are blank."""
    names = {one.image.name for one in alive if one.zero_is_blank}
    shares = [
        (placed[number].image.name, seen.zero_share)
        for number, seen in findings.items()
        if placed[number].image.name in names and not placed[number].zero_is_blank
    ]
    if shares:
        log.info(
            "%s: zeros are taken for blank, up to %.0f %% of the pixels; --zero-is-blank off keeps "
            "them",
            and_others([name for name, _ in shares]),
            100 * max(share for _, share in shares),
        )


def _full(greatest: float) -> float:
    """Value of an opaque pixel among integers of which this is the greatest; NaN: of none."""
    if not greatest > 0:
        return 1.0
    return next((scale for scale in _SCALES_OF_ALPHA if greatest <= scale), greatest)
