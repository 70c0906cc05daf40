"""What is compared: zmrs in several ways, and others that do the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.measuring import Command

MEMORY = "256MiB"
SIGMA_PX = 50
MATCHES = ("none", "offset")

# The command line as it is, with the figures of the run and its peak in a file.
ZMRS = """
import atexit, json, sys
from zmrs import cli
cli._settle()  # as the command does, before NumPy is imported
from zmrs import pipeline

report, made, found = sys.argv.pop(1), pipeline.make_mosaic, {}

def make_mosaic(*args, **more):
    result = made(*args, **more)
    found.update(result.stats)
    return result

@atexit.register
def tell():
    with open("/proc/self/status") as status:
        peaks = [line.split()[1] for line in status if line.startswith("VmHWM")]
    with open(report, "w") as file:
        json.dump(found | {"hwm_bytes": int(peaks[0]) << 10}, file)

pipeline.make_mosaic = make_mosaic
cli.run(sys.argv[1:])
"""

REPROJECT = """
import sys
from astropy.io import fits
from reproject import reproject_interp
from reproject.mosaicking import find_optimal_celestial_wcs, reproject_and_coadd
hdus = [fits.open(p)[0] for p in sys.argv[2:]]
wcs, shape = find_optimal_celestial_wcs(hdus)
image, weight = reproject_and_coadd(hdus, wcs, shape_out=shape, reproject_function=reproject_interp,
                                    combine_function="mean", match_background=False)
fits.HDUList([fits.PrimaryHDU(image.astype("f4"), wcs.to_header()),
              fits.ImageHDU(weight.astype("f4"))]).writeto(sys.argv[1], overwrite=True)
"""

COPY = """
import sys, threading
from pathlib import Path
chunk = bytearray(4 << 20)
def read():
    for name in sys.argv[3:]:
        with open(name, "rb", buffering=0) as file:
            while file.readinto(chunk):
                pass
def write():
    block, left = memoryview(bytes(4 << 20)), int(sys.argv[2])
    with open(sys.argv[1], "wb", buffering=0) as file:
        while left > 0:
            left -= file.write(block[:left])
workers = [threading.Thread(target=read), threading.Thread(target=write)]
[w.start() for w in workers]; [w.join() for w in workers]
"""

IMPORTS = "import numpy, astropy.io.fits, astropy.wcs"


def words_of(kernel: str, match: str, *, two_pass: bool) -> list[str]:
    """Options that decide about pixels."""
    words = ["--kernel", kernel, "--match", match]
    return words + (["--two-pass", "--two-pass-sigma", str(SIGMA_PX)] if two_pass else [])


def zmrs(name: str, frames: Path, out: Path, words: list[str], rounds: int) -> Command:
    """A mosaic of all frames of a folder, by two threads within the memory of all comparisons."""
    figures = out.with_suffix(".json")
    argv = [sys.executable, "-c", ZMRS, str(figures), "mosaic", str(frames), "-o", str(out), "-q"]
    argv += ["--memory", MEMORY, "--threads", "2", *words]
    return Command(name, argv, [out], rounds, figures)


def foretold(frames: Path, words: list[str]) -> dict[str, Any]:
    """What ``zmrs plan`` says about such a mosaic."""
    argv = [sys.executable, "-m", "zmrs", "plan", str(frames), "--json", "-q", "--memory", MEMORY]
    done = subprocess.run(
        [*argv, "--threads", "2", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def ways(work: Path, frames: Path, rounds: int, matches: tuple[str, ...] = MATCHES,
         label: str = "") -> list[Command]:  # fmt: skip
    """Bilinear mosaics, matched or not, with and without Two-Pass; those without come first."""
    return [
        zmrs(
            f"zmrs bilinear --match {match}{' --two-pass' if two_pass else ''}{label}",
            frames,
            work / "zmrs.fits",
            words_of("bilinear", match, two_pass=two_pass),
            rounds,
        )
        for two_pass in (False, True)
        for match in matches
    ]


def everybody(
    work: Path, frames: Path, rounds: int, *, skip_reproject: bool
) -> tuple[list[Command], list[Command]]:
    """`ways`, and all others."""
    names = [str(path) for path in sorted(frames.glob("*.fits"))]
    words = words_of("lanczos3", "none", two_pass=False)
    others = [zmrs("zmrs lanczos3 --match none", frames, work / "zmrs.fits", words, rounds)]
    others += swarp(work, names, rounds)
    if not skip_reproject:
        out = work / "reproject.fits"
        argv = [sys.executable, "-c", REPROJECT, str(out), *names]
        others.append(Command("reproject_and_coadd (reproject_interp)", argv, [out], 1))
    out, size = work / "copy.bin", str(foretold(frames, words)["write_bytes"])
    argv = [sys.executable, "-c", COPY, str(out), size, *names]
    others.append(Command("bare copy (read all, write both planes)", argv, [out], rounds))
    imports = [sys.executable, "-c", IMPORTS]
    others.append(Command("imports of numpy and astropy alone", imports, [], rounds))
    return ways(work, frames, rounds), others


def swarp(work: Path, names: list[str], rounds: int) -> list[Command]:
    """SWarp with two kernels, where it is installed."""
    program = shutil.which("SWarp")
    if not program:
        print("SWarp is not on the PATH and not compared (Debian package swarp)")
        return []
    (work / "list.txt").write_text("\n".join(names) + "\n")
    outputs = [work / "swarp.fits", work / "swarp.weight.fits"]
    found = []
    for kernel in ("BILINEAR", "LANCZOS3"):
        argv = [program, "@list.txt", "-c", "/dev/null", "-RESAMPLING_TYPE", kernel]
        argv += ["-COMBINE_TYPE", "AVERAGE", "-SUBTRACT_BACK", "N", "-NTHREADS", "2"]
        argv += ["-IMAGEOUT_NAME", "swarp.fits", "-WEIGHTOUT_NAME", "swarp.weight.fits"]
        argv += ["-RESAMPLE_DIR", ".", "-WRITE_XML", "N", "-VERBOSE_TYPE", "QUIET"]
        times = max(rounds // 2, 1) if kernel == "BILINEAR" else 1
        found.append(Command(f"SWarp {kernel.lower()}", argv, outputs, times))
    return found
