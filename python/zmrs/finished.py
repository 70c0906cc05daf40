"""A finished mosaic as an input of its own update.

The file of a mean mosaic holds the weighted mean and the sum of weights of every pixel, and so all
that a mean needs to go on: it is one more image, which weighs by its ``COVERAGE`` and lies on the
grid as it is.  `zmrs.prepare` puts it before the new inputs; from there an update is a job like any
other, but for two things: the mosaic keeps its level when inputs are matched, and the table and the
header of the new file speak of the old inputs too.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmrs import config
from zmrs.coordinates import shifted_by
from zmrs.errors import InputError, OutputError, UsageError
from zmrs.grid import Grid
from zmrs.inputs import stored_source
from zmrs.io.cards import rows_in
from zmrs.io.names import and_others
from zmrs.placing import Placed
from zmrs.scan import InputImage, LeftOut, scan_image
from zmrs.weight_rule import WeightRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from astropy.io.fits import Header

    from zmrs.config import Options
    from zmrs.inputs import Image
    from zmrs.io.cards import InputRow

__all__ = ["UNIT_CARDS", "Finished", "read_finished"]

UNIT_CARDS = {
    "n_frames": ("ZMFRAMES", "stacked frames that weigh 1"),
    "exposure": ("ZMEXPO", "[s] exposure time that weighs 1"),
    "ivar": ("ZMIVAR", "inverse variance of noise that weighs 1"),
}
"""Cards that say what weighs 1, by what weighs the inputs."""

_ROW_BYTES, _COPIES = 1024, 8
"""What a row of the table takes while it is written, and how often its texts are there."""


@dataclass(frozen=True)
class Finished:
    """A mosaic to which inputs can be added.

    Attributes
    ----------
    path
        Its file, as the user gave it.
    image
        Its pixels, which weigh by its coverage.
    rows
        What became of its inputs.
    n_combined
        How many are in it.
    defaults
        Options by which it was made.
    weight_unit
        What weighs 1 by ``weight_by``: frames, seconds or an inverse variance; None where inputs
        are not weighed as a whole.
    stamp
        Size, time of change and number of the file when it was read.
    """

    path: Path
    image: InputImage
    rows: list[InputRow]
    n_combined: int
    defaults: dict[str, Any]
    weight_unit: float | None
    stamp: tuple[int, ...]

    @property
    def grid(self) -> Grid:
        """The grid of the mosaic, and of its update."""
        return Grid(self.image.wcs, *self.image.storage.shape)

    def target(self, output: Path | None) -> Path:
        """Where the update goes: to `output`, else in the place of the mosaic itself.

        What a link leads to is replaced, not the link.
        """
        if output is None or self.is_at(output):
            return Path(os.path.realpath(self.path))
        return output

    def is_at(self, path: Path) -> bool:
        """Whether this is its file."""
        try:
            return path.samefile(self.path)
        except OSError:
            return False

    def check(self, options: Options) -> None:
        """Refuse what contradicts the mosaic.

        Raises
        ------
        UsageError
            An option of which it leaves no choice.
        OutputError
            The file has changed since it was read.
        """
        config.unsettled(options)
        made_by = self.defaults["weight_by"]
        if options.weight_by != made_by:
            raise UsageError(
                f"--weight-by {options.weight_by}: the inputs of {self.path} are weighed by "
                f"{made_by}, and the weights of new ones would mean something else; drop this "
                "option, or make the mosaic anew."
            )
        if made_by != "none" and self.weight_unit is None:
            raise UsageError(
                f"{self.path}: its header does not say what weighs 1 by {made_by}, so new inputs "
                "cannot be weighed; make the mosaic anew."
            )
        if self.stamp != _stamp(self.path):
            raise OutputError(
                f"{self.path}: another program has changed it meanwhile; run the command again."
            )

    def placed(self) -> Placed:
        """The mosaic as an input of its update."""
        assert self.image.weights is not None
        coverage = self.image.weights.storage
        return Placed(
            self.image,
            shifted_by(0, 0, self.image.storage.shape),
            stored_source(self.image.storage),
            weight_map=stored_source(coverage),
            map_storage=coverage,
            is_base=True,
        )

    def known_among(self, images: Sequence[Image]) -> list[int]:
        """Places of the images that are in the mosaic already, or are the mosaic itself.

        A relative name of the table is looked for in the working folder and in that of the mosaic.
        """
        spellings = _Spellings()
        here = os.fspath(Path.cwd())
        beside = os.path.dirname(os.path.realpath(self.path))  # noqa: PTH120 (thousands of names)
        used = [row.name for row in self.rows if row.status == "used"]
        paths = {os.path.join(folder, name) for folder in (here, beside) for name in used}  # noqa: PTH118
        known = spellings.of(os.fspath(self.path)).union(*map(spellings.of, paths))
        return [
            place
            for place, image in enumerate(images)
            if isinstance(image, InputImage) and not known.isdisjoint(spellings.of(image.name))
        ]

    @property
    def table_bytes(self) -> int:
        """What writing its rows again takes at most: the table is made in memory, in copies."""
        widest = max((len(row.name) + len(row.reason) for row in self.rows), default=0)
        return len(self.rows) * (_ROW_BYTES + _COPIES * widest)

    def already(self, images: Sequence[Image]) -> str:
        """Why these images are left out."""
        names = and_others([image.name for image in images])
        return f"{names}: in {self.path} already; give another exposure another name."

    def rows_with(self, new: Sequence[InputRow]) -> list[InputRow]:
        """The rows of the updated mosaic: a new trial takes the place of one that failed."""
        names = {row.name for row in new}
        old = [row for row in self.rows if row.status == "used" or row.name not in names]
        return [*old, *new]


def read_finished(path: Path) -> Finished:
    """Read what an update has to know of a mosaic: headers and the table of inputs, no pixels.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    InputError
        It cannot be read, or is damaged.
    UsageError
        It is no mosaic of zmrs's, or one that a mean of old and new would not continue.
    """
    from astropy.io import fits  # noqa: PLC0415  (late: 0.3 s)

    stamp = _stamp(path)
    try:
        with fits.open(path, memmap=False, lazy_load_hdus=True) as hdus:
            header = hdus[0].header
            _check_maker(path, header)
            names = {hdu.name for hdu in hdus}
            _check_kind(path, header, names)
            rows = rows_in(hdus["INPUTS"])
    except FileNotFoundError:
        raise
    except (OSError, KeyError, ValueError, TypeError) as error:
        cause = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(
            f"{path}: cannot be read as a mosaic ({cause}); check the file."
        ) from error
    image = scan_image(path, 0, rule=WeightRule("weight", "COVERAGE"))
    if isinstance(image, LeftOut):
        raise InputError(image.reason)
    if image.storage.compressed:
        raise UsageError(f"{path}: it is compressed; unpack it to update it.")
    defaults = _defaults(header)
    unit_card = UNIT_CARDS.get(defaults["weight_by"])
    unit = math.nan if unit_card is None else header.get(unit_card[0], math.nan)
    return Finished(
        path,
        image,
        rows,
        int(header.get("NCOMBINE", sum(row.status == "used" for row in rows))),
        defaults,
        float(unit) if unit > 0 else None,
        stamp,
    )


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _check_maker(path: Path, header: Header) -> None:
    if header.get("SOFTNAME") != "zmrs":
        raise UsageError(
            f"{path}: it is no mosaic made by zmrs; name one, or make one with zmrs mosaic."
        )


def _check_kind(path: Path, header: Header, names: set[str]) -> None:
    """Refuse mosaics that a mean of old and new would not continue."""
    combine, stack = header.get("COMBINET"), header.get("ZMSTACK", "mean")
    missing = {"COVERAGE", "INPUTS"} - names
    if missing:
        raise InputError(
            f"{path}: it has no {' and no '.join(sorted(missing))} any more: edited, or cut off; "
            "take a copy that is whole."
        )
    cause = ""
    if combine != "mean":
        cause = f"its inputs were combined by {combine}, and only a mean can go on without them"
    elif stack != "mean":
        cause = f"the stacks of its batches were combined by {stack}, not by mean"
    elif header.get("ZMKEEP"):
        cause = "pixels of low coverage were emptied (--sds-min-coverage-keep)"
    elif header.get("ZMTWOP"):
        cause = "a second pass (--two-pass) has changed its pixels"
    elif "VAR" in names:
        cause = "it has variances (VAR), which an update does not carry on"
    if cause:
        raise UsageError(f"{path}: {cause}; make it anew from all inputs.")


def _defaults(header: Header) -> dict[str, Any]:
    """Options by which a mosaic was made."""
    plain = config.Options()
    return {
        name: header.get(keyword, getattr(plain, name))
        for name, (keyword, _) in config.OPTION_CARDS.items()
    }


class _Spellings:
    """Paths as they stand and without links; each folder is looked at once."""

    def __init__(self) -> None:
        self._real_folder = functools.cache(os.path.realpath)

    def of(self, name: str) -> set[str]:
        """Both, in the letters that a table of FITS has."""
        path = os.path.abspath(name)  # noqa: PTH100 (keeps links as they are)
        folder, last = os.path.split(path)
        real = os.path.join(self._real_folder(folder), last)  # noqa: PTH118 (thousands of names)
        if os.path.islink(real):  # noqa: PTH114
            real = os.path.realpath(real)
        return {spelling.encode("ascii", "replace").decode() for spelling in (path, real)}
