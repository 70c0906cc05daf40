"""The preview: what is bright is bright, what is up is up, and memory stays small."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from sky import tiny_sky, write_mosaic
from zmrs.errors import InputError, OutputError, UsageError
from zmrs.report import preview
from zmrs.report.preview import write_previews
from zmrs.simulate import FrameSpec, make_frame_wcs, render


def _pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def _ramp(shape=(40, 60)):
    return np.linspace(0, 100, shape[0] * shape[1], dtype=np.float32).reshape(shape)


class TestFiles:
    def test_default_names_lie_beside_the_mosaic(self, tmp_path):
        mosaic = write_mosaic(tmp_path / "m 31.fits", _ramp())
        paths = write_previews(str(mosaic))
        assert paths == (tmp_path / "m 31_preview.png", tmp_path / "m 31_coverage.png")
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "m 31.fits", "m 31_coverage.png", "m 31_preview.png"
        ]  # fmt: skip

    def test_the_coverage_follows_a_named_picture(self, tmp_path):
        mosaic = write_mosaic(tmp_path / "m.fits", _ramp())
        (tmp_path / "pics").mkdir()
        paths = write_previews(mosaic, tmp_path / "pics" / "a.png")
        assert paths[1] == tmp_path / "pics" / "a_coverage.png"
        assert write_previews(mosaic, coverage_png=tmp_path / "c.png")[1] == tmp_path / "c.png"

    @pytest.mark.parametrize("channels", [1, 3])
    def test_sizes_and_modes(self, tmp_path, channels):
        image = _ramp((101, 250)) if channels == 1 else np.stack([_ramp((101, 250))] * 3)
        mosaic = write_mosaic(tmp_path / "m.fits", image)
        picture, coverage = write_previews(mosaic, max_side=100)
        with Image.open(picture) as opened:
            assert opened.size == (84, 34)
            assert opened.mode == ("L" if channels == 1 else "RGB")
        with Image.open(coverage) as opened:
            assert opened.size == (84, 34)
        picture, _ = write_previews(mosaic, alpha="footprint")
        with Image.open(picture) as opened:
            assert opened.size == (250, 101)
            assert opened.mode == ("LA" if channels == 1 else "RGBA")

    def test_equal_mosaics_give_equal_pictures(self, tmp_path):
        mosaic = write_mosaic(tmp_path / "m.fits", _ramp())
        first = [p.read_bytes() for p in write_previews(mosaic)]
        assert [p.read_bytes() for p in write_previews(mosaic)] == first


class TestPicture:
    def test_north_is_up(self, tmp_path):
        image = np.zeros((40, 60), np.float32)
        image[30:, :10] = 100.0  # FITS: high rows are the top, low columns the left
        pixels = _pixels(write_previews(write_mosaic(tmp_path / "m.fits", image))[0])
        assert pixels[:10, :10].min() == 255
        assert pixels[10:].max() < 40

    def test_brighter_stays_brighter(self, tmp_path):
        pixels = _pixels(write_previews(write_mosaic(tmp_path / "m.fits", _ramp()))[0])
        assert (np.diff(pixels[::-1].ravel().astype(int)) >= 0).all()

    def test_the_median_gets_its_tone(self, tmp_path):
        rng = np.random.default_rng(1)
        image = rng.gamma(2.0, 10.0, (300, 300)).astype(np.float32) + 500.0
        mosaic = write_mosaic(tmp_path / "m.fits", image)
        pixels = _pixels(write_previews(mosaic, median_tone=0.2)[0])
        assert np.median(pixels) / 255 == pytest.approx(0.2, abs=0.05)

    def test_uncovered_is_darker_than_any_sky(self, tmp_path):
        image = _ramp()
        image[:, :20] = np.nan
        mosaic = write_mosaic(tmp_path / "m.fits", image)
        pixels = _pixels(write_previews(mosaic)[0])
        assert (pixels[:, :20] == preview.DARK).all()
        assert pixels[:, 20:].min() > preview.DARK
        alpha = _pixels(write_previews(mosaic, alpha="footprint")[0])[..., -1]
        assert (alpha[:, :20] == 0).all()
        assert (alpha[:, 20:] == 255).all()

    @pytest.mark.parametrize("max_side", [200, 20])
    def test_as_opaque_as_covered(self, tmp_path, max_side):
        image = _ramp((40, 60))
        mosaic = write_mosaic(tmp_path / "m.fits", image)
        with fits.open(mosaic, mode="update") as hdus:
            hdus["COVERAGE"].data[:, :20] = 0
            hdus["COVERAGE"].data[:, 20:40] = 1
            hdus["COVERAGE"].data[:, 40:] = 4
        alpha = _pixels(write_previews(mosaic, max_side=max_side, alpha="coverage")[0])[..., -1]
        thirds = np.split(alpha, 3, axis=1) if max_side > 60 else [alpha[:, k] for k in (3, 9, 17)]
        assert [np.unique(third).tolist() for third in thirds] == [[0], [63], [255]]

    def test_another_alpha_is_refused(self, tmp_path):
        mosaic = write_mosaic(tmp_path / "m.fits", _ramp())
        with pytest.raises(UsageError, match="not one of none, footprint, coverage"):
            write_previews(mosaic, alpha="half")

    def test_single_dead_pixels_leave_no_mark(self, tmp_path):
        image = np.full((40, 40), 7.0, np.float32)
        image += _ramp((40, 40)) / 100
        clean = _pixels(write_previews(write_mosaic(tmp_path / "m.fits", image), max_side=10)[0])
        image[5::8, 5::8] = np.nan
        holed = _pixels(write_previews(write_mosaic(tmp_path / "m.fits", image), max_side=10)[0])
        assert np.abs(clean.astype(int) - holed).max() < 8

    def test_colours_survive(self, tmp_path):
        image = np.full((3, 40, 40), 10.0, np.float32)
        image += np.array([100.0, 50.0, 20.0], np.float32)[:, None, None]  # sky of its own colour
        image[:, 20:24, 30:34] += 5000.0  # a star, which is what becomes white
        image[0, 5:15, 5:15] += 300.0
        image[2, 25:35, 25:35] += 300.0
        pixels = _pixels(write_previews(write_mosaic(tmp_path / "m.fits", image))[0])[::-1]
        red, blue, sky = pixels[10, 10].astype(int), pixels[30, 30].astype(int), pixels[20, 2]
        assert red[0] > 1.5 * red[2]
        assert blue[2] > 1.5 * blue[0]
        assert np.ptp(sky) == 0
        assert (pixels[22, 32] == 255).all()

    @pytest.mark.parametrize("value", [np.nan, 0.0, -5.0, 1e30])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_flat_mosaics_are_no_accident(self, tmp_path, value, channels):
        shape = (20, 30) if channels == 1 else (3, 20, 30)
        mosaic = write_mosaic(tmp_path / "m.fits", np.full(shape, value, np.float32))
        pixels = _pixels(write_previews(mosaic)[0])
        assert np.ptp(pixels) == 0

    def test_a_simulated_field(self, tmp_path):
        shape = (120, 150)
        wcs = make_frame_wcs((150.0, 30.0), 4.0, 0.0, shape)
        image = render(tiny_sky(n_stars=30), FrameSpec(wcs, shape, noise_sigma=5.0, channels=3), 1)
        pixels = _pixels(write_previews(write_mosaic(tmp_path / "m.fits", image))[0])
        assert 20 < np.median(pixels) < 90
        assert pixels.max() == 255


class TestCoverage:
    def test_deeper_is_lighter_and_none_is_dark(self, tmp_path):
        depth = np.repeat(np.arange(6, dtype=np.float32), 10)[:, None] * np.ones(
            (1, 40), np.float32
        )
        mosaic = write_mosaic(tmp_path / "m.fits", np.ones((60, 40)), depth)
        path = write_previews(mosaic)[1]
        with Image.open(path) as picture:
            colours = np.asarray(picture.convert("RGB")).astype(float)[::-1]
        light = colours[::10, 0] @ [0.2126, 0.7152, 0.0722]
        assert (colours[0, 0] == preview.DARK).all()
        assert (np.diff(light) > 0).all()

    def test_the_least_weight_is_not_nothing(self, tmp_path):
        depth = np.ones((10, 10), np.float32)
        depth[0], depth[1] = 0.0, 1e-6
        mosaic = write_mosaic(tmp_path / "m.fits", np.ones((10, 10)), depth)
        index = _pixels(write_previews(mosaic)[1])[::-1]
        assert index[0, 0] == 0
        assert index[1, 0] == 1
        assert index[2, 0] == 255

    def test_the_palette_rises_evenly(self):
        palette = preview.coverage_palette().astype(float) / 255
        linear = np.where(palette <= 0.04045, palette / 12.92, ((palette + 0.055) / 1.055) ** 2.4)
        lightness = np.cbrt(linear[1:] @ [0.2126, 0.7152, 0.0722])
        assert palette.shape == (256, 3)
        assert (np.diff(lightness[::8]) > 0).all()
        assert np.ptp(np.diff(lightness[::32])) < 0.05


class TestBlocks:
    @pytest.mark.parametrize("chunk_bytes", [4, 200, 2000, 1 << 20])
    @pytest.mark.parametrize("side", [1, 2, 7, 40])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_averages_are_the_plain_ones(self, tmp_path, monkeypatch, chunk_bytes, side, channels):
        monkeypatch.setattr(preview, "CHUNK_BYTES", chunk_bytes)
        rng = np.random.default_rng(side)
        image = rng.normal(1000.0, 30.0, (channels, 37, 23)).astype(np.float32)
        image[:, rng.random((37, 23)) < 0.3] = np.nan
        image[:, :8, :9] = np.nan
        path = write_mosaic(tmp_path / "m.fits", image if channels == 3 else image[0])
        plane, _ = preview._find_planes(path)
        with path.open("rb") as file:
            blocks = preview._Blocks(file, path, plane, side)
            got = [blocks.average(j0, j1) for j0, j1 in blocks.groups()]
        mean = np.concatenate([m for m, _ in got], axis=1)
        share = np.concatenate([s for _, s in got])
        assert mean.shape[1:] == share.shape == blocks.shape
        for j, i in np.ndindex(share.shape):
            block = image[:, j * side : (j + 1) * side, i * side : (i + 1) * side].astype(float)
            finite = np.isfinite(block)
            assert share[j, i] == pytest.approx(finite[0].mean())
            for c in range(channels):
                expected = block[c][finite[c]].mean() if finite[c].any() else np.nan
                assert mean[c, j, i] == pytest.approx(expected, rel=1e-6, nan_ok=True)

    def test_memory_stays_small_for_a_huge_mosaic(self, tmp_path):
        """A sparse file as wide as the widest mosaics, of which a few rows suffice."""
        width, height = 44_000, 700
        path = tmp_path / "huge.fits"
        with path.open("wb") as file:
            for card in ("SIMPLE", "XTENSION"):
                header = fits.Header([(card, True if card == "SIMPLE" else "IMAGE")])
                header["BITPIX"], header["NAXIS"] = -32, 2
                header["NAXIS1"], header["NAXIS2"] = width, height
                if card == "XTENSION":
                    header["PCOUNT"], header["GCOUNT"], header["EXTNAME"] = 0, 1, "COVERAGE"
                file.write(header.tostring().encode("ascii"))
                file.seek(-(-width * height * 4 // 2880) * 2880, 1)
            file.truncate()
        tracemalloc.start()
        try:
            write_previews(path)
            assert tracemalloc.get_traced_memory()[1] < 24 << 20
        finally:
            tracemalloc.stop()


class TestRefusals:
    def test_missing_files_stay_file_not_found(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            write_previews(tmp_path / "none.fits")

    def test_what_is_no_fits_file(self, tmp_path):
        for content in (b"", b"hello", b"SIMPLE  = nonsense" + b" " * 100):
            (tmp_path / "x.fits").write_bytes(content)
            with pytest.raises(InputError, match=r"x\.fits"):
                write_previews(tmp_path / "x.fits")

    @pytest.mark.parametrize(
        "data",
        [None, np.zeros(5, np.float32), np.zeros((4, 5), np.int16), np.zeros((4, 5)),
         np.zeros((2, 4, 5), np.float32), np.zeros((1, 3, 4, 5), np.float32)],
    )  # fmt: skip
    def test_what_is_no_mosaic(self, tmp_path, data):
        fits.PrimaryHDU(data).writeto(tmp_path / "x.fits")
        with pytest.raises(InputError, match="primary"):
            write_previews(tmp_path / "x.fits")

    def test_a_mosaic_needs_its_coverage(self, tmp_path):
        fits.PrimaryHDU(_ramp()).writeto(tmp_path / "x.fits")
        with pytest.raises(InputError, match="COVERAGE"):
            write_previews(tmp_path / "x.fits")
        write_mosaic(tmp_path / "y.fits", _ramp(), np.ones((3, 4)))
        with pytest.raises(InputError, match="COVERAGE"):
            write_previews(tmp_path / "y.fits")

    def test_a_file_that_ends_early(self, tmp_path):
        path = write_mosaic(tmp_path / "x.fits", _ramp((200, 300)))
        path.write_bytes(path.read_bytes()[:100_000])
        with pytest.raises(InputError):
            write_previews(path)
        assert [p.name for p in tmp_path.iterdir()] == ["x.fits"]

    def test_pictures_that_cannot_be_written(self, tmp_path):
        mosaic = write_mosaic(tmp_path / "m.fits", _ramp())
        with pytest.raises(OutputError, match="cannot be written"):
            write_previews(mosaic, tmp_path / "missing" / "a.png")
        with pytest.raises(OutputError, match="different names"):
            write_previews(mosaic, mosaic)
        with pytest.raises(OutputError, match="different names"):
            write_previews(mosaic, tmp_path / "a.png", tmp_path / "a.png")
        with pytest.raises(OutputError, match="max_side"):
            write_previews(mosaic, max_side=0)
        assert [p.name for p in tmp_path.iterdir()] == ["m.fits"]

    def test_a_folder_in_the_way(self, tmp_path):
        mosaic = write_mosaic(tmp_path / "m.fits", _ramp())
        (tmp_path / "a.png").mkdir()
        with pytest.raises(OutputError):
            write_previews(mosaic, Path(tmp_path / "a.png"))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "m.fits"]
