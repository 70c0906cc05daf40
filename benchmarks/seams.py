"""Measure the steps at the borders of inputs in finished mosaics, matched and not.

    python benchmarks/seams.py FOLDER_OF_FITS... [--pictures DIR] [--max-side PX]

For every edge of every input the mosaic is looked at on both sides: strips from 2 to 8 pixels
inside and outside of it.  The step of an edge is the difference of the medians of both strips, over
what the same strips moved 8 pixels further in and out say of the sky's own slope.  Told are the
median and the largest absolute step of a set's edges, of all channels, over the noise of the mosaic
(1.4826 / sqrt 2 times the median absolute difference of pixels that share no pixel of an input).
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import zmrs
from bench.report import table
from zmrs import inputs
from zmrs.report.preview import write_previews
from zmrs.weight_rule import weight_rule

MATCHES = ("none", "offset", "gain")
NEAR, FAR = (2.0, 8.0), (10.0, 16.0)
"""Strips at an edge, and beyond, in pixels of the output."""
RULE = weight_rule(None, "weight")
APART = 4
"""Pixels between two that have no noise in common."""
LEAST = 400
"""An edge counts where each strip has so many pixels."""


def edges(wcs: Any, frame: Any, shape: tuple[int, int]) -> list[np.ndarray]:
    """The four edges of a frame on the grid: (N, 2) x and y, a point each half pixel or less."""
    height, width = shape
    corners = np.array([(0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)], float)
    found = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        places = np.linspace(0.02, 0.98, 2 * int(np.hypot(*(b - a))))[:, None]
        x, y = (a + places * (b - a)).T
        found.append(np.stack(wcs.world_to_pixel(frame.pixel_to_world(x, y)), axis=1))
    return found


def strip(
    image: np.ndarray, line: np.ndarray, normal: np.ndarray, span: tuple[float, float]
) -> np.ndarray:
    """The pixels of a strip along a line, which lies so far off in the direction of `normal`."""
    parts = []
    for distance in np.arange(span[0], span[1], 1.0):
        x, y = np.rint(line + distance * normal).astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < image.shape[1]) & (y < image.shape[0])
        parts.append(image[y[inside], x[inside]])
    values = np.concatenate(parts)
    return values[np.isfinite(values)]


def steps(image: np.ndarray, lines: list[np.ndarray]) -> list[float]:
    """Steps at those of the lines that have mosaic on both sides."""
    found = []
    for line in lines:
        along = line[-1] - line[0]
        normal = np.array([-along[1], along[0]]) / np.hypot(*along)
        sides = [(span, sign) for span in (NEAR, FAR) for sign in (1, -1)]
        strips = [strip(image, line, sign * normal, span) for span, sign in sides]
        if min(map(len, strips)) < LEAST:
            continue
        one, other, beyond_one, beyond_other = map(np.median, strips)
        slope = ((beyond_one - one) + (other - beyond_other)) / (2 * (FAR[0] - NEAR[0]))
        found.append(abs(one - other - slope * (sum(NEAR) - 1)))
    return found


def noise(image: np.ndarray) -> float:
    """Standard deviation of the noise of a mosaic."""
    apart = image[:, APART:] - image[:, :-APART]
    return float(1.4826 / np.sqrt(2) * np.nanmedian(np.abs(apart)))


def measure(folder: Path, match: str, out: Path) -> list[str]:
    """A row of the table: median and largest step in units of the noise, and how many edges."""
    result = zmrs.mosaic([folder], out, match=match, memory="1GiB", overwrite=True)
    images = inputs.gather([folder], hdu=None, recursive=False, rule=RULE).images
    planes = np.atleast_3d(result.data.T).T
    sizes: list[float] = []
    for plane in planes:
        sigma = noise(plane)
        for image in images:
            lines = edges(result.wcs, image.wcs, inputs.shape_of(image))
            sizes += [step / sigma for step in steps(plane, lines)]
    return [match, f"{np.median(sizes):.3f}", f"{max(sizes):.2f}", str(len(sizes))]


def main() -> None:
    """Measure all folders, and keep pictures of the first and the best way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--max-side", type=int, default=600)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        for folder in options.folders:
            rows = []
            for match in MATCHES:
                out = Path(work) / f"{folder.name}_{match}.fits"
                rows.append(measure(folder, match, out))
                if options.pictures:
                    picture = options.pictures / f"{out.stem}.png"
                    unused = Path(work) / "coverage.png"
                    write_previews(out, picture, unused, max_side=options.max_side)
            print("\n".join([folder.name, *table(["match", "median", "largest", "edges"], rows)]))


if __name__ == "__main__":
    main()
