"""The options of a mosaic: one table, which makes the flags, the TOML file and the docs.

Priority: flag over environment variable (``ZMRS_<NAME>``) over TOML file over default.
"""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from zmrs.criterion import Criterion
from zmrs.errors import UsageError
from zmrs.memory import parse_size
from zmrs.weight_rule import KINDS, weight_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = [
    "COMBINES",
    "GPUS",
    "KERNELS",
    "MATCHES",
    "MODES",
    "MOST_SIGMA_PX",
    "OPTION_CARDS",
    "PRESETS",
    "PROGRESS",
    "SETTLED",
    "Options",
    "are_gains",
    "dump_toml",
    "resolve",
    "unsettled",
    "with_preset",
    "without_effect",
]

KERNELS = ("nearest", "bilinear", "bicubic", "lanczos2", "lanczos3")
COMBINES = (
    "mean",
    "sum",
    "median",
    "min",
    "max",
    "first",
    "last",
    "kappa-sigma",
    "kappa-sigma-stream",
    "winsorized",
    "winsorized-reference",
    "winsor-percentile",
)
DEBAYERS = ("bilinear", "none")
MATCHES = ("none", "offset", "gain")
MODES: dict[str, dict[str, Any]] = {
    "normal": {},
    "sds": {"combine": "kappa-sigma", "kappa": (2.0, 2.0)},
}
"""What is made of the inputs, and the defaults that differ: tiles, or subs by the thousand."""
GPUS = ("auto", "on", "off")
PROGRESS = ("auto", "bar", "json", "none")
FRAMES = ("icrs", "galactic")
SOLVERS = ("none", "astap", "astrometry.net")
WEIGHERS = ("none", "n_frames", "exposure", "ivar")
ZEROS = ("auto", "on", "off")
PRESETS: dict[str, dict[str, Any]] = {
    "science": {},
    "zemosaic": {"two_pass": True, "weight_by": "n_frames", "sds_min_coverage_keep": 0.4},
}
"""Named sets of defaults; `science` is those of the table."""
SETTLED = (
    "mode",
    "combine",
    "kappa",
    "winsor",
    "reject_together",
    "variance",
    "two_pass",
    "two_pass_sigma",
    "two_pass_gain_clip",
    "batch",
    "sds_min_batch",
    "sds_target_batch",
    "sds_coverage",
    "sds_combine",
    "sds_min_coverage_keep",
    "autocrop",
    "preset",
    "wcs",
    "scale",
    "center",
    "size",
    "projection",
    "frame",
    "rotate",
    "max_output_pixels",
)
"""Options of which a finished mosaic leaves no choice to those that update it."""
MOST_SIGMA_PX = 16384
"""The widest blur that the engine can make."""


def _option(default: Any, help_text: str, *, kind: str = "text", **more: Any) -> Any:
    return field(default=default, metadata={"help": help_text, "kind": kind, **more})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything a user may decide about a mosaic.

    Field names are the flags with underscores for dashes.  ``kind`` of each field's metadata
    is how its text is read: ``flag``, ``count``, ``whole`` (from 0), ``number``, ``size`` (of
    memory, perhaps in parts), ``bytes``, ``choice``, ``pair``
    (two numbers RA,DEC), ``span`` (one or two, LO[,HI]), ``shape`` (WxH), ``path`` or ``text``.
    A ``card`` is where the header of a mosaic tells the option: its updates take it over.
    """

    memory: int | float | None = _option(
        None,
        "Peak resident memory of the process: 512MiB, 2GB, or 50% of what is free"
        " [default: 60% of the least limit]",
        kind="size",
        metavar="SIZE",
    )
    threads: int | None = _option(
        None,
        "Worker threads [default: the processors, less one in twenty]",
        kind="count",
        metavar="N",
    )
    gpu: str = _option(
        "auto",
        "Whether to compute on a GPU; on fails where that cannot be",
        kind="choice",
        choices=GPUS,
    )
    gpu_memory: int | None = _option(
        None,
        "GPU memory that may be taken at most [default: a share of what is free there]",
        kind="bytes",
        metavar="SIZE",
    )
    hdu: str | None = _option(
        None,
        "HDU to use, by number or name [default: the first image with a celestial WCS]",
        metavar="N|NAME",
    )
    recursive: bool = _option(False, "Look for inputs in subfolders too", kind="flag")
    debayer: str = _option(
        "bilinear",
        "How raw colour frames (BAYERPAT in the header) get their colours; none leaves them as they"
        " are",
        kind="choice",
        choices=DEBAYERS,
        card=("ZMDEBAY", "how raw colour frames got their colours"),
    )
    kernel: str = _option(
        "bilinear",
        "How inputs are sampled",
        kind="choice",
        choices=KERNELS,
        card=("ZMKERN", "interpolation kernel"),
    )
    mode: str = _option(
        "normal",
        "How inputs are combined: all at once, or (sds, for subs by the thousand) in batches first,"
        " whose defaults are --combine kappa-sigma --kappa 2",
        kind="choice",
        choices=tuple(MODES),
    )
    combine: str = _option(
        "mean", "How the samples of a pixel are combined", kind="choice", choices=COMBINES
    )
    kappa: tuple[float, float] = _option(
        (3.0, 3.0),
        "Standard deviations below and above the median (the mean, for kappa-sigma-stream) beyond"
        " which samples are rejected",
        kind="span",
        metavar="LO[,HI]",
    )
    winsor: tuple[float, float] = _option(
        (0.05, 0.05),
        "Parts of the samples that winsor-percentile draws in, at the lower and the upper end",
        kind="pair",
        metavar="LO,HI",
    )
    reject_together: bool = _option(
        False, "Leave a sample that one channel rejects out of all of them", kind="flag"
    )
    variance: bool = _option(
        False,
        "Write the variance of every pixel too, as the extension VAR: from maps of --weight-type"
        " variance or rms, else from the noise of the inputs as measured",
        kind="flag",
    )
    match: str = _option(
        "offset",
        "Photometric matching of the inputs: sky levels only, or gains too, where overlaps show"
        " enough structure",
        kind="choice",
        choices=MATCHES,
        card=("ZMMATCH", "photometric matching"),
    )
    match_gain_limits: tuple[float, float] = _option(
        (0.5, 2.0),
        "Least and greatest gain of --match gain; greater changes are clipped",
        kind="pair",
        metavar="LO,HI",
    )
    match_offset_limit: float | None = _option(
        None,
        "Greatest offset, up or down, in the inputs' units; greater ones are clipped"
        " [default: no limit]",
        kind="number",
        metavar="X",
    )
    match_sky: tuple[float, float] = _option(
        (0.0, 100.0),
        "Percentiles of brightness in an overlap between which gains are measured",
        kind="pair",
        metavar="LO,HI",
    )
    two_pass: bool = _option(
        False, "Even out the brightness of inputs by their coverage, in a second pass", kind="flag"
    )
    two_pass_sigma: float = _option(
        50.0,
        "Blur of the coverage in the second pass, in pixels; 0 is none",
        kind="number",
        metavar="PX",
    )
    two_pass_gain_clip: tuple[float, float] = _option(
        (0.85, 1.18), "Least and greatest gain of the second pass", kind="pair", metavar="LO,HI"
    )
    batch: int | None = _option(
        None,
        "Subs of a batch in sds mode; 0 combines all of them at once [default: by their coverage]",
        kind="whole",
        metavar="N",
    )
    sds_min_batch: int = _option(
        5, "Fewest subs of a batch that is cut by coverage", kind="count", metavar="N"
    )
    sds_target_batch: int = _option(
        10, "Most subs of a batch that is cut by coverage", kind="count", metavar="N"
    )
    sds_coverage: float = _option(
        0.92,
        "Part of the output that the subs of a batch cover when it is complete",
        kind="number",
        metavar="X",
    )
    sds_combine: str = _option(
        "winsorized",
        "How the stacks of the batches are combined",
        kind="choice",
        choices=COMBINES,
    )
    sds_min_coverage_keep: float = _option(
        0.0,
        "Leave output pixels of less than this part of the greatest coverage empty, in sds mode",
        kind="number",
        metavar="X",
    )
    autocrop: bool = _option(
        True,
        "In sds mode, leave out the outskirts of a grid of our own that next to no sub covers",
        kind="flag",
    )
    preset: str = _option(
        "science",
        "Other defaults: zemosaic is --two-pass --weight-by n_frames, and in sds mode"
        " --sds-min-coverage-keep 0.4",
        kind="choice",
        choices=tuple(PRESETS),
    )
    weights: str | None = _option(
        None,
        "Weight of every pixel: an extension, by name or number, or a file whose name follows from"
        " the input's; none is no weights [default: the extension ALPHA where there is one]",
        metavar="EXT|s/OLD/NEW/",
        card=("ZMWMAP", "where inputs have the weights of their pixels"),
    )
    weight_type: str = _option(
        "weight",
        "What the values of --weights mean; in a mask non-zero is bad",
        kind="choice",
        choices=KINDS,
        card=("ZMWTYPE", "what these weights mean"),
    )
    weight_by: str = _option(
        "none",
        "What weighs whole inputs: stacked frames, exposure time, or inverse variance as measured",
        kind="choice",
        choices=WEIGHERS,
        card=("ZMWEIGHT", "what weighs the inputs as a whole"),
    )
    border_mask: float = _option(
        0.0,
        "Leave out so much of every input at each of its edges, in percent of its height and width",
        kind="number",
        metavar="PERCENT",
        card=("ZMBORDER", "[%] of inputs left out at each edge"),
    )
    feather: float = _option(
        0.0,
        "Let weights rise from 0 at the edges of an input to 1 so many of its pixels inside",
        kind="number",
        metavar="PX",
        card=("ZMFEATH", "[pix] ramp of weights at edges of inputs"),
    )
    zero_is_blank: str = _option(
        "auto",
        "Whether pixels of exactly 0 are invalid; auto: in files where they are a twentieth or more"
        " and lie together",
        kind="choice",
        choices=ZEROS,
        card=("ZMZERO", "whether zeros of inputs are invalid"),
    )
    solver: str = _option(
        "none",
        "Program that looks for the WCS of frames whose header has none; what it finds is kept"
        " beside them, as NAME.fits.wcs",
        kind="choice",
        choices=SOLVERS,
    )
    solver_timeout: float = _option(
        60.0,
        "Seconds that the solver may take for a frame, once with hints from its header and once"
        " without",
        kind="number",
        metavar="S",
    )
    select: str | None = _option(
        None,
        "Use only inputs whose background, noise, stars, fwhm and roundness meet a condition, such"
        " as 'fwhm < 1.5*median and stars > 0.5*median' [default: all]",
        metavar="EXPR",
    )
    wcs: str | None = _option(
        None, "Output grid from a FITS file or a text header", kind="path", metavar="FILE"
    )
    scale: float | None = _option(
        None,
        "Output pixel scale in arcsec [default: the finest input's]",
        kind="number",
        metavar="ARCSEC",
    )
    center: tuple[float, float] | None = _option(
        None,
        "Centre of the output in ICRS degrees [default: the inputs' centre]",
        kind="pair",
        metavar="RA,DEC",
    )
    size: tuple[int, int] | None = _option(
        None,
        "Width and height of the output in pixels [default: all inputs]",
        kind="shape",
        metavar="WxH",
    )
    projection: str | None = _option(
        None, "Projection of the output, a FITS code [default: TAN]", metavar="CODE"
    )
    frame: str | None = _option(
        None, "Sky frame of the output [default: the first input's]", kind="choice", choices=FRAMES
    )
    rotate: float | None = _option(
        None,
        "Position angle of the output's +y axis, degrees east of north [default: 0]",
        kind="number",
        metavar="DEG",
    )
    max_output_pixels: int | None = _option(
        None,
        "Refuse a larger output [default: 4 times the inputs, 250 million to 20 billion]",
        kind="count",
        metavar="N",
    )
    overwrite: bool = _option(
        False, "Replace an existing output, once the new one is complete", kind="flag"
    )
    resume: bool = _option(True, "Go on with an interrupted run of the same job", kind="flag")
    journal_after: float = _option(
        30.0,
        "Second of a run from which on it notes what is finished, to be gone on with",
        kind="number",
        metavar="S",
    )
    strict: bool = _option(
        False, "Stop at an input that cannot be used instead of leaving it out", kind="flag"
    )
    scratch: str | None = _option(
        None, "Folder for scratch files [default: that of the output]", kind="path", metavar="DIR"
    )
    scratch_max: int | None = _option(
        None, "Refuse a job whose scratch files would take more", kind="bytes", metavar="SIZE"
    )

    def __post_init__(self) -> None:
        kappa, winsor, clip = map(_numbers, (self.kappa, self.winsor, self.two_pass_gain_clip))
        kappa = 2 * kappa if len(kappa) == 1 else kappa
        if len(kappa) != 2 or not all(0 < bound < math.inf for bound in kappa):
            raise UsageError(
                f"--kappa: {as_text(self.kappa)} cannot work; give one or two numbers above 0."
            )
        if self.select is not None:
            Criterion(self.select)
        if self.weights is not None:
            weight_rule(self.weights, self.weight_type)
        if not _is_within(self.border_mask, 0, 50):
            raise UsageError(
                f"--border-mask: {as_text(self.border_mask)} % leaves nothing; give 0 to below 50."
            )
        if not _is_within(self.feather, 0, math.inf):
            raise UsageError(f"--feather: {as_text(self.feather)} px is no width; give 0 or more.")
        if self.combine == "kappa-sigma-stream" and min(kappa) < 1:
            raise UsageError(
                f"--kappa: {as_text(kappa)} may leave no sample to kappa-sigma-stream; give "
                "numbers from 1 up, or choose kappa-sigma."
            )
        if len(winsor) != 2 or not all(0 <= part < 0.5 for part in winsor):
            raise UsageError(
                f"--winsor: {as_text(self.winsor)} cannot work; give two numbers from 0 to below"
                " 0.5."
            )
        sigma = self.two_pass_sigma
        if not _is_within(sigma, 0, math.nextafter(MOST_SIGMA_PX, math.inf)):
            raise UsageError(
                f"--two-pass-sigma: {as_text(sigma)} px is no blur; give 0 to {MOST_SIGMA_PX}."
            )
        if not are_gains(clip):
            raise UsageError(
                f"--two-pass-gain-clip: {as_text(self.two_pass_gain_clip)} are no gains; give two"
                " numbers above 0."
            )
        for name, pair in (("kappa", kappa), ("winsor", winsor), ("two_pass_gain_clip", clip)):
            object.__setattr__(self, name, pair)
        if not _is_within(self.journal_after, 0, math.inf):
            raise UsageError(
                f"--journal-after: {as_text(self.journal_after)} s is no time; give 0 or more."
            )
        if not _is_within(self.solver_timeout, math.ulp(0.0), math.inf):
            raise UsageError(
                f"--solver-timeout: {as_text(self.solver_timeout)} s is no time; give more than 0."
            )
        self._check_matching()
        self._check_batches()

    def _check_batches(self) -> None:
        """Refuse batches that make no sense."""
        if self.batch is not None and (self.batch < 0 or self.batch == 1):
            raise UsageError(
                f"--batch: {self.batch} is no batch; give 2 or more, or 0 for all at once."
            )
        if self.batch is not None and self.mode != "sds":
            raise UsageError(
                f"--batch {self.batch}: there are batches in --mode sds only; give that too, or "
                "drop this option."
            )
        if self.sds_target_batch < self.sds_min_batch:
            raise UsageError(
                f"--sds-target-batch: {self.sds_target_batch} is less than --sds-min-batch"
                f" {self.sds_min_batch}; give at least that."
            )
        if not (_is_within(self.sds_coverage, 0, 1) or self.sds_coverage == 1):
            raise UsageError(
                f"--sds-coverage: {as_text(self.sds_coverage)} is no part; give 0 to 1."
            )
        if not _is_within(self.sds_min_coverage_keep, 0, 1):
            raise UsageError(
                f"--sds-min-coverage-keep: {as_text(self.sds_min_coverage_keep)} leaves nothing;"
                " give 0 to below 1."
            )
        if self.has_batches and "sum" in (self.combine, self.sds_combine):
            raise UsageError(
                "--combine sum: stacks of batches weigh by their coverage, so their sum would mean "
                "nothing; give --batch 0, or another combine."
            )
        if self.variance and self.has_batches:
            raise UsageError(
                "--variance: stacks of batches do not carry it; give --batch 0, or drop it."
            )

    @property
    def has_batches(self) -> bool:
        """Whether the inputs are combined in batches first."""
        return self.mode == "sds" and self.batch != 0

    def _check_matching(self) -> None:
        """Refuse limits and percentiles that make no sense."""
        limits, sky = _numbers(self.match_gain_limits), _numbers(self.match_sky)
        if len(limits) != 2 or not 0 < limits[0] <= 1 <= limits[1] < math.inf:
            raise UsageError(
                f"--match-gain-limits: {as_text(self.match_gain_limits)} do not enclose 1; give two"
                " numbers above 0, one on each side of it."
            )
        if len(sky) != 2 or not 0 <= sky[0] < sky[1] <= 100:
            raise UsageError(
                f"--match-sky: {as_text(self.match_sky)} are no range; give two percentiles, the"
                " lower first."
            )
        if self.match_offset_limit is not None:
            (most, *more) = _numbers(self.match_offset_limit) or (math.nan,)
            if more or not most >= 0:
                raise UsageError(
                    f"--match-offset-limit: {as_text(self.match_offset_limit)} is no limit; give a"
                    " number of at least 0."
                )
            object.__setattr__(self, "match_offset_limit", most)
        object.__setattr__(self, "match_gain_limits", limits)
        object.__setattr__(self, "match_sky", sky)


_CLIPPING = ("kappa-sigma", "kappa-sigma-stream", "winsorized", "winsorized-reference")
_LEAVING_OUT = ("kappa-sigma", "kappa-sigma-stream", "winsorized")

_NEEDS: dict[str, tuple[Callable[[Options], bool], str]] = {
    "kappa": (lambda o: o.combine in _CLIPPING, f"--combine {' or '.join(_CLIPPING)}"),
    "winsor": (
        lambda o: "winsor-percentile" in (o.combine, o.sds_combine if o.has_batches else ""),
        "--combine winsor-percentile",
    ),
    "reject_together": (
        lambda o: o.combine in _LEAVING_OUT,
        f"--combine {' or '.join(_LEAVING_OUT)}",
    ),
    "match_gain_limits": (lambda o: o.match == "gain", "--match gain"),
    "match_sky": (lambda o: o.match == "gain", "--match gain"),
    "match_offset_limit": (lambda o: o.match != "none", "--match offset or gain"),
    "two_pass_sigma": (lambda o: o.two_pass, "--two-pass"),
    "two_pass_gain_clip": (lambda o: o.two_pass, "--two-pass"),
    "sds_min_batch": (lambda o: o.mode == "sds" and o.batch is None, "--mode sds, no --batch"),
    "sds_target_batch": (lambda o: o.mode == "sds" and o.batch is None, "--mode sds, no --batch"),
    "sds_coverage": (lambda o: o.mode == "sds" and o.batch is None, "--mode sds, no --batch"),
    "sds_combine": (lambda o: o.has_batches, "--mode sds with batches"),
    "sds_min_coverage_keep": (lambda o: o.mode == "sds", "--mode sds"),
    "autocrop": (lambda o: o.mode == "sds", "--mode sds"),
    "solver_timeout": (lambda o: o.solver != "none", "--solver"),
    "gpu_memory": (lambda o: o.gpu != "off", "--gpu auto or on"),
}
"""What an option needs to have an effect: a condition, and its words."""


def without_effect(options: Options) -> list[str]:
    """A sentence on each option that was set in vain."""
    plain = with_preset({"preset": options.preset, "mode": options.mode})
    return [
        f"--{'no-' if getattr(options, name) is False else ''}{name.replace('_', '-')}"
        f" is without effect: it needs {words}"
        for name, (has_effect, words) in _NEEDS.items()
        if getattr(options, name) != getattr(plain, name) and not has_effect(options)
    ]


OPTION_CARDS: dict[str, tuple[str, str]] = {
    option.name: option.metadata["card"] for option in fields(Options) if "card" in option.metadata
}
"""Keyword and comment of the cards that tell options, by these."""


def _numbers(given: Any) -> tuple[float, ...]:
    """One number or several, in whatever form a program gives them; nothing for anything else."""
    try:
        values = tuple(given)
    except TypeError:
        values = (given,)
    if any(isinstance(value, bool | str) for value in values):
        return ()
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        return ()


def _is_within(value: Any, low: float, above: float) -> bool:
    """Whether this is a number from `low` to below `above`."""
    try:
        return not isinstance(value, bool | str) and low <= float(value) < above
    except (TypeError, ValueError):
        return False


def are_gains(clip: Any) -> bool:
    """Whether these are the bounds of gains: two numbers above 0, in any order."""
    try:
        low, high = clip
        return bool(0 < low < math.inf and 0 < high < math.inf)
    except (TypeError, ValueError):
        return False


def option_names() -> list[str]:
    """Names of all options, in order."""
    return [option.name for option in fields(Options)]


def parse(option: Field[Any], text: str, origin: str = "") -> Any:
    """The value of an option from its text.

    Parameters
    ----------
    option
        A field of `Options`.
    text
        As the user wrote it.
    origin
        Where the user wrote it, for messages; empty is the flag.

    Raises
    ------
    UsageError
        One sentence that names the option and says what it takes.
    """
    origin = origin or "--" + option.name.replace("_", "-")
    kind = option.metadata["kind"]
    try:
        return _READERS[kind](text, option.metadata)
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from None
    except ValueError:
        raise UsageError(f"{origin}: '{text}' is not {_WANTED[kind]}.") from None


def _read_count(text: str, _: Mapping[str, Any]) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def _read_whole(text: str, _: Mapping[str, Any]) -> int:
    whole = int(text)
    if whole < 0:
        raise ValueError
    return whole


def _read_bytes(text: str, _: Mapping[str, Any]) -> int:
    size = parse_size(text)
    if isinstance(size, float):
        raise ValueError
    return size


def _read_number(text: str, _: Mapping[str, Any]) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _read_pair(text: str, _: Mapping[str, Any]) -> tuple[float, float]:
    first, second = text.split(",")
    return _read_number(first, _), _read_number(second, _)


def _read_shape(text: str, _: Mapping[str, Any]) -> tuple[int, int]:
    width, height = text.lower().split("x")
    return _read_count(width, _), _read_count(height, _)


def _read_span(text: str, metadata: Mapping[str, Any]) -> tuple[float, float]:
    return _read_pair(text if "," in text else f"{text},{text}", metadata)


def _read_choice(text: str, metadata: Mapping[str, Any]) -> str:
    if text not in metadata["choices"]:
        raise UsageError(f"'{text}' is not one of {', '.join(metadata['choices'])}.")
    return text


def _read_flag(text: str, _: Mapping[str, Any]) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError


_READERS = {
    "text": lambda text, _: text,
    "path": lambda text, _: text,
    "size": lambda text, _: parse_size(text),
    "bytes": _read_bytes,
    "count": _read_count,
    "whole": _read_whole,
    "number": _read_number,
    "pair": _read_pair,
    "span": _read_span,
    "shape": _read_shape,
    "choice": _read_choice,
    "flag": _read_flag,
}

_WANTED = {
    "bytes": "a size such as 20GiB",
    "whole": "a whole number from 0 up",
    "count": "a whole number above 0",
    "number": "a finite number",
    "pair": "two numbers, with a comma between them",
    "span": "one number, or two with a comma between them",
    "shape": "a size WxH",
    "flag": "true or false",
}


def resolve(
    flags: Mapping[str, Any],
    config_file: Path | None,
    environ: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Options:
    """Options from flags (parsed, None = not given), environment and TOML file.

    `defaults` go before those of the table.

    Raises
    ------
    UsageError
        For an unknown key of the file or a value that cannot be read.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = dict(defaults or {})
    by_name = {option.name: option for option in fields(Options)}
    for key, value in _load(config_file).items():
        option = by_name.get(key.replace("-", "_"))
        if option is None:
            raise UsageError(f"{config_file}: there is no option '{key}'; see zmrs config --dump.")
        values[option.name] = _from_toml(option, value, f"{config_file}: {key}")
    for name, option in by_name.items():
        variable = f"ZMRS_{name.upper()}"
        text = environ.get(variable)
        if text is not None:
            values[name] = parse(option, text, variable)
        if flags.get(name) is not None:
            values[name] = flags[name]
    return with_preset(values)


def unsettled(options: Options) -> None:
    """Refuse options of which a finished mosaic leaves no choice.

    Raises
    ------
    UsageError
        The first that has another value than its default.
    """
    plain = Options()
    for name in SETTLED:
        value = getattr(options, name)
        if value != getattr(plain, name):
            raise UsageError(
                f"--{name.replace('_', '-')} {as_text(value)}: an update is a plain mean on the "
                "grid of the mosaic, in one pass; drop this option, or make the mosaic anew."
            )


def with_preset(values: Mapping[str, Any]) -> Options:
    """Options from those that were given; what was not is as preset and mode among them say."""
    preset = values.get("preset", "science")
    if preset not in PRESETS:
        raise UsageError(f"preset: '{preset}' is not one of {', '.join(PRESETS)}.")
    mode = values.get("mode", "normal")
    if mode not in MODES:
        raise UsageError(f"mode: '{mode}' is not one of {', '.join(MODES)}.")
    return Options(**PRESETS[preset] | MODES[mode] | dict(values))


def _load(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as TOML ({error}).") from None


def _from_toml(option: Field[Any], value: Any, origin: str) -> Any:
    if isinstance(value, list):
        value = (",", "x")[option.metadata["kind"] == "shape"].join(str(item) for item in value)
    return parse(option, str(value), origin)


def as_text(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def dump_toml() -> str:
    """Every option with its default and a comment, as TOML."""
    lines = ["# Options of zmrs. Remove the # of a line to set it.", ""]
    for option in fields(Options):
        choices = option.metadata.get("choices")
        meaning = option.metadata["help"]
        lines.append(f"# {meaning}: {', '.join(choices)}" if choices else f"# {meaning}")
        name, default = option.name.replace("_", "-"), option.default
        if default is None:
            lines.append(f'# {name} = "{option.metadata.get("metavar", "")}"')
        elif isinstance(default, bool):
            lines.append(f"{name} = {str(default).lower()}")
        else:
            lines.append(f'{name} = "{as_text(default)}"')
        lines.append("")
    return "\n".join(lines)
