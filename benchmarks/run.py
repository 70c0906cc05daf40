"""Time the stages and whole commands, and write benchmarks/RESULTS.md.

    python benchmarks/run.py [--work DIR] [--rounds N] [--skip-reproject] [--skip-stages]

Whole commands are timed from outside, in turn (A B C, A B C, ...), so that a machine whose speed
drifts is fair to all; medians and the ratios of medians are what to quote.  Peak memory is the
VmHWM of the process itself.  The set is simulated once and kept in the work folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
MIB = 2**20
EDGE = 2048
PANELS = (6, 6)


@dataclass
class Run:
    """Figures of one finished process."""

    wall_s: float
    cpu_s: float
    peak_mib: float


@dataclass
class Command:
    """A contestant: what to run, what to remove before, how often."""

    name: str
    argv: list[str]
    outputs: list[Path]
    rounds: int
    runs: list[Run] = field(default_factory=list)

    def median(self, figure: str) -> float:
        return statistics.median(getattr(run, figure) for run in self.runs)


def measure(command: Command, folder: Path) -> Run:
    """Run a command once, from outside."""
    for path in command.outputs:
        path.unlink(missing_ok=True)
    with (folder / "log.txt").open("wb") as log:
        began = time.perf_counter()
        child = subprocess.Popen(command.argv, cwd=folder, stdout=log, stderr=log)
        peak_kib = 0
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            peak_kib = max(peak_kib, peak_of(child.pid))
            time.sleep(0.005)
        wall_s = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{command.name} failed:\n{(folder / 'log.txt').read_text()[-2000:]}")
    return Run(wall_s, usage.ru_utime + usage.ru_stime, peak_kib / 1024)


def peak_of(pid: int) -> int:
    """Peak resident memory of a living process, KiB."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def make_set(folder: Path) -> list[Path]:
    """36 frames of 2048 x 2048 float32, 30 % overlap, turned by up to 3 degrees."""
    frames = folder / "frames"
    if not (frames / "complete").exists():
        from zmrs import simulate

        center = (150.0, 30.0)
        wcs = simulate.dither_pattern(
            PANELS, (EDGE, EDGE), 1.0, center_deg=center, overlap=0.3, max_rotation_deg=3.0, seed=5
        )
        sky = simulate.Sky.random(
            3, center_deg=center, radius_deg=1.8, n_stars=6000, nebula_peak=0.0
        )
        specs = [
            simulate.FrameSpec(w, (EDGE, EDGE), noise_sigma=10.0, sky_level=1000.0) for w in wcs
        ]
        simulate.write_frames(frames, sky, specs, seed=1, truth=False)
        (frames / "complete").touch()
    return sorted(frames.glob("*.fits"))


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
    block = bytes(4 << 20)
    with open(sys.argv[1], "wb", buffering=0) as file:
        for _ in range(int(sys.argv[2]) // len(block)):
            file.write(block)
workers = [threading.Thread(target=read), threading.Thread(target=write)]
[w.start() for w in workers]; [w.join() for w in workers]
"""

IMPORTS = "import numpy, astropy.io.fits, astropy.wcs"


def contestants(folder: Path, frames: list[Path], options: argparse.Namespace) -> list[Command]:
    """What is compared, zmrs first."""
    zmrs = Path(sys.executable).parent / "zmrs"
    out = folder / "zmrs.fits"
    names = [str(path) for path in frames]
    common = ["--memory", "256MiB", "--threads", "2", "-q", "--match", "none", "-o", str(out)]
    found = [
        Command(
            f"zmrs {kernel}",
            [str(zmrs), "mosaic", str(folder / "frames"), "--kernel", kernel, *common],
            [out],
            options.rounds,
        )
        for kernel in ("bilinear", "lanczos3")
    ]
    swarp = shutil.which("SWarp")
    if swarp:
        (folder / "list.txt").write_text("\n".join(names) + "\n")
        outputs = [folder / "swarp.fits", folder / "swarp.weight.fits"]
        for kernel in ("BILINEAR", "LANCZOS3"):
            argv = [swarp, "@list.txt", "-c", "/dev/null", "-RESAMPLING_TYPE", kernel]
            argv += ["-COMBINE_TYPE", "AVERAGE", "-SUBTRACT_BACK", "N", "-NTHREADS", "2"]
            argv += ["-IMAGEOUT_NAME", "swarp.fits", "-WEIGHTOUT_NAME", "swarp.weight.fits"]
            argv += ["-RESAMPLE_DIR", ".", "-WRITE_XML", "N", "-VERBOSE_TYPE", "QUIET"]
            rounds = max(options.rounds // 2, 1) if kernel == "BILINEAR" else 1
            found.append(Command(f"SWarp {kernel.lower()}", argv, outputs, rounds))
    else:
        print("SWarp is not on the PATH and not compared (Debian package swarp)")
    if not options.skip_reproject:
        out = folder / "reproject.fits"
        argv = [sys.executable, "-c", REPROJECT, str(out), *names]
        found.append(Command("reproject_and_coadd (reproject_interp)", argv, [out], 1))
    out, size = folder / "copy.bin", str(2 * 4 * 9344 * 9350)
    argv = [sys.executable, "-c", COPY, str(out), size, *names]
    found.append(Command("bare copy (read all, write both planes)", argv, [out], options.rounds))
    imports = [sys.executable, "-c", IMPORTS]
    found.append(Command("imports of numpy and astropy alone", imports, [], options.rounds))
    return found


def run_all(commands: list[Command], folder: Path) -> None:
    """Each command as often as it wants, in turn."""
    for number in range(max(command.rounds for command in commands)):
        for command in commands:
            if number < command.rounds:
                command.runs.append(measure(command, folder))
                last = command.runs[-1]
                print(f"{command.name}: {last.wall_s:.2f} s, {last.peak_mib:.0f} MiB", flush=True)
    for command in commands:
        for path in command.outputs:
            path.unlink(missing_ok=True)


def stages() -> list[tuple[str, float, float]]:
    """Name, nanoseconds an element, millions of elements a second; from the Rust benchmarks."""
    rust = HERE.parent / "rust"
    subprocess.run(["cargo", "bench", "-p", "zmrs-core", "--quiet"], cwd=rust, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    rows = []
    for file in sorted((rust / "target" / "criterion").glob("**/new/estimates.json")):
        seconds = json.loads(file.read_text())["median"]["point_estimate"] * 1e-9
        info = json.loads((file.parent / "benchmark.json").read_text())
        elements = info["throughput"]["Elements"]
        rows.append((info["full_id"], seconds / elements * 1e9, elements / seconds / 1e6))
    return rows


def machine() -> str:
    """The machine and the build, in a few lines."""
    from importlib.metadata import version

    from zmrs import _zmrs

    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    build = _zmrs.build_info()
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "astropy", "reproject"))
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True)
    return (
        f"{cpu}, {len(os.sched_getaffinity(0))} processors, {ram:.0f} GiB, "
        f"{platform.system()}; Python {platform.python_version()}, {packages};"
        f" {rustc.stdout.split('(')[0].strip()}, {build['profile']} build, {build['simd']}"
    )


def report(commands: list[Command], stage_rows: list[tuple[str, float, float]]) -> str:
    """RESULTS.md."""
    base = commands[0].median("wall_s")
    lines = [
        "# Measured",
        "",
        f"Made by `make bench` on {time.strftime('%Y-%m-%d')}: {machine()}.",
        "",
        "## Whole commands",
        "",
        f"{PANELS[0] * PANELS[1]} frames of {EDGE} x {EDGE} float32, overlap 30 %, turned by up"
        " to 3 degrees, onto one canvas of 87 Mpix; mean, no matching; mosaic and weight plane"
        " written; files in the page cache; two threads; zmrs with `--memory 256MiB`. Medians;"
        " `times` is"
        f" wall time over that of {commands[0].name}.",
        "",
        "| command | runs | wall s (min to max) | CPU s | peak MiB | times |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for command in commands:
        walls = [run.wall_s for run in command.runs]
        spread = f"{command.median('wall_s'):.2f} ({min(walls):.2f} to {max(walls):.2f})"
        figures = f"{command.median('cpu_s'):.2f} | {command.median('peak_mib'):.0f}"
        times = command.median("wall_s") / base
        lines.append(f"| {command.name} | {len(walls)} | {spread} | {figures} | {times:.2f} |")
    if stage_rows:
        lines += [
            "",
            "## Stages",
            "",
            "One thread, from `cargo bench`. `decode`: stored samples to float32. `pass`: four"
            " frames turned by three degrees onto 1024 x 1024 pixels, coordinates, sampling and"
            " combining together, in memory.",
            "",
            "| stage | ns a sample | million samples a second |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {name} | {ns:.2f} | {rate:.0f} |" for name, ns, rate in stage_rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-reproject", action="store_true", help="it takes minutes")
    parser.add_argument("--skip-stages", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    frames = make_set(options.work)
    commands = contestants(options.work, frames, options)
    run_all(commands, options.work)
    text = report(commands, [] if options.skip_stages else stages())
    (HERE / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
