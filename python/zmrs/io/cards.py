"""Header and tables of a mosaic, from what the job knows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from astropy.io.fits import BinTableHDU, Header

    from zmrs.quality import Quality
    from zmrs.scan import Meta

__all__ = [
    "InputRow",
    "extension_header",
    "inputs_table",
    "primary_header",
    "rows_in",
    "squared_unit",
]


_MEASURED = {
    "BACKGRND": ("background", None),
    "NOISE": ("noise", None),
    "NSTARS": ("stars", None),
    "FWHM": ("fwhm", "pix"),
    "ROUND": ("roundness", None),
}
"""Columns of the quantities by which inputs were selected, and their units."""

_AEON_S = 1e12
"""No exposure lasts so long: what claims to is no exposure time."""


@dataclass
class InputRow:
    """What became of one input: a row of the ``INPUTS`` table.

    Attributes
    ----------
    name
        The input.
    gain, offset
        (C,) photometric factor and term.
    reason
        Why it was left out; empty when it was used.
    weight
        Its weight as a whole.
    two_pass_gain
        Factor of the coverage renormalisation; 1 without one.
    n_samples
        Output pixels to which it contributed.
    geometry_error_px
        Largest measured error of its coordinates; NaN when it was left out before.
    exposure_s
        Exposure time in seconds; NaN where it does not say.
    rejected_fraction
        Share of its samples, those of all channels, that a rejecting combine has left out or drawn
        in; 0 without one.
    quality
        What was measured of it to select inputs; None if nothing was.
    """

    name: str
    gain: list[float]
    offset: list[float]
    reason: str = ""
    weight: float = 1.0
    two_pass_gain: float = 1.0
    n_samples: int = 0
    geometry_error_px: float = math.nan
    exposure_s: float = math.nan
    rejected_fraction: float = 0.0
    quality: Quality | None = None

    @classmethod
    def of(cls, name: str, channels: int, reason: str = "") -> InputRow:
        """A row of an input with no photometry yet."""
        return cls(name, [1.0] * channels, [0.0] * channels, reason)

    @property
    def status(self) -> str:
        """``used`` or ``left_out``."""
        return "left_out" if self.reason else "used"


def primary_header(
    channels: int,
    shape: tuple[int, int],
    wcs_cards: Sequence[tuple[str, Any, str]],
    metas: Sequence[Meta],
    software: Sequence[tuple[str, Any, str]],
    n_before: int | None = None,
) -> Header:
    """Header of the mosaic.

    `metas` are those of the inputs used; `software` are the cards that say what was done.  Where
    the first of the inputs is a mosaic that is updated, `n_before` images are in it already.
    """
    n_combined = len(metas) if n_before is None else n_before + len(metas) - 1
    header = _image_header("SIMPLE", channels, shape)
    cards = [("NCOMBINE", n_combined, "images combined"), *_inherited(metas), *software]
    for keyword, value, comment in [*wcs_cards, *cards]:
        printable = _printable(value)
        header[keyword] = (printable, _fitting(printable, comment))
    return header


def _fitting(value: Any, comment: str) -> str:
    """As much of a comment as stands beside a text on one card; astropy would warn of the rest."""
    if not isinstance(value, str):
        return comment
    quoted = len(value) + value.count("'") + 2
    room = 80 - len("KEYWORD = ") - quoted - len(" / ")
    return comment if quoted > 70 else comment[: max(room, 0)]


def extension_header(
    name: str,
    comment: str,
    channels: int,
    shape: tuple[int, int],
    wcs_cards: Sequence[tuple[str, Any, str]],
    *,
    bitpix: int = -32,
    unit: str = "",
) -> Header:
    """Header of an image extension on the grid of the mosaic."""
    header = _image_header("XTENSION", channels, shape, bitpix)
    header["EXTNAME"] = (name, comment)
    if unit:
        header["BUNIT"] = (unit, "")
    for keyword, value, text in wcs_cards:
        header[keyword] = (value, text)
    return header


def squared_unit(unit: str) -> str:
    """The square of a unit as FITS writes it, nothing of nothing; of what is none, in brackets."""
    from astropy.units import Unit  # noqa: PLC0415  (imported long before, with astropy.wcs)

    if not unit or unit.isalpha():
        return unit and f"{unit}**2"
    try:
        squared: str = (Unit(unit, format="fits") ** 2).to_string("fits")
    except ValueError:
        return f"({unit})**2"
    return squared


def _image_header(first: str, channels: int, shape: tuple[int, int], bitpix: int = -32) -> Header:
    from astropy.io.fits import Header  # noqa: PLC0415  (late: 0.3 s)

    header = Header()
    value = True if first == "SIMPLE" else "IMAGE   "
    header[first] = (value, "FITS standard 4.0" if first == "SIMPLE" else "image extension")
    axes = [shape[1], shape[0]] + ([channels] if channels > 1 else [])
    header["BITPIX"] = (bitpix, "IEEE single precision" if bitpix < 0 else "whole numbers")
    header["NAXIS"] = (len(axes), "")
    for number, length in enumerate(axes, start=1):
        header[f"NAXIS{number}"] = (length, "")
    if first == "SIMPLE":
        header["EXTEND"] = (True, "")
    else:
        header["PCOUNT"] = (0, "")
        header["GCOUNT"] = (1, "")
    return header


def _inherited(metas: Sequence[Meta]) -> list[tuple[str, Any, str]]:
    """Cards that follow from the inputs' own headers."""
    cards: list[tuple[str, Any, str]] = [
        ("STACKCNT", sum(meta.stackcnt for meta in metas), "single exposures in them"),
    ]
    exposures = [t for meta in metas if (t := meta.exptime) is not None and 0 <= t < _AEON_S]
    if exposures:
        cards.append(("EXPTOTAL", float(sum(exposures)), "[s] sum of all exposure times"))
    for keyword, pick, comment in (
        ("DATE-OBS", min, "start of the first exposure"),
        ("DATE-END", max, "end of the last exposure"),
        ("MJD-OBS", min, "[d] start of the first exposure"),
    ):
        attribute = keyword.lower().replace("-", "_")
        values = [v for meta in metas if (v := getattr(meta, attribute)) is not None]
        if values:
            cards.append((keyword, pick(values), comment))
    for keyword in ("BUNIT", "FILTER", "OBJECT", "TELESCOP", "INSTRUME"):
        shared = {getattr(meta, keyword.lower()) for meta in metas}
        if len(shared) == 1 and (value := shared.pop()):
            cards.append((keyword, value, ""))
    return cards


def _printable(value: Any) -> Any:
    """A value as FITS allows it: inputs carry bytes beyond ASCII, outputs must not."""
    if not isinstance(value, str):
        return value
    return "".join(character if " " <= character <= "~" else "?" for character in value)


def inputs_table(rows: Sequence[InputRow], channels: int) -> BinTableHDU:
    """The ``INPUTS`` extension: a row an input."""
    from astropy.io import fits  # noqa: PLC0415

    def text(values: list[str]) -> tuple[str, Any]:
        raw = [value.encode("ascii", "replace") for value in values]
        return f"{max(max(map(len, raw), default=1), 1)}A", np.array(raw)

    def vector(values: list[list[float]]) -> tuple[str, Any]:
        return f"{channels}D", np.array(values, dtype=float).reshape(len(rows), channels)

    def double(values: list[float]) -> tuple[str, Any]:
        return "D", np.array(values, dtype=float)

    columns = {
        "NAME": (*text([row.name for row in rows]), None),
        "STATUS": (*text([row.status for row in rows]), None),
        "REASON": (*text([row.reason for row in rows]), None),
        "WEIGHT": (*double([row.weight for row in rows]), None),
        "GAIN": (*vector([row.gain for row in rows]), None),
        "OFFSET": (*vector([row.offset for row in rows]), None),
        "TWOPGAIN": (*double([row.two_pass_gain for row in rows]), None),
        "NPIX": ("K", np.array([row.n_samples for row in rows], dtype=np.int64), None),
        "GEOMERR": (*double([row.geometry_error_px for row in rows]), "pix"),
        "EXPTIME": (*double([row.exposure_s for row in rows]), "s"),
        "REJFRAC": (*double([row.rejected_fraction for row in rows]), None),
    }
    if any(row.quality is not None for row in rows):
        for column, (quantity, unit) in _MEASURED.items():
            measured = [getattr(row.quality, quantity, math.nan) for row in rows]
            columns[column] = (*double(measured), unit)
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column(name=name, format=form, array=array, unit=unit)
            for name, (form, array, unit) in columns.items()
        ],
        name="INPUTS",
    )
    return table


def rows_in(table: BinTableHDU) -> list[InputRow]:
    """The rows of an ``INPUTS`` extension as it was read from a file.

    Raises
    ------
    KeyError, ValueError
        It is another table.
    """
    data = table.data
    vectors = [np.asarray(data[name], float).reshape(len(data), -1) for name in ("GAIN", "OFFSET")]
    columns = (
        data["NAME"],
        *(vector.tolist() for vector in vectors),
        data["REASON"],
        *(data[name].tolist() for name in ("WEIGHT", "TWOPGAIN", "NPIX", "GEOMERR", "EXPTIME")),
        data["REJFRAC"].tolist(),
    )
    return [
        InputRow(str(name), gain, offset, str(reason), *numbers)
        for name, gain, offset, reason, *numbers in zip(*columns, strict=True)
    ]
