"""The solvers: how each is called, and where it says what it has found."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from zmrs.errors import UsageError
from zmrs.io.headers import (
    CARD_BYTES,
    HEADER_MAX_BYTES,
    Cards,
    UnusableError,
    open_source,
    text_cards,
    walk,
)
from zmrs.solving.hints import NO_HINTS

if TYPE_CHECKING:
    from pathlib import Path

    from zmrs.solving.child import Ran
    from zmrs.solving.hints import Hints
    from zmrs.solving.picture import Picture

__all__ = ["Astap", "AstrometryNet", "NotSolvedError", "Solver", "find_solver"]

_RADIUS_DEG = 10.0
"""How far from where it should point a telescope may point."""
_BLIND_ODDS = "1e14"
"""Odds from which on a match without hints counts.  By the program's own 1e9 one of twelve raw
frames of a smart telescope, shown as they are, came out at a wrong place (docs/solving.md)."""


class NotSolvedError(Exception):
    """Why a solver has not found a WCS, in a few words."""


class Solver(Protocol):
    """A program that finds the WCS of a picture."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def command(self, picture: Picture, hints: Hints, folder: Path, limit_s: float) -> list[str]:
        """Command line that solves a picture and writes into a folder."""
        ...

    def found(self, folder: Path, ran: Ran) -> Cards:
        """The header with the WCS that it has written there.

        Raises
        ------
        NotSolvedError
            It has written none.
        """
        ...


@dataclass(frozen=True)
class AstrometryNet:
    """``solve-field`` of astrometry.net.

    It is told to do without what only serves its pictures and tables, and without its own tidying
    of sources, which costs it ten times the time on frames of small telescopes and finds no more.
    """

    program: str
    name: ClassVar[str] = "solve-field"
    programs: ClassVar[tuple[str, ...]] = ("solve-field",)
    remedy: ClassVar[str] = "install astrometry.net with index files for the size of your frames"

    def command(self, picture: Picture, hints: Hints, folder: Path, limit_s: float) -> list[str]:
        """Command line that solves a picture and writes into a folder."""
        words = [self.program, "--overwrite", "--fits-image", "--no-plots", "--no-verify"]
        words += ["--no-remove-lines", "--uniformize", "0", "--crpix-center", "--temp-axy"]
        for product in ("new-fits", "index-xyls", "solved", "match", "rdls", "corr"):
            words += [f"--{product}", "none"]
        words += ["--dir", str(folder), "--temp-dir", str(folder), "--wcs"]
        words += [str(folder / "solution.wcs")]
        # Should we be killed, it ends by itself.
        words += ["--cpulimit", str(math.ceil(limit_s))]
        if hints.center_deg is not None:
            ra, dec = (f"{angle:.6f}" for angle in hints.center_deg)
            words += ["--ra", ra, "--dec", dec, "--radius", f"{_RADIUS_DEG:g}"]
        if hints.scale_arcsec is not None:
            low, high = (f"{scale * picture.times:.6g}" for scale in hints.scale_arcsec)
            words += ["--scale-units", "arcsecperpix", "--scale-low", low, "--scale-high", high]
        if hints == NO_HINTS:
            words += ["--odds-to-solve", _BLIND_ODDS]
        return [*words, str(picture.path)]

    def found(self, folder: Path, ran: Ran) -> Cards:
        """The header with the WCS that it has written there."""
        path = folder / "solution.wcs"
        if not path.exists():
            raise NotSolvedError("no match" if ran.status == 0 else _failure(ran))
        return _header(path)


@dataclass(frozen=True)
class Astap:
    """``astap``, or its form without windows, ``astap_cli``.

    It says in an ``.ini`` file whether it has found anything, and puts the WCS beside it.
    """

    program: str
    name: ClassVar[str] = "astap"
    programs: ClassVar[tuple[str, ...]] = ("astap_cli", "astap")
    remedy: ClassVar[str] = "install ASTAP with one of its star databases"

    def command(self, picture: Picture, hints: Hints, folder: Path, limit_s: float) -> list[str]:
        """Command line that solves a picture and writes into a folder."""
        del limit_s  # it knows of none
        words = [self.program, "-f", str(picture.path), "-o", str(folder / "solution")]
        words += ["-wcs", "-sip"]
        if hints.center_deg is not None:
            ra_deg, dec_deg = hints.center_deg
            words += ["-ra", f"{ra_deg / 15:.6f}", "-spd", f"{dec_deg + 90:.6f}"]
        words += ["-r", "180" if hints.center_deg is None else f"{_RADIUS_DEG:g}"]
        scale = hints.middle_scale_arcsec
        # The height of the field in degrees; 0 tries one after the other.
        height = 0.0 if scale is None else scale * picture.times * picture.height_px / 3600
        return [*words, "-fov", f"{height:.4g}"]

    def found(self, folder: Path, ran: Ran) -> Cards:
        """The header with the WCS that it has written there."""
        try:
            text = (folder / "solution.ini").read_text(encoding="latin-1")
        except FileNotFoundError:
            raise NotSolvedError(_failure(ran)) from None
        pairs = (line.partition("=") for line in text.splitlines())
        said = {key.strip().upper(): value.strip() for key, _, value in pairs}
        if said.get("PLTSOLVD") != "T":
            raise NotSolvedError(said.get("ERROR", "no match").rstrip("."))
        path = folder / "solution.wcs"
        if not path.exists():
            raise NotSolvedError("it wrote no WCS")
        return _header(path)


_SOLVERS: dict[str, type[Astap | AstrometryNet]] = {"astap": Astap, "astrometry.net": AstrometryNet}


def find_solver(name: str) -> Solver | None:
    """The solver of that name, an option of `zmrs.config.Options`; none for ``none``.

    Raises
    ------
    UsageError
        It is not installed.
    """
    if name == "none":
        return None
    kind = _SOLVERS[name]
    for program in kind.programs:
        path = shutil.which(program)
        if path is not None:
            return kind(path)
    raise UsageError(
        f"--solver {name}: there is no program {' or '.join(kind.programs)} on the PATH; "
        f"{kind.remedy}, or choose another solver."
    )


def _failure(ran: Ran) -> str:
    return f"it failed with status {ran.status}: {ran.last_line}"


def _header(path: Path) -> Cards:
    """The first header of a file, as FITS or one card a line."""
    try:
        with open_source(str(path)) as source:
            start = source.read_at(0, CARD_BYTES + 2)
            if b"\n" in start:
                return text_cards(source.read_at(0, HEADER_MAX_BYTES))
            return next(walk(source)).cards
    except (OSError, UnusableError, StopIteration) as error:
        raise NotSolvedError(f"what it wrote is no WCS ({error})".rstrip(".")) from error
