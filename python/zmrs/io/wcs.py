"""From the cards of a header to a celestial `astropy.wcs.WCS`, checked, with notes.

Only the cards that matter to the sky are shown to ``astropy.wcs``: with all cards the same WCS
costs five times as much.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zmrs.io.headers import (
    CARD_BYTES,
    Cards,
    NoSkyError,
    UnusableError,
    as_number,
    card_text,
)

if TYPE_CHECKING:
    from astropy.wcs import WCS

__all__ = ["header_wcs"]

# Keywords of the primary coordinate description that wcslib or astropy use (FITS WCS papers I
# to III, the TPV convention, and AIPS' CROTA).  A card outside this list cannot change the sky.
_WCS_NUMBER = re.compile(
    rb"(?:WCSAXES|C(?:RVAL|RPIX|DELT|ROTA)\d{1,2}|(?:CD|PC|PV)\d{1,2}_\d{1,3}|PC\d{6}"
    rb"|LONPOLE|LATPOLE|EQUINOX|MJD-OBS|RESTFRQ|RESTFREQ|RESTWAV|VELOSYS|VELREF) *="
)
_WCS_STRING = re.compile(
    rb"(?:C(?:TYPE|UNIT)\d{1,2}|PS\d{1,2}_\d{1,3}|RADESYS|RADECSYS|DATE-OBS|SPECSYS) *="
)
_WCS_INITIALS = re.compile(
    rb"WCSA|C[DTRUPQ]|P[CVS]\d|LONP|LATP|EQUI|EPOC|MJD-O|RADE|REST|VELO|VELR|DATE-O|SPECS"
    rb"|[AB]P?_|D2IM|AXISC"
)
# EPOCH is a number in AIPS headers and a free string in others, which is no reason to refuse.
_WCS_EPOCH = re.compile(rb"EPOCH +=")
_SIP_NUMBER = re.compile(rb"[AB]P?_(?:ORDER|\d_\d) *=")
_LOOKUP = re.compile(rb"(?:C[PQ]DIS\d|D2IMDIS\d|D2IMARR|D2IM\dA?|AXISCORR) *=")
# Wrong in these, a number makes a wrong sky; in the others (MJD-OBS, …) it is only untidy.
_VITAL = re.compile(r"C(?:RVAL|RPIX|DELT|ROTA|D|\d)|PC|PV|LONPOLE|LATPOLE|[AB]P?_")

_REPAIR = "solve the image again or leave it out"


@dataclass(slots=True)
class _WcsCards:
    """The cards of a header that make its WCS, cleaned, and sorted by who deals with them."""

    core: list[bytes] = field(default_factory=list)
    sip_cards: list[bytes] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    sip: dict[str, float] = field(default_factory=dict)
    ctypes: dict[str, str] = field(default_factory=dict)
    has_lookup: bool = False
    notes: list[str] = field(default_factory=list)


def _collect(raw: bytes) -> _WcsCards:
    """Sort out the WCS cards.  Of repeated ones the last counts, as for wcslib."""
    found = _WcsCards()
    for start in range(0, len(raw), CARD_BYTES):
        # One look at the first letters spares most cards of a long header the rest.
        if not _WCS_INITIALS.match(raw, start):
            continue
        card = raw[start : start + CARD_BYTES]
        if _WCS_NUMBER.match(card):
            _add_number(found, card, found.core, found.numbers)
        elif _WCS_STRING.match(card):
            _add_string(found, card)
        elif _SIP_NUMBER.match(card):
            _add_number(found, card, found.sip_cards, found.sip)
        elif _WCS_EPOCH.match(card):
            value = card_text(card)
            if value and as_number(value[0]) is not None:
                found.core.append(card)
        elif _LOOKUP.match(card):
            found.has_lookup = True
    return found


def _add_string(found: _WcsCards, card: bytes) -> None:
    """Take a string card; CTYPEs are kept apart for the checks."""
    value = card_text(card)
    if value is None:
        return
    if card.startswith(b"CTYPE"):
        found.ctypes[card[:8].decode("latin-1").strip()] = value[0]
    found.core.append(card.decode("latin-1").encode("ascii", "replace"))


def _add_number(
    found: _WcsCards, card: bytes, cards: list[bytes], numbers: dict[str, float]
) -> None:
    """Take a numeric card, rewritten where wcslib would misread it.

    wcslib reads ``1.5D+02`` as 1.5 and a quoted number, NaN or inf as 0, without a word.
    """
    value = card_text(card)
    if value is None:
        return
    keyword = card[:8].decode("latin-1").strip()
    text, quoted = value
    number = as_number(text)
    if number is None or not math.isfinite(number):
        if _VITAL.match(keyword):
            raise UnusableError(f"its {keyword} is not a finite number ({text!r})", _REPAIR)
        return
    if quoted:
        found.notes.append(f"{keyword} is a quoted string in the header; read as a number.")
    if quoted or "D" in text.upper():
        clean = repr(int(number)) if number.is_integer() else repr(number)
        card = f"{keyword:<8}= {clean:>20}".ljust(CARD_BYTES).encode()
    numbers[keyword] = number
    cards.append(card)


def header_wcs(
    cards: Cards,
    kept_axes: Sequence[int] = (1, 2),
    *,
    path: str | None = None,
    hdu: int = 0,
) -> tuple[WCS, list[str]]:
    """Two-dimensional celestial WCS of a header.

    Parameters
    ----------
    cards
        The header.
    kept_axes
        FITS numbers (from 1) of the axes longer than 1, fastest first; the sky must lie on the
        first two.
    path, hdu
        Where the header comes from: distortion look-up tables stand in other HDUs of the file.

    Returns
    -------
    wcs, warnings
        The WCS without ``pixel_shape``, and sentences about what is odd in it.

    Notes
    -----
    SIP polynomials are attached by hand (FITS SIP convention, Shupe et al. 2005), since astropy
    takes 1.5 ms to find them among the cards.  Headers that have SIP *and* PV terms go to
    astropy as they are: it knows which of them are leftovers of SCAMP.
    """
    found = _collect(cards.raw)
    _check_ctypes(found, kept_axes, hdu)
    _fold_matrix(found)
    # SIP of order 1 or 0 is no distortion; astropy's own reading knows the rules for the rest.
    has_pv = any(k.startswith("PV") for k in found.numbers)
    odd = bool(found.sip) and (has_pv or not _sip_is_plain(found.sip))
    wcs = _astropy_wcs(found, path, hdu, with_sip=odd)
    if found.sip and wcs.sip is None and not odd:
        wcs.sip = _sip(found)
    _check_wcs(wcs)
    return wcs, found.notes + _sip_notes(wcs) + _matrix_notes(found)


def _fold_matrix(found: _WcsCards) -> None:
    """Turn CDELT and PC of a TPV header into CD cards.

    The TPV polynomial takes degrees; with CDELT and PC wcslib gives it what stands before CDELT.
    """
    is_tpv = any(ctype.endswith("-TPV") for ctype in found.ctypes.values())
    if not is_tpv or any(key.startswith("CD1_") for key in found.numbers):
        return
    if any(key.startswith("CROTA") for key in found.numbers):
        raise UnusableError("its TPV distortion comes with CROTA instead of a CD matrix", _REPAIR)
    cards = [card for card in found.core if not re.match(rb"PC\d|CDELT", card)]
    for i in (1, 2):
        for j in (1, 2):
            element = found.numbers.get(f"PC{i}_{j}", float(i == j))
            value = element * found.numbers.get(f"CDELT{i}", 1.0)
            cards.append(f"CD{i}_{j}   = {value:>20.13E}".ljust(CARD_BYTES).encode())
    found.core[:] = cards


def _check_ctypes(found: _WcsCards, kept_axes: Sequence[int], hdu: int) -> None:
    """Refuse headers without sky axes, with the sky on other axes, or with IRAF distortions."""
    if not found.ctypes:
        raise NoSkyError(
            "no WCS in its header", "solve the image astrometrically or leave it out", hdu
        )
    codes = {key: ctype[5:8].strip("-") for key, ctype in found.ctypes.items()}
    sky_axes = {
        int(key[5:]): codes[key]
        for key, ctype in found.ctypes.items()
        if re.match(r"(?:RA--|DEC-|[A-Z]LON|[A-Z]LAT|[A-Z]{2}L[NT])", ctype)
    }
    if len(sky_axes) < 2:
        raise NoSkyError(
            f"its WCS is not celestial ({', '.join(found.ctypes.values())})",
            "name another HDU or leave the file out",
            hdu,
        )
    if not set(sky_axes) <= set(kept_axes[:2]):
        raise UnusableError(
            f"its sky axes {sorted(sky_axes)} are not the first two axes longer than 1",
            "reorder the axes or leave the file out",
            final=False,
        )
    for code in sky_axes.values():
        if code in {"TNX", "ZPX"}:
            raise UnusableError(
                f"its WCS has an IRAF -{code} distortion, which is not supported",
                "convert it to TPV or SIP, or solve the image again",
            )
    systems = {found.ctypes[f"CTYPE{n}"][:4] for n in sky_axes}
    if systems not in ({"RA--", "DEC-"}, {"GLON", "GLAT"}):
        raise UnusableError(
            f"its sky system ({', '.join(sorted(systems))}) is neither equatorial nor galactic",
            "reproject it to ICRS first or leave it out",
        )
    missing = [f"CRVAL{n}" for n in sky_axes if f"CRVAL{n}" not in found.numbers]
    if missing:
        raise UnusableError(f"its WCS lacks {' and '.join(sorted(missing))}", _REPAIR)
    if not any(re.match(r"CD|PC", key) for key in found.numbers):
        raise UnusableError("its WCS gives no pixel scale (no CD, no CDELT)", _REPAIR)
    i, j = sorted(sky_axes)
    cd = [found.numbers.get(f"CD{row}_{column}", 0.0) for row in (i, j) for column in (i, j)]
    # wcslib quietly puts 1 degree on the diagonal of a row that is all 0.
    has_cd = any(key.startswith("CD") and "_" in key for key in found.numbers)
    if has_cd and not (any(cd[:2]) and any(cd[2:])):
        raise UnusableError("its CD matrix is singular", _REPAIR)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence astropy: what matters in its warnings is said by us, once and with a name."""
    log = logging.getLogger("astropy")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def _astropy_wcs(found: _WcsCards, path: str | None, hdu: int, *, with_sip: bool) -> WCS:
    """Let astropy make the WCS of the cleaned cards and reduce it to the two sky axes."""
    from astropy.wcs import WCS, Wcsprm  # noqa: PLC0415 (0.8 s to import)

    header = b"".join(found.core + (found.sip_cards if with_sip else []))
    with _quiet():
        try:
            if found.has_lookup and path is not None:
                wcs = _wcs_with_tables(path, hdu)
            elif not with_sip and not _may_be_scamp(found):
                # WCS(header) does the same after taking the header apart twice, for 0.6 ms
                # instead of 0.06: what it looks for there is known to be absent.
                core = Wcsprm(header=header, relax=True)
                wcs = WCS(naxis=core.naxis)
                wcs.wcs = core
                wcs.fix()
                wcs.wcs.set()
            else:
                # Reducing the axes early hides SCAMP's leftovers from astropy: only if need be.
                is_cube = with_sip and _declares_more_axes(found)
                wcs = WCS(header, naxis=2 if is_cube else None)
            if wcs.naxis != 2:
                wcs = wcs.celestial
        # wcslib and astropy raise a dozen unrelated classes for bad headers, TypeError included.
        except Exception as error:
            raise UnusableError(f"its WCS is invalid ({_last_line(error)})", _REPAIR) from error
    if wcs.naxis != 2 or not wcs.has_celestial:
        raise UnusableError("its WCS is not celestial", _REPAIR, final=False)
    return wcs


def _may_be_scamp(found: _WcsCards) -> bool:
    """Whether there are PV terms without -TPV: before 2012 SCAMP wrote TPV as TAN."""
    has_pv = any(key.startswith("PV") for key in found.numbers)
    return has_pv and not all(ctype.endswith("-TPV") for ctype in found.ctypes.values())


def _declares_more_axes(found: _WcsCards) -> bool:
    """Whether the header describes axes beyond the second."""
    return "CTYPE3" in found.ctypes or found.numbers.get("WCSAXES", 2) > 2


def _wcs_with_tables(path: str, hdu: int) -> WCS:
    """WCS with look-up table distortions, which stand in other HDUs of the file."""
    from astropy.io import fits  # noqa: PLC0415
    from astropy.wcs import WCS  # noqa: PLC0415

    with fits.open(path, memmap=False) as hdus:
        return WCS(hdus[hdu].header, fobj=hdus, naxis=2)


def _last_line(error: Exception) -> str:
    """Last line of a message without its full stop: wcslib puts its own source lines first."""
    lines = str(error).strip().splitlines()
    return lines[-1].rstrip(".") if lines else type(error).__name__


def _sip_is_plain(sip: Mapping[str, float]) -> bool:
    """Whether the SIP terms can be taken as they stand: A and B, orders 2 to 9, all integers."""
    orders = {key[:-6]: value for key, value in sip.items() if key.endswith("_ORDER")}
    complete = {"A", "B"} <= set(orders) and ("AP" in orders) == ("BP" in orders)
    return complete and all(v.is_integer() and 2 <= v <= 9 for v in orders.values())


def _sip(found: _WcsCards) -> Any:
    """Astropy's SIP object from the collected coefficients."""
    import numpy as np  # noqa: PLC0415
    from astropy.wcs import Sip  # noqa: PLC0415

    def matrix(stem: str) -> Any:
        if f"{stem}_ORDER" not in found.sip:
            return None
        order = int(found.sip[f"{stem}_ORDER"])
        values = np.zeros((order + 1, order + 1))
        for i in range(order + 1):
            for j in range(order + 1 - i):
                values[i, j] = found.sip.get(f"{stem}_{i}_{j}", 0.0)
        return values

    origin = (found.numbers.get("CRPIX1", 0.0), found.numbers.get("CRPIX2", 0.0))
    return Sip(matrix("A"), matrix("B"), matrix("AP"), matrix("BP"), origin)


def _check_wcs(wcs: WCS) -> None:
    """Refuse a matrix without an inverse."""
    (a, b), (c, d) = wcs.pixel_scale_matrix.tolist()
    scale2 = a * a + b * b + c * c + d * d
    # The ratio of the axes may be extreme (long slits), a ratio of 1e8 is a mistake.
    if not math.isfinite(scale2) or abs(a * d - b * c) <= 1e-8 * scale2 or scale2 == 0:
        raise UnusableError("its CD matrix is singular", _REPAIR)


def _sip_notes(wcs: WCS) -> list[str]:
    """Say loudly where header and distortion contradict each other."""
    if wcs.sip is None or all(ctype.endswith("-SIP") for ctype in wcs.wcs.ctype):
        return []
    return ["SIP coefficients but CTYPE lacks -SIP; the distortion IS applied, as astropy does."]


def _matrix_notes(found: _WcsCards) -> list[str]:
    """Say which matrix counts when a header has two."""
    if not any(k.startswith("CD1_") for k in found.numbers):
        return []
    if not any(k.startswith("PC") for k in found.numbers):
        return []
    return ["header has both CDi_j and PCi_j; the CD matrix is used."]
