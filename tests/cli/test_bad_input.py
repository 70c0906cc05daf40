"""Whatever is wrong: the right exit status, one sentence, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from child import Outcome, clean_env, run, run_code, start, tree
from sky import alive, constant_frames, frame_wcs, write_image, write_mosaic, write_tiles

pytestmark = pytest.mark.slow  # a process each

SHAPE = (48, 60)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two frames with which nothing is wrong."""
    return write_tiles(tmp_path_factory.mktemp("good"), alive(constant_frames([1.0, 2.0], SHAPE)))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder for the output."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def assert_refused(outcome: Outcome, status: int, *fragments: object) -> None:
    """The run failed with this status and one sentence that holds all fragments."""
    assert outcome.status == status, outcome.err
    assert outcome.out == ""
    assert len(outcome.remarks) == 1, outcome.err
    [sentence] = outcome.remarks
    assert sentence.startswith("zmrs: ")
    assert "unforeseen" not in sentence
    for fragment in fragments:
        assert str(fragment) in sentence


# ------------------------------------------------------------------------------- bad inputs


def header_with(**cards: object) -> fits.Header:
    header = frame_wcs(SHAPE).to_header()
    header.update(cards)
    return header


def write(path: Path, data: np.ndarray | None, **cards: object) -> None:
    fits.PrimaryHDU(data, header_with(**cards)).writeto(path)


def patched(path: Path, keyword: str, value: str) -> None:
    """Overwrite the value of a card byte by byte: astropy would not write such things."""
    write(path, np.ones(SHAPE, np.float32))
    raw = path.read_bytes()
    at = raw.index(f"{keyword:8}=".encode())
    path.write_bytes(raw[:at] + f"{keyword:8}= {value:>20}".ljust(80).encode() + raw[at + 80 :])


def cut_to(path: Path, count: int) -> None:
    write(path, np.ones(SHAPE, np.float32))
    path.write_bytes(path.read_bytes()[:count])


def claims_a_million_squared(path: Path) -> None:
    write(path, np.ones(SHAPE, np.float32))
    raw = path.read_bytes()
    for n, length in ((1, SHAPE[1]), (2, SHAPE[0])):
        card = f"NAXIS{n}  = {length:>20}".encode()
        assert card in raw
        raw = raw.replace(card, f"NAXIS{n}  = {10**6:>20}".encode())
    path.write_bytes(raw)


def only_a_table(path: Path) -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("A", "D", array=np.zeros(3))])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)


BAD: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.touch(),
    "not_fits": lambda path: path.write_text("hello"),
    "cut_in_the_header": lambda path: cut_to(path, 1000),
    "cut_in_the_data": lambda path: cut_to(path, 2880 + 500),
    "no_image": only_a_table,
    "no_wcs": lambda path: fits.PrimaryHDU(np.ones(SHAPE, np.float32)).writeto(path),
    "linear_wcs": lambda path: write(
        path, np.ones(SHAPE, np.float32), CTYPE1="LINEAR", CTYPE2="LINEAR", CUNIT1="m", CUNIT2="m"
    ),
    "nan_in_crval": lambda path: patched(path, "CRVAL1", "NaN"),
    "text_in_crval": lambda path: patched(path, "CRVAL1", "'here'"),
    "singular_matrix": lambda path: write(path, np.ones(SHAPE, np.float32), CDELT1=0.0),
    "no_pixels": lambda path: write(path, np.ones((0, 60), np.float32)),
    "one_dimension": lambda path: write(path, np.ones(60, np.float32)),
    "five_dimensions": lambda path: write(path, np.ones((2, 2, 2, 20, 30), np.float32)),
    "unknown_bitpix": lambda path: patched(path, "BITPIX", "24"),
    "trillion_pixels": claims_a_million_squared,
    "folder": lambda path: path.mkdir(),
    "all_nan": lambda path: write(path, np.full(SHAPE, np.nan, np.float32)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_input_alone(kind: str, tmp_path: Path, place: Path) -> None:
    bad = tmp_path / f"{kind}.fits"
    BAD[kind](bad)
    assert_refused(run("mosaic", bad, "-o", place / "out.fits"), 4, bad)
    assert not tree(place)


def test_bad_inputs_among_good_ones(good: list[Path], tmp_path: Path, place: Path) -> None:
    bad = [tmp_path / f"{kind}.fits" for kind in BAD]
    for path in bad:
        BAD[path.stem](path)
    out = place / "out.fits"
    outcome = run("mosaic", good[0], *bad, good[1], "-o", out)
    assert outcome.status == 0, outcome.err
    assert outcome.out == f"{out}\n"
    told = sorted(line.split(": ")[2] for line in outcome.remarks)
    assert told == sorted(map(str, bad)), outcome.err
    assert all(line.startswith("warning: left out: ") for line in outcome.remarks)
    assert tree(place) == {"out.fits"}
    with fits.open(out) as hdus:
        rows = {row["NAME"]: row for row in hdus["INPUTS"].data}
        assert len(rows) == len(hdus["INPUTS"].data) == len(bad) + 2
        for path in bad:
            assert rows[str(path)]["STATUS"] == "left_out"
            assert rows[str(path)]["REASON"].startswith(f"{path}: ")
        for path in good:
            assert rows[str(path)]["STATUS"] == "used"
            assert rows[str(path)]["REASON"] == ""
        assert hdus[0].header["NCOMBINE"] == hdus[0].header["STACKCNT"] == 2


@pytest.mark.parametrize("kind", ["missing", "cut_in_the_data", "all_nan"])
def test_a_bad_input_when_strict(kind: str, good: list[Path], tmp_path: Path, place: Path) -> None:
    bad = tmp_path / "bad.fits"
    BAD[kind](bad)
    assert_refused(run("mosaic", good[0], bad, "-o", place / "out.fits", "--strict"), 4, bad)
    assert not tree(place)


def test_several_bad_inputs_and_no_good_one(tmp_path: Path, place: Path) -> None:
    BAD["no_wcs"](tmp_path / "a.fits")
    BAD["not_fits"](tmp_path / "b.fits")
    outcome = run("mosaic", tmp_path / "a.fits", tmp_path / "b.fits", "-o", place / "out.fits")
    assert outcome.status == 4
    assert [line.split(":")[0] for line in outcome.remarks] == ["warning", "warning", "zmrs"]
    assert not tree(place)


def test_an_image_of_a_trillion_pixels_that_exists(tmp_path: Path, place: Path) -> None:
    """A sparse file is as long as its header claims, so only the size itself gives it away."""
    path = tmp_path / "huge.fits"
    claims_a_million_squared(path)
    try:
        os.truncate(path, 2880 + 4 * 10**12 + 2880)
    except OSError as error:
        pytest.skip(f"NOT RUN: this file system has no files of 4 TB ({error})")
    began = time.monotonic()
    outcome = run("mosaic", path, "-o", place / "out.fits", "--memory", "512MiB")
    assert time.monotonic() - began < 10
    assert_refused(outcome, 3)
    assert not tree(place)


def test_different_numbers_of_channels(good: list[Path], tmp_path: Path, place: Path) -> None:
    colour = write_image(tmp_path / "rgb.fits", np.ones((3, *SHAPE), np.float32), frame_wcs(SHAPE))
    outcome = run("mosaic", good[0], colour, "-o", place / "out.fits")
    assert_refused(outcome, 4, good[0], colour, "channels")
    assert not tree(place)


def test_opposite_ends_of_the_sky(tmp_path: Path, place: Path) -> None:
    names = []
    for number, crval in enumerate([(10.0, 20.0), (190.0, -20.0)]):
        names.append(tmp_path / f"{number}.fits")
        write(names[-1], np.ones(SHAPE, np.float32), CRVAL1=crval[0], CRVAL2=crval[1])
    outcome = run("mosaic", *names, "-o", place / "out.fits")
    assert outcome.status == 3, outcome.err
    assert len(outcome.remarks) == 1
    assert any(str(name) in outcome.remarks[0] for name in names)
    assert not tree(place)


def test_off_the_grid(good: list[Path], place: Path) -> None:
    outcome = run("mosaic", *good, "-o", place / "out.fits", "--center", "10,10", "--size", "50x50")
    assert outcome.status == 4, outcome.err
    assert outcome.remarks[-1].startswith("zmrs: ")
    assert not tree(place)


def test_a_duplicate_is_used_once(good: list[Path], place: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.fits"
    link.symlink_to(good[0])
    outcome = run("mosaic", *good, good[0], link, "-o", place / "out.fits")
    assert outcome.status == 0, outcome.err
    [remark] = outcome.remarks
    assert remark.startswith("warning: ")
    assert str(good[0]) in remark
    assert str(link) in remark
    with fits.open(place / "out.fits") as hdus:
        assert hdus[0].header["NCOMBINE"] == len(hdus["INPUTS"].data) == 2
        assert hdus["COVERAGE"].data.max() == 2


def test_headers_in_other_alphabets(tmp_path: Path, place: Path) -> None:
    """Bytes beyond ASCII and control characters are met in headers, but FITS forbids them."""
    path = tmp_path / "Nébuleuse.fits"
    cards = {"OBJECT": "Crab", "FILTER": "Ha", "DATE-OBS": "2020-01-01"}
    write(path, np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE), **cards)
    raw = path.read_bytes().replace(b"'Crab    '", b"'Cr\xe2be\x07  '").replace(b"'Ha ", b"'H\xe1 ")
    path.write_bytes(raw)
    outcome = run("mosaic", path, "-o", place / "out.fits", "--log-file", tmp_path / "log")
    assert outcome.status == 0, outcome.err
    assert not outcome.remarks
    with fits.open(place / "out.fits") as hdus:
        hdus.verify("exception")
        assert hdus[0].header["OBJECT"].startswith("Cr")


def test_a_name_that_is_no_text(tmp_path: Path, place: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.fits")
    write(tmp_path / name, np.arange(SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE))
    (tmp_path / os.fsdecode(b"\xfd.fits")).write_text("no")
    outcome = run("mosaic", tmp_path, "-o", place / "out.fits", "--log-file", tmp_path / "log")
    assert outcome.status == 0, outcome.err
    assert len(outcome.remarks) == 1, outcome.err
    assert fits.getval(place / "out.fits", "NCOMBINE") == 1


# ------------------------------------------------------------------------------ bad outputs


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk in memory with the options given, and unmounts it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", folder],
            check=False,
            capture_output=True,
        )
        if made.returncode:
            pytest.skip(f"NOT RUN: no disk could be mounted ({made.stderr.decode().strip()})")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_too_small(good: list[Path], mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=16k")
    assert_refused(run("mosaic", *good, "-o", disk / "out.fits"), 5, disk / "out.fits", "full")
    assert not tree(disk)


# Another process takes the space between the look at the disk and the writing.
_FILLS_UP = """
import sys
from zmrs import cli
from zmrs.io.output import MosaicFile

moment = getattr(MosaicFile, sys.argv[1])

def fill_first(self, *args):
    filler = self.path.with_name("filler")
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return moment(self, *args)

setattr(MosaicFile, sys.argv[1], fill_first)
cli.run(sys.argv[2:])
"""


@pytest.mark.parametrize("moment", ["__enter__", "commit"])
def test_a_disk_that_fills_up(
    moment: str, good: list[Path], mounted: Callable[[str], Path]
) -> None:
    disk = mounted("size=4m")
    outcome = run_code(_FILLS_UP, moment, "mosaic", *good, "-o", disk / "out.fits")
    assert_refused(outcome, 5, f"{disk / 'out.fits'}: ", "full")
    assert tree(disk) == {"filler"}


def test_standard_output_on_a_full_disk(good: list[Path]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "zmrs", "plan", "-q", *good],
            check=False, stdout=full, stderr=subprocess.PIPE, text=True, env=clean_env(),
        )  # fmt: skip
    assert_refused(Outcome(done.returncode, "", done.stderr), 5, "full")


def test_a_read_only_folder(good: list[Path], mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=4m,ro")
    assert_refused(run("mosaic", *good, "-o", disk / "out.fits"), 2, disk / "out.fits")


def test_a_missing_folder(good: list[Path], place: Path) -> None:
    path = place / "nowhere" / "out.fits"
    assert_refused(run("mosaic", *good, "-o", path), 2, path, "folder")
    assert not tree(place)


@pytest.mark.parametrize("name", [".", "a_file/out.fits", "x" * 300])
def test_an_impossible_output(name: str, good: list[Path], place: Path) -> None:
    (place / "a_file").touch()
    assert_refused(run("mosaic", *good, "-o", place / name, "--overwrite"), 2)
    assert tree(place) == {"a_file"}


def test_a_device_is_never_replaced(good: list[Path], place: Path) -> None:
    os.mkfifo(place / "pipe")
    outcome = run("mosaic", *good, "-o", place / "pipe", "--overwrite")
    assert_refused(outcome, 2, place / "pipe")
    assert (place / "pipe").is_fifo()


def test_an_output_that_exists(good: list[Path], place: Path) -> None:
    path = place / "out.fits"
    path.write_text("precious")
    assert_refused(run("mosaic", *good, "-o", path), 2, path, "--overwrite")
    assert path.read_text() == "precious"
    assert run("mosaic", *good, "-o", path, "--overwrite").status == 0
    assert path.read_bytes().startswith(b"SIMPLE  =")
    assert tree(place) == {"out.fits"}


def test_a_failure_keeps_the_old_output(good: list[Path], place: Path) -> None:
    path = place / "out.fits"
    path.write_text("precious")
    outcome = run("mosaic", *good, "-o", path, "--overwrite", "--memory", "40MiB")
    assert outcome.status == 3
    assert path.read_text() == "precious"
    assert tree(place) == {"out.fits"}


@pytest.mark.parametrize("how", ["name", "symlink", "folder", "list"])
@pytest.mark.parametrize("extra", [(), ("--overwrite",)])
def test_an_output_that_is_an_input(how: str, extra: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    paths = write_tiles(folder, alive(constant_frames([1.0, 2.0], SHAPE)))
    before = [path.read_bytes() for path in paths]
    given: list[object] = list(paths)
    out = paths[0]
    if how == "symlink":
        out = tmp_path / "elsewhere.fits"
        out.symlink_to(paths[0])
    elif how == "folder":
        given = [folder]
    elif how == "list":
        listing = tmp_path / "list.txt"
        listing.write_text("\n".join(map(str, paths)))
        given = [f"@{listing}"]
    names = tree(tmp_path)
    assert_refused(run("mosaic", *given, "-o", out, *extra), 2, out)
    assert [path.read_bytes() for path in paths] == before
    assert tree(tmp_path) == names


# ------------------------------------------------------------------------------ bad options


@pytest.mark.parametrize(
    ("words", "status", "fragment"),
    [
        (["--memory", "300"], 2, "300MiB"),
        (["--memory", "lots"], 2, "512MiB"),
        (["--memory", "300XB"], 2, "unit"),
        (["--memory", "150%"], 2, "100%"),
        (["--memory", "1MiB"], 3, "smallest limit"),
        (["--unheard-of"], 2, "--unheard-of"),
        (["--kernel", "cubist"], 2, "bilinear"),
        (["--combine", "average"], 2, "mean"),
        (["--combine", "kappa-sigma-stream", "--kappa", "0.5"], 2, "may leave no sample"),
        (["--size", "100"], 2, "--size"),
        (["--size", "0x10"], 2, "--size"),
        (["--size", "-1x10"], 2, "--size"),
        (["--center", "10"], 2, "--center"),
        (["--center", "10,nan"], 2, "--center"),
        (["--scale", "inf"], 2, "--scale"),
        (["--threads", "0"], 2, "--threads"),
        (["--threads", "two"], 2, "--threads"),
        (["--progress", "dots"], 2, "--progress"),
        (["--config", "/no/such.toml"], 2, "/no/such.toml"),
        (["--log-file", "/no/such/log"], 2, "/no/such/log"),
        (["--scratch"], 2, "--scratch"),
    ],
)
def test_a_bad_option(
    words: list[str], status: int, fragment: str, good: list[Path], place: Path
) -> None:
    outcome = run("mosaic", *good, "-o", place / "out.fits", *words)
    assert_refused(outcome, status, fragment)
    assert not tree(place)


@pytest.mark.parametrize(
    "words",
    [["--scale", "0"], ["--scale", "-1"], ["--projection", "XYZ"], ["--wcs", "/no/such.hdr"],
     ["--center", "10,95"], ["--max-output-pixels", "10"]],
)  # fmt: skip
def test_a_grid_that_cannot_be(words: list[str], good: list[Path], place: Path) -> None:
    outcome = run("mosaic", *good, "-o", place / "out.fits", *words)
    assert outcome.status in (2, 3, 4)
    assert_refused(outcome, outcome.status)
    assert not tree(place)


@pytest.mark.parametrize("words", [["mosaic"], ["mosaic", "-o", "x.fits"], ["unheard-of"]])
def test_missing_words(words: list[str]) -> None:
    assert_refused(run(*words), 2, "--help")


def test_no_words_at_all_show_the_help() -> None:
    outcome = run()
    assert outcome.status == 2
    assert outcome.err.startswith("Usage: zmrs")
    assert len(outcome.err.splitlines()) > 5


@pytest.mark.parametrize("text", ["memory = 5", "unheard-of = 1", "kernel = 'cubist'", "=", "[a]"])
def test_a_bad_config_file(text: str, good: list[Path], place: Path, tmp_path: Path) -> None:
    file = tmp_path / "zmrs.toml"
    file.write_text(text)
    outcome = run("mosaic", *good, "-o", place / "out.fits", "--config", file)
    assert_refused(outcome, 2)


def test_a_bad_variable_is_named(good: list[Path], place: Path) -> None:
    outcome = run("mosaic", *good, "-o", place / "out.fits", env=clean_env(ZMRS_KERNEL="cubist"))
    assert_refused(outcome, 2, "ZMRS_KERNEL")


def test_a_traceback_on_demand(place: Path) -> None:
    outcome = run("mosaic", "no.fits", "-o", place / "out.fits", "--debug")
    assert outcome.status == 4
    assert "Traceback" in outcome.err


def test_previews_of_nonsense(tmp_path: Path, good: list[Path]) -> None:
    assert run("preview", tmp_path / "no.fits").status == 4
    (tmp_path / "text.fits").write_text("hello")
    outcome = run("preview", tmp_path / "text.fits")
    assert_refused(outcome, 4, tmp_path / "text.fits")
    assert_refused(run("preview", good[0]), 4, good[0], "COVERAGE")
    mosaic = write_mosaic(tmp_path / "mosaic.fits", np.ones(SHAPE, np.float32))
    assert_refused(run("preview", mosaic, "-o", tmp_path / "no" / "x.png"), 2, "x.png")


# ---------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGINT], 143),
        ([signal.SIGHUP], 129),
    ],
    ids=lambda value: value if isinstance(value, int) else "+".join(s.name for s in value),
)
@pytest.mark.parametrize("stage", ["geometry", "mosaic"])
def test_signals(
    stage: str, signals: list[signal.Signals], status: int, good: list[Path], place: Path
) -> None:
    process = start(
        "mosaic", *good, "-o", place / "out.fits", "--scale", "0.01", "--kernel", "lanczos3",
        "--max-output-pixels", 10**12, "--threads", 1, "--memory", "512MiB", "--progress", "json",
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if f'"start", "stage": "{stage}"' in line:
            break
    if stage == "mosaic":
        time.sleep(0.2)
        assert any(name.endswith(".part") for name in tree(place))
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.03)
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 1.0
    assert process.returncode == status
    said = [line for line in err.splitlines() if not line.startswith(("{", "plan=", "grid "))]
    assert len(said) == 1, err
    assert said[0].startswith("zmrs: ")
    assert not tree(place)


# ------------------------------------------------------------------------------ broken pipes


@pytest.mark.parametrize("words", [["plan"], ["plan", "--json"]])
def test_nobody_reads_the_result(words: list[str], good: list[Path]) -> None:
    """``zmrs plan … | true`` is no failure."""
    process = start(*words, *good, "-q")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize("words", [[], ["--progress", "json"], ["-v"]])
def test_nobody_reads_the_log(words: list[str], good: list[Path], place: Path) -> None:
    """The mosaic is made all the same."""
    process = start("mosaic", *good, "-o", place / "out.fits", *words)
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, f"{place / 'out.fits'}\n")
    assert tree(place) == {"out.fits"}
