"""Canvases of gigapixels with Two-Pass: the promises of memory and of scratch, checked.

Each case is planned, then made, then removed.  What is checked: measured ≤ projected ≤ allowed; the
scratch folder never holds more than ``zmrs plan`` has foretold, and nothing at the end; the canvas
is as large as it should be, inputs overlap in every band, and the Two-Pass was not given up.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.contestants import MEMORY, SIGMA_PX, foretold, zmrs
from bench.measuring import MIB, FailedError, Run, measure
from bench.report import STEPS, table

CENTER = (150.0, 30.0)
SPARE_BYTES = 1 << 30
"""Left free beside what the case will write."""


@dataclass(frozen=True)
class Tile:
    """One input: where its middle lies on the canvas, how it is turned, its shape and pixels."""

    x: float
    y: float
    turn_deg: float
    shape: tuple[int, int]
    scale_arcsec: float


@dataclass(frozen=True)
class Giant:
    """A canvas of `edge` x `edge` pixels of one arcsec, and its inputs (int16).

    A dense one has no pixel that is not covered.
    """

    name: str
    words: str
    edge: int
    tiles: list[Tile]
    is_dense: bool = False

    @property
    def options(self) -> list[str]:
        """Of the command line, beside memory and threads."""
        return [
            *("--center", f"{CENTER[0]},{CENTER[1]}", "--scale", "1"),
            *("--size", f"{self.edge}x{self.edge}", "--max-output-pixels", str(self.edge**2)),
            *("--two-pass", "--two-pass-sigma", str(SIGMA_PX)),
        ]

    @property
    def input_bytes(self) -> int:
        """Bytes of pixels of the inputs."""
        return sum(2 * math.prod(tile.shape) for tile in self.tiles)


@dataclass
class Measured:
    """What was foretold of a case, and what came of it.

    `depths` are the least and the most inputs on a pixel, in the middle row of each band.
    """

    case: Giant
    told: dict[str, Any]
    run: Run
    scratch_bytes: int
    left_bytes: int
    depths: list[tuple[int, int]]
    broken: list[str] = field(default_factory=list)

    @property
    def least_depth(self) -> int:
        """How many inputs overlap at most in a band, the least of all bands."""
        return min(most for _, most in self.depths)

    @property
    def has_no_gap(self) -> bool:
        """Whether something covers every pixel that was looked at."""
        return all(least > 0 for least, _ in self.depths)


def woven(edge: int) -> Giant:
    """Six tall and six wide strips of coarse pixels, all of which reach across the whole canvas.

    Each overlaps its neighbours by 30 % and crosses all of the other kind, so every band has all
    tall ones in it, and nearly every pixel two to four inputs.
    """
    strips, coarse, turns = 6, 8, np.random.default_rng(11).uniform(-2.0, 2.0, 12)
    across = edge / (1 + (strips - 1) * 0.7)
    # Turned by two degrees a strip must be longer than the canvas.
    shape = (math.ceil(1.04 * edge / coarse), math.ceil(across / coarse))
    places = [(k - (strips - 1) / 2) * 0.7 * across for k in range(strips)]
    tall = [Tile(x, 0.0, t, shape, coarse) for x, t in zip(places, turns[:6], strict=True)]
    wide = [Tile(0.0, y, t, shape[::-1], coarse) for y, t in zip(places, turns[6:], strict=True)]
    words = f"6 tall and 6 wide strips of {coarse}'' pixels, each across the whole canvas"
    return Giant("woven", words, edge, tall + wide)


def dense(edge: int) -> Giant:
    """A raster of 11 x 11 tiles at the scale of the canvas, overlap 30 %, without a gap."""
    side, random = 11, np.random.default_rng(12)
    # Turned tiles leave a margin open at the border of the raster.
    tile = math.ceil(1.03 * edge / (1 + (side - 1) * 0.7))
    places = [(k - (side - 1) / 2) * 0.7 * tile for k in range(side)]
    turns = iter(random.uniform(-2.0, 2.0, side**2))
    tiles = [Tile(x, y, next(turns), (tile, tile), 1) for y in places for x in places]
    words = f"{side**2} tiles of {tile} x {tile} at the canvas's own scale"
    return Giant("dense", words, edge, tiles, is_dense=True)


def write_tiles(case: Giant, folder: Path) -> None:
    """Files of the same noise, each with a level of its own (by BZERO)."""
    from zmrs.simulate import make_frame_wcs
    from zmrs.simulate.wcs import direction_of_y

    random = np.random.default_rng(13)
    canvas = make_frame_wcs(CENTER, 1.0, 0.0, (case.edge, case.edge))
    middle = (case.edge - 1) / 2
    most = max(math.prod(tile.shape) for tile in case.tiles)
    noise = np.rint(random.normal(0.0, 10.0, most)).astype(">i2").tobytes()
    folder.mkdir()
    for number, tile in enumerate(case.tiles):
        at = (middle + tile.x, middle + tile.y)
        ra, dec = (float(v) for v in canvas.all_pix2world(*at, 0))
        turn = tile.turn_deg + direction_of_y(canvas, *at)
        wcs = make_frame_wcs((ra, dec), tile.scale_arcsec, turn, tile.shape)
        _write(folder / f"tile_{number:03d}.fits", tile, wcs, random.uniform(900.0, 1100.0), noise)


def _write(path: Path, tile: Tile, wcs: Any, level: float, noise: bytes) -> None:
    from astropy.io.fits import Header

    size = 2 * math.prod(tile.shape)
    header = Header([("SIMPLE", True), ("BITPIX", 16), ("NAXIS", 2)])
    header["NAXIS1"], header["NAXIS2"] = tile.shape[1], tile.shape[0]
    header["BZERO"], header["BSCALE"] = level, 1.0
    header.extend(wcs.to_header(), update=True)
    with path.open("wb") as file:
        file.write(header.tostring(padding=True).encode("ascii"))
        file.write(memoryview(noise)[:size])
        file.write(bytes(-size % 2880))


class Scratch:
    """Watches how much lies in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most_bytes = folder, 0

    def bytes(self) -> int:
        """Bytes of all files now."""
        total = 0
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
        return total

    def look(self, _pid: int) -> None:
        self.most_bytes = max(self.most_bytes, self.bytes())


def free_bytes(folder: Path) -> int:
    """Room that is left where a folder is."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def need_room(folder: Path, needed: int, words: str) -> None:
    """Raise `FailedError` where a disk has less room than that."""
    free = free_bytes(folder)
    if free < needed + SPARE_BYTES:
        raise FailedError(
            f"NOT RUN: {words} takes {needed / 1e9:.1f} GB, and of {free / 1e9:.1f} GB that are"
            f" free in {folder} one must stay free; name another folder with --work."
        )


def rows_of_coverage(path: Path, band_rows: int) -> Iterator[np.ndarray]:
    """The middle row of every band of a finished mosaic's coverage."""
    from astropy.io import fits

    with fits.open(path, memmap=False) as hdus:
        plane = hdus["COVERAGE"].section
        for top in range(0, plane.shape[0], band_rows):
            yield plane[min(top + band_rows // 2, plane.shape[0] - 1)]


def make(case: Giant, work: Path) -> Measured:
    """Plan a case, make it, measure, and remove everything."""
    with tempfile.TemporaryDirectory(dir=work, prefix=f"giant-{case.name}-") as name:
        folder = Path(name)
        # Before anything is written: image and coverage, and as much again for the second pass.
        need_room(folder, case.input_bytes + 16 * case.edge**2, f"the {case.name} canvas")
        tiles, out, scratch = folder / "tiles", folder / "out.fits", folder / "scratch"
        scratch.mkdir()
        write_tiles(case, tiles)
        told = foretold(tiles, [*case.options, "--scratch", str(scratch)])
        need_room(folder, told["write_bytes"] + told["scratch_bytes"], f"the {case.name} canvas")
        words = [*case.options, "--scratch", str(scratch)]
        command, watch = zmrs(case.name, tiles, out, words, 1), Scratch(scratch)
        run = measure(command, folder, watch.look, pause_s=0.02)
        rows = rows_of_coverage(out, told["plan"]["rows_per_chunk"])
        depths = [(int(row.min()), int(row.max())) for row in rows]
        found = Measured(case, told, run, watch.most_bytes, watch.bytes(), depths)
        found.broken = broken(found)
        return found


def broken(found: Measured) -> list[str]:
    """The promises that were not kept, in words."""
    stats, grid = found.run.stats, found.told["grid"]
    peak, foretold_bytes = found.run.peak_mib * MIB, found.told["scratch_bytes"]
    edge = found.case.edge
    promises = [
        (peak <= stats["allowed_bytes"], "the peak is above what is allowed"),
        (peak <= stats["projected_bytes"], "the peak is above what was projected"),
        (stats["projected_bytes"] <= stats["allowed_bytes"], "more is projected than allowed"),
        (found.scratch_bytes <= foretold_bytes, "scratch took more than was foretold"),
        (found.scratch_bytes > 0, "no scratch was seen"),
        (found.left_bytes == 0, "scratch was left behind"),
        (stats["two_pass"]["applied"], "the Two-Pass was given up"),
        ((grid["width"], grid["height"]) == (edge, edge), "the canvas has another size"),
        (len(found.depths) == stats["bands"], "the bands are others than were planned"),
        (found.least_depth >= 2, "there are bands in which no inputs overlap"),
        (found.has_no_gap or not found.case.is_dense, "there are pixels that nothing covers"),
    ]
    return [words for is_kept, words in promises if not is_kept]


def report(found: Sequence[Measured]) -> list[str]:
    """A table of all cases."""
    text = (
        f"Mosaics with `--two-pass --two-pass-sigma {SIGMA_PX} --memory {MEMORY} --threads 2`,"
        " matched, of int16 tiles whose noise repeats. `peak`: VmHWM; `scratch`: the most that lay"
        " in its folder, looked at fifty times a second; `depth`: how many inputs overlap at most"
        " in the middle row of a band, the least of all bands; GB are 10^9 bytes."
    )
    columns = ["canvas", "inputs", "bands", "depth", "peak MiB", "projected", "allowed"]
    columns += ["scratch GB", "foretold", "written GB", "wall s", "pass one s"]
    columns += [*(f"{step} s" for step in STEPS), "kept"]
    rows = [_row(one) for one in found]
    return ["", "## Gigapixels", "", text, *table(columns, rows)]


def _row(found: Measured) -> list[str]:
    stats, told = found.run.stats, found.told
    mib = [stats[name] / MIB for name in ("projected_bytes", "allowed_bytes")]
    sizes = [found.scratch_bytes, told["scratch_bytes"], told["write_bytes"]]
    # Of a Two-Pass that was given up, the last ones are missing.
    steps = [stats["two_pass"]["seconds"].get(step, math.nan) for step in STEPS]
    seconds = [found.run.wall_s, found.run.pass_one_s, *steps]
    return [
        f"{found.case.name}, {found.case.edge} x {found.case.edge}",
        found.case.words,
        f"{stats['bands']}",
        f"{found.least_depth}",
        *(f"{size:.1f}" for size in (found.run.peak_mib, *mib)),
        *(f"{size / 1e9:.3f}" for size in sizes),
        *(f"{time:.0f}" for time in seconds),
        "no: " + "; ".join(found.broken) if found.broken else "yes",
    ]


def run_giants(
    work: Path, cases: Sequence[Giant], tell: Callable[[str], object] = print
) -> tuple[list[Measured], list[str]]:
    """Make all cases; what came of them, and what went wrong."""
    made, wrong = [], []
    for case in cases:
        tell(f"{case.name}: {case.edge} x {case.edge}, {case.words}")
        try:
            made.append(make(case, work))
        except FailedError as error:
            wrong.append(f"{case.name}: {error}")
            continue
        wrong += [f"{case.name}: {words}" for words in made[-1].broken]
    return made, wrong
