"""What the header of a frame says of where it is on the sky, roughly.

Mounts and capture programs note where they point and how large a pixel is.  Neither is certain, but
a solver that may believe it is ten times as fast, and hardly ever wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zmrs.scan import Cards, Unsolved

__all__ = ["NO_HINTS", "Hints", "hints_of"]

_ARCSEC_PER_RADIAN = 206264.806
_SCALE_TOLERANCE = 1.3
"""Focal lengths are nominal, and reducers in the light path are often forgotten."""


@dataclass(frozen=True)
class Hints:
    """What is roughly known of a frame.

    Attributes
    ----------
    center_deg
        Right ascension and declination of some place in it or near it, degrees; None if unknown.
    scale_arcsec
        Least and greatest size of one of its pixels, arcsec; None if unknown.
    """

    center_deg: tuple[float, float] | None = None
    scale_arcsec: tuple[float, float] | None = None

    @property
    def middle_scale_arcsec(self) -> float | None:
        """Likeliest size of a pixel, arcsec."""
        if self.scale_arcsec is None:
            return None
        low, high = self.scale_arcsec
        return float((low * high) ** 0.5)


NO_HINTS = Hints()


def hints_of(frame: Unsolved) -> Hints:
    """What the headers of a frame say; what its own does not, the primary one may."""
    headers = (frame.cards, frame.primary)
    return Hints(_center(headers), _scale(headers))


def _center(headers: Sequence[Cards]) -> tuple[float, float] | None:
    """Where the telescope pointed.

    Numbers are degrees; sexagesimal text is hours and degrees.  Two zeros mean that nobody knew.
    """
    for ra_key, dec_key in (("RA", "DEC"), ("OBJCTRA", "OBJCTDEC")):
        for cards in headers:
            ra, dec = _angle(cards, ra_key, 15.0), _angle(cards, dec_key, 1.0)
            if ra is None or dec is None or not (0 <= ra <= 360 and -90 <= dec <= 90):
                continue
            if (ra, dec) != (0.0, 0.0):
                return ra, dec
    return None


def _angle(cards: Cards, keyword: str, unit_deg: float) -> float | None:
    """Degrees from a number of them, or from sexagesimal text in units of so many degrees."""
    number = cards.number(keyword)
    if number is not None:
        return number
    match = re.fullmatch(
        r"([+-]?)(\d+)[\s:hd]+(\d+)(?:[\s:m']+(\d+(?:\.\d*)?)[s\"]?)?", cards.string(keyword) or ""
    )
    if match is None:
        return None
    sign, whole, minutes, seconds = match.groups()
    value = int(whole) + int(minutes) / 60 + float(seconds or 0) / 3600
    return (-value if sign == "-" else value) * unit_deg


def _scale(headers: Sequence[Cards]) -> tuple[float, float] | None:
    """Bounds of the size of a pixel: as the header says it, or as its optics make it."""
    for cards in headers:
        for keyword in ("PIXSCALE", "SECPIX", "SECPIX1", "SCALE"):
            scale = cards.number(keyword)
            if scale is not None and scale > 0:
                return scale / _SCALE_TOLERANCE, scale * _SCALE_TOLERANCE
        focal_mm, pixel_um = cards.number("FOCALLEN"), cards.number("XPIXSZ")
        if focal_mm is None or pixel_um is None or not (focal_mm > 0 and pixel_um > 0):
            continue
        scale = _ARCSEC_PER_RADIAN * pixel_um * 1e-3 / focal_mm
        # Some programs give the size of what was binned, others that of the sensor's pixels.
        binning = max(cards.number("XBINNING") or 1.0, 1.0)
        return scale / _SCALE_TOLERANCE, scale * binning * _SCALE_TOLERANCE
    return None
