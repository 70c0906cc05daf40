"""Solvers piece by piece: hints, pictures, command lines, and what comes back."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import sky
import zmrs.solving.picture
from fake_solver import FakeSolver, is_alive
from zmrs.errors import UsageError
from zmrs.io.headers import Cards, UnusableError, padded_header
from zmrs.scan import Unsolved, scan_unsolved
from zmrs.solving import child, find_solver
from zmrs.solving.child import Ran
from zmrs.solving.hints import NO_HINTS, Hints, hints_of
from zmrs.solving.picture import MOST_SIDE_PX, Picture, write_picture
from zmrs.solving.programs import Astap, AstrometryNet, NotSolvedError
from zmrs.solving.solution import solution_of

SIDE = (400, 300)


def unsolved(path: Path, pixels: np.ndarray, hdu: int = 0, **cards: object) -> Unsolved:
    sky.write_image(path, pixels, None, **cards)
    return scan_unsolved(str(path), hdu)


def hints(tmp_path: Path, **cards: object) -> Hints:
    return hints_of(unsolved(tmp_path / "a.fits", np.zeros((4, 4), np.int16), **cards))


# -------------------------------------------------------------------------------------- hints


@pytest.mark.parametrize(
    ("cards", "center"),
    [
        ({"RA": 193.5, "DEC": -40.25}, (193.5, -40.25)),
        ({"RA": "12:54:00", "DEC": "-00:15:00.0"}, (193.5, -0.25)),
        ({"OBJCTRA": "12 54 00.0", "OBJCTDEC": "+40 15 00"}, (193.5, 40.25)),
        ({"RA": "12h54m00s", "DEC": "40d15m00s"}, (193.5, 40.25)),
        ({"RA": 193.5, "OBJCTRA": "01 00 00", "OBJCTDEC": "-10 30 00"}, (15.0, -10.5)),
        ({"RA": 0.0, "DEC": 0.0}, None),
        ({"RA": 193.5, "DEC": 95.0}, None),
        ({"RA": "unknown", "DEC": "unknown"}, None),
        ({"RA": 193.5}, None),
    ],
)
def test_where_a_telescope_points(
    cards: dict[str, object], center: tuple[float, float] | None, tmp_path: Path
) -> None:
    found = hints(tmp_path, **cards).center_deg
    assert found == (None if center is None else pytest.approx(center, abs=1e-9))


@pytest.mark.parametrize(
    ("cards", "scale"),
    [
        ({"FOCALLEN": 250, "XPIXSZ": 2.9}, 2.3927),
        ({"PIXSCALE": 1.5, "FOCALLEN": 250, "XPIXSZ": 2.9}, 1.5),
        ({"SECPIX1": 3.25}, 3.25),
        ({"FOCALLEN": 0, "XPIXSZ": 2.9}, None),
        ({"XPIXSZ": 2.9}, None),
    ],
)
def test_how_large_a_pixel_is(
    cards: dict[str, object], scale: float | None, tmp_path: Path
) -> None:
    found = hints(tmp_path, **cards)
    if scale is None:
        assert found == NO_HINTS
        return
    assert found.middle_scale_arcsec == pytest.approx(scale, rel=1e-4)
    low, high = found.scale_arcsec or (0, 0)
    assert high / low == pytest.approx(1.3**2)


def test_the_size_of_binned_pixels_may_mean_either(tmp_path: Path) -> None:
    low, high = hints(tmp_path, FOCALLEN=250, XPIXSZ=2.9, XBINNING=2).scale_arcsec or (0, 0)
    assert low < 2.3927 < 2 * 2.3927 < high


# ------------------------------------------------------------------------------------ pictures


def read(picture: Picture) -> np.ndarray:
    with fits.open(picture.path, memmap=False) as hdus:
        assert [hdu.header.get("CTYPE1") for hdu in hdus] == [None]
        return hdus[0].data


def noise(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 60000, shape, dtype=np.uint16)


def test_a_plain_frame_is_shown_as_it_is(tmp_path: Path) -> None:
    pixels = noise(SIDE)
    picture = write_picture(unsolved(tmp_path / "a.fits", pixels), tmp_path)
    assert picture.times == 1
    np.testing.assert_array_equal(read(picture), pixels)


@pytest.mark.parametrize("keyword", ["BAYERPAT", "FILTER"])
def test_raw_colours_are_averaged(keyword: str, tmp_path: Path) -> None:
    pixels = noise((401, 301))
    frame = unsolved(tmp_path / "a.fits", pixels, **{keyword: "GRBG"})
    picture = write_picture(frame, tmp_path)
    even = pixels[:400, :300].astype(float)
    expected = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
    assert (picture.times, picture.height_px) == (2, 200)
    np.testing.assert_allclose(read(picture), expected, rtol=1e-6)


def test_channels_are_averaged(tmp_path: Path) -> None:
    pixels = noise((3, *SIDE)).astype(np.float32)
    frame = unsolved(tmp_path / "a.fits", pixels, BAYERPAT="GRBG")
    picture = write_picture(frame, tmp_path)
    assert picture.times == 1
    np.testing.assert_allclose(read(picture), pixels.mean(axis=0), rtol=1e-6)


def test_axes_of_length_1_are_none(tmp_path: Path) -> None:
    pixels = noise((1, 2, 1, 50, 40)).astype(np.float32)
    picture = write_picture(unsolved(tmp_path / "a.fits", pixels), tmp_path)
    np.testing.assert_allclose(read(picture), pixels[0, :, 0].mean(axis=0), rtol=1e-6)


def test_holes_are_filled(tmp_path: Path) -> None:
    pixels = noise(SIDE).astype(np.float32)
    pixels[:100] = np.nan
    shown = read(write_picture(unsolved(tmp_path / "a.fits", pixels), tmp_path))
    assert np.isfinite(shown).all()
    np.testing.assert_array_equal(shown[100:], pixels[100:])
    assert np.ptp(shown[:100]) == 0
    assert 20000 < shown[0, 0] < 40000


def test_large_frames_are_made_small(tmp_path: Path) -> None:
    pixels = np.arange(2 * MOST_SIDE_PX + 2, dtype=np.float32)[:, None] + np.zeros((1, 8), "f4")
    picture = write_picture(unsolved(tmp_path / "a.fits", pixels), tmp_path)
    assert picture.times == 4
    shown = read(picture)
    assert shown.shape == (1500, 2)
    np.testing.assert_array_equal(shown[:, 0], 4 * np.arange(1500) + 1.5)


@pytest.mark.parametrize("kind", ["fz", "gz", "fz, gz"])
def test_packed_frames_look_like_plain_ones(kind: str, tmp_path: Path) -> None:
    pixels = noise(SIDE)
    plain = write_picture(unsolved(tmp_path / "a.fits", pixels, BAYERPAT="RGGB"), tmp_path)
    expected = read(plain)
    path, hdu = tmp_path / "a.fits", 0
    if "fz" in kind:
        path, hdu = tmp_path / "a.fits.fz", 1
        header = fits.Header([("BAYERPAT", "RGGB")])
        fits.CompImageHDU(pixels, header).writeto(path)
    if "gz" in kind:
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    picture = write_picture(scan_unsolved(str(path), hdu), tmp_path)
    assert picture.times == 2
    np.testing.assert_array_equal(read(picture), expected)


def test_parts_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = unsolved(tmp_path / "a.fits", noise((403, 301)), BAYERPAT="RGGB")
    whole = write_picture(frame, tmp_path).path.read_bytes()
    for samples in (1, 1000, 5000):
        monkeypatch.setattr(zmrs.solving.picture, "_PART_SAMPLES", samples)
        assert write_picture(frame, tmp_path).path.read_bytes() == whole


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_large_frame_takes_little_memory(is_packed: bool, tmp_path: Path) -> None:
    pixels = (noise((1, 5000)) // 100 + np.zeros((5000, 1), np.uint16)).astype(np.uint16)
    path = tmp_path / "a.fits"
    (fits.CompImageHDU if is_packed else fits.ImageHDU)(pixels).writeto(path)
    frame = scan_unsolved(str(path), 1)
    tracemalloc.start()
    write_picture(frame, tmp_path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # As floats it would be 100 MB.
    assert peak_bytes < 25e6


def test_a_damaged_frame_is_named_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.fits.fz"
    fits.CompImageHDU(noise(SIDE), compression_type="GZIP_1").writeto(path)
    raw = bytearray(path.read_bytes())
    frame = scan_unsolved(str(path), 1)
    raw[frame.storage.offset + 4000 :] = b"\xff" * (len(raw) - frame.storage.offset - 4000)
    path.write_bytes(raw)
    with pytest.raises(UnusableError, match=r"its pixels cannot be read .*damaged"):
        write_picture(frame, tmp_path)


# ----------------------------------------------------------------------------------- solutions


def cards_of(wcs: WCS, **more: object) -> Cards:
    header = wcs.to_header(relax=True)
    header.update(more)
    return Cards(header.tostring(endcard=False, padding=False).encode())


@pytest.mark.parametrize("times", [1, 2, 4])
def test_a_solution_is_brought_back_to_the_frame(times: int) -> None:
    """A place on the picture and the same on the frame are one place on the sky."""
    shape = (1000, 800)
    small = sky.frame_wcs((shape[0] // times, shape[1] // times), 30.0, sip_strength=0.01)
    assert small.sip is not None
    solution = solution_of(cards_of(small), times, shape, "fake")
    x, y = np.meshgrid(np.linspace(-10, 810, 20), np.linspace(-10, 1010, 20))
    on_frame = WCS(fits.Header.fromstring(solution.solved.cards.raw.decode()))
    # A pixel of the picture is the mean of times x times: half a pixel of each is its middle.
    on_picture = ((x + 0.5) / times - 0.5, (y + 0.5) / times - 0.5)
    ours = on_frame.all_pix2world(x, y, 0)
    theirs = small.all_pix2world(*on_picture, 0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)
    assert abs(small.sip_pix2foc(*on_picture, 0)[0] - on_picture[0] - 1 + small.wcs.crpix[0]).max()


def test_a_second_scale_beside_the_matrix_is_dropped() -> None:
    cards = cards_of(sky.frame_wcs(SIDE))
    matrix = b"".join(
        f"CD{i}_{j}   = {float(i == j) * 5e-4:>20}".ljust(80).encode()
        for i in (1, 2)
        for j in (1, 2)
    )
    more = b"CDELT1  =                  7.0".ljust(80) + b"CROTA2  =                 33.0".ljust(80)
    keys = [key for key, _ in solution_of(Cards(cards.raw + matrix + more), 1, SIDE, "").values]
    assert {"CD1_1", "CD2_2", "CRVAL1"} <= set(keys)
    assert not {"CDELT1", "CROTA2", "PC1_1"} & set(keys)


def test_a_solution_read_again_is_the_same() -> None:
    """Also to the last digit: the digest of what is read tells jobs apart."""
    wcs = sky.frame_wcs(SIDE, 12.3, sip_strength=0.01)
    first = solution_of(cards_of(wcs), 2, (800, 600), "fake")
    again = solution_of(Cards(padded_header(first.values)), 1, (800, 600), "fake")
    assert again.values == first.values
    assert again.solved.digest == first.solved.digest
    moved = solution_of(cards_of(sky.frame_wcs(SIDE, 12.4)), 2, (800, 600), "fake")
    assert moved.solved.digest != first.solved.digest


@pytest.mark.parametrize(
    "more", [{"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, {"CDELT1": 3e3, "CDELT2": 3e3}]
)
def test_nonsense_is_no_solution(more: dict[str, object]) -> None:
    with pytest.raises(UnusableError):
        solution_of(cards_of(sky.frame_wcs(SIDE), **more), 1, SIDE, "fake")


# ------------------------------------------------------------------------------------ programs

PICTURE = Picture(Path("/tmp/picture.fits"), height_px=960, times=2)
GUESS = Hints((193.5, 41.0), (2.0, 3.0))


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def test_words_for_solve_field() -> None:
    words = AstrometryNet("/bin/solve-field").command(PICTURE, GUESS, Path("/desk"), 12.5)
    assert words[0] == "/bin/solve-field"
    assert words[-1] == "/tmp/picture.fits"
    assert option(words, "--wcs") == "/desk/solution.wcs"
    assert option(words, "--temp-dir") == option(words, "--dir") == "/desk"
    assert option(words, "--cpulimit") == "13"
    assert (option(words, "--ra"), option(words, "--dec")) == ("193.500000", "41.000000")
    # Pixels of the picture are twice as large.
    assert (option(words, "--scale-low"), option(words, "--scale-high")) == ("4", "6")
    assert option(words, "--odds-to-solve") is None


def test_words_for_solve_field_without_hints() -> None:
    words = AstrometryNet("solve-field").command(PICTURE, NO_HINTS, Path("/desk"), 60)
    assert not {"--ra", "--dec", "--radius", "--scale-low"} & set(words)
    assert float(option(words, "--odds-to-solve") or 0) == 1e14


def test_words_for_astap() -> None:
    words = Astap("/bin/astap").command(PICTURE, GUESS, Path("/desk"), 60)
    assert words[:5] == ["/bin/astap", "-f", "/tmp/picture.fits", "-o", "/desk/solution"]
    assert "-wcs" in words
    assert float(option(words, "-ra") or 0) == 12.9
    assert float(option(words, "-spd") or 0) == 131.0
    # The height of the field: 960 pixels of twice the geometric mean of 2 and 3 arcsec.
    assert float(option(words, "-fov") or 0) == pytest.approx(960 * 2 * 6**0.5 / 3600, rel=1e-3)


def test_words_for_astap_without_hints() -> None:
    words = Astap("astap").command(PICTURE, NO_HINTS, Path("/desk"), 60)
    assert (option(words, "-r"), option(words, "-fov")) == ("180", "0")
    assert not {"-ra", "-spd"} & set(words)


def test_what_astap_writes(tmp_path: Path) -> None:
    """A FITS header or text; but only its .ini says whether that is of this picture."""
    astap, ran = Astap("astap"), Ran(0, "")
    header = sky.frame_wcs(SIDE).to_header()
    header.insert(0, ("SIMPLE", True))
    wcs, ini = tmp_path / "solution.wcs", tmp_path / "solution.ini"
    ini.write_bytes(b"PLTSOLVD=T\r\nCRPIX1=1.0\r\n")
    for content in (header.tostring(), header.tostring(sep="\r\n", endcard=True, padding=False)):
        wcs.write_bytes(content.encode())
        found = solution_of(astap.found(tmp_path, ran), 1, SIDE, "astap")
        assert dict(found.values)["CRVAL1"] == sky.CENTER_DEG[0]
    ini.write_bytes(b"PLTSOLVD=F\r\nERROR=No star database found.\r\n")
    with pytest.raises(NotSolvedError, match="No star database found"):
        astap.found(tmp_path, ran)
    ini.unlink()
    with pytest.raises(NotSolvedError, match="it failed with status 33: cannot read"):
        astap.found(tmp_path, Ran(33, "cannot read\n\n"))


@pytest.mark.parametrize("name", ["astap", "astrometry.net"])
def test_a_solver_that_is_not_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=rf"--solver {name}: there is no program .*; install"):
        find_solver(name)
    assert find_solver("none") is None


@pytest.mark.parametrize(
    ("programs", "found"), [(["astap"], "astap"), (["astap", "astap_cli"], "astap_cli")]
)
def test_astap_goes_by_two_names(
    programs: list[str], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in programs:
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_solver("astap") == Astap(str(tmp_path / found))


# --------------------------------------------------------------------------------------- child


def test_how_a_program_ended(tmp_path: Path) -> None:
    ran = child.run(["sh", "-c", "echo one; echo two >&2; echo; exit 3"], tmp_path, 10)
    assert (ran.status, ran.last_line) == (3, "two")


def test_a_program_whose_time_is_over_is_ended_with_its_children(tmp_path: Path) -> None:
    fake = FakeSolver(tmp_path / "fake")
    program = fake.install() / "solve-field"
    fake.hangs()
    began = time.monotonic()
    assert child.run([str(program)], tmp_path, 0.5).status is None
    assert time.monotonic() - began < 5
    assert not is_alive(fake.child())


def test_an_interrupted_wait_ends_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeSolver(tmp_path / "fake")
    program = fake.install() / "solve-field"
    fake.hangs()

    def interrupt(_self: object, _timeout: float | None = None) -> int:
        monkeypatch.undo()
        fake.child()
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.Popen.wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        child.run([str(program)], tmp_path, 60)
    assert not is_alive(fake.child())


def test_what_is_no_program(tmp_path: Path) -> None:
    program = tmp_path / "solve-field"
    program.write_bytes(b"\0\0")
    program.chmod(0o755)
    with pytest.raises(UsageError, match=r"solve-field: it cannot be run .*; install it anew"):
        child.run([str(program)], tmp_path, 10)
