"""``zmrs update`` as users run it: what it refuses and says, and that OUT is whole at all times."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from test_resume import AT_ONCE, fill, kill_at, lines_of, result, small_disk, wait_for

import sky
from child import bare_env, clean_env, run, start, tree
from zmrs.config import Options
from zmrs.errors import OutputError
from zmrs.finished import read_finished
from zmrs.pipeline import make_mosaic
from zmrs.simulate import FrameSpec, make_frame_wcs, write_frames

SHAPE = (60, 70)


def write(folder: Path, number: int, shape: tuple[int, int], seed: int = 1) -> list[Path]:
    rng = np.random.default_rng(seed)
    specs = []
    for _ in range(number):
        wcs = make_frame_wcs(sky.CENTER_DEG, 2.0, rng.uniform(-10, 10), shape)
        wcs.wcs.crpix += rng.uniform(-10, 10, 2)
        specs.append(FrameSpec(wcs, shape, noise_sigma=5.0))
    return write_frames(folder, sky.tiny_sky(), specs, truth=False)


@pytest.fixture
def night(tmp_path: Path) -> list[Path]:
    """Four frames in a folder of their own."""
    return write(tmp_path / "night", 4, SHAPE)


def mosaic(out: Path, *words: object) -> Path:
    outcome = run("mosaic", *words, "-o", out)
    assert outcome.status == 0, outcome.err
    return out


def refused(out: Path, status: int, *words: object, says: str, env: dict[str, str]) -> None:
    """One sentence, the status, and everything as it was."""
    before, names = out.read_bytes(), tree(out.parent)
    outcome = run("update", *words, env=env)
    assert outcome.status == status, outcome.err
    lines = [line for line in outcome.remarks if line.startswith("zmrs: ")]
    assert len(lines) == 1, outcome.err
    assert says in lines[0]
    assert "Traceback" not in outcome.err
    assert out.read_bytes() == before
    assert tree(out.parent) == names


def test_the_folder_of_a_night_grows(night: list[Path], tmp_path: Path) -> None:
    """The whole folder is named every time; what the mosaic has is left out, in one line."""
    out, whole = tmp_path / "out.fits", tmp_path / "whole.fits"
    later = tmp_path / "later"
    later.mkdir()
    for path in night[2:]:
        path.rename(later / path.name)
    mosaic(out, night[0].parent)
    for path in sorted(later.iterdir()):
        path.rename(night[0].parent / path.name)
        outcome = run("update", out, night[0].parent, cwd=tmp_path)
        assert outcome.status == 0
        assert outcome.out == f"{out}\n"
        (remark,) = outcome.remarks
        assert f"in {out} already" in remark
    mosaic(whole, "--wcs", out, night[0].parent)
    assert np.array_equal(fits.getdata(out, "COVERAGE"), fits.getdata(whole, "COVERAGE"))
    np.testing.assert_allclose(fits.getdata(out), fits.getdata(whole), rtol=5e-7)
    table = fits.getdata(out, "INPUTS")
    assert table["NAME"].tolist() == [str(path) for path in night]
    assert set(table["STATUS"]) == {"used"}
    assert tree(tmp_path) >= {"out.fits"}
    says = f"in {out} already"
    refused(out, 4, out, night[0].parent, says=says, env=clean_env())
    refused(out, 4, out, night[0], "-o", tmp_path / "new.fits", says=says, env=clean_env())


def test_the_same_frame_by_another_name(night: list[Path], tmp_path: Path) -> None:
    """Relative and absolute names, links, and names from the folder of the mosaic are one."""
    umlaut = night[0].parent / "Bär.fits"
    night[0].rename(umlaut)
    made = run("mosaic", "night/Bär.fits", night[1], "-o", "night/out.fits", cwd=tmp_path)
    assert made.status == 0, made.err
    link = tmp_path / "link.fits"
    link.symlink_to(umlaut)
    out = night[0].parent / "out.fits"
    for name, folder in (
        (umlaut, tmp_path), ("night/../night/Bär.fits", tmp_path), (link, tmp_path),
        ("frame_0002.fits", out.parent),
    ):  # fmt: skip
        outcome = run("update", out, name, cwd=folder)
        assert outcome.status == 4, name
        assert "already" in outcome.err
    # A file of the same name elsewhere is another one.
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(night[2], other / "frame_0002.fits")
    assert run("update", out, "frame_0002.fits", cwd=other).status == 0
    assert fits.getval(out, "NCOMBINE") == 3


def test_the_mosaic_itself_is_no_frame(night: list[Path], tmp_path: Path) -> None:
    out = mosaic(tmp_path / "out.fits", *night[:2])
    refused(out, 2, out, night[2], out, says="the output is one of the inputs", env=clean_env())
    other = run("update", out, night[2], out, "-o", tmp_path / "other.fits")
    assert other.status == 0
    assert f"left out: {out}: in {out} already" in other.err
    # A link to it is followed, and stays one.
    link = tmp_path / "link.fits"
    link.symlink_to(out.name)
    assert run("update", link, night[3]).status == 0
    assert link.is_symlink()
    assert fits.getval(out, "NCOMBINE") == 3


REFUSED_MOSAICS = {
    "median": (("--combine", "median"), "combined by median"),
    "sum": (("--combine", "sum"), "combined by sum"),
    "emptied": (
        ("--mode", "sds", "--batch", "0", "--combine", "mean", "--sds-min-coverage-keep", "0.5"),
        "pixels of low coverage were emptied",
    ),
    "two passes": (("--two-pass",), "a second pass (--two-pass) has changed its pixels"),
    "variance": (("--variance",), "it has variances (VAR)"),
    "subs": (("--mode", "sds", "--batch", "2"), "combined by kappa-sigma"),
    "stacks": (
        ("--mode", "sds", "--batch", "2", "--combine", "mean"), "stacks of its batches",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_MOSAICS)
def test_mosaics_that_cannot_go_on(case: str, night: list[Path], tmp_path: Path) -> None:
    words, says = REFUSED_MOSAICS[case]
    out = mosaic(tmp_path / "out.fits", *night[:3], *words)
    refused(out, 2, out, night[3], says=says, env=clean_env())


def test_what_is_no_mosaic(night: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.fits"
    shutil.copy(night[0], out)
    env = clean_env()
    refused(out, 2, out, night[3], says="it is no mosaic made by zmrs", env=env)
    out.write_bytes(b"no FITS at all")
    refused(out, 4, out, night[3], says="cannot be read as a mosaic", env=env)
    mosaic(out, *night[:2], "--overwrite")
    stored = out.read_bytes()
    out.write_bytes(stored[: len(stored) // 2])
    refused(out, 4, out, night[3], says=f"{out}: ", env=env)
    assert run("update", tmp_path / "none.fits", night[3]).status == 4
    packed = tmp_path / "packed.fits.gz"
    mosaic(out, *night[:2], "--overwrite")
    with fits.open(out) as hdus:
        hdus.writeto(packed)
    refused(out, 2, packed, night[3], says="it is compressed", env=env)
    with fits.open(out) as hdus:
        del hdus["COVERAGE"]
        hdus.writeto(out, overwrite=True)
    refused(out, 4, out, night[3], says="it has no COVERAGE any more", env=env)


def test_what_contradicts(night: list[Path], tmp_path: Path) -> None:
    out = mosaic(tmp_path / "out.fits", *night[:2])
    more = {
        "--combine median": {"ZMRS_COMBINE": "median"},
        "--scale 1": {"ZMRS_SCALE": "1"},
        "--two-pass True": {"ZMRS_TWO_PASS": "1"},
        "--mode sds": {"ZMRS_MODE": "sds"},
        "--weight-by exposure": {"ZMRS_WEIGHT_BY": "exposure"},
    }
    for says, variables in more.items():
        refused(out, 2, out, night[3], says=says, env=clean_env(**variables))
    refused(out, 2, out, night[3], "--combine", "median", says="--combine", env=clean_env())
    table = tmp_path / "own.toml"
    table.write_text('projection = "CAR"\n')
    refused(out, 2, out, night[3], "--config", table, says="--projection CAR", env=clean_env())
    colour = sky.write_image(
        tmp_path / "colour.fits", np.ones((3, *SHAPE), np.float32), sky.frame_wcs(SHAPE)
    )
    refused(out, 4, out, colour, says="differ in their number of channels", env=clean_env())
    refused(out, 3, out, night[3], "--memory", "60MiB", says="60", env=clean_env())
    other = tmp_path / "other.fits"
    other.write_bytes(b"somebody's")
    refused(out, 2, out, night[3], "-o", other, says="exists already", env=clean_env())
    assert run("update", out, night[3], "-o", other, "--overwrite").status == 0
    assert fits.getval(other, "NCOMBINE") == 3


def test_weights_whose_unit_is_not_told(night: list[Path], tmp_path: Path) -> None:
    out = mosaic(tmp_path / "out.fits", *night[:2], "--weight-by", "exposure")
    assert fits.getval(out, "ZMEXPO") == 60.0
    fits.delval(out, "ZMEXPO")
    refused(out, 2, out, night[3], says="does not say what weighs 1", env=clean_env())


def test_bad_frames(night: list[Path], tmp_path: Path) -> None:
    """Left out and named among good ones; alone, or with --strict, they stop the update."""
    out = mosaic(tmp_path / "out.fits", *night[:2])
    bad = tmp_path / "bad.fits"
    bad.write_bytes(night[2].read_bytes()[:5000])
    empty = sky.write_image(
        tmp_path / "empty.fits", np.full(SHAPE, np.nan, np.float32), sky.frame_wcs(SHAPE)
    )
    refused(out, 4, out, bad, says="truncated", env=clean_env())
    refused(out, 4, out, empty, says="no valid pixel", env=clean_env())
    off = clean_env(ZMRS_ZERO_IS_BLANK="off")
    refused(out, 4, out, empty, says="no valid pixel", env=off)
    refused(out, 4, out, bad, night[2], "--strict", says="truncated", env=clean_env())
    outcome = run("update", out, bad, night[2], empty)
    assert outcome.status == 0
    assert sum("left out" in line for line in outcome.remarks) == 2
    table = fits.getdata(out, "INPUTS")
    assert dict(zip(table["NAME"], table["STATUS"], strict=True)) == {
        **{str(path): "used" for path in night[:3]}, str(bad): "left_out", str(empty): "left_out",
    }  # fmt: skip


def test_dates_and_sums(night: list[Path], tmp_path: Path) -> None:
    for number, path in enumerate(night):
        fits.setval(path, "DATE-OBS", value=f"2026-03-{9 - number:02}T20:00:00")
        fits.setval(path, "DATE-END", value=f"2026-03-{9 - number:02}T20:01:00")
        fits.setval(path, "EXPTIME", value=10.0 * 2**number)
        fits.setval(path, "STACKCNT", value=3)
        fits.setval(path, "FILTER", value="V" if number < 3 else "B")
    out = mosaic(tmp_path / "out.fits", *night[:2])
    assert run("update", out, night[2]).status == 0
    header = fits.getheader(out)
    assert [header[k] for k in ("NCOMBINE", "STACKCNT", "EXPTOTAL", "FILTER")] == [3, 9, 70.0, "V"]
    assert header["DATE-OBS"] == "2026-03-07T20:00:00"
    assert header["DATE-END"] == "2026-03-09T20:01:00"
    outcome = run("update", out, night[3])
    assert "2 different filters (B, V)" in outcome.err
    header = fits.getheader(out)
    assert [header[k] for k in ("NCOMBINE", "STACKCNT", "EXPTOTAL")] == [4, 12, 150.0]
    assert "FILTER" not in header
    assert header["DATE-OBS"] == "2026-03-06T20:00:00"


# --------------------------------------------------------------------------------- interruptions


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A mosaic of a dozen frames, and the folder of fifty more."""
    folder = tmp_path_factory.mktemp("large")
    shape = (300, 400)
    write(folder / "old", 12, shape)
    write(folder / "new", 50, shape, seed=2)
    out = folder / "reference.fits"
    assert run("mosaic", folder / "old", "-o", out, env=bare_env()).status == 0
    yield out, folder / "new"
    shutil.rmtree(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_on_the_way(number: int, large: tuple[Path, Path], tmp_path: Path) -> None:
    """OUT stays as it was, byte for byte; the same command goes on and ends as if undisturbed."""
    reference, new = large
    out, whole = tmp_path / "out.fits", tmp_path / "whole.fits"
    shutil.copy(reference, out)
    before = out.read_bytes()
    command = ("update", out, new, *AT_ONCE, "--memory", "160MiB")
    process = start(*command, env=bare_env())
    # The first two lines say which job it is; what is noted comes after them.
    wait_for(lambda: lines_of(out) > 2)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), said
    assert out.read_bytes() == before
    again = run(*command, env=bare_env())
    assert again.status == 0, again.err
    assert "going on with an interrupted run" in again.err
    assert tree(tmp_path) == {"out.fits"}
    assert run("update", reference, new, "-o", whole, env=bare_env()).status == 0
    assert result(out) == result(whole)


@pytest.mark.slow
def test_killed_at_random(large: tuple[Path, Path], tmp_path: Path) -> None:
    reference, new = large
    out, whole = tmp_path / "out.fits", tmp_path / "whole.fits"
    assert run("update", reference, new, "-o", whole, env=bare_env()).status == 0
    shutil.copy(reference, out)
    before = out.read_bytes()
    dice = np.random.default_rng(5)
    kills = ended = 0
    while kills < 8 or not ended:
        command = ("update", out, new, *AT_ONCE, "--memory", "160MiB")
        was_killed, said = kill_at(dice.uniform(0.5, 2.5), *command)
        if was_killed and out.read_bytes() == before:
            kills += 1
            continue
        # Complete, if it was not killed just after its end.
        assert was_killed or "mosaic of 62 inputs" in said
        assert result(out) == result(whole)
        ended += 1
        shutil.copy(reference, out)
        before = out.read_bytes()


def test_a_full_disk(large: tuple[Path, Path]) -> None:
    reference, new = large
    place = small_disk("30M")
    if place is None:
        pytest.skip("no small disk can be mounted here: NOT TESTED")
    try:
        out, ballast = Path(place) / "out.fits", Path(place) / "ballast"
        shutil.copy(reference, out)
        before = out.read_bytes()
        fill(ballast)
        outcome = run("update", out, new, env=bare_env())
        assert outcome.status == 5, outcome.err
        assert "Traceback" not in outcome.err
        assert out.read_bytes() == before
        with ballast.open("r+b") as file:
            file.truncate(ballast.stat().st_size - (1 << 20))
        outcome = run("update", out, new, env=bare_env())
        assert outcome.status == 5, outcome.err
        assert "the disk is full" in outcome.err
        assert out.read_bytes() == before
        ballast.unlink()
        assert run("update", out, new, env=bare_env()).status == 0
    finally:
        subprocess.run(["umount", place], check=True)
        Path(place).rmdir()


def test_two_updates_at_once_lose_nothing(large: tuple[Path, Path], tmp_path: Path) -> None:
    """The second is refused while the first runs; one that has read an old mosaic stops."""
    reference, new = large
    out = tmp_path / "out.fits"
    shutil.copy(reference, out)
    process = start("update", out, new, env=bare_env())
    wait_for(out.with_name("out.fits.zmrs-state").exists)
    process.send_signal(signal.SIGSTOP)
    few = sorted(new.iterdir())[:3]
    second = run("update", out, *few, env=bare_env())
    stale = read_finished(out)
    process.send_signal(signal.SIGCONT)
    assert second.status == 2
    assert "another run is making it" in second.err
    process.communicate()
    assert process.returncode == 0
    assert fits.getval(out, "NCOMBINE") == 62
    with pytest.raises(OutputError, match="another program has changed it meanwhile"):
        make_mosaic(few, out, Options(), base=stale)
    assert fits.getval(out, "NCOMBINE") == 62
    assert tree(tmp_path) == {"out.fits"}
