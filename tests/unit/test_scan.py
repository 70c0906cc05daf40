"""Names, headers and WCS of the inputs, in clean, dirty and broken files."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zmrs.errors import InputError
from zmrs.scan import (
    InputImage,
    LeftOut,
    expand_inputs,
    natural_key,
    scan_image,
    scan_inputs,
    scan_template,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
SKY = {
    "CTYPE1": "'RA---TAN'",
    "CTYPE2": "'DEC--TAN'",
    "CRVAL1": "150.25",
    "CRVAL2": "2.5",
    "CRPIX1": "10.5",
    "CRPIX2": "8.0",
    "CD1_1": "-0.0003",
    "CD1_2": "0.0",
    "CD2_1": "0.0",
    "CD2_2": "0.0003",
}


def real_set(name: str) -> Path:
    """Folder of a real data set; the test is skipped, and says so, where it is missing."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"REAL DATA MISSING: {folder} is not there, so this check was not made")
    return folder


def card(keyword: str, value: str) -> bytes:
    return f"{keyword:<8}= {value:>20}".ljust(80).encode("latin-1")


def header(cards: list[bytes], end: bool = True) -> bytes:
    raw = b"".join(cards) + (b"END".ljust(80) if end else b"")
    return raw + b" " * (-len(raw) % 2880)


def raw_fits(
    path: Path,
    *,
    axes: tuple[int, ...] = (20, 16),
    bitpix: int = -32,
    sky: dict[str, str] | None = None,
    extra: list[bytes] | None = None,
    data: bytes | None = None,
    end: bool = True,
) -> Path:
    """Write a FITS file card by card, as broken as wanted; ``axes`` fastest first."""
    cards = [card("SIMPLE", "T"), card("BITPIX", str(bitpix)), card("NAXIS", str(len(axes)))]
    cards += [card(f"NAXIS{n}", str(length)) for n, length in enumerate(axes, 1)]
    cards += [card(k, v) for k, v in (SKY if sky is None else sky).items()]
    cards += extra or []
    n_bytes = int(np.prod(axes)) * abs(bitpix) // 8 if axes else 0
    body = bytes(n_bytes + -n_bytes % 2880) if data is None else data
    path.write_bytes(header(cards, end) + body)
    return path


def sky_header() -> fits.Header:
    h = fits.Header()
    for key, value in SKY.items():
        h[key] = value.strip("'") if value.startswith("'") else float(value)
    return h


def image(path: Path, **how: object) -> InputImage:
    result = scan_image(path, **how)  # type: ignore[arg-type]
    assert isinstance(result, InputImage), result
    return result


def reason(path: Path, **how: object) -> str:
    result = scan_image(path, **how)  # type: ignore[arg-type]
    assert isinstance(result, LeftOut), result
    assert result.name == str(path)
    assert result.reason.startswith(f"{path}: ")
    assert result.reason.endswith(".")
    assert "\n" not in result.reason
    return result.reason.removeprefix(f"{path}: ")


def astropy_wcs(path: Path, hdu: int) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(path) as hdus:
            wcs = WCS(hdus[hdu].header, hdus)
            return wcs if wcs.naxis == 2 else wcs.celestial


# -------------------------------------------------------------------------------------- names


def test_natural_order() -> None:
    names = ["b1", "a10", "A2", "a1", "a02", "2", "10"]
    assert sorted(names, key=natural_key) == ["2", "10", "a1", "A2", "a02", "a10", "b1"]


def test_expands_files_folders_and_globs_in_the_order_given(tmp_path: Path) -> None:
    folder = tmp_path / "night"
    (folder / "sub").mkdir(parents=True)
    for name in ("i10.fits", "i2.FIT", "i1.fts.gz", "x.fits.fz", "notes.txt", "._i3.fits"):
        (folder / name).touch()
    (folder / "sub" / "deep.fits").touch()
    single = tmp_path / "a.dat"
    single.touch()
    paths, notes = expand_inputs([str(single), str(folder)])
    assert [Path(p).name for p in paths] == [
        "a.dat",
        "i1.fts.gz",
        "i2.FIT",
        "i10.fits",
        "x.fits.fz",
    ]
    assert notes == []
    paths, _ = expand_inputs([str(folder)], recursive=True)
    assert [Path(p).name for p in paths][-1] == "deep.fits"
    paths, _ = expand_inputs([str(folder / "i*")])
    assert [Path(p).name for p in paths] == ["i1.fts.gz", "i2.FIT", "i10.fits"]


def test_file_name_with_brackets_is_not_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "m[1].fits").touch()
    assert expand_inputs([str(tmp_path / "m[1].fits")])[0] == [str(tmp_path / "m[1].fits")]


def test_list_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lists").mkdir()
    for name in ("lists/a.fits", "b.fits"):
        (tmp_path / name).touch()
    listing = tmp_path / "lists" / "l.txt"
    listing.write_text("\ufeff# first\n\n a.fits \nb.fits\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert expand_inputs(["@lists/l.txt"])[0] == ["lists/a.fits", "b.fits"]
    listing.write_text("# nothing\n")
    with pytest.raises(InputError, match=r"l\.txt: the list names no file"):
        expand_inputs(["@lists/l.txt"])
    with pytest.raises(FileNotFoundError, match=r"no\.txt: there is no such file"):
        expand_inputs(["@no.txt"])


def test_duplicates_are_dropped_with_a_warning(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.fits").touch()
    (tmp_path / "link.fits").symlink_to(tmp_path / "a.fits")
    args = [str(tmp_path / "a.fits"), str(tmp_path)]
    paths, notes = expand_inputs(args)
    assert [Path(p).name for p in paths] == [f"{n}.fits" for n in "abcde"]
    assert len(notes) == 1
    assert "a.fits" in notes[0]
    assert "link.fits" in notes[0]
    _, notes = expand_inputs([*args, str(tmp_path)])
    assert "and 5 others: named more than once" in notes[0]


def test_hard_links_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "a.fits").touch()
    os.link(tmp_path / "a.fits", tmp_path / "b.fits")
    assert len(expand_inputs([str(tmp_path)])[0]) == 2


def test_names_behind_which_nothing_stands(tmp_path: Path) -> None:
    gone, empty, pattern = (str(tmp_path / n) for n in ("gone.fits", "empty", "*.fits"))
    Path(empty).mkdir()
    with pytest.raises(FileNotFoundError, match=r"gone\.fits: there is no such file"):
        expand_inputs([gone])
    with pytest.raises(InputError, match="--recursive"):
        expand_inputs([empty])
    with pytest.raises(InputError, match="no image matches"):
        expand_inputs([pattern])
    scan = scan_inputs([gone, empty, pattern])
    assert [e.name for e in scan.left_out] == [gone, empty, pattern]
    assert "there is no such file" in scan.left_out[0].reason
    assert scan.images == []


# ------------------------------------------------------------------------------ where pixels are


@pytest.mark.parametrize("bitpix", [8, 16, 32, 64, -32, -64])
def test_storage_of_a_plain_image(tmp_path: Path, bitpix: int) -> None:
    path = raw_fits(tmp_path / "a.fits", bitpix=bitpix)
    s = image(path).storage
    assert (s.path, s.hdu, s.offset, s.bitpix) == (str(path), 0, 2880, bitpix)
    assert (s.channels, s.shape, s.bscale, s.bzero) == (1, (16, 20), 1.0, 0.0)
    assert s.blank is None
    assert not s.compressed


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ((20, 16), (1, 16, 20)),
        ((20, 16, 3), (3, 16, 20)),
        ((20, 16, 1), (1, 16, 20)),
        ((20, 16, 5), (5, 16, 20)),
        ((20, 16, 1, 1), (1, 16, 20)),
        ((20, 16, 1, 4), (4, 16, 20)),
    ],
)
def test_axes_of_length_one_are_dropped(
    tmp_path: Path, axes: tuple[int, ...], shape: tuple[int, int, int]
) -> None:
    result = image(raw_fits(tmp_path / "a.fits", axes=axes))
    s = result.storage
    assert (s.channels, s.height, s.width) == shape
    assert result.wcs.naxis == 2
    assert result.wcs.pixel_shape == (20, 16)


@pytest.mark.parametrize("third", ["FREQ", "STOKES", "UTC"])
def test_cube_with_another_axis(tmp_path: Path, third: str) -> None:
    cards = [
        card("CTYPE3", f"'{third}'"),
        card("CRVAL3", "1.4e9"),
        card("CRPIX3", "1."),
        card("CD3_3", "1."),
    ]
    result = image(raw_fits(tmp_path / "a.fits", axes=(20, 16, 3), extra=cards))
    assert result.storage.channels == 3
    assert result.wcs.naxis == 2
    assert result.wcs.has_celestial
    np.testing.assert_allclose(result.wcs.all_pix2world(9.5, 7.0, 0), [150.25, 2.5], rtol=1e-12)


def test_sky_behind_a_leading_axis_of_length_one(tmp_path: Path) -> None:
    moved = {
        "CTYPE1": "'FREQ'", "CRVAL1": "1.4e9", "CDELT1": "1.0",
        "CTYPE2": "'RA---TAN'", "CRVAL2": "150.25", "CRPIX2": "10.5", "CDELT2": "-0.0003",
        "CTYPE3": "'DEC--TAN'", "CRVAL3": "2.5", "CRPIX3": "8.0", "CDELT3": "0.0003",
    }  # fmt: skip
    result = image(raw_fits(tmp_path / "a.fits", axes=(1, 20, 16), sky=moved))
    assert result.storage.shape == (16, 20)
    np.testing.assert_allclose(result.wcs.all_pix2world(9.5, 7.0, 0), [150.25, 2.5], rtol=1e-12)
    text = reason(raw_fits(tmp_path / "b.fits", axes=(3, 20, 16), sky=moved))
    assert "sky axes [2, 3] are not the first two" in text


def test_scaling_and_blank(tmp_path: Path) -> None:
    extra = [card("BSCALE", "2.0D0"), card("BZERO", "32768"), card("BLANK", "-32768")]
    s = image(raw_fits(tmp_path / "a.fits", bitpix=16, extra=extra)).storage
    assert (s.bscale, s.bzero, s.blank) == (2.0, 32768.0, -32768)
    s = image(raw_fits(tmp_path / "b.fits", bitpix=-32, extra=extra)).storage
    assert s.blank is None


def test_blank_that_is_not_an_integer(tmp_path: Path) -> None:
    path = raw_fits(tmp_path / "a.fits", bitpix=16, extra=[card("BLANK", "-32768.0")])
    result = image(path)
    assert result.storage.blank == -32768
    assert "BLANK '-32768.0' is not an integer" in result.warnings[0]
    path = raw_fits(tmp_path / "b.fits", bitpix=16, extra=[card("BLANK", "'none'")])
    assert image(path).storage.blank is None
    assert "ignored" in image(path).warnings[0]


def test_image_in_an_extension_and_its_primary_header(tmp_path: Path) -> None:
    primary = fits.PrimaryHDU()
    primary.header["EXPTIME"] = 30.0
    primary.header["FILTER"] = "r"
    table = fits.BinTableHDU.from_columns([fits.Column("a", "1PJ()", array=[[1], [2, 3]])])
    thumbnail = fits.ImageHDU(np.zeros((4, 4), np.uint8), name="THUMB")
    science = fits.ImageHDU(np.arange(320, dtype=np.int16).reshape(16, 20), sky_header(), "SCI")
    science.header["FILTER"] = "g"
    error = fits.ImageHDU(np.zeros((16, 20), np.float32), sky_header(), "ERR")
    path = tmp_path / "a.fits"
    fits.HDUList([primary, table, thumbnail, science, error]).writeto(path)
    result = image(path)
    assert result.storage.hdu == 3
    raw = np.frombuffer(path.read_bytes(), ">i2", 320, result.storage.offset)
    np.testing.assert_array_equal(raw, np.arange(320))
    assert (result.meta.exptime, result.meta.filter) == (30.0, "g")
    for wanted in (4, "4", "err"):
        assert image(path, hdu=wanted).storage.hdu == 4
    assert "no HDU nope" in reason(path, hdu="nope")
    assert "no image in it" in reason(path, hdu=1)
    assert "no WCS" in reason(path, hdu="THUMB")


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_1"])
def test_tile_compressed_image(tmp_path: Path, kind: str) -> None:
    data = np.arange(320, dtype=np.int16).reshape(16, 20)
    hdu = fits.CompImageHDU(data, sky_header(), name="SCI", compression_type=kind)
    path = tmp_path / "a.fits.fz"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    result = image(path)
    s = result.storage
    assert (s.hdu, s.bitpix, s.shape, s.compressed) == (1, 16, (16, 20), True)
    np.testing.assert_array_equal(result.wcs.wcs.crval, [150.25, 2.5])
    assert image(path, hdu="sci").storage == s


def test_gzipped_files(tmp_path: Path) -> None:
    plain = raw_fits(tmp_path / "a.fits").read_bytes()
    whole = tmp_path / "a.fits.gz"
    whole.write_bytes(gzip.compress(plain))
    result = image(whole)
    assert result.storage.compressed
    assert result.storage.shape == (16, 20)
    members = tmp_path / "b.fits.gz"
    members.write_bytes(gzip.compress(plain[:3000]) + gzip.compress(plain[3000:]))
    assert image(members).storage.compressed
    short = tmp_path / "c.fits.gz"
    short.write_bytes(gzip.compress(plain[:3000]))
    assert "truncated: header promises 4160 bytes, the file has 3000" in reason(short)
    cut = tmp_path / "d.fits.gz"
    cut.write_bytes(gzip.compress(plain)[:60])
    assert "gzip data are cut or damaged" in reason(cut)
    damaged = bytearray(gzip.compress(plain))
    damaged[20:40] = bytes(range(20))
    cut.write_bytes(damaged)
    assert "gzip data are cut or damaged" in reason(cut)
    cut.write_bytes(b"\x1f\x8b")
    assert "cannot be read" in reason(cut)


def test_metadata(tmp_path: Path) -> None:
    h = sky_header()
    values = {
        "EXPTIME": 12.5, "NCOMBINE": 7, "DATE-OBS": "2024-01-02T03:04:05", "DATE-END": "2024-01-02",
        "FILTER": "Ha ", "OBJECT": "Barnard's star", "TELESCOP": "T", "INSTRUME": " ",
    }  # fmt: skip
    h.update(values)
    path = tmp_path / "a.fits"
    fits.writeto(path, np.zeros((16, 20), np.float32), h)
    meta = image(path).meta
    assert (meta.exptime, meta.stackcnt, meta.filter) == (12.5, 7, "Ha")
    assert (meta.object, meta.telescop, meta.instrume) == ("Barnard's star", "T", None)
    assert (meta.date_obs, meta.date_end) == ("2024-01-02T03:04:05", "2024-01-02")
    assert meta.mjd_obs == pytest.approx(60311.127835648, abs=1e-8)
    h["STACKCNT"] = 9
    h["MJD-OBS"] = 1.5
    fits.writeto(path, np.zeros((16, 20), np.float32), h, overwrite=True)
    meta = image(path).meta
    assert (meta.stackcnt, meta.mjd_obs) == (9, 1.5)


def test_dirty_header_survives(tmp_path: Path) -> None:
    extra = [
        b"HIERARCH ESO DET CHIP NAME = 'x' / long".ljust(80),
        b"OBJECT  = 'a very long name that goes on&'".ljust(80),
        b"CONTINUE  'and on'".ljust(80),
        b"EXPTIME   30".ljust(80),
        "OBSERVER= 'Bj\xf6rn' / caf\xe9".encode("latin-1").ljust(80),
        b"\0" * 80,
        b"NAXIS1  = 999".ljust(80),
        b"EPOCH   = 'yes'".ljust(80),
        b"FILTER  = 'unclosed".ljust(80),
    ]
    result = image(raw_fits(tmp_path / "a.fits", extra=extra))
    assert result.storage.shape == (16, 20)
    assert result.meta.exptime is None
    assert result.meta.object == "a very long name that goes on"
    assert result.meta.filter == "unclosed"
    np.testing.assert_array_equal(result.wcs.wcs.crval, [150.25, 2.5])


@pytest.mark.parametrize("text", ["1.5025D+02", "1.5025d2", "'150.25  '", "150.25e0"])
def test_numbers_that_wcslib_misreads(tmp_path: Path, text: str) -> None:
    result = image(raw_fits(tmp_path / "a.fits", sky=SKY | {"CRVAL1": text}))
    np.testing.assert_array_equal(result.wcs.wcs.crval, [150.25, 2.5])
    assert any("quoted" in note for note in result.warnings) == text.startswith("'")


def test_missing_padding_is_no_harm(tmp_path: Path) -> None:
    path = raw_fits(tmp_path / "a.fits", data=bytes(20 * 16 * 4))
    assert image(path).storage.shape == (16, 20)


# ------------------------------------------------------------------------------- broken inputs


def test_broken_files_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    assert "there is no such file" in reason(tmp_path / "gone.fits")
    assert "it is a folder" in reason(tmp_path)
    for content in (b"", b"SIMPLE", b"\x89PNG" * 1000):
        path.write_bytes(content)
        assert "not a FITS file" in reason(path)
    assert "no END card" in reason(raw_fits(path, end=False))
    text = reason(raw_fits(path, data=bytes(1000)))
    assert "truncated: header promises 4160 bytes, the file has 3880" in text
    assert "truncated: header promises 4000000002880 bytes" in reason(
        raw_fits(path, axes=(1_000_000, 1_000_000), data=b"")
    )
    assert "no image in it" in reason(raw_fits(path, axes=()))
    assert "1-D" in reason(raw_fits(path, axes=(20,)))
    assert "1-D" in reason(raw_fits(path, axes=(20, 1)))
    assert "4-D" in reason(raw_fits(path, axes=(5, 4, 3, 2)))
    assert "no pixels" in reason(raw_fits(path, axes=(20, 0)))
    assert "BITPIX 12" in reason(raw_fits(path, bitpix=12))
    assert "no usable NAXIS1" in reason(raw_fits(path, axes=(-5, 4), data=b""))
    assert "BSCALE is 0" in reason(raw_fits(path, extra=[card("BSCALE", "0.0")]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"CRVAL1": "NaN"}, "CRVAL1 is not a finite number"),
        ({"CRPIX2": "inf"}, "CRPIX2 is not a finite number"),
        ({"CD1_1": "-nan"}, "CD1_1 is not a finite number"),
        ({"CRVAL2": "12:30:00"}, "CRVAL2 is not a finite number ('12:30:00')"),
        ({"CRVAL2": ""}, "lacks CRVAL2"),
        ({"CD1_1": "0.0"}, "singular"),
        ({"CD1_2": "0.0003", "CD2_1": "-0.0003"}, "singular"),
        ({"CD2_1": "1e-15", "CD2_2": "1e-15"}, "singular"),
        ({"CTYPE1": "'LINEAR'", "CTYPE2": "'LINEAR'"}, "not celestial"),
        ({"CTYPE2": "'FREQ'"}, "not celestial"),
        ({"CTYPE1": "'RA---TNX'", "CTYPE2": "'DEC--TNX'"}, "-TNX"),
        ({"CTYPE1": "'RA---ZPX'", "CTYPE2": "'DEC--ZPX'"}, "-ZPX"),
        ({"CTYPE1": "'ELON-TAN'", "CTYPE2": "'ELAT-TAN'"}, "neither equatorial nor galactic"),
        ({"CTYPE1": "'RA---XYZ'", "CTYPE2": "'DEC--XYZ'"}, "WCS is invalid"),
        ({"CTYPE1": "'RA---TAN'", "CTYPE2": "'DEC--SIN'"}, "WCS is invalid"),
    ],
)
def test_bad_wcs_is_left_out(tmp_path: Path, change: dict[str, str], text: str) -> None:
    assert text in reason(raw_fits(tmp_path / "a.fits", sky=SKY | change))


def test_no_wcs_and_no_scale(tmp_path: Path) -> None:
    assert "no WCS in its header" in reason(raw_fits(tmp_path / "a.fits", sky={}))
    bare = {k: v for k, v in SKY.items() if not k.startswith("CD")}
    assert "no pixel scale" in reason(raw_fits(tmp_path / "b.fits", sky=bare))


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_never_raise(tmp_path: Path, seed: int) -> None:
    """Any byte of the header overwritten, any length: an image or a reason, no exception."""
    rng = np.random.default_rng(seed)
    h = sip_header()
    h["BLANK"], h["BZERO"], h["EXPTIME"], h["MJD-OBS"] = -1, 0.5, 3.0, 6e4
    clean = tmp_path / "clean.fits"
    data = np.zeros((3, 16, 20), np.int16)
    primary = fits.PrimaryHDU(data, h)
    fits.HDUList([primary, fits.CompImageHDU(data[0], sky_header())]).writeto(clean)
    original = clean.read_bytes()
    path = tmp_path / "a.fits"
    n_header = original.index(b"END" + b" " * 77) + 80
    for _ in range(60):
        raw = bytearray(original)
        for at in rng.integers(0, n_header, rng.integers(1, 30)):
            raw[at] = rng.choice(list(b"0123456789+-.EDTFN='/ \0AXIS\xff"))
        path.write_bytes(raw[: rng.integers(0, len(raw))] if rng.random() < 0.2 else raw)
        result = scan_image(path)
        assert isinstance(result, InputImage | LeftOut)
        assert isinstance(scan_image(path, hdu=1), InputImage | LeftOut)
        if isinstance(result, LeftOut):
            assert result.reason.startswith(f"{path}: ")


def test_error_plane_never_stands_in_for_a_broken_image(tmp_path: Path) -> None:
    good = sky_header()
    hdus = fits.HDUList(
        [
            fits.PrimaryHDU(np.zeros((16, 20), np.float32), good),
            fits.ImageHDU(np.ones((16, 20), np.float32), good),
        ]
    )
    path = tmp_path / "a.fits"
    hdus.writeto(path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"CD1_1   =")
    raw[at : at + 80] = card("CD1_1", "NaN")
    path.write_bytes(raw)
    assert "CD1_1 is not a finite number" in reason(path)


def test_own_mosaics_in_a_scanned_folder(tmp_path: Path) -> None:
    raw_fits(tmp_path / "a.fits")
    own = raw_fits(tmp_path / "mosaic.fits", extra=[card("SOFTNAME", "'zmrs    '")])
    scan = scan_inputs([str(tmp_path)])
    assert [Path(i.name).name for i in scan.images] == ["a.fits"]
    assert "made by zmrs" in scan.left_out[0].reason
    assert len(scan_inputs([str(own)]).images) == 1


def test_scan_inputs_gathers_equal_warnings(tmp_path: Path) -> None:
    for n in range(5):
        raw_fits(tmp_path / f"{n}.fits", bitpix=16, extra=[card("BLANK", "-1.0")])
    (tmp_path / "bad.fits").write_bytes(b"junk")
    scan = scan_inputs([str(tmp_path)])
    assert len(scan.images) == 5
    assert len(scan.left_out) == 1
    assert len(scan.warnings) == 1
    assert "and 2 others: BLANK" in scan.warnings[0]


# ---------------------------------------------------------------------------------- distortions


def sip_header(suffix: str = "-SIP") -> fits.Header:
    h = sky_header()
    h["CTYPE1"], h["CTYPE2"] = "RA---TAN" + suffix, "DEC--TAN" + suffix
    h["A_ORDER"] = h["B_ORDER"] = h["AP_ORDER"] = h["BP_ORDER"] = 2
    h["A_2_0"], h["B_1_1"], h["A_0_2"] = 1e-4, -2e-4, 3e-5
    h["AP_1_0"], h["BP_0_1"], h["AP_2_0"], h["BP_1_1"] = 1e-6, 2e-6, -1e-4, 2e-4
    return h


def assert_same_sky(wcs: WCS, expected: WCS, width: int = 20, height: int = 16) -> None:
    x, y = (
        v.ravel() for v in np.meshgrid(np.linspace(0, width - 1, 7), np.linspace(0, height - 1, 7))
    )
    np.testing.assert_array_equal(wcs.all_pix2world(x, y, 0), expected.all_pix2world(x, y, 0))


@pytest.mark.parametrize("shape", [(16, 20), (3, 16, 20)])
def test_sip(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.fits"
    fits.writeto(path, np.zeros(shape, np.float32), sip_header())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = WCS(fits.getheader(path), naxis=2)
    result = image(path)
    assert_same_sky(result.wcs, expected)
    np.testing.assert_array_equal(result.wcs.sip.ap, expected.sip.ap)
    assert result.warnings == ()


def test_sip_without_the_suffix_is_said_loudly(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    fits.writeto(path, np.zeros((16, 20), np.float32), sip_header(""))
    result = image(path)
    assert_same_sky(result.wcs, astropy_wcs(path, 0))
    assert any("SIP coefficients but CTYPE lacks -SIP" in note for note in result.warnings)


def test_leftovers_of_scamp_beside_sip(tmp_path: Path) -> None:
    h = sip_header()
    h["PV1_1"], h["PV2_1"], h["PV1_5"] = 1.0, 1.0, 1e-3
    path = tmp_path / "a.fits"
    fits.writeto(path, np.zeros((16, 20), np.float32), h)
    assert_same_sky(image(path).wcs, astropy_wcs(path, 0))


def test_half_a_sip_is_left_out(tmp_path: Path) -> None:
    h = sip_header()
    del h["B_ORDER"]
    path = tmp_path / "a.fits"
    fits.writeto(path, np.zeros((16, 20), np.float32), h)
    assert "A_ORDER" in reason(path)


@pytest.mark.parametrize("ctype", ["TPV", "TAN"])
def test_tpv(tmp_path: Path, ctype: str) -> None:
    h = sky_header()
    h["CTYPE1"], h["CTYPE2"] = f"RA---{ctype}", f"DEC--{ctype}"
    h["PV1_0"], h["PV1_1"], h["PV1_5"], h["PV2_1"], h["PV2_6"] = 1e-4, 1.01, 0.5, 0.99, 0.25
    path = tmp_path / "a.fits"
    fits.writeto(path, np.zeros((16, 20), np.float32), h)
    assert_same_sky(image(path).wcs, astropy_wcs(path, 0))


def test_lookup_table_distortion(tmp_path: Path) -> None:
    table = np.linspace(-0.5, 0.5, 16, dtype=np.float32).reshape(4, 4)
    wcs = WCS(sky_header())
    from astropy.wcs import DistortionLookupTable

    lookup = DistortionLookupTable(table, (1.0, 1.0), (1.0, 1.0), (6.0, 5.0))
    wcs.cpdis1 = lookup
    wcs.cpdis2 = lookup
    made = wcs.to_fits()
    made[0].data = np.zeros((16, 20), np.float32)
    path = tmp_path / "a.fits"
    made.writeto(path)
    result = image(path)
    assert result.wcs.cpdis1 is not None
    assert_same_sky(result.wcs, astropy_wcs(path, 0))
    plain = WCS(sky_header())
    assert abs(result.wcs.all_pix2world(5, 5, 0)[0] - plain.all_pix2world(5, 5, 0)[0]) > 1e-6


# -------------------------------------------------------------------------------------- template


def test_template(tmp_path: Path) -> None:
    wcs, shape = scan_template(raw_fits(tmp_path / "a.fits", data=b""))
    assert shape == (16, 20)
    assert wcs.pixel_shape == (20, 16)
    text = tmp_path / "a.hdr"
    text.write_text(
        "SIMPLE  = T\nBITPIX  = -64\nNAXIS   = 2\nNAXIS1  = 20\nNAXIS2  = 16\n"
        + "".join(f"{k:<8}= {v}\n" for k, v in SKY.items())
        + "END\n"
    )
    other, shape = scan_template(text)
    assert shape == (16, 20)
    assert_same_sky(other, wcs)
    text.write_text("hello\n")
    with pytest.raises(InputError, match=r"a\.hdr: not a usable template"):
        scan_template(text)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        scan_template(tmp_path / "gone.hdr")


# ------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    "name",
    [
        "bass_mzls_tpv_60px", "decam_fz", "decam_tpv_200px_grz", "galactic_center_multiframe",
        "herschel_spire_w5", "huntsman_sip", "lco_banzai_fz", "m101_2mass_j", "m13_compression",
        "proj_1904-66", "seestar_m94",
    ],
)  # fmt: skip
def test_real_set_agrees_with_astropy(name: str) -> None:
    scan = scan_inputs([str(real_set(name))])
    assert scan.left_out == []
    assert scan.images
    for found in scan.images[:30]:
        s = found.storage
        expected = astropy_wcs(Path(s.path), s.hdu)
        assert_same_sky(found.wcs, expected, s.width, s.height)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(s.path) as hdus:
                hdu = hdus[s.hdu]
                assert hdu.shape == s.shape
                assert hdu.header["BITPIX"] == s.bitpix
                if not s.compressed:
                    assert hdu._data_offset == s.offset


def test_real_special_cases() -> None:
    scan = scan_inputs([str(real_set("hips_dss2red_hpx")), str(real_set("panoptes_dslr_bayer"))])
    assert {Path(i.name).name for i in scan.images} == {"pole.fits", "solved.fits.fz"}
    assert all("no WCS" in entry.reason for entry in scan.left_out)
    notes = scan_inputs([str(real_set("huntsman_sip"))]).warnings
    assert len(notes) == 2
    assert "SIP coefficients but CTYPE lacks -SIP" in notes[0]
    assert "both CDi_j and PCi_j" in notes[1]


def test_scanning_is_quick(tmp_path: Path) -> None:
    path = raw_fits(tmp_path / "a.fits", extra=[card(f"KEY{n}", str(n)) for n in range(150)])
    image(path)
    laps = []
    for _ in range(10):
        start = time.perf_counter()
        image(path)
        laps.append(time.perf_counter() - start)
    # Alone it takes 0.7 ms; the bound leaves room for a busy machine.
    assert min(laps) < 5e-3


def test_importing_the_module_does_not_import_astropy() -> None:
    code = "import sys, zmrs.scan; sys.exit('astropy' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
