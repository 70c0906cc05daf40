"""What is compared: zmrs in several ways, and others that do the same."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
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

CCDPROC = """
import sys, warnings
import numpy as np
from astropy.stats import mad_std
from ccdproc import combine
warnings.simplefilter("ignore")
made = combine(sys.argv[2:], method="average", unit="adu", sigma_clip=True,
               sigma_clip_low_thresh=3, sigma_clip_high_thresh=3, sigma_clip_func=np.ma.median,
               sigma_clip_dev_func=mad_std, mem_limit=2e9, dtype="float32")
made.write(sys.argv[1], overwrite=True)
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


def rejecting(work: Path, frames: Path, rounds: int) -> list[Command]:
    """Combines that look at all samples of a pixel, and what others have of the kind."""
    names = [str(path) for path in sorted(frames.glob("*.fits"))]
    found = []
    for combine in ("kappa-sigma", "winsorized", "median", "kappa-sigma-stream"):
        words = ["--combine", combine, "--match", "none"]
        found.append(zmrs(f"zmrs {combine}", frames, work / "zmrs.fits", words, rounds))
    found += swarp(work, names, rounds, ("BILINEAR",), ("CLIPPED", "MEDIAN"))
    if importlib.util.find_spec("ccdproc") is None:
        print("ccdproc is not installed and not compared (pip install ccdproc)")
        return found
    out = work / "ccdproc.fits"
    argv = [sys.executable, "-c", CCDPROC, str(out), *names]
    found.append(Command("ccdproc.combine, frames not aligned", argv, [out], 1))
    return found


def swarp(
    work: Path,
    names: list[str],
    rounds: int,
    kernels: Sequence[str] = ("BILINEAR", "LANCZOS3"),
    combines: Sequence[str] = ("AVERAGE",),
) -> list[Command]:
    """SWarp with these kernels and combines, where it is installed."""
    program = shutil.which("SWarp")
    if not program:
        print("SWarp is not on the PATH and not compared (Debian package swarp)")
        return []
    (work / "list.txt").write_text("\n".join(names) + "\n")
    outputs = [work / "swarp.fits", work / "swarp.weight.fits"]
    found = []
    for kernel, combine in itertools.product(kernels, combines):
        argv = [program, "@list.txt", "-c", "/dev/null", "-RESAMPLING_TYPE", kernel]
        argv += ["-COMBINE_TYPE", combine, "-CLIP_SIGMA", "3", "-SUBTRACT_BACK", "N"]
        argv += ["-NTHREADS", "2"]
        argv += ["-IMAGEOUT_NAME", "swarp.fits", "-WEIGHTOUT_NAME", "swarp.weight.fits"]
        argv += ["-RESAMPLE_DIR", ".", "-WRITE_XML", "N", "-VERBOSE_TYPE", "QUIET"]
        times = max(rounds // 2, 1) if kernel == "BILINEAR" else 1
        name = f"SWarp {kernel.lower()}" + (f" {combine}" if combine != "AVERAGE" else "")
        found.append(Command(name, argv, outputs, times))
    return found
