"""Two pictures of a finished mosaic: its sky, and how deeply each part of it was covered.

A mosaic may be larger than memory, so it is never loaded: rows are read in chunks at their place in
the file and averaged over square blocks at once.  The black and white points come first, from a
sample of block rows spread over the mosaic; then one sweep makes the 8-bit picture.  Both pictures
have north up as on the sky (the first FITS row is the lowest row of the picture).

*Stretch.*  ``p = asinh(v / b) / asinh(1 / b)`` with ``v = (luminance - black) / (white - black)``;
``b`` is chosen so that the median pixel gets a set tone.  In colour each channel has its own black
point, one stretch is computed on the mean of the channels and scales all three, so that colours
survive in bright parts; what would exceed the brightest tone is scaled down as a whole.

*Uncovered pixels* (NaN) are nearly black, darker than any covered sky, because a picture is then
legible on every background; with an alpha channel they are transparent.  A block that is covered in
part is mixed accordingly, so borders are smooth.
"""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from zmrs.errors import DiskFullError, InputError, OutputError, UsageError
from zmrs.report.alpha import alpha_mask

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["write_previews"]

Floats = NDArray[np.float64]
Float32s = NDArray[np.float32]
Bytes = NDArray[np.uint8]

FITS_BLOCK = 2880
CHUNK_BYTES = 2 << 20
"""Of one channel read at a time; about four times this is held.  Larger ones leave the cache."""

SAMPLED_BLOCK_ROWS = 96
"""Block rows that the black and white points are taken from."""

ALPHAS = ("none", "footprint", "coverage")

DARK = 9
"""Tone of uncovered pixels."""


@dataclass(frozen=True)
class _Plane:
    """Where a float32 image lies in a FITS file."""

    offset: int
    shape: tuple[int, int, int]
    """(C, H, W); C is 1 for a 2-D image."""


def write_previews(
    mosaic_path: str | Path,
    image_png: str | Path | None = None,
    coverage_png: str | Path | None = None,
    *,
    max_side: int = 2048,
    black_percentile: float = 0.5,
    white_percentile: float = 99.85,
    median_tone: float = 0.16,
    saturation: float = 1.15,
    alpha: str = "none",
) -> tuple[Path, Path]:
    """Write pictures of a mosaic and of its coverage.

    Parameters
    ----------
    mosaic_path
        ``OUT.fits`` as zmrs writes it: float32 primary (H, W) or (3, H, W), NaN where uncovered,
        and a float32 extension COVERAGE (H, W).
    image_png, coverage_png
        Where to write; replaced if they exist.  Not given, they are ``OUT_preview.png`` and
        ``OUT_coverage.png`` beside the mosaic; if only ``image_png`` is given, as ``PIC.png``, the
        coverage becomes ``PIC_coverage.png`` beside that.
    max_side
        Longest side of the pictures in pixels.  Mosaics that fit are shown pixel by pixel.
    black_percentile, white_percentile
        Of the averaged, covered pixels: what becomes black, and what becomes white.
    median_tone
        Brightness of the median pixel in the picture, 0..1.
    saturation
        Factor on the distance of colours from grey; 1 leaves them alone.
    alpha
        ``none``; ``footprint``: a channel of opacity that is 0 where nothing was observed;
        ``coverage``: one in proportion to the coverage (`zmrs.report.alpha.alpha_mask`).

    Returns
    -------
    tuple of Path
        The picture (8-bit grey or RGB, with alpha if asked for), and the coverage (a palette
        image: dark where 0, then from indigo to light yellow in equal steps of perceived lightness
        up to the greatest coverage).

    Raises
    ------
    FileNotFoundError
        Without a mosaic.
    InputError
        If the file is not a mosaic as described.
    UsageError
        If `alpha` is something else.
    OutputError
        If a picture cannot be written (`DiskFullError` if for lack of space).

    Notes
    -----
    Holds at most about 45 MiB beside the interpreter, whatever the size of the mosaic.
    """
    if max_side < 1:
        raise OutputError(f"max_side is {max_side}: a picture needs at least one pixel")
    if alpha not in ALPHAS:
        raise UsageError(f"alpha: '{alpha}' is not one of {', '.join(ALPHAS)}.")
    mosaic = Path(mosaic_path)
    image_path, coverage_path = _picture_paths(mosaic, image_png, coverage_png)
    image, coverage = _find_planes(mosaic)
    recipe = _StretchRecipe(black_percentile, white_percentile, median_tone, saturation)
    side = -(-max(image.shape[1:]) // max_side)
    with mosaic.open("rb") as file:
        depth = _Blocks(file, mosaic, coverage, side)
        mask = alpha_mask(coverage=_depth(depth)) if alpha == "coverage" else None
        blocks = _Blocks(file, mosaic, image, side)
        _save(_sky_picture(blocks, recipe, alpha, mask), image_path)
        _save(_coverage_picture(depth), coverage_path)
    return image_path, coverage_path


def _picture_paths(
    mosaic: Path, image_png: str | Path | None, coverage_png: str | Path | None
) -> tuple[Path, Path]:
    """Apply the default names; refuse to write over the mosaic or one picture over the other."""
    stem = mosaic.name.removesuffix(".gz").removesuffix(".fz")
    image = Path(image_png) if image_png else mosaic.with_name(f"{Path(stem).stem}_preview.png")
    if coverage_png:
        coverage = Path(coverage_png)
    elif image_png:
        coverage = image.with_name(f"{image.stem}_coverage.png")
    else:
        coverage = mosaic.with_name(f"{Path(stem).stem}_coverage.png")
    if len({p.resolve() for p in (mosaic, image, coverage)}) < 3:
        raise OutputError(
            f"{mosaic.name}: mosaic, preview and coverage picture need three different names"
        )
    return image, coverage


# ------------------------------------------------------------------------------ reading the file


def _find_planes(path: Path) -> tuple[_Plane, _Plane]:
    """Find the primary image and the COVERAGE extension by reading headers only."""
    image: _Plane | None = None
    for name, plane in _image_hdus(path):
        if image is None:
            image = plane
            if image is None:
                raise InputError(
                    f"{path}: the primary HDU is no float32 image of shape (H, W) or (3, H, W); "
                    "give a mosaic that zmrs has written"
                )
        elif name == "COVERAGE":
            if plane is None or plane.shape != (1, *image.shape[1:]):
                raise InputError(f"{path}: COVERAGE is no float32 image of the mosaic's size")
            return image, plane
    raise InputError(f"{path}: has no extension COVERAGE; give a mosaic that zmrs has written")


def _image_hdus(path: Path) -> Iterator[tuple[str, _Plane | None]]:
    """Yield EXTNAME and place of each HDU, None in place of what is not a float32 image."""
    from astropy.io.fits import Header  # noqa: PLC0415

    with path.open("rb") as file:
        if file.read(9) != b"SIMPLE  =":
            raise InputError(f"{path}: is not a FITS file; give a mosaic that zmrs has written")
        file.seek(0)
        while True:
            try:
                header = Header.fromfile(file)
            except EOFError:
                return
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: has a damaged FITS header ({error})") from error
            axes = [int(header[f"NAXIS{i}"]) for i in range(header["NAXIS"], 0, -1)]
            n_values = math.prod(axes) if axes else 0
            bits = abs(header["BITPIX"]) * header.get("GCOUNT", 1)
            n_bytes = (header.get("PCOUNT", 0) + n_values) * bits // 8
            offset = file.tell()
            yield str(header.get("EXTNAME", "")), _as_plane(header["BITPIX"], axes, offset)
            file.seek(offset + -(-n_bytes // FITS_BLOCK) * FITS_BLOCK)


def _as_plane(bitpix: int, axes: list[int], offset: int) -> _Plane | None:
    if bitpix != -32 or len(axes) not in (2, 3) or min(axes) < 1:
        return None
    channels = axes[0] if len(axes) == 3 else 1
    return _Plane(offset, (channels, axes[-2], axes[-1])) if channels in (1, 3) else None


# --------------------------------------------------------------------------- averaging over blocks


@dataclass(frozen=True)
class _Blocks:
    """The blocks of ``side`` x ``side`` mosaic pixels that become one picture pixel each."""

    file: BinaryIO
    path: Path
    plane: _Plane
    side: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the picture."""
        _, height, width = self.plane.shape
        return -(-height // self.side), -(-width // self.side)

    def groups(self) -> list[tuple[int, int]]:
        """Return runs [j0, j1) of block rows that are averaged together."""
        n_rows = self.shape[0]
        step = max(1, CHUNK_BYTES // (4 * self.plane.shape[2] * self.side))
        return [(j, min(j + step, n_rows)) for j in range(0, n_rows, step)]

    def average(self, j0: int, j1: int) -> tuple[Float32s, Float32s]:
        """Average block rows [j0, j1).

        Returns
        -------
        mean, float32 (C, j1 - j0, columns)
            Of the finite pixels of each block; NaN in blocks without any.
        share, float32 (j1 - j0, columns)
            Finite part of each block (least of the channels), 0..1.
        """
        size = self._sizes(j0, j1)
        mean = np.empty((self.plane.shape[0], *size.shape), np.float32)
        share = np.ones(size.shape, np.float32)
        for channel, averaged in enumerate(mean):
            total, count = self._sums(channel, j0, j1)
            with np.errstate(invalid="ignore"):
                np.divide(total, count, out=averaged, casting="same_kind")
            np.minimum(share, count / size, out=share, casting="same_kind")
        return mean, share

    def _sizes(self, j0: int, j1: int) -> Floats:
        """Return how many mosaic pixels each block has: fewer at the upper and right borders."""
        _, height, width = self.plane.shape
        n_rows, n_columns = j1 - j0, self.shape[1]
        rows = np.minimum(self.side, height - self.side * np.arange(j0, j0 + n_rows))
        columns = np.minimum(self.side, width - self.side * np.arange(n_columns))
        return np.outer(rows, columns).astype(np.float64)

    def _sums(self, channel: int, j0: int, j1: int) -> tuple[Floats, Floats]:
        """Return sum and number of finite pixels of each block, (j1 - j0, columns)."""
        _, height, width = self.plane.shape
        total, count = np.zeros((2, j1 - j0, self.shape[1]))
        piece = max(1, CHUNK_BYTES // (4 * width))
        # Whole blocks go through in one piece if they fit, otherwise a block row in several.
        step = self.side * max(1, piece // self.side)
        end = min(j1 * self.side, height)
        for start in range(j0 * self.side, end, step):
            for row0 in range(start, min(start + step, end), piece):
                rows = self._read(channel, row0, min(row0 + piece, start + step, end))
                finite = np.isfinite(rows)
                np.copyto(rows, 0.0, where=~finite)
                first = row0 // self.side - j0
                for sums, values in ((total, rows), (count, finite)):
                    folded = self._fold(values)
                    sums[first : first + len(folded)] += folded
        return total, count

    def _read(self, channel: int, row0: int, row1: int) -> Float32s:
        """Read rows [row0, row1) of one channel, float32 in native byte order."""
        _, height, width = self.plane.shape
        count = (row1 - row0) * width
        self.file.seek(self.plane.offset + 4 * (channel * height + row0) * width)
        values = np.fromfile(self.file, ">f4", count)
        if values.size < count:
            raise InputError(f"{self.path}: is cut short; its data end before its header says")
        return values.astype(np.float32).reshape(row1 - row0, width)

    def _fold(self, rows: Float32s | NDArray[np.bool_]) -> Floats:
        """Sum over blocks, of rows that begin at a block's border or lie within one block.

        First down the rows, which runs along memory, then along what is left.
        """
        if self.side == 1:
            return rows.astype(np.float64)
        whole = len(rows) // self.side * self.side
        kind = np.float32 if rows.dtype == np.float32 else np.uint32
        parts = []
        if whole:
            parts.append(rows[:whole].reshape(-1, self.side, rows.shape[1]).sum(1, dtype=kind))
        if whole < len(rows):
            parts.append(rows[whole:].sum(0, dtype=kind, keepdims=True))
        starts = np.arange(0, rows.shape[1], self.side)
        return np.add.reduceat(np.concatenate(parts), starts, axis=1, dtype=np.float64)


# ------------------------------------------------------------------------------------ the stretch


@dataclass(frozen=True)
class _Stretch:
    """The tone curve, and the black points before it."""

    black: Float32s
    """One for each channel, shape (C, 1, 1)."""
    white: float
    """Luminance above black that becomes white; positive."""
    softness: float
    """Where the asinh turns from linear to logarithmic, as a share of white."""
    saturation: float

    def tones(self, mean: Float32s) -> Float32s:
        """Return tones 0..1 for averaged pixels (C, h, w); NaN becomes 0."""
        light = np.nan_to_num(mean - self.black, nan=0.0)
        if len(light) == 1:
            return np.clip(self._curve(light), 0.0, 1.0)
        luminance = light.mean(axis=0)
        # Where the light is about as faint as the black point is uncertain, colour is noise: the
        # floor fades it to grey.
        floor = np.float32(0.02 * self.softness * self.white)
        tone = np.minimum(self._curve(luminance), np.float32(1.0))
        ratio = np.float32(self.saturation) * tone / np.maximum(luminance, floor)
        tint = (light - luminance) * ratio
        # Too bright a colour fades towards white at constant luminance; clipping would flatten it.
        np.maximum(tint, -tone, out=tint)
        tint *= np.minimum((1.0 - tone) / np.maximum(tint.max(axis=0), 1e-6), 1.0)
        tint += tone
        return np.asarray(tint, np.float32)

    def _curve(self, light: Float32s) -> Float32s:
        scaled = np.maximum(light, 0.0) * np.float32(1.0 / (self.white * self.softness))
        curve = np.arcsinh(scaled) / math.asinh(1.0 / self.softness)
        return np.asarray(curve, np.float32)


@dataclass(frozen=True)
class _StretchRecipe:
    black_percentile: float
    white_percentile: float
    median_tone: float
    saturation: float

    def for_blocks(self, blocks: _Blocks) -> _Stretch:
        """Measure a sample of block rows, evenly spread from the first to the last."""
        n_rows = blocks.shape[0]
        picked = np.unique(np.linspace(0, n_rows - 1, min(n_rows, SAMPLED_BLOCK_ROWS)).astype(int))
        sample = np.concatenate([blocks.average(j, j + 1)[0][:, 0] for j in picked], axis=1)
        sample = sample[:, np.isfinite(sample).all(axis=0)]
        if not sample.size:
            sample = np.zeros((blocks.plane.shape[0], 1), np.float32)
        black = np.percentile(sample, self.black_percentile, axis=1, keepdims=True)
        luminance = (sample - black).mean(axis=0)
        white, median = np.percentile(luminance, [self.white_percentile, 50.0])
        if not white > 0.0:
            white = 1.0
        softness = _softness(max(float(median / white), 0.0), self.median_tone)
        return _Stretch(
            black.astype(np.float32)[:, :, np.newaxis], float(white), softness, self.saturation
        )


def _softness(median: float, tone: float) -> float:
    """Solve asinh(median / b) / asinh(1 / b) = tone for b within [1e-4, 10], by bisection.

    The left side falls from 1 to ``median`` as b grows, so a median above the tone ends at 10,
    where the curve is straight, and a median of zero at 1e-4.
    """
    low, high = math.log(1e-4), math.log(10.0)
    for _ in range(40):
        middle = 0.5 * (low + high)
        b = math.exp(middle)
        if math.asinh(median / b) / math.asinh(1.0 / b) > tone:
            low = middle
        else:
            high = middle
    return math.exp(high)


# ----------------------------------------------------------------------------------- the pictures


def _sky_picture(blocks: _Blocks, recipe: _StretchRecipe, alpha: str, mask: Bytes | None) -> Image:
    """Make the picture of the sky in one sweep over the mosaic; `mask` is its alpha channel."""
    stretch = recipe.for_blocks(blocks)
    n_rows, n_columns = blocks.shape
    colours = blocks.plane.shape[0]
    pixels = np.empty((n_rows, n_columns, colours + (alpha != "none")), np.uint8)
    for j0, j1 in blocks.groups():
        mean, share = blocks.average(j0, j1)
        # Half a block is enough, so that single dead pixels do not pepper the picture.
        seen = np.minimum(2.0 * share, 1.0)
        tones = DARK + 1.0 + (254.0 - DARK) * stretch.tones(mean)
        if mask is not None:
            pixels[j0:j1, :, -1] = mask[j0:j1]
        elif alpha == "footprint":
            pixels[j0:j1, :, -1] = np.rint(255.0 * seen)
        else:
            tones = DARK + (tones - DARK) * seen
        pixels[j0:j1, :, :colours] = np.rint(tones).transpose(1, 2, 0)
    return _pillow(pixels)


def _depth(blocks: _Blocks) -> Float32s:
    """Average the coverage over each block; 0 is none."""
    depth = np.empty(blocks.shape, np.float32)
    for j0, j1 in blocks.groups():
        depth[j0:j1] = blocks.average(j0, j1)[0][0]
    np.nan_to_num(depth, copy=False, nan=0.0)
    return depth


def _coverage_picture(blocks: _Blocks) -> Image:
    """Make the picture of the coverage: index 0 for none, 1..255 up to the greatest."""
    depth = _depth(blocks)
    greatest = max(float(depth.max()), 1e-30)
    depth *= np.float32(255.0 / greatest)
    np.maximum(depth, 1.0, out=depth, where=depth > 0.0)
    index = np.rint(depth, out=depth).astype(np.uint8)
    return _pillow(index[:, :, np.newaxis], coverage_palette())


def coverage_palette() -> Bytes:
    """Return 256 sRGB colours whose lightness rises in equal steps; the first is the background.

    The path runs through the OKLab space (lightness, two colour axes): lightness from 0.24 to 0.95
    in a straight line while the hue turns from indigo over teal and green to yellow and the chroma
    swells in between.

    Returns
    -------
    ndarray, uint8, (256, 3)
    """
    t = np.linspace(0.0, 1.0, 255)
    lightness = 0.24 + 0.71 * t
    hue = np.radians(285.0 - 180.0 * t)
    chroma = 0.075 + 0.07 * np.sin(np.pi * t) ** 1.2
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])
    to_cones = np.array(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ]
    )
    to_linear_srgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_linear_srgb @ (to_cones @ lab) ** 3, 0.0, 1.0)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colours = np.rint(255.0 * srgb).astype(np.uint8).T
    return np.concatenate([np.full((1, 3), DARK, np.uint8), colours])


def _pillow(pixels: Bytes, palette: Bytes | None = None) -> Image:
    """Wrap (h, w, bands) for Pillow with the first row at the bottom."""
    from PIL import Image  # noqa: PLC0415

    height, width, bands = pixels.shape
    mode = "P" if palette is not None else {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[bands]
    # Upside down by a negative stride of the raw decoder: no copy of our own.
    picture = Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, -1)
    if palette is not None:
        picture.putpalette(palette.tobytes())
    return picture


def _save(picture: Image, path: Path) -> None:
    """Write a PNG under a temporary name beside its place, then rename it."""
    part = path.with_name(f".{path.name}.part")
    try:
        picture.save(part, "PNG", compress_level=4)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        kind = DiskFullError if error.errno == errno.ENOSPC else OutputError
        raise kind(
            f"{path}: the picture cannot be written ({error.strerror or error}); "
            "choose another place with -o"
        ) from error
