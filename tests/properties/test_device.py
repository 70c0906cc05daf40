"""Pixels from a device are those of the engine, to the bit.

On the emulated device the kernels are compiled by the C compiler; on a GPU, where there is one, by
CUDA.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

import sky
from emulated_device import Emulated
from zmrs import _zmrs
from zmrs.backends.gpu import METHODS, GpuPass
from zmrs.config import KERNELS, Options
from zmrs.errors import BudgetError, DeviceMemoryError
from zmrs.prepare import Prepared, prepare
from zmrs.simulate import make_frame_wcs

SHAPE = (230, 1300)
ANGLES = (0.0, 2.7, 90.0, 137.0, -178.5, 45.0)
LEVEL = 20_000.0
GIB = 1 << 30


def frames(channels: int, layers: int = 1) -> list[sky.Tile]:
    """Turned frames with holes along the canvas; the first of each layer is distorted."""
    grid, result = sky.frame_wcs(SHAPE), []
    for layer in range(layers):
        for n, angle in enumerate(angle + 1.7 * layer for angle in ANGLES):
            shape = (170 + 13 * n, 330 - 7 * n)
            centre = grid.all_pix2world(150.0 + 200 * n, 115.0 + 10 * n, 0)
            wcs = make_frame_wcs(
                tuple(map(float, centre)), sky.SCALE_ARCSEC, angle, shape,
                sip_strength=0.0 if n else 3.0,
            )  # fmt: skip
            rng = np.random.default_rng([n, layer, channels])
            full = shape if channels == 1 else (channels, *shape)
            image = (rng.normal(500.0, 100.0, full) * 10.0 ** rng.uniform(-1, 2)).astype("f4")
            image[..., rng.random(shape) < 0.01] = np.nan
            image[..., 40:45, 60:90] = np.nan
            result.append((image, wcs))
    return result


def weights_of(tiles: list[sky.Tile]) -> list[Any]:
    """None, a number or a map in turn."""
    maps = [np.random.default_rng([9, n]).uniform(-0.02, 3.0, SHAPE) for n in range(len(tiles))]
    return [
        [None, 0.3, maps[n][: i.shape[-2], : i.shape[-1]]][n % 3] if i.shape[-2] <= 230 else 0.7
        for n, (i, _) in enumerate(tiles)
    ]


def prepared(tiles: list[Any], given: list[Any] | None = None, /, **options: Any) -> Prepared:
    options = {"memory": GIB, "threads": 2, "match": "none"} | options
    grid = (sky.frame_wcs(SHAPE, 1.3), SHAPE)
    return prepare(tiles, Options(**options), grid=grid, weights=given, in_memory=True)


def for_device(job: Prepared) -> _zmrs.Layout:
    """How the job is cut where a device computes, and decodes what is stored."""
    plan = job.layout.plan.replace(use_gpu=True, gpu_max_chunk_bytes=GIB)
    return _zmrs.fit(job.job, plan, job.room.reserved_bytes, 0, 0, True)


def planes(
    job: Prepared, device: GpuPass | None, layout: _zmrs.Layout | None = None
) -> dict[str, Any]:
    """All that a pass makes: planes as their bits, and counts."""
    if layout is None:
        layout = job.layout if device is None else for_device(job)
    channels = job.channels
    image, coverage = np.empty((channels, *SHAPE), "f4"), np.empty(SHAPE, "f4")
    counts = np.empty((2 * channels, *SHAPE), "i2") if job.job.counts_rejected else None
    variance = np.empty_like(image) if job.job.has_variance else None
    with tempfile.TemporaryDirectory() as folder:
        stats = _zmrs.run_pass_into_arrays(
            job.job, layout, image, coverage, counts=counts, variance=variance, device=device,
            bounds=Path(folder) / "bounds",
        )  # fmt: skip
    found = {"image": image.view("i4"), "coverage": coverage.view("i4"), "counts": counts}
    if variance is not None:
        found["variance"] = variance.view("i4")
    return found | {"samples": stats.samples, "rejected": stats.rejected}


def bring_when(hardware: Any, late: bool) -> None:
    """Have windows come to the emulated device as early as they may, or as late."""
    if isinstance(hardware, Emulated):
        hardware.brings_late = late


def assert_same(job: Prepared, hardware: Any, limit: int = GIB) -> GpuPass:
    device = GpuPass(hardware, job.job, limit)
    ours, its = planes(job, None), planes(job, device)
    assert sum(ours["samples"]) > 100_000
    for name, values in ours.items():
        assert np.array_equal(values, its[name]), name
    return device


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("channels", "weighted"), [(1, False), (3, True)])
def test_kernels(kernel: str, channels: int, weighted: bool, hardware: Any) -> None:
    tiles = frames(channels)
    assert_same(prepared(tiles, weights_of(tiles) if weighted else None, kernel=kernel), hardware)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("channels", "weighted"), [(1, True), (3, False)])
def test_combines(method: str, channels: int, weighted: bool, hardware: Any) -> None:
    tiles = frames(channels, layers=3)
    weights = weights_of(tiles) if weighted else None
    job = prepared(tiles, weights, combine=method, kappa=(1.5, 1.2))
    assert_same(job, hardware)
    if job.job.counts_rejected:
        assert sum(planes(job, None)["rejected"]) > 1000


@pytest.mark.parametrize("method", ["kappa-sigma", "winsorized", "kappa-sigma-stream"])
def test_channels_together(method: str, hardware: Any) -> None:
    tiles = frames(3, layers=3)
    job = prepared(tiles, combine=method, kappa=(1.2, 1.2), reject_together=True)
    assert_same(job, hardware)


@pytest.mark.parametrize("method", ["mean", "max", "median", "kappa-sigma", "kappa-sigma-stream"])
@pytest.mark.parametrize("kernel", ["nearest", "bilinear", "lanczos2"])
def test_saturated_ramped_and_opaque_pixels(
    method: str, kernel: str, hardware: Any, tmp_path: Path
) -> None:
    """Files with levels of saturation, opacities, borders of zeros; a ramp."""
    for n, (image, wcs) in enumerate(frames(3, layers=2)):
        image[:, 60:75, 100:130] = np.float32(1.2 * LEVEL)
        image[..., : 30 * (n % 2)] = 0.0
        header = wcs.to_header(relax=True)
        header["SATURATE"] = LEVEL
        alpha = np.random.default_rng(n).integers(0, 256, image.shape[-2:]).astype("u1")
        hdus = [fits.PrimaryHDU(image, header), fits.ImageHDU(alpha, name="ALPHA")]
        fits.HDUList(hdus).writeto(tmp_path / f"{n}.fits")
    options = {"combine": method, "kernel": kernel, "feather": 31.0, "border_mask": 3.0}
    assert_same(prepared(sorted(tmp_path.iterdir()), **options), hardware)


def test_gains_and_offsets(hardware: Any) -> None:
    job = prepared(frames(3))
    rng = np.random.default_rng(3)
    gains, offsets = rng.uniform(0.5, 2.0, (6, 3)).tolist(), rng.normal(0, 99, (6, 3)).tolist()
    matched = job.job.with_photometry(gains, offsets)
    plain = planes(job, None)["image"]
    object.__setattr__(job, "job", matched)
    assert_same(job, hardware)
    assert not np.array_equal(plain, planes(job, None)["image"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
def test_variances(method: str, kernel: str, hardware: Any, tmp_path: Path) -> None:
    """From maps and from measured noise, beside holes, of saturated samples too."""
    for n, (image, wcs) in enumerate(frames(2, layers=2)):
        image[:, 60:75, 100:130] = np.float32(1.2 * LEVEL)
        header = wcs.to_header(relax=True)
        header["SATURATE"] = LEVEL
        variance = np.random.default_rng(n).uniform(-0.1, 9.0, image.shape[-2:]).astype("f4")
        hdus = [fits.PrimaryHDU(image, header), fits.ImageHDU(variance, name="VAR")]
        fits.HDUList(hdus).writeto(tmp_path / f"{n}.fits")
    paths = sorted(tmp_path.iterdir())
    options: dict[str, Any] = {"combine": method, "kernel": kernel, "variance": True}
    for maps in ({"weights": "VAR", "weight_type": "variance", "feather": 8.5}, {}):
        job = prepared(paths, kappa=(1.5, 1.5), **options, **maps)
        assert_same(job, hardware)
        found = planes(job, GpuPass(hardware, job.job, GIB))["variance"].view("f4")
        assert np.nanmin(found) > 0


@pytest.mark.parametrize("method", ["mean", "last", "kappa-sigma-stream"])
@pytest.mark.parametrize("memory_mib", [1, 4])
@pytest.mark.parametrize("brings_late", [False, True])
def test_inputs_one_after_the_other(
    brings_late: bool, memory_mib: int, method: str, hardware: Any
) -> None:
    """With little memory running values wait on the device while inputs come."""
    bring_when(hardware, brings_late)
    tiles = [tile for _ in range(10) for tile in frames(1)]
    job = prepared(tiles, combine=method, kappa=(1.5, 1.5), variance=True)
    tight = job.plan.replace(max_chunk_bytes=memory_mib << 20, rows_per_chunk=None)
    room = job.room
    layout = _zmrs.fit(job.job, tight, room.reserved_bytes, 0, 0, True)
    assert layout.bands > 1 or layout.blocks > 1
    object.__setattr__(job, "layout", layout)
    assert_same(job, hardware)


def test_stacks_in_slices(hardware: Any) -> None:
    """Combines of all samples take as many pixels at once as fit."""
    tiles = frames(3, layers=3)
    job = prepared(tiles, combine="winsorized", kappa=(1.5, 1.5))
    wide = assert_same(job, hardware)
    needed = sum(buffer.nbytes for buffer in wide._buffers.values())
    scratch = sum(wide._buffers[name].nbytes for name in ("values", "weights", "sorted"))
    del wide
    assert_same(job, hardware, needed - scratch // 2)
    with pytest.raises(DeviceMemoryError):
        assert_same(job, hardware, needed - scratch * 2)


def marked(path: Path, inputs: int) -> np.ndarray:
    """(inputs, H, W): where a file of marks says that each input lies."""
    found = np.zeros((inputs, *SHAPE), bool)
    for number, y, x0, x1 in np.fromfile(path, "u4").reshape(-1, 4):
        assert not found[number, y, x0:x1].any()
        found[number, y, x0:x1] = True
    return found


@pytest.mark.parametrize("saturates", [False, True])
@pytest.mark.parametrize("method", ["mean", "kappa-sigma", "kappa-sigma-stream"])
@pytest.mark.parametrize("kernel", ["nearest", "bilinear", "lanczos3"])
def test_where_inputs_lie(
    kernel: str, method: str, saturates: bool, hardware: Any, tmp_path: Path
) -> None:
    """The coverage renormalisation finds the same gains from the marks of either.

    A saturated pixel is marked, whether others cover it or not.
    """
    tiles: list[Any] = frames(1, layers=2)
    if saturates:
        for n, (image, wcs) in enumerate(tiles):
            image[60:75, 100:130] = np.float32(1.2 * LEVEL)
            sky.write_image(tmp_path / f"{n:02}.fits", image, wcs, SATURATE=LEVEL)
        tiles = sorted(tmp_path.iterdir())
    options = {"two_pass": True, "two_pass_sigma": 9.0, "kernel": kernel, "combine": method}
    job = prepared(tiles, **options)
    gains, lie = [], []
    for name, device in (("ours", None), ("its", GpuPass(hardware, job.job, GIB))):
        image, coverage = np.empty((1, *SHAPE), "f4"), np.empty(SHAPE, "f4")
        counts = np.empty((2, *SHAPE), "i2") if job.job.counts_rejected else None
        marks = _zmrs.Marks(tmp_path / name)
        layout = job.layout if device is None else for_device(job)
        _zmrs.run_pass_into_arrays(
            job.job, layout, image, coverage, counts=counts, marks=marks, device=device,
            bounds=tmp_path / "bounds",
        )  # fmt: skip
        lie.append(marked(tmp_path / name, len(tiles)))
        bytes_of = [p.reshape(-1).view("u1") for p in (image[0], coverage)]
        place = tmp_path / "scales"
        place.touch()
        found = _zmrs.measure_gains(
            job.job, job.layout, _zmrs.Planes.in_memory(SHAPE[1], bytes_of), marks, (place, 0)
        )
        gains.append(found.gains)
    assert np.array_equal(*lie)
    assert gains[0] == gains[1]
    assert len(set(gains[0])) > 6


def test_marks_of_saturated_pixels_do_not_depend_on_the_order(tmp_path: Path) -> None:
    """What gives way to another input is marked like what does not."""
    lie = []
    for turn in (0, 1):
        paths = []
        for n in range(2):
            image = np.full((60, 80), 500.0 + n, "f4")
            if n == turn:
                image[20:40, 20:40] = 2 * LEVEL
            wcs = make_frame_wcs((150.0, 30.0), sky.SCALE_ARCSEC, 5.0, image.shape)
            paths.append(sky.write_image(tmp_path / f"{turn}{n}.fits", image, wcs, SATURATE=LEVEL))
        options = Options(two_pass=True, match="none", memory=GIB)
        job = prepare(paths, options, in_memory=True)
        shape = job.grid.shape
        marks = _zmrs.Marks(tmp_path / f"marks{turn}")
        image, coverage = np.empty((1, *shape), "f4"), np.empty(shape, "f4")
        _zmrs.run_pass_into_arrays(job.job, job.layout, image, coverage, marks=marks)
        found = np.fromfile(tmp_path / f"marks{turn}", "u4").reshape(-1, 4)
        numbers, _, first, past = found.T
        lie.append(np.bincount(numbers, weights=past - first).tolist())
    assert lie[0] == lie[1]
    assert lie[0][0] == lie[0][1] > 4000


def test_memory_stays_below_what_is_allowed(hardware: Any) -> None:
    job = prepared(frames(3, layers=2), combine="kappa-sigma")
    assert_same(job, hardware, 64 << 20)
    peak = hardware.peak if isinstance(hardware, Emulated) else hardware.peak_bytes
    assert 1 << 20 < peak <= 64 << 20


STORED: dict[str, tuple[str, dict[str, float]]] = {
    "bytes": ("u1", {"BZERO": -20.0, "BLANK": 7}),
    "counts": (">i2", {"BZERO": 32768.0}),
    "scaled": (">i2", {"BSCALE": -0.25, "BZERO": 3.5, "BLANK": -17}),
    "long": (">i4", {"BSCALE": 1e5, "BZERO": 2147483648.0, "BLANK": -1}),
    "floats": (">f4", {}),
    "scaled floats": (">f4", {"BSCALE": 2.0, "BZERO": 7.0}),
    "wide": (">i8", {"BLANK": 5}),
    "doubles": (">f8", {"BSCALE": 2.0, "BZERO": 7.0}),
}
WIDE = ("wide", "doubles")
"""Decoded by the workers: undecoded they would take more room."""


def write_stored(path: Path, n: int, kind: str, channels: int, wcs: Any, shape: Any) -> None:
    """A file of samples of a kind, with blank, zero, infinite and saturated ones."""
    dtype, cards = STORED[kind]
    rng = np.random.default_rng([n, channels])
    stored = rng.integers(1, 120, (channels, *shape)).astype(dtype)
    if stored.dtype.kind == "f":
        stored[..., rng.random(shape) < 0.01] = -np.inf
    stored[..., 20:40, 33:37] = cards.get("BLANK", 0)
    stored[..., 60:66, 100:120] = 125
    stored[..., 5:30, 60:61] = 0
    if channels > 1:
        stored[1, 50:53, 40:90] = cards.get("BLANK", 3)
    if "BLANK" not in cards:
        stored[0, :9, :9] = round(-cards.get("BZERO", 0.0) / cards.get("BSCALE", 1.0)) % 120
    bitpix = 8 * stored.dtype.itemsize * (-1 if stored.dtype.kind == "f" else 1)
    header = fits.Header([("SIMPLE", True), ("BITPIX", bitpix), ("NAXIS", 3)])
    header["NAXIS1"], header["NAXIS2"], header["NAXIS3"] = stored.shape[::-1]
    header.update(wcs.to_header(relax=True))
    header.update(cards)
    header["SATURATE"] = cards.get("BZERO", 0.0) + cards.get("BSCALE", 1.0) * 124
    blob = header.tostring().encode() + stored.tobytes()
    path.write_bytes(blob + bytes(-len(blob) % 2880))


def write_map(path: Path, n: int, meaning: str, shape: Any) -> None:
    """A map of weights, of bytes, integers or floats in turn, some of which are none."""
    rng = np.random.default_rng(n)
    if meaning in ("mask", "alpha"):
        values = rng.integers(0, 256, shape).astype("u1")
        values[values < 240] = 0 if meaning == "mask" else 51
    elif n % 2:
        values = rng.integers(-1, 9, shape).astype(">i2")
    else:
        values = rng.uniform(-0.1, 9.0, shape).astype(">f4")
    fits.append(path, values, fits.Header([("EXTNAME", "ALPHA" if meaning == "alpha" else "MAP")]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("meaning", ["", "weight", "variance", "rms", "mask", "alpha"])
@pytest.mark.parametrize("kinds", [["bytes"], ["counts", "scaled"], ["floats"], WIDE, [*STORED]])
def test_stored_samples(
    kinds: list[str], meaning: str, channels: int, hardware: Any, tmp_path: Path
) -> None:
    """What is in files goes to the device as it is, and is decoded there."""
    for n, (image, wcs) in enumerate(frames(1, layers=2)):
        path = tmp_path / f"{n:02}.fits"
        write_stored(path, n, kinds[n % len(kinds)], channels, wcs, image.shape)
        if meaning:
            write_map(path, n, meaning, image.shape)
    options: dict[str, Any] = {"zero_is_blank": "on", "border_mask": 2.0}
    if meaning not in ("", "alpha"):
        options |= {"weights": "MAP", "weight_type": meaning, "variance": meaning == "rms"}
    job = prepared(sorted(tmp_path.iterdir()), **options)
    device = assert_same(job, hardware)
    are_all_wide = set(kinds) <= set(WIDE)
    assert ("pixels" in device._buffers) != are_all_wide
    if kinds == ["bytes"] and not meaning:
        loaded = max(device._buffers[f"loaded {turn}"].nbytes for turn in (0, 1))
        assert 3.5 * loaded < device._buffers["pixels"].nbytes


def test_raw_colour_beside_colour(hardware: Any, tmp_path: Path) -> None:
    """Raw colour frames are mixed by the workers, and others decoded by the device."""
    for n, (image, wcs) in enumerate(frames(3)):
        raw = np.random.default_rng(n).integers(1, 60_000, image.shape[1:]).astype("u2")
        pixels, more = (raw, {"BAYERPAT": "GRBG"}) if n % 2 else (np.stack([raw] * 3), {})
        sky.write_image(tmp_path / f"{n}.fits", pixels, wcs, **more)
    assert_same(prepared(sorted(tmp_path.iterdir())), hardware)


@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
@pytest.mark.parametrize("brings_late", [False, True])
def test_stored_rows_are_read_once(
    brings_late: bool, kernel: str, hardware: Any, tmp_path: Path
) -> None:
    """What the band before has loaded is kept, as it is for the workers."""
    bring_when(hardware, brings_late)
    for n, (image, wcs) in enumerate(frames(1)):
        write_stored(tmp_path / f"{n}.fits", n, "counts", 1, wcs, image.shape)
    job = prepared(sorted(tmp_path.iterdir()), kernel=kernel)
    thin = job.plan.replace(rows_per_chunk=24, use_gpu=True, gpu_max_chunk_bytes=GIB)
    layouts = [
        _zmrs.fit(job.job, plan, 0, 0, 0, True) for plan in (thin.replace(use_gpu=False), thin)
    ]
    assert [layout.band_rows for layout in layouts] == [24, 24]
    assert layouts[1].terms["windows"] < 0.6 * layouts[0].terms["windows"]
    found = []
    for layout in layouts:
        device = GpuPass(hardware, job.job, GIB) if layout.plan.use_gpu else None
        image, coverage = np.empty((1, *SHAPE), "f4"), np.empty(SHAPE, "f4")
        stats = _zmrs.run_pass_into_arrays(job.job, layout, image, coverage, device=device)
        assert stats.read_bytes == layout.read_bytes
        found.append((image.tobytes(), coverage.tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["bytes", "floats", "doubles"])
@pytest.mark.parametrize("method", ["mean", "kappa-sigma", "kappa-sigma-stream"])
def test_what_is_planned_for_the_device_suffices(
    method: str, kind: str, hardware: Any, tmp_path: Path
) -> None:
    """A job that is cut for so much device memory does with it."""
    for n, (image, wcs) in enumerate(frames(3, layers=4)):
        write_stored(tmp_path / f"{n:02}.fits", n, kind, 3, wcs, image.shape[-2:])
    options = {"combine": method, "kappa": (1.5, 1.5), "variance": True}
    job = prepared(sorted(tmp_path.iterdir()), **options)
    want = planes(job, None)
    blocks = []
    for mib in (1, 2, 3, 4, 6, 9, 12, 20, 60):
        plan = job.plan.replace(use_gpu=True, gpu_max_chunk_bytes=mib << 20)
        try:
            layout = _zmrs.fit(job.job, plan, job.room.reserved_bytes, 0, 0, True)
        except BudgetError:
            assert not blocks
            continue
        blocks.append(layout.blocks)
        found = planes(job, GpuPass(hardware, job.job, mib << 20), layout)
        assert all(np.array_equal(values, found[name]) for name, values in want.items())
    assert len(set(blocks)) > 2
    assert (blocks[0], blocks[-1]) == (max(blocks), min(blocks))
    tiny = job.plan.replace(use_gpu=True, gpu_max_chunk_bytes=500_000)
    with pytest.raises(BudgetError, match="gpu_max_chunk_bytes of 500000 bytes is too small"):
        _zmrs.fit(job.job, tiny, job.room.reserved_bytes, 0, 0, True)


@pytest.mark.parametrize("method", ["mean", "kappa-sigma-stream"])
def test_a_pass_that_is_begun_anywhere(method: str, hardware: Any, tmp_path: Path) -> None:
    """One device does stretch after stretch, with the memory that was planned for one pass."""
    job = prepared(frames(1, layers=2), combine=method, kappa=(1.5, 1.5))
    area = SHAPE[0] * SHAPE[1]
    for mib in (3, 4, 6, 9):
        plan = job.plan.replace(rows_per_chunk=60, use_gpu=True, gpu_max_chunk_bytes=mib << 20)
        layout = _zmrs.fit(job.job, plan, job.room.reserved_bytes, 0, 0, False)
        device = GpuPass(hardware, job.job, mib << 20)
        found = []
        for row in range(0, SHAPE[0], layout.band_rows):
            out = tmp_path / "planes"
            out.write_bytes(bytes(8 * area))
            targets = [(out, 4 * area * k) for k in range(2)]
            _zmrs.run_pass_into_files(
                job.job, layout, targets, start=(0, row), device=device,
                bounds=tmp_path / "bounds",
            )  # fmt: skip
            found.append(np.fromfile(out, ">i4").reshape(2, *SHAPE))
            assert np.array_equal(found[-1][:, row:], found[0][:, row:])
        assert len(found) > 1
        assert found[0].any(axis=(1, 2)).all()


def test_a_cut_for_a_device_needs_one() -> None:
    job = prepared(frames(1))
    image, coverage = np.empty((1, *SHAPE), "f4"), np.empty(SHAPE, "f4")
    with pytest.raises(ValueError, match="cut for a device"):
        _zmrs.run_pass_into_arrays(job.job, for_device(job), image, coverage)
