"""Hold the GPU path against the CPU: the same pixels, and how fast. Prints a table; one call.

    python benchmarks/gpu.py [--small] [--work DIR]

Needs CuPy and a CUDA device; without one it says NOT RUN and ends with status 77.  With --small it
takes seconds and its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

from bench import gpu
from bench.report import machine, table
from bench.sets import Tiles
from zmrs.errors import DeviceError

NOT_RUN = 77
PROMISED = 1e-5


def same_pixels(hardware: gpu.Cuda, edge: int) -> list[str]:
    """The table of agreements; the worst comes last."""
    found = [*gpu.agreements(hardware, edge), gpu.two_pass_agreement(edge)]
    rows = [
        [one.words, f"{one.differ}", f"{one.worst:.1e}", "yes" if one.same_nan else "NO"]
        for one in found
    ]
    broken = [one.words for one in found if one.worst > PROMISED or not one.same_nan]
    lines = table(("made", "values that differ", "worst, relative", "same NaN"), rows)
    return [*lines, "", f"within {PROMISED:g}: {'NO: ' + '; '.join(broken) if broken else 'yes'}"]


def kernels(edge: int, n: int, work: Path | None) -> list[str]:
    """Kernels with resident data against the bandwidth of the device."""
    hardware = gpu.Stopwatch()
    hardware.allow(64 << 30)
    bandwidth = gpu.copy_bandwidth(hardware)
    rows = []
    combining = ("nearest", "bilinear", "bicubic", "lanczos3")
    all_found = [gpu.throughput(hardware, kernel, edge, n, rounds=5) for kernel in combining]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        all_found.append(gpu.decoding(hardware, Path(folder), edge, n, rounds=5))
    for found in all_found:
        rate = found.moved_bytes / found.seconds
        rows.append(
            [
                found.words,
                f"{1e3 * found.seconds:.2f}",
                f"{found.samples / found.seconds / 1e9:.1f}",
                f"{rate / 1e9:.0f}",
                f"{100 * rate / bandwidth:.0f}",
            ]
        )
    columns = ("made", "ms", "10^9 samples/s", "GB/s", "% of copying")
    return [f"copying within the device: {bandwidth / 1e9:.0f} GB/s", "", *table(columns, rows)]


def whole_runs(folder: Path, work: Path) -> list[str]:
    """From files to a file: GPU, CPU, and the plain way with CuPy."""
    out = work / "out.fits"
    paths = sorted(folder.glob("*.fits"))
    ways = {"zmrs, CPU": "off", "zmrs, GPU": "on"}
    lines = []
    for words, two_pass, cold in (
        ("from the page cache", False, False),
        ("from disk", False, True),
        ("two passes, from the page cache", True, False),
    ):
        runs = {
            name: gpu.best_run(folder, out, way, two_pass=two_pass, cold=cold)
            for name, way in ways.items()
        }
        seconds = {name: run.seconds for name, run in runs.items()}
        if not (two_pass or cold) and importlib.util.find_spec("cupyx") is not None:
            wcs, shape = runs["zmrs, CPU"].result.wcs, gpu.shape_of(out)
            plain = gpu.plain_cupy_seconds(paths, wcs, shape)
            seconds["CuPy map_coordinates, coordinates on the host"] = plain
        ours = seconds["zmrs, GPU"]
        rows = [[name, f"{s:.2f}", f"{s / ours:.1f}"] for name, s in seconds.items()]
        lines += [*table((words, "s", "times ours on the GPU"), rows), ""]
        if two_pass:
            gains = (f"{name} {run.gains_seconds:.2f} s" for name, run in runs.items())
            lines.append(f"of it from coverage to gains: {', '.join(gains)}")
    return lines


def main() -> int:
    """Everything, in one call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    try:
        hardware = gpu.Cuda()
    except DeviceError as error:
        print(f"NOT RUN: there is no CUDA device ({error})")
        return NOT_RUN
    edge, n = (120, 3) if given.small else (2048, 36)
    print(f"{hardware.name}; {machine()}\n")
    print("\n".join(same_pixels(hardware, 120 if given.small else 600)), "\n")
    print("\n".join(kernels(edge, n, given.work)), "\n")
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        tiles = Tiles(2 if given.small else 6, edge)
        folder = tiles.make(Path(work))
        print(f"{tiles.words}, from files to a file:\n")
        print("\n".join(whole_runs(folder, Path(work))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
