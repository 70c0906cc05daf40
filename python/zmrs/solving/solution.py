"""The WCS that a solver has found, in the pixels of the frame.

A solver looks at a picture that may be smaller than the frame.  Its pixel (X, Y), counted from 1,
is then the middle of ``times`` x ``times`` pixels of the frame: x = times (X - 1/2) + 1/2.  So
CRPIX follows that rule, the matrix is divided by ``times``, and a SIP coefficient of order p + q,
which multiplies pixels to that power and gives pixels, by times**(p + q - 1) (SIP convention, Shupe
et al. 2005).  As ``times`` is a power of 2, only CRPIX is rounded, in its last digit.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from functools import cached_property

from zmrs.io.headers import CARD_BYTES, Cards, UnusableError, as_number, card, card_text
from zmrs.io.wcs import header_wcs
from zmrs.scan import Solved

__all__ = ["Solution", "solution_of"]

_KEPT = re.compile(
    r"C(?:TYPE|UNIT|RVAL|RPIX|DELT|ROTA)[12]|(?:CD|PC)[12]_[12]|PV[12]_\d{1,2}"
    r"|LONPOLE|LATPOLE|RADESYS|EQUINOX|[AB]P?_(?:ORDER|\d_\d)"
)
_BESIDE_CD = re.compile(r"PC\d_\d|CDELT\d|CROTA\d")
_SIP_TERM = re.compile(r"[AB]P?_(\d)_(\d)")
_WIDEST_DEG = 180.0
"""No frame shows more of the sky than half of it."""


@dataclass(frozen=True)
class Solution:
    """The WCS of a frame.

    Attributes
    ----------
    values
        Keywords and values of its cards, in order.
    program
        Who has found it.
    """

    values: tuple[tuple[str, str | float], ...]
    program: str

    @cached_property
    def solved(self) -> Solved:
        """The same for `zmrs.scan`."""
        raw = b"".join(card(keyword, value) for keyword, value in self.values)
        return Solved(Cards(raw), hashlib.blake2b(raw, digest_size=8).hexdigest())


def solution_of(cards: Cards, times: int, shape: tuple[int, int], program: str) -> Solution:
    """The solution of a frame from the cards that a solver has written for its picture.

    Parameters
    ----------
    cards
        A header with a WCS, perhaps among other things.
    times
        Width and height of a pixel of the picture in pixels of the frame.
    shape
        (height, width) of the frame.
    program
        Who has found it.

    Raises
    ------
    UnusableError
        There is no sensible WCS among them.
    """
    values = _wcs_values(cards)
    if times != 1:
        for keyword, value in values.items():
            if not isinstance(value, str):
                values[keyword] = _in_frame(keyword, value, times)
    solution = Solution(tuple(values.items()), program)
    wcs, _ = header_wcs(solution.solved.cards)
    (a, b), (c, d) = wcs.pixel_scale_matrix.tolist()
    if not math.sqrt(abs(a * d - b * c)) * max(shape) < _WIDEST_DEG:
        raise UnusableError("its WCS is wider than the sky", "solve the image again")
    return solution


def _wcs_values(cards: Cards) -> dict[str, str | float]:
    """Keywords and values of the WCS; of repeated ones the last counts."""
    values: dict[str, str | float] = {}
    for start in range(0, len(cards.raw), CARD_BYTES):
        raw = cards.raw[start : start + CARD_BYTES]
        keyword = raw[:8].decode("latin-1").strip()
        found = card_text(raw) if _KEPT.fullmatch(keyword) else None
        if found is None:
            continue
        text, quoted = found
        number = None if quoted else as_number(text)
        if number is None or keyword.endswith("_ORDER"):
            values[keyword] = int(text) if text.isdecimal() and not quoted else text
        else:
            values[keyword] = number
    if any(keyword.startswith("CD1_") for keyword in values):
        # Some solvers write the scale and the angle once more, for old programs.
        values = {key: value for key, value in values.items() if not _BESIDE_CD.fullmatch(key)}
    return values


def _in_frame(keyword: str, value: float, times: int) -> float:
    """A number of the picture's WCS in that of the frame."""
    if keyword.startswith("CRPIX"):
        return times * (value - 0.5) + 0.5
    if keyword.startswith(("CD", "CDELT")):
        return value / times
    term = _SIP_TERM.fullmatch(keyword)
    return value * times ** (1.0 - int(term[1]) - int(term[2])) if term else value
