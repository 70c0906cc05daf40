"""Weight maps in files of every form, ramps, saturation and blank zeros, against `oracle`."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import oracle
import sky
import zmrs
from sky import unmatched
from zmrs import two_pass
from zmrs.config import COMBINES, KERNELS
from zmrs.errors import InputError, UsageError

SHAPE, FRAME = (98, 117), (60, 72)
Array = np.ndarray[Any, Any]


def grid() -> WCS:
    return sky.frame_wcs(SHAPE, 7.3)


def frames(n: int = 3, channels: int = 1, frame: tuple[int, int] = FRAME) -> list[sky.Tile]:
    """Noise on frames turned by different angles, a few pixels apart."""
    tiles = []
    for k, angle in enumerate((3.1, -2.2, 90.0, 137.0)[:n]):
        wcs = sky.frame_wcs(frame, angle)
        wcs.wcs.crpix += np.array([9.37 * k - 11.1, 6.71 * k - 7.3])
        shape = frame if channels == 1 else (channels, *frame)
        image = np.random.default_rng([k, channels]).uniform(0.0, 1000.0, shape)
        tiles.append((image.astype(np.float32), WCS(wcs.to_header())))
    return tiles


def variances(n: int, frame: tuple[int, int] = FRAME) -> list[Array]:
    """Smooth, with pixels of no use: 0, negative, NaN, infinite."""
    y, x = np.mgrid[: frame[0], : frame[1]]
    maps = []
    for k in range(n):
        v = (4.0 + 3.0 * np.sin(0.21 * x + k) * np.cos(0.13 * y)).astype(np.float32)
        v[5:8, 9:12], v[12, ::7], v[30:33, 4], v[40, 40:44] = 0.0, -1.0, np.nan, np.inf
        maps.append(v)
    return maps


def weights_of(maps: Sequence[Array], kind: str) -> list[Array]:
    """What maps of that kind mean, by the formulas."""
    formulas: dict[str, Callable[[Array], Array]] = {
        "weight": lambda w: w,
        "variance": lambda v: 1 / v,
        "rms": lambda r: np.where(r > 0, 1 / r**2, 0),
        "mask": lambda m: (m == 0).astype(float),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        found = [formulas[kind](m.astype(np.float64)) for m in maps]
    return [np.where(np.isfinite(w), w, 0.0) for w in found]


def as_hdu(name: str, plane: Array, **cards: Any) -> fits.ImageHDU:
    return fits.ImageHDU(plane, fits.Header(cards), name=name)


def write(path: Path, tile: sky.Tile, *more: Any) -> Path:
    fits.HDUList([fits.PrimaryHDU(tile[0], tile[1].to_header()), *more]).writeto(path)
    return path


def judged(tiles: Sequence[sky.Tile], kernel: str = "bilinear", **more: Any) -> oracle.Points:
    return oracle.mosaic(tiles, grid(), SHAPE, kernel=kernel, **more)


def made(inputs: Sequence[Any], kernel: str = "bilinear", **more: Any) -> zmrs.Result:
    return unmatched(inputs, wcs=grid(), shape=SHAPE, kernel=kernel, threads=2, **more)


def assert_equal(result: zmrs.Result, want: oracle.Points, relative: float = 1e-5) -> None:
    image, coverage = want
    assert np.isfinite(image).any(), "the scene is empty"
    np.testing.assert_array_equal(np.isnan(result.data), np.isnan(image), "the NaN differ")
    np.testing.assert_allclose(result.coverage, coverage, rtol=relative, atol=0)
    worst = np.nanmax(np.abs(result.data - image)) / np.nanmax(np.abs(image))
    assert worst < relative, f"values differ by {worst:.2e} of the scale"


# ------------------------------------------------------------------------------------ weight maps


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["weight", "variance", "rms", "mask"])
def test_maps_in_an_extension(kind: str, kernel: str, tmp_path: Path) -> None:
    tiles, maps = frames(), variances(3)
    if kind == "mask":
        maps = [np.where(v > 3, 0, 7).astype(np.int16) for v in maps]
    paths = [
        write(tmp_path / f"{k}.fits", tile, as_hdu("ERR", np.ones(3)), as_hdu("WHT", plane))
        for k, (tile, plane) in enumerate(zip(tiles, maps, strict=True))
    ]
    want = judged(tiles, kernel, weights=weights_of(maps, kind))
    for name in ("WHT", "wht", "2"):
        result = made(paths, kernel, weights=name, weight_type=kind)
        assert_equal(result, want)
    # A caller's arrays mean the same.
    assert_equal(made(tiles, kernel, weights=maps, weight_type=kind), want)


def test_a_mask_of_colour_frames(tmp_path: Path) -> None:
    tiles = frames(3, channels=3)
    masks = [np.random.default_rng(k).random(FRAME) < 0.05 for k in range(3)]
    paths = [
        write(tmp_path / f"{k}.fits", tile, as_hdu("DQ", mask.astype(np.int32) << k))
        for k, (tile, mask) in enumerate(zip(tiles, masks, strict=True))
    ]
    result = made(paths, "bicubic", weights="DQ", weight_type="mask")
    assert_equal(result, judged(tiles, "bicubic", weights=[(~m).astype(float) for m in masks]))


def test_maps_in_files_of_their_own(tmp_path: Path) -> None:
    """Found by substitution; in a scanned folder they are not taken for inputs."""
    tiles, maps = frames(), variances(3)
    for k, (tile, plane) in enumerate(zip(tiles, maps, strict=True)):
        write(tmp_path / f"f{k}.fits", tile)
        # As SWarp writes them: images with the WCS of the science image.
        sky.write_image(tmp_path / f"f{k}.weight.fits", plane, tile[1])
    want = judged(tiles, weights=weights_of(maps, "variance"))
    how = {"weights": "s/.fits/.weight.fits/", "weight_type": "variance"}
    for given in ([tmp_path], [str(tmp_path / "f*.fits")], sorted(tmp_path.glob("*.fits"))):
        result = made(given, **how)
        assert_equal(result, want)
        used = [row.name for row in result.inputs if row.status == "used"]
        assert used == [str(tmp_path / f"f{k}.fits") for k in range(3)]


def test_maps_in_another_folder(tmp_path: Path) -> None:
    tiles, maps = frames(2), variances(2)
    for folder in ("sci", "wht"):
        (tmp_path / folder).mkdir()
    for k, (tile, plane) in enumerate(zip(tiles, maps, strict=True)):
        write(tmp_path / "sci" / f"{k}.fits", (np.zeros((1, 1), np.float32), tile[1])).unlink()
        # The science image is in HDU 1, and so are its weights, behind a decoy.
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(tile[0], tile[1].to_header())]).writeto(
            tmp_path / "sci" / f"{k}.fits"
        )
        fits.HDUList([fits.PrimaryHDU(np.ones((4, 4))), fits.ImageHDU(plane)]).writeto(
            tmp_path / "wht" / f"{k}.fits"
        )  # fmt: skip
    result = made([tmp_path / "sci"], weights="s,/sci/,/wht/,", weight_type="rms")
    assert_equal(result, judged(tiles, weights=weights_of(maps, "rms")))


@pytest.mark.parametrize("packed", ["fz image and map", "fz map", "gz file", "gz map"])
def test_compressed_maps(packed: str, tmp_path: Path) -> None:
    tiles = [(np.rint(image).astype(np.int16), wcs) for image, wcs in frames(2)]
    maps = [np.rint(np.nan_to_num(v, posinf=0.0)).astype(np.int16) for v in variances(2)]
    how: dict[str, Any] = {"weights": "WHT", "weight_type": "variance"}
    paths = []
    for k, (tile, plane) in enumerate(zip(tiles, maps, strict=True)):
        path = tmp_path / f"{k}.fits"
        tight = fits.CompImageHDU(plane, name="WHT", compression_type="RICE_1")
        if packed == "fz image and map":
            image = fits.CompImageHDU(tile[0], tile[1].to_header(), name="SCI")
            path = path.with_suffix(".fits.fz")
            fits.HDUList([fits.PrimaryHDU(), image, tight]).writeto(path)
        elif packed == "fz map":
            write(path, tile, tight)
        elif packed == "gz file":
            write(path, tile, as_hdu("WHT", plane))
            path.with_suffix(".fits.gz").write_bytes(gzip.compress(path.read_bytes()))
            path = path.with_suffix(".fits.gz")
        else:
            write(path, tile)
            other = write(tmp_path / f"{k}.w.fits", (plane, tile[1]))
            (tmp_path / f"{k}.w.fits.gz").write_bytes(gzip.compress(other.read_bytes()))
            other.unlink()
            how["weights"] = "s/.fits/.w.fits/"
        paths.append(path)
    result = made(paths, **how)
    want = judged([(i.astype(float), w) for i, w in tiles], weights=weights_of(maps, "variance"))
    assert_equal(result, want)
    assert result.stats["projected_bytes"] <= result.stats["allowed_bytes"]


@pytest.mark.parametrize("form", ["uint8", "uint8 of truths", "int16", "uint16", "float", "fz"])
def test_opacities_are_found_by_themselves(form: str, tmp_path: Path) -> None:
    tiles = frames(3)
    y, x = np.mgrid[: FRAME[0], : FRAME[1]]
    soft = [np.clip(0.03 * np.hypot(y - 30, x - 36 + 9 * k) - 0.1, 0, 1) for k in range(3)]
    soft = [np.where(alpha < 0.05, 0.0, alpha) for alpha in soft]
    planes: list[Array]
    if form == "float":
        planes = [alpha.astype(np.float32) for alpha in soft]
        for plane in planes:
            plane[0:3], plane[10], plane[20, ::3] = np.nan, 7.5, -2.0
        want = [np.clip(np.nan_to_num(plane), 0, 1) for plane in planes]
    elif form == "uint8 of truths":
        planes = [(alpha > 0.5).astype(np.uint8) for alpha in soft]
        want = [plane.astype(float) for plane in planes]
    else:
        full = 65535 if form == "uint16" else 255
        kind = {"int16": np.int16, "uint16": np.uint16}.get(form, np.uint8)
        planes = [np.rint(alpha * full).astype(kind) for alpha in soft]
        assert all(plane.max() > 0.9 * full for plane in planes)
        want = [plane / full for plane in planes]
    paths = []
    for k, (tile, plane) in enumerate(zip(tiles, planes, strict=True)):
        alpha = as_hdu("ALPHA", plane)
        if form == "fz":
            alpha = fits.CompImageHDU(plane, name="ALPHA")
        paths.append(write(tmp_path / f"{k}.fits", tile, alpha))
    result = made(paths)
    assert_equal(result, judged(tiles, weights=want))
    assert not np.array_equal(made(paths, weights="none").coverage, result.coverage)
    assert_equal(made(paths, weights="none"), judged(tiles))


def test_an_alpha_that_does_not_fit_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiles = frames(2)
    paths = [
        write(tmp_path / "0.fits", tiles[0], as_hdu("ALPHA", np.ones((7, 9), np.uint8))),
        write(tmp_path / "1.fits", tiles[1]),
    ]
    assert_equal(made(paths), judged(tiles))
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.endswith(
        "0.fits: its HDU ALPHA has 9 x 7 pixels where the image has 72 x 60 and is not used."
    )


def test_numbers_of_a_caller_multiply_opacities_and_arrays_replace_them(tmp_path: Path) -> None:
    tiles, maps = frames(2), variances(2)
    alphas = [np.full(FRAME, 100 * k + 51, np.uint8) for k in range(2)]
    paths = [
        write(tmp_path / f"{k}.fits", tile, as_hdu("ALPHA", alpha))
        for k, (tile, alpha) in enumerate(zip(tiles, alphas, strict=True))
    ]
    products = [3.0 * alphas[0] / 255, 0.5 * alphas[1] / 255]
    assert_equal(made(paths, weights=[3.0, 0.5]), judged(tiles, weights=products))
    mixed = [products[0], weights_of(maps, "rms")[1]]
    result = made(paths, weights=[3.0, maps[1]], weight_type="rms")
    assert_equal(result, judged(tiles, weights=mixed))


# --------------------------------------------------------------------------------- missing, wrong


def test_an_input_without_weights_is_left_out(tmp_path: Path) -> None:
    tiles, maps = frames(3), variances(3)
    paths = [
        write(tmp_path / "0.fits", tiles[0], as_hdu("WHT", maps[0])),
        write(tmp_path / "1.fits", tiles[1]),
        write(tmp_path / "2.fits", tiles[2], as_hdu("WHT", maps[2][:-1])),
    ]
    result = made(paths, weights="WHT", weight_type="variance")
    assert_equal(result, judged(tiles[:1], weights=weights_of(maps, "variance")[:1]))
    reasons = {Path(row.name).name: row.reason for row in result.inputs if row.reason}
    remedy = "; leave the file out or check --weights."
    assert reasons == {
        "1.fits": f"{paths[1]}: it has no HDU WHT with its weights{remedy}",
        "2.fits": f"{paths[2]}: its HDU WHT has 72 x 59 pixels where the image has 72 x 60{remedy}",
    }
    with pytest.raises(InputError, match=r"1\.fits: it has no HDU WHT"):
        made(paths, weights="WHT", strict=True)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("0", "its HDU 0 is the image itself"),
        ("TABLE", "its HDU TABLE is no image"),
        ("s/fits/gone/", "{0}/a.gone: there is no such file"),
        ("s/xyz/gone/", "its name has no 'xyz' in it"),
        ("s/a.fits/junk.fits/", "{0}/junk.fits: it is not a FITS file"),
        ("s/a.fits/table.fits/", "{0}/table.fits: no image in it"),
        ("s/a.fits/small.fits/", "{0}/small.fits: its HDU 0 has 3 x 2 pixels"),
        ("s/a.fits/cut.fits/", "{0}/cut.fits: its weights in HDU 0: truncated"),
    ],
)
def test_weights_that_are_none(rule: str, reason: str, tmp_path: Path) -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("A", "J", array=[1])], name="TABLE")
    path = write(tmp_path / "a.fits", frames(1)[0], table)
    (tmp_path / "junk.fits").write_bytes(b"junk")
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "table.fits")
    fits.PrimaryHDU(np.ones((2, 3))).writeto(tmp_path / "small.fits")
    fits.PrimaryHDU(np.ones(FRAME)).writeto(tmp_path / "cut.fits")
    whole = (tmp_path / "cut.fits").read_bytes()
    (tmp_path / "cut.fits").write_bytes(whole[:9000])
    with pytest.raises(InputError) as refused:
        made([path], weights=rule)
    assert str(refused.value).startswith(f"{path}: ")
    assert reason.format(tmp_path) in str(refused.value)


def test_arrays_have_no_extension() -> None:
    with pytest.raises(UsageError, match="input 1 is no file, so it has none"):
        made(frames(1), weights="WHT")


def test_a_type_of_weights_needs_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", frames(1)[0])
    with pytest.raises(UsageError, match="--weight-type rms: there are no weights"):
        made([path], weight_type="rms")


# ------------------------------------------------------------------------------------- the ramp


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width_px", [0.3, 5.0, 21.7, 1000.0])
def test_the_ramp(width_px: float, kernel: str) -> None:
    tiles = frames(4)
    assert_equal(made(tiles, kernel, feather=width_px), judged(tiles, kernel, feather_px=width_px))


@pytest.mark.parametrize("how", COMBINES)
def test_the_ramp_and_other_combines(how: str) -> None:
    tiles = frames(4)
    want = judged(tiles, how=how, feather_px=12.0)
    assert_equal(made(tiles, feather=12.0, combine=how), want)


def test_the_ramp_multiplies_other_weights() -> None:
    tiles, maps = frames(3), variances(3)
    weights = weights_of(maps, "variance")
    want = judged(tiles, weights=weights, feather_px=9.0)
    result = made(tiles, weights=maps, weight_type="variance", feather=9.0)
    assert_equal(result, want)
    numbers = [2.0, 1.0, 0.25]
    result = made(tiles, weights=numbers, feather=9.0)
    assert_equal(result, judged(tiles, weights=numbers, feather_px=9.0))


def test_a_ramp_leaves_no_seam() -> None:
    """Two levels meet without a step."""
    wcs = sky.frame_wcs((50, 160))
    tiles = [
        (
            np.full((50, 100), 100.0 + 50 * k, np.float32),
            sky.shifted_wcs(wcs, (0, 60 * k), (50, 100)),
        )
        for k in range(2)
    ]
    hard = unmatched(tiles, wcs=wcs, shape=(50, 160))
    soft = unmatched(tiles, wcs=wcs, shape=(50, 160), feather=40)
    row = 25
    assert np.abs(np.diff(hard.data[row])).max() == 25.0
    assert np.abs(np.diff(soft.data[row])).max() < 4.0
    assert np.isfinite(soft.data).all()


# ------------------------------------------------------------------------------------- the border


def within(image: Array, rows: int, columns: int) -> Array:
    """Without its border."""
    kept = np.full_like(image, np.nan)
    inside = (..., slice(rows, -rows), slice(columns, -columns))
    kept[inside] = image[inside]
    return kept


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_border_is_left_out(channels: int, kernel: str, tmp_path: Path) -> None:
    tiles = frames(3, channels)
    want = judged([(within(image, 5, 6), wcs) for image, wcs in tiles], kernel)
    paths = [write(tmp_path / f"{k}.fits", tile) for k, tile in enumerate(tiles)]
    assert_equal(made(tiles, kernel, border_mask=8.0), want)
    result = zmrs.mosaic(
        paths, tmp_path / "out.fits", wcs=grid(), shape=SHAPE, kernel=kernel, match="none",
        border_mask=8.0, memory="100MiB",
    )  # fmt: skip
    assert_equal(result, want)
    assert fits.getval(tmp_path / "out.fits", "ZMBORDER") == 8.0


def test_the_ramp_begins_where_the_border_ends() -> None:
    image = frames(1)[0][0]
    wcs = sky.frame_wcs(FRAME)
    result = unmatched([(image, wcs)], wcs=wcs, shape=FRAME, border_mask=8.0, feather=20.0)
    cut = (image[5:-5, 6:-6], sky.shifted_wcs(wcs, (5, 6), (50, 60)))
    want = unmatched([cut], wcs=wcs, shape=FRAME, feather=20.0)
    np.testing.assert_allclose(result.coverage, want.coverage, rtol=1e-6)
    np.testing.assert_array_equal(result.data, want.data)
    assert (result.coverage > 0).sum() == 50 * 60


def test_matching_looks_past_the_border() -> None:
    """Borders that shine say nothing of the sky."""
    tiles = [(image / 100 + 200 + 70 * k, wcs) for k, (image, wcs) in enumerate(frames(3))]
    sound = zmrs.mosaic(tiles, wcs=grid(), shape=SHAPE, border_mask=8.0)
    for image, _ in tiles:
        image[np.isnan(within(image, 5, 6))] = 1e5
    blown = zmrs.mosaic(tiles, wcs=grid(), shape=SHAPE, border_mask=8.0)
    assert [row.offset for row in blown.inputs] == [row.offset for row in sound.inputs]
    np.testing.assert_array_equal(blown.data, sound.data)


@pytest.mark.parametrize("percent", [-1.0, 50.0, float("nan")])
def test_borders_that_leave_nothing(percent: float) -> None:
    with pytest.raises(UsageError, match="% leaves nothing; give 0 to below 50"):
        made(frames(1), border_mask=percent)


# -------------------------------------------------------------------------------------- saturation


def saturated(tiles: Sequence[sky.Tile], level: float) -> list[sky.Tile]:
    """Bright blobs on some frames, above a level; a saturated frame border; some NaN."""
    made_of = []
    for k, (sound, wcs) in enumerate(tiles):
        image = sound.copy()
        image[..., 20:26, 30 + 4 * k : 37 + 4 * k] += np.float32(level)
        image[..., 10 + k, 5] = np.float32(1.5 * level)
        image[..., :2] += np.float32(level) * (k == 1)
        image[..., 23, 33] = np.nan
        image[..., 40:43, 50] = np.nan
        made_of.append((image, wcs))
    return made_of


def with_level(folder: Path, tiles: Sequence[sky.Tile], level: float) -> list[Path]:
    paths = []
    for k, (image, wcs) in enumerate(tiles):
        header = wcs.to_header()
        header["SATURATE"] = level
        paths.append(folder / f"{k}.fits")
        fits.PrimaryHDU(image, header).writeto(paths[-1])
    return paths


@pytest.mark.parametrize("kernel", KERNELS)
def test_saturated_pixels_count_where_no_others_do(kernel: str, tmp_path: Path) -> None:
    level = 3000.0
    tiles = saturated(frames(4), level)
    paths = with_level(tmp_path, tiles, level)
    result = made(paths, kernel)
    assert_equal(result, judged(tiles, kernel, saturate=[level] * 4))
    without = made([(image, wcs) for image, wcs in tiles], kernel)
    np.testing.assert_array_equal(np.isnan(result.data), np.isnan(without.data))
    differ = (result.data != without.data) & np.isfinite(result.data)
    assert 20 < differ.sum() < 2000
    if kernel in ("nearest", "bilinear"):
        # Where one input covers alone nothing changes. (Wider kernels leave outer taps out.)
        assert not differ[without.coverage == 1].any()


@pytest.mark.parametrize("how", COMBINES)
def test_saturation_and_every_combine(how: str, tmp_path: Path) -> None:
    level = 3000.0
    tiles = saturated(frames(4), level)
    weights = [1.0, 2.0, 0.5, 1.0]
    result = made(with_level(tmp_path, tiles, level), combine=how, weights=weights)
    assert_equal(result, judged(tiles, how=how, weights=weights, saturate=[level] * 4))


def test_saturation_of_colour_frames_with_maps_and_a_ramp(tmp_path: Path) -> None:
    level = 3000.0
    tiles = saturated(frames(3, channels=3), level)
    for k, (image, _) in enumerate(tiles):
        image[k, 44:47, 20:25] = 2 * level  # one channel
    maps = weights_of(variances(3), "variance")
    paths = with_level(tmp_path, tiles, level)
    result = made(paths, weights=maps, feather=8.0)
    want = judged(tiles, weights=maps, feather_px=8.0, saturate=[level] * 3)
    # Values at twice the level are remembered to a part in ten thousand.
    assert_equal(result, want, 1e-4)


def test_inputs_in_turn_give_way_too(tmp_path: Path) -> None:
    level = 3000.0
    tiles = saturated(frames(4), level)
    paths = with_level(tmp_path, tiles, level)
    want = made(paths, combine="last")
    for rows, chunk in ((3, None), (40, 60_000)):
        plan = {"rows_per_chunk": rows, "max_chunk_bytes": chunk, "cpu_workers": 2}
        result = unmatched(paths, wcs=grid(), shape=SHAPE, combine="last", plan=plan)
        assert result.data.tobytes() == want.data.tobytes()
        assert result.coverage.tobytes() == want.coverage.tobytes()


def test_a_saturated_frame_alone_is_as_it_was(tmp_path: Path) -> None:
    image = np.random.default_rng(2).uniform(1000, 60000, FRAME).astype(np.float32)
    wcs = sky.frame_wcs(FRAME)
    (path,) = with_level(tmp_path, [(image, wcs)], 500.0)
    result = unmatched([path], wcs=WCS(fits.getheader(path)), shape=FRAME)
    np.testing.assert_allclose(result.data, image, rtol=2**-13)
    assert np.array_equal(result.coverage, np.ones(FRAME))
    assert result.inputs[0].n_samples == image.size
    # Up to 1.75 times the level they are remembered exactly.
    fits.setval(path, "SATURATE", value=4e4)
    result = unmatched([path], wcs=WCS(fits.getheader(path)), shape=FRAME)
    assert np.array_equal(result.data, image)


def test_matching_looks_past_saturated_pixels(tmp_path: Path) -> None:
    """Half of an overlap is saturated in one of the frames, and says nothing of the sky."""
    level = 4000.0
    tiles = [(image / 100 + 200 + 70 * k, wcs) for k, (image, wcs) in enumerate(frames(2))]
    sound = zmrs.mosaic(tiles, wcs=grid(), shape=SHAPE)
    tiles[1][0][:, :40] = 5000.0
    spoilt = zmrs.mosaic(with_level(tmp_path, tiles, level), wcs=grid(), shape=SHAPE)
    for ours, theirs in zip(spoilt.inputs, sound.inputs, strict=True):
        assert ours.offset[0] == pytest.approx(theirs.offset[0], abs=1.0)


# ---------------------------------------------------------------------------- zeros, dead frames


def bordered(tiles: Sequence[sky.Tile]) -> list[sky.Tile]:
    found = []
    for k, (whole, wcs) in enumerate(tiles):
        image = whole + 10
        image[..., : 8 + k] = 0.0
        image[..., -3:, :] = 0.0
        found.append((image, wcs))
    return found


def as_blank(tiles: Sequence[sky.Tile]) -> list[sky.Tile]:
    found = []
    for image, wcs in tiles:
        zero = (np.atleast_3d(image.T).T == 0).all(axis=0)
        found.append((np.where(zero, np.nan, image), wcs))
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_zeros_may_be_blank(
    channels: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zmrs")
    tiles = bordered(frames(3, channels))
    if channels == 3:
        tiles[0][0][1, 30:34, 30:34] = 0.0  # in one channel it is a value
    paths = [write(tmp_path / f"{k}.fits", tile) for k, tile in enumerate(tiles)]
    blank, kept = judged(as_blank(tiles)), judged(tiles)
    assert_equal(made(paths, zero_is_blank="on"), blank)
    assert_equal(made(tiles, zero_is_blank="on"), blank)
    assert_equal(made(paths, zero_is_blank="off"), kept)
    # Arrays of a caller are what he says.
    assert_equal(made(tiles), kept)
    assert not [line for line in caplog.messages if "zeros" in line]
    assert_equal(made(paths), blank)
    (line,) = [line for line in caplog.messages if "zeros" in line]
    assert line.startswith(f"{paths[0]}, {paths[1]}, {paths[2]}: zeros are taken for blank, up to ")


def test_few_zeros_and_strewn_zeros_are_values(tmp_path: Path) -> None:
    tiles = frames(2, frame=(200, 240))
    few, strewn = (image.copy() for image, _ in tiles)
    few[:, :11] = 0.0  # 4.6 %
    strewn[np.random.default_rng(1).random(strewn.shape) < 0.3] = 0.0
    tiles = [(few, tiles[0][1]), (strewn, tiles[1][1])]
    paths = [write(tmp_path / f"{k}.fits", tile) for k, tile in enumerate(tiles)]
    assert_equal(made(paths), judged(tiles))


def test_a_share_next_to_the_limit_is_counted(tmp_path: Path) -> None:
    """4.9 and 5.1 hundredths in rows that a look at some rows overrates or misses."""
    shape = (1000, 40)
    wcs = sky.frame_wcs(shape)
    for n_rows, is_blank in ((49, False), (51, True)):
        image = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
        image[:n_rows] = 0.0
        path = write(tmp_path / f"{n_rows}.fits", (image, wcs))
        result = unmatched([path], wcs=WCS(fits.getheader(path)), shape=shape)
        assert np.isnan(result.data[:n_rows]).all() == is_blank
        assert result.stats["read_bytes"] == 2 * image.nbytes + 32 * 40 * 4


def test_an_alpha_decides_about_zeros(tmp_path: Path) -> None:
    (tile,) = bordered(frames(1))
    path = write(tmp_path / "0.fits", tile, as_hdu("ALPHA", np.full(FRAME, 255, np.uint8)))
    assert_equal(made([path]), judged([tile]))


DEAD = {
    "zeros": (lambda image: 0.0 * image, "all its pixels are 0; leave it out"),
    "NaN": (lambda image: np.nan * image, "it has no valid pixel; leave it out."),
    "constant": (lambda image: 0.0 * image + 7.5, "all its pixels have one value, a dead frame's"),
    "one value and NaN": (
        lambda image: np.where(image > 500, np.nan, 3.0),
        "all its pixels have one value, a dead frame's",
    ),
}


@pytest.mark.parametrize("kind", DEAD)
def test_dead_frames_are_left_out(kind: str, tmp_path: Path) -> None:
    spoil, reason = DEAD[kind]
    tiles = frames(3)
    dead = (np.asarray(spoil(tiles[1][0]), np.float32), tiles[1][1])
    paths = [
        write(tmp_path / f"{k}.fits", tile) for k, tile in enumerate([tiles[0], dead, tiles[2]])
    ]
    result = made(paths)
    assert_equal(result, judged([tiles[0], tiles[2]]))
    (row,) = [row for row in result.inputs if row.status == "left_out"]
    assert row.name == str(paths[1])
    assert row.reason.startswith(f"{paths[1]}: {reason}")
    with pytest.raises(InputError, match=r"1\.fits: "):
        made(paths, strict=True)
    if kind != "NaN":
        assert_equal(made(paths, zero_is_blank="off"), judged([tiles[0], dead, tiles[2]]))


def test_a_frame_with_one_live_pixel_lives(tmp_path: Path) -> None:
    """However well that one hides from a look at some rows."""
    shape = (700, 50)
    image = np.full(shape, 3.0, np.float32)
    image[2, 7] = 4.0
    other = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    wcs = sky.frame_wcs(shape)
    paths = [write(tmp_path / f"{k}.fits", (i, wcs)) for k, i in enumerate((image, other))]
    result = unmatched(paths, wcs=WCS(fits.getheader(paths[0])), shape=shape)
    assert [row.status for row in result.inputs] == ["used", "used"]


def test_where_all_are_constant_they_are_meant_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiles = [(np.full(FRAME, 5.0 * k + 5, np.float32), wcs) for k, (_, wcs) in enumerate(frames(2))]
    paths = [write(tmp_path / f"{k}.fits", tile) for k, tile in enumerate(tiles)]
    assert_equal(made(paths), judged(tiles))
    (warning,) = [line for line in caplog.messages if "one value" in line]
    assert warning == f"{paths[0]}, {paths[1]}: all pixels have one value; is this a dead frame?"


# -------------------------------------------------------------------------------- weights of inputs


def test_exposures_weigh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiles, times = frames(4), [30.0, 60.0, None, 120.0]
    paths = []
    for k, (tile, time) in enumerate(zip(tiles, times, strict=True)):
        paths.append(write(tmp_path / f"{k}.fits", tile))
        if time:
            fits.setval(paths[-1], "EXPTIME", value=time)
    result = made(paths, weight_by="exposure")
    weights = [0.5, 1.0, 1.0, 2.0]
    assert_equal(result, judged(tiles, weights=weights))
    assert [row.weight for row in result.inputs] == weights
    warnings = [r.message for r in caplog.records if "not known" in r.message]
    assert warnings == [f"{paths[2]}: the exposure time is not known; it weighs as the median"]
    both = made(paths, weight_by="exposure", weights=[1, 2, 1, 0.5])
    assert [row.weight for row in both.inputs] == [0.5, 2.0, 1.0, 1.0]


def test_stacks_weigh_by_their_frames(tmp_path: Path) -> None:
    tiles = frames(4)
    cards: list[dict[str, Any]] = [
        {"MT_NFRAMES": 10, "STACKCNT": 99},
        {"MT_NFRAMES": 0, "NRAWPROC": 20.0},
        {"STACKCNT": 40, "NCOMBINE": 3},
        {"NCOMBINE": 80},
    ]
    paths = []
    for k, (tile, more) in enumerate(zip(tiles, cards, strict=True)):
        paths.append(write(tmp_path / f"{k}.fits", tile))
        with fits.open(paths[-1], mode="update") as hdus:
            for keyword, value in more.items():
                long = "HIERARCH " if len(keyword) > 8 else ""
                hdus[0].header[long + keyword] = value
    result = made(paths, weight_by="n_frames")
    weights = [row.weight for row in result.inputs]
    assert weights == pytest.approx([0.75, 0.8165, 1.1547, 1.35], abs=5e-5)
    assert_equal(result, judged(tiles, weights=weights))
    # A dead frame has no say in the median.
    dead = write(tmp_path / "dead.fits", (np.zeros(FRAME, np.float32), tiles[0][1]))
    fits.setval(dead, "NRAWINIT", value=10**6)
    again = made([dead, *paths], weight_by="n_frames")
    assert [row.weight for row in again.inputs[:4]] == weights


@pytest.mark.parametrize("from_files", [True, False])
def test_noise_weighs(from_files: bool, tmp_path: Path) -> None:
    sigmas, shape = [2.0, 4.0, 8.0], (300, 400)
    y, x = np.mgrid[: shape[0], : shape[1]]
    tiles: list[Any] = []
    for k, sigma in enumerate(sigmas):
        rng = np.random.default_rng(k)
        image = 500 + 0.3 * x + 0.2 * y + rng.normal(0, sigma, shape)
        image[rng.random(shape) < 0.002] += 3e4
        image[:, : 20 * k] = np.nan
        tiles.append((image.astype(np.float32), sky.frame_wcs(shape)))
    inputs = tiles
    if from_files:
        inputs = [write(tmp_path / f"{k}.fits", tile) for k, tile in enumerate(tiles)]
    out = tmp_path / "out.fits"
    result = unmatched(inputs, out, weight_by="ivar")
    weights = [row.weight for row in result.inputs]
    assert weights == pytest.approx([4.0, 1.0, 0.25], rel=0.05)
    header = fits.getheader(out)
    assert header["ZMWEIGHT"] == "ivar"
    assert header["ZMIVAR"] == pytest.approx(1 / 16, rel=0.05)
    # The mosaic's own noise is what its coverage says.
    part = np.s_[100:200, 250:350]
    residual = result.data[part] - (500 + 0.3 * x + 0.2 * y)[part]
    expected = 1 / (header["ZMIVAR"] * np.median(result.coverage[part]))
    found = (1.4826 * np.median(np.abs(residual - np.median(residual)))) ** 2
    assert found == pytest.approx(expected, rel=0.1)


def test_blank_zeros_have_no_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    shape, wcs = (200, 300), sky.frame_wcs((200, 300))
    plain = rng.normal(100, 5, shape).astype(np.float32)
    bordered_one = rng.normal(100, 5, shape).astype(np.float32)
    bordered_one[:, :200] = 0.0
    paths = [write(tmp_path / f"{k}.fits", (i, wcs)) for k, i in enumerate((plain, bordered_one))]
    result = unmatched(paths, weight_by="ivar")
    first, second = (row.weight for row in result.inputs)
    assert second / first == pytest.approx(1, rel=0.05)


def test_an_unknown_noise_weighs_as_the_median(caplog: pytest.LogCaptureFixture) -> None:
    rng, wcs = np.random.default_rng(0), sky.frame_wcs(FRAME)
    tiles = [(np.full(FRAME, 3.0), wcs), (rng.normal(0, 1, FRAME), wcs)]
    result = unmatched(tiles, weight_by="ivar")
    assert [row.weight for row in result.inputs] == [1.0, 1.0]
    assert [line for line in caplog.messages if "not known" in line] == [
        "input 1: the noise is not known; it weighs as the median"
    ]


# ------------------------------------------------------------------------------------- Two-Pass


def test_inverse_variances_do_not_silence_the_second_pass(tmp_path: Path) -> None:
    """Its gains follow from how many inputs cover, however these weigh."""
    tiles = frames(4)
    maps = [np.full(FRAME, 1e-4 * (k + 1), np.float32) for k in range(4)]
    plain = made(tiles, two_pass=True, two_pass_sigma=6)
    gains = plain.stats["two_pass"]["gains"]
    assert len(set(gains)) > 2
    for weighed in (
        made(tiles, two_pass=True, two_pass_sigma=6, weights=maps),
        made(tiles, two_pass=True, two_pass_sigma=6, weights=maps, weight_type="rms"),
        made(tiles, two_pass=True, two_pass_sigma=6, weights=[1e-5, 2e-5, 1e5, 1.0]),
        made(tiles, two_pass=True, two_pass_sigma=6, feather=15),
        made(tiles, two_pass=True, two_pass_sigma=6, weight_by="ivar"),
    ):
        assert weighed.stats["two_pass"]["gains"] == pytest.approx(gains, rel=1e-6)
        assert weighed.stats["two_pass"]["applied"]
    coverage = plain.coverage
    blurred = two_pass.coverage_blur(coverage, 6)
    assert (blurred >= 2).sum() > 1000


def test_the_depth_in_bands(tmp_path: Path) -> None:
    tiles, maps = frames(4), variances(4)
    paths = [write(tmp_path / f"{k}.fits", tile) for k, tile in enumerate(tiles)]
    how = {"two_pass": True, "two_pass_sigma": 6, "weights": maps, "feather": 5}
    want = made(tiles, **how)
    for rows in (1, 7, 98):
        plan = {"rows_per_chunk": rows, "cpu_workers": 3}
        result = unmatched(
            paths, tmp_path / f"in {rows}.fits", wcs=grid(), shape=SHAPE, plan=plan, **how
        )
        assert result.stats["two_pass"]["gains"] == want.stats["two_pass"]["gains"]
        assert np.asarray(result.data, "=f4").tobytes() == want.data.tobytes()
