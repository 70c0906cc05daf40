"""The simulated sky: what it claims to be true is what its frames contain."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st

from sky import (
    CENTER_DEG,
    SCALE_ARCSEC,
    constant_frames,
    cut_tiles,
    frame_wcs,
    overlapping_boxes,
    rotated_specs,
    single_star_sky,
    smooth_sky,
    tiny_sky,
)
from zmrs.errors import InputError
from zmrs.simulate import (
    FrameSpec,
    Nebula,
    Sky,
    demo_set,
    dither_pattern,
    make_frame_wcs,
    pixel_area,
    render,
    write_frames,
)

SHAPE = (64, 80)


def _plain(**kw):
    return FrameSpec(frame_wcs(SHAPE, kw.pop("rotation_deg", 0.0)), SHAPE, sky_level=0.0, **kw)


def _decoded(path):
    """Decode a FITS image by the letter of the standard: value = BZERO + BSCALE * stored."""
    with fits.open(path, do_not_scale_image_data=True) as hdus:
        header, raw = hdus[0].header, hdus[0].data
        values = header.get("BZERO", 0.0) + header.get("BSCALE", 1.0) * raw.astype(np.float64)
        if "BLANK" in header:
            values[raw == header["BLANK"]] = np.nan
        return values, header.copy()


class TestStars:
    @pytest.mark.parametrize("sip", [0.0, 3.0])
    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(
        x=st.floats(16, 62),
        y=st.floats(16, 46),
        fwhm=st.floats(1.7, 4.5),
        turn=st.floats(-180, 180),
    )
    def test_flux_and_centroid_are_the_truth(self, sip, x, y, fwhm, turn):
        # Narrower PSFs are right as well, but their centre of gravity is aliased by the pixels.
        wcs = frame_wcs(SHAPE, turn, sip_strength=sip)
        ra, dec = (float(v) for v in wcs.all_pix2world(x, y, 0))
        spec = FrameSpec(wcs, SHAPE, psf_fwhm_px=fwhm, sky_level=0.0)
        image = render(single_star_sky(ra, dec, 5e4), spec).astype(float)
        rows, columns = np.indices(SHAPE)
        assert image.sum() == pytest.approx(5e4, rel=1e-5)
        assert (image * columns).sum() / image.sum() == pytest.approx(x, abs=1e-4)
        assert (image * rows).sum() / image.sum() == pytest.approx(y, abs=1e-4)

    def test_the_width_is_the_fwhm(self):
        image = render(single_star_sky(), _plain(psf_fwhm_px=4.0)).astype(float)
        columns = np.arange(SHAPE[1])
        profile = image.sum(axis=0) / image.sum()
        mean = (profile * columns).sum()
        variance = (profile * (columns - mean) ** 2).sum() - 1.0 / 12.0  # of the pixel itself
        assert np.sqrt(variance) * 2.354820045 == pytest.approx(4.0, rel=1e-5)

    def test_a_star_at_the_border_is_cut_not_moved(self):
        wcs = frame_wcs(SHAPE)
        ra, dec = (float(v) for v in wcs.all_pix2world(-0.5, 30.0, 0))
        image = render(single_star_sky(ra, dec), FrameSpec(wcs, SHAPE, sky_level=0.0))
        assert image.sum(dtype=float) == pytest.approx(5e3, rel=1e-4)

    def test_stars_on_the_far_side_do_not_appear(self):
        image = render(single_star_sky(CENTER_DEG[0] + 180.0, -CENTER_DEG[1]), _plain())
        assert not image.any()

    def test_gain_scales_stars_and_not_the_sky(self):
        spec = replace(_plain(gain=0.8), sky_level=100.0)
        image = render(single_star_sky(flux=1e4), spec).astype(float) - 100.0
        assert image.sum() == pytest.approx(8e3, rel=1e-4)

    def test_channels_average_to_mono(self):
        sky = tiny_sky(nebula_peak=50.0)
        colour = render(sky, _plain(channels=3))
        assert colour.shape == (3, *SHAPE)
        np.testing.assert_allclose(colour.mean(axis=0), render(sky, _plain()), rtol=2e-6, atol=1e-3)
        np.testing.assert_allclose(sky.channel_flux(3).mean(axis=0), sky.star_flux, rtol=1e-12)

    def test_reference_scale_makes_flux_follow_the_pixel_area(self):
        sky = replace(single_star_sky(), reference_scale_arcsec=SCALE_ARCSEC)
        half = FrameSpec(
            make_frame_wcs(CENTER_DEG, SCALE_ARCSEC / 2, 0.0, SHAPE), SHAPE, sky_level=0.0
        )
        assert render(sky, half).sum(dtype=float) == pytest.approx(4e4, rel=1e-5)

    def test_counts_follow_the_power_law(self):
        sky = Sky.random(3, n_stars=40_000, slope=1.5, flux_range=(10.0, 1e9), nebula_peak=0.0)
        brighter = [(sky.star_flux > f).mean() for f in (20.0, 40.0, 80.0)]
        np.testing.assert_allclose(brighter, [2**-1.5, 4**-1.5, 8**-1.5], rtol=0.05)

    @pytest.mark.parametrize("center", [(0.0, 0.0), (359.9, 60.0), (12.0, 90.0), (200.0, -89.0)])
    def test_positions_fill_the_cap_evenly(self, center):
        sky = Sky.random(3, center, 2.0, 20_000, nebula_peak=0.0)
        ra, dec = np.radians(sky.star_ra_deg), np.radians(sky.star_dec_deg)
        ra0, dec0 = np.radians(center)
        cosine = np.sin(dec) * np.sin(dec0) + np.cos(dec) * np.cos(dec0) * np.cos(ra - ra0)
        depth = (1.0 - cosine) / (1.0 - np.cos(np.radians(2.0)))
        assert depth.max() < 1.0 + 1e-9
        assert depth.mean() == pytest.approx(0.5, abs=0.01)
        assert (sky.star_ra_deg >= 0).all()
        assert (sky.star_ra_deg < 360).all()


class TestFrames:
    def test_level_and_gradient(self):
        spec = FrameSpec(frame_wcs(), SHAPE, sky_level=(10.0, 20.0, 30.0),
                         sky_gradient=(0.5, -0.25), channels=3)  # fmt: skip
        rows, columns = np.indices(SHAPE)
        ramp = 0.5 * (columns - 39.5) - 0.25 * (rows - 31.5)
        expected = np.array([10.0, 20.0, 30.0])[:, None, None] + ramp
        empty = replace(tiny_sky(n_stars=0))
        np.testing.assert_allclose(render(empty, spec), expected, atol=1e-5)

    def test_noise_has_its_sigma(self):
        image = render(tiny_sky(n_stars=0), _plain(noise_sigma=4.0), seed=3)
        assert image.std() == pytest.approx(4.0, rel=0.05)
        assert abs(image.mean()) < 5 * 4.0 / np.sqrt(image.size)

    def test_equal_seeds_give_equal_bytes(self):
        sky, spec = tiny_sky(nebula_peak=80.0), _plain(noise_sigma=1.0, dead_fraction=0.01)
        again = tiny_sky(nebula_peak=80.0)
        assert render(sky, spec, 7).tobytes() == render(again, spec, 7).tobytes()
        assert render(sky, spec, 7).tobytes() != render(sky, spec, 8).tobytes()
        assert sky.star_flux.tobytes() != tiny_sky(seed=2).star_flux.tobytes()

    def test_dead_pixels_do_not_change_the_noise(self):
        whole = render(tiny_sky(), _plain(noise_sigma=1.0), 7)
        holed = render(tiny_sky(), _plain(noise_sigma=1.0, dead_fraction=0.1), 7)
        alive = np.isfinite(holed)
        np.testing.assert_array_equal(whole[alive], holed[alive])

    @pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 1.0])
    def test_dead_fraction_is_exact_and_common_to_channels(self, fraction):
        image = render(tiny_sky(), _plain(dead_fraction=fraction, channels=3), 1)
        assert np.isnan(image[0]).sum() == round(fraction * image[0].size)
        assert (np.isnan(image) == np.isnan(image[0])).all()

    def test_border(self):
        image = render(tiny_sky(), _plain(border_nan_px=3))
        assert np.isfinite(image[3:-3, 3:-3]).all()
        assert np.isfinite(image).sum() == (SHAPE[0] - 6) * (SHAPE[1] - 6)

    @pytest.mark.parametrize(
        "bad",
        [{"channels": 2}, {"psf_fwhm_px": 0.0}, {"dead_fraction": 1.5}, {"psf_fwhm_px": np.nan}],
    )
    def test_nonsense_is_refused_by_name(self, bad):
        with pytest.raises(InputError, match=next(iter(bad))):
            _plain(**bad)
        with pytest.raises(InputError, match="shape"):
            FrameSpec(frame_wcs(), (0, 4))

    def test_a_sky_without_extent_is_refused(self):
        with pytest.raises(InputError, match="positive"):
            Sky.random(1, radius_deg=0.0)


class TestNebula:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_spline_is_the_formula(self, channels):
        shape = (200, 230)
        sky = Sky.random(4, CENTER_DEG, 0.15, 0, nebula_peak=500.0)
        spec = FrameSpec(frame_wcs(shape, 20.0), shape, sky_level=0.0, channels=channels)
        rows, columns = np.indices(shape, dtype=float)
        ra, dec = spec.wcs.all_pix2world(columns.ravel(), rows.ravel(), 0)
        truth = sky.surface_brightness(ra, dec, channels).reshape(-1, *shape)
        image = render(sky, spec).reshape(-1, *shape)
        np.testing.assert_allclose(image, truth, atol=1e-4 * truth.max())
        assert truth.max() > 50.0

    def test_tiny_frames_have_enough_nodes(self):
        shape = (2, 3)
        image = render(smooth_sky(), FrameSpec(frame_wcs(shape), shape))
        assert image.shape == shape
        assert np.isfinite(image).all()

    def test_brightness_does_not_depend_on_the_scale(self):
        sky, values = smooth_sky(), []
        for scale in (1.0, 3.0):
            wcs = make_frame_wcs(CENTER_DEG, scale, 0.0, (31, 31))
            values.append(render(sky, FrameSpec(wcs, (31, 31), sky_level=0.0))[15, 15])
        assert values[0] == pytest.approx(values[1], rel=1e-6)

    def test_peak_is_what_was_asked(self):
        axis = np.linspace(-1, 1, 97)
        brightness = Nebula.random(1, 1.0, 250.0).evaluate(*np.meshgrid(axis, axis))
        assert brightness.mean(axis=0).max() == pytest.approx(250.0, rel=1e-6)

    def test_none_is_nothing(self):
        assert Nebula().finest_deg() == np.inf
        assert not Nebula().evaluate(np.zeros(3), np.zeros(3)).any()


class TestWcs:
    @pytest.mark.parametrize("strength", [0.5, 5.0])
    def test_sip_round_trip_and_bound(self, strength):
        shape = (1000, 1400)
        wcs = make_frame_wcs((10.0, -70.0), 2.0, 33.0, shape, sip_strength=strength)
        x, y = (v.ravel() for v in np.meshgrid(np.linspace(0, 1399, 9), np.linspace(0, 999, 7)))
        back = wcs.all_world2pix(*wcs.all_pix2world(x, y, 0), 0, tolerance=1e-9)
        np.testing.assert_allclose(back, [x, y], atol=1e-7)
        straight = make_frame_wcs((10.0, -70.0), 2.0, 33.0, shape)
        moved = straight.all_world2pix(*wcs.all_pix2world(x, y, 0), 0)
        shift = np.hypot(*(np.array(moved) - [x, y]))
        assert 0.3 * strength < shift.max() <= strength

    @pytest.mark.parametrize("sip", [0.0, 4.0])
    def test_header_round_trip(self, sip):
        wcs = frame_wcs(SHAPE, 12.0, sip_strength=sip)
        read = WCS(wcs.to_header(relax=True))
        x, y = np.array([0.0, 79.0, 40.0]), np.array([0.0, 63.0, 5.0])
        back = read.all_world2pix(*wcs.all_pix2world(x, y, 0), 0, tolerance=1e-9)
        np.testing.assert_allclose(back, [x, y], atol=1e-6)

    def test_rotation_is_the_position_angle_of_y(self):
        wcs = make_frame_wcs((40.0, 0.0), 1.0, 90.0, (101, 101))
        ra, dec = wcs.all_pix2world([50.0, 50.0], [50.0, 60.0], 0)
        assert (ra[1] - ra[0]) * 3600 == pytest.approx(10.0, rel=1e-6)
        assert dec[1] == pytest.approx(dec[0], abs=1e-9)

    def test_east_is_left_of_north(self):
        ra, _ = frame_wcs().all_pix2world([0.0, 10.0], [30.0, 30.0], 0)
        assert ra[0] > ra[1]

    def test_pixel_area_of_the_tangent_plane(self):
        wcs = make_frame_wcs(CENTER_DEG, 60.0, 25.0, (601, 601))
        angle = np.arctan(np.radians(300.0 / 60.0))
        area = pixel_area(wcs, np.array([300.0, 600.0]), 300.0)
        np.testing.assert_allclose(area, [3600.0, 3600.0 * np.cos(angle) ** 3], rtol=1e-7)
        assert pixel_area(frame_wcs(), 3.0, 4.0).shape == ()

    @pytest.mark.parametrize("center", [CENTER_DEG, (0.05, 0.0), (77.0, 89.95)])
    def test_panels_cover_the_field(self, center):
        shape = (60, 80)
        frames = dither_pattern(
            (4, 3), shape, 10.0, center_deg=center, overlap=0.3, max_rotation_deg=3.0, seed=2
        )
        field = make_frame_wcs(center, 10.0, 0.0, (120, 200))
        x, y = (v.ravel() for v in np.meshgrid(np.arange(200), np.arange(120)))
        ra, dec = field.all_pix2world(x, y, 0)
        hits = np.zeros(x.size, int)
        for wcs in frames:
            px, py = wcs.all_world2pix(ra, dec, 0)
            hits += (px > -0.5) & (px < 79.5) & (py > -0.5) & (py < 59.5)
        assert len(frames) == 12
        assert hits.min() >= 1
        assert hits.max() >= 4

    @pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 36])
    def test_any_number_of_frames(self, n):
        assert len(dither_pattern(n, SHAPE, 2.0)) == n

    def test_empty_patterns_are_refused(self):
        with pytest.raises(InputError):
            dither_pattern(0, SHAPE, 2.0)
        with pytest.raises(InputError):
            dither_pattern((3, 0), SHAPE, 2.0)


class TestFiles:
    @pytest.mark.parametrize(
        ("bitpix", "tolerance"), [(-32, 0.0), (-64, 0.0), (16, 0.5), (32, 2.0**-9), (8, None)]
    )
    def test_files_hold_what_was_rendered(self, tmp_path, bitpix, tolerance):
        specs = rotated_specs(2, noise_sigma=3.0, dead_fraction=0.01)
        paths = write_frames(tmp_path / "new", tiny_sky(), specs, bitpix=bitpix, seed=4)
        for i, (path, spec) in enumerate(zip(paths, specs, strict=True)):
            values, header = _decoded(path)
            image = render(tiny_sky(), spec, (4, i))
            if tolerance is None:
                tolerance = 0.51 * header["BSCALE"]
            np.testing.assert_allclose(values, image, rtol=0, atol=tolerance + 1e-9)
            assert header["BITPIX"] == bitpix
            assert path.stat().st_size % 2880 == 0
            for card in (
                "OBJECT",
                "FILTER",
                "EXPTIME",
                "DATE-OBS",
                "INSTRUME",
                "TELESCOP",
                "BUNIT",
            ):
                assert header[card]

    def test_files_are_valid_fits_with_their_wcs(self, tmp_path):
        specs = rotated_specs(1, sip_strength=2.0, channels=3)
        (path,) = write_frames(tmp_path, tiny_sky(), specs, bitpix=16)
        with fits.open(path) as hdus:
            hdus.verify("exception")
            # astropy applies SIP in two dimensions only and wants to be told.
            wcs = WCS(hdus[0].header, naxis=2)
            assert hdus[0].data.shape == (3, *SHAPE)
        np.testing.assert_allclose(
            wcs.all_pix2world(70.0, 5.0, 0), specs[0].wcs.all_pix2world(70.0, 5.0, 0), atol=1e-9
        )

    def test_equal_seeds_give_equal_files(self, tmp_path):
        for name in ("a", "b"):
            write_frames(tmp_path / name, tiny_sky(), rotated_specs(2, noise_sigma=1.0), seed=9)
        names = sorted(p.name for p in (tmp_path / "a").iterdir())
        assert names == [
            "frame_0001.fits", "frame_0002.fits", "truth_frames.ecsv", "truth_stars.ecsv"
        ]  # fmt: skip
        for name in names:
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_truth_tables(self, tmp_path):
        specs = rotated_specs(3, sky_level=5.0, gain=0.9, max_rotation_deg=8.0)
        write_frames(tmp_path, tiny_sky(), specs)
        stars = Table.read(tmp_path / "truth_stars.ecsv")
        frames = Table.read(tmp_path / "truth_frames.ecsv")
        np.testing.assert_array_equal(stars["flux"], tiny_sky().star_flux)
        np.testing.assert_array_equal(stars["ra"], tiny_sky().star_ra_deg)
        assert list(frames["sky_0"]) == [5.0] * 3
        assert list(frames["gain"]) == [0.9] * 3
        assert np.abs(frames["rotation"]).max() < 8.1
        assert np.ptp(frames["rotation"]) > 0.1

    def test_an_unknown_bitpix_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="64"):
            write_frames(tmp_path, tiny_sky(), rotated_specs(1), bitpix=64)

    def test_the_demo_is_a_set_of_colour_frames(self, tmp_path):
        paths = demo_set(tmp_path, 3, shape=(48, 64))
        assert [p.name for p in paths] == [f"frame_000{i}.fits" for i in (1, 2, 3)]
        values, _ = _decoded(paths[0])
        assert values.shape == (3, 48, 64)
        assert 700.0 < np.nanmedian(values) < 2000.0


class TestHelpers:
    def test_cut_tiles_share_one_projection(self):
        wcs = frame_wcs(SHAPE, 30.0, sip_strength=2.0)
        image = render(tiny_sky(), FrameSpec(wcs, SHAPE))
        boxes = overlapping_boxes(SHAPE)
        covered = np.zeros(SHAPE, int)
        for (tile, tile_wcs), (y0, y1, x0, x1) in zip(
            cut_tiles(image, wcs, boxes), boxes, strict=True
        ):
            covered[y0:y1, x0:x1] += 1
            assert tile.shape == (y1 - y0, x1 - x0)
            np.testing.assert_allclose(
                tile_wcs.all_pix2world(2.0, 3.0, 0),
                wcs.all_pix2world(x0 + 2.0, y0 + 3.0, 0),
                atol=1e-11,
            )
        assert covered.min() == 1
        assert covered.max() == 4

    def test_constant_frames_overlap(self):
        (first, wcs0), (second, wcs1) = constant_frames([1.0, 2.0])
        assert (first == 1.0).all()
        assert (second == 2.0).all()
        x, y = wcs0.all_world2pix(*wcs1.all_pix2world(0.0, 0.0, 0), 0)
        np.testing.assert_allclose([x, y], [40.0, 0.0], atol=1e-6)


def test_importing_costs_neither_astropy_nor_scipy():
    code = (
        "import sys, zmrs.simulate, zmrs.report.preview;"
        "print([m for m in ('astropy', 'scipy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
