"""The output grid: equal to reproject's by default, as prescribed otherwise, never absurd."""

from __future__ import annotations

import time
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from zmrs.errors import GridError, UsageError
from zmrs.grid import Grid, grid_from_template, input_pixel_scale_arcsec, make_grid, optimal_grid
from zmrs.scan import scan_inputs

DATA = Path(__file__).parents[3] / "shared" / "data"
Pair = tuple[WCS, tuple[int, int]]


def field(
    lon: float = 10.0,
    lat: float = 20.0,
    shape: tuple[int, int] = (100, 200),
    scale: float = 1.0,
    rotate: float = 0.0,
    ctype: tuple[str, str] = ("RA---TAN", "DEC--TAN"),
) -> Pair:
    """An image with its tangent point in the middle; ``scale`` in arcsec, ``rotate`` in degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = list(ctype)
    wcs.wcs.crval = [lon, lat]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    c, s = np.cos(np.radians(rotate)), np.sin(np.radians(rotate))
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) * scale / 3600
    wcs.wcs.set()
    return wcs, shape


def reproject_grid(images: list[Pair], **how: object) -> Grid:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from reproject.mosaicking import find_optimal_celestial_wcs

        wcs, shape = find_optimal_celestial_wcs([(s, w) for w, s in images], **how)
    return Grid(wcs, *shape)


def assert_same_grid(grid: Grid, expected: Grid) -> None:
    a, b = grid.wcs.wcs, expected.wcs.wcs
    assert grid.shape == expected.shape
    assert list(a.ctype) == list(b.ctype)
    assert a.radesys == b.radesys
    np.testing.assert_equal(a.equinox, b.equinox)
    # FK4's E-terms are undone by iteration, to 1e-10 degrees; otherwise it is rounding.
    np.testing.assert_allclose(a.crval, b.crval, rtol=0, atol=2e-10)
    np.testing.assert_allclose(a.crpix, b.crpix, rtol=0, atol=1e-6)
    np.testing.assert_allclose(a.cdelt, b.cdelt, rtol=1e-13)
    np.testing.assert_array_equal(a.get_pc(), b.get_pc())


def sky_corners(wcs: WCS, shape: tuple[int, int]) -> SkyCoord:
    height, width = shape
    x = np.array([-0.5, width - 0.5, width - 0.5, -0.5])
    y = np.array([-0.5, -0.5, height - 0.5, height - 0.5])
    return wcs.pixel_to_world(x, y)


def assert_holds(grid: Grid, images: list[Pair], slack_px: float = 0.51) -> None:
    """All corners of all images lie inside the grid, to the rounding of its size."""
    for wcs, shape in images:
        x, y = grid.wcs.world_to_pixel(sky_corners(wcs, shape))
        assert x.min() > -0.5 - slack_px
        assert y.min() > -0.5 - slack_px
        assert x.max() < grid.width - 0.5 + slack_px
        assert y.max() < grid.height - 0.5 + slack_px


# ---------------------------------------------------------------------------- against reproject


@pytest.mark.parametrize(
    "name",
    [
        "m101_2mass_j", "seestar_m94", "decam_tpv_200px_grz", "galactic_center_multiframe",
        "bass_mzls_tpv_60px", "herschel_spire_w5", "panoptes_dslr_bayer",
    ],
)  # fmt: skip
def test_real_set_gives_the_grid_of_reproject(name: str) -> None:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"REAL DATA MISSING: {folder} is not there, so this check was not made")
    args = [str(folder / "*ooi*")] if name.startswith("decam") else [str(folder)]
    images = [(i.wcs, i.storage.shape) for i in scan_inputs(args).images]
    assert images
    assert_same_grid(optimal_grid(images), reproject_grid(images))
    assert_same_grid(optimal_grid(images[::-1]), reproject_grid(images[::-1]))


@pytest.mark.parametrize("frame", [None, "icrs", "galactic"])
@pytest.mark.parametrize("projection", ["TAN", "SIN", "ZEA", "CAR", "MOL"])
def test_options_of_reproject(frame: str | None, projection: str) -> None:
    images = [field(10, 20, rotate=30), field(10.1, 20.05, scale=2.0), field(359.9, 19.9)]
    how = {} if frame is None else {"frame": frame}
    assert_same_grid(
        optimal_grid(images, frame=frame, projection=projection),
        reproject_grid(images, projection=projection, **how),
    )


@pytest.mark.parametrize(
    ("radesys", "equinox"), [("FK5", 2000.0), ("FK5", 1975.0), ("FK4", 1950.0), ("ICRS", np.nan)]
)
def test_frame_of_the_first_input(radesys: str, equinox: float) -> None:
    first = field(83, -5)
    first[0].wcs.radesys, first[0].wcs.equinox = radesys, equinox
    images = [first, field(83.7, -5.1)]
    grid = optimal_grid(images)
    assert grid.wcs.wcs.radesys == radesys
    assert_same_grid(grid, reproject_grid(images))


def test_reference_pixel_outside_the_image() -> None:
    wcs, shape = field(10, 20, rotate=10)
    wcs.wcs.crpix = [-3000.0, 5000.0]
    assert_same_grid(optimal_grid([(wcs, shape)]), reproject_grid([(wcs, shape)]))


# -------------------------------------------------------------------------------------- options


def test_identity() -> None:
    """One image, north up, square pixels: the grid is its own."""
    wcs, shape = field()
    grid = optimal_grid([(wcs, shape)])
    assert grid.shape == shape
    np.testing.assert_allclose(grid.wcs.wcs.crpix, wcs.wcs.crpix, atol=1e-8)
    np.testing.assert_allclose(grid.wcs.wcs.crval, wcs.wcs.crval, atol=1e-12)
    assert grid.wcs.pixel_shape == (200, 100)


def test_image_is_not_changed_by_making_a_grid() -> None:
    wcs, shape = field(rotate=20)
    before = wcs.to_header_string()
    optimal_grid([(wcs, shape)], scale_arcsec=3.0, center=(10.0, 20.0), size=(5, 6))
    assert wcs.to_header_string() == before


@pytest.mark.parametrize("rotate", [-170.0, 0.0, 33.0, 90.0])
def test_rotation_is_the_position_angle_of_the_y_axis(rotate: float) -> None:
    images = [field(10, 20), field(10.1, 20.1)]
    grid = optimal_grid(images, rotate_deg=rotate)
    low = grid.wcs.pixel_to_world(grid.width / 2, grid.height / 2 - 1)
    high = grid.wcs.pixel_to_world(grid.width / 2, grid.height / 2 + 1)
    angle = low.position_angle(high).deg
    assert (angle - rotate + 180) % 360 - 180 == pytest.approx(0, abs=0.1)
    # East stays left of north: the grid is turned, not mirrored.
    assert np.linalg.det(grid.wcs.pixel_scale_matrix) < 0
    assert_holds(grid, images)


def test_rotation_that_undoes_the_input_gives_its_shape() -> None:
    assert optimal_grid([field(rotate=25.0)], rotate_deg=25.0).shape == (100, 200)


def test_scale() -> None:
    grid = optimal_grid([field()], scale_arcsec=0.5)
    assert grid.shape == (200, 400)
    assert input_pixel_scale_arcsec(grid.wcs, grid.shape) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("frame", [None, "galactic"])
def test_center_and_size(frame: str | None) -> None:
    grid = optimal_grid([field()], center=(10.01, 20.02), size=(300, 77), frame=frame)
    assert grid.shape == (77, 300)
    middle = grid.wcs.pixel_to_world(149.5, 38.0).icrs
    assert middle.separation(SkyCoord(10.01, 20.02, unit="deg")).arcsec < 1e-6


def test_center_alone_reaches_equally_far() -> None:
    images = [field(10, 20)]
    grid = optimal_grid(images, center=(10.05, 20.0))
    assert_holds(grid, images)
    assert grid.width == pytest.approx(200 + 2 * 0.05 * np.cos(np.radians(20)) * 3600, abs=2)
    middle = grid.wcs.pixel_to_world((grid.width - 1) / 2, (grid.height - 1) / 2)
    assert middle.separation(SkyCoord(10.05, 20.0, unit="deg")).arcsec < 1e-6
    same = optimal_grid(images, center=(10.0, 20.0))
    assert same.shape == (100, 200)


def test_size_alone_is_about_the_middle_of_the_inputs() -> None:
    images = [field(10, 20), field(10.1, 20.1)]
    free, fixed = optimal_grid(images), optimal_grid(images, size=(50, 40))
    assert fixed.shape == (40, 50)
    a = free.wcs.pixel_to_world((free.width - 1) / 2, (free.height - 1) / 2)
    b = fixed.wcs.pixel_to_world((fixed.width - 1) / 2, (fixed.height - 1) / 2)
    assert a.separation(b).arcsec < 1.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"projection": "XYZ"}, "--projection XYZ"),
        ({"projection": "TANGENT"}, "--projection TANGENT"),
        ({"projection": "COE"}, "--projection COE"),
        ({"frame": "ecliptic"}, "--frame ecliptic"),
        ({"scale_arcsec": 0.0}, "--scale"),
        ({"scale_arcsec": float("nan")}, "--scale"),
        ({"rotate_deg": float("inf")}, "--rotate"),
        ({"center": (10.0, 91.0)}, "--center"),
        ({"size": (0, 10)}, "--size 0x10"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make_grid([field()], **options)  # type: ignore[arg-type]


def test_no_input() -> None:
    with pytest.raises(GridError, match="no input"):
        optimal_grid([])


# ------------------------------------------------------------------------------ hard places


@pytest.mark.parametrize("lat", [89.99, -89.99, 90.0, -90.0])
def test_poles(lat: float) -> None:
    images = [field(lon, lat) for lon in (0, 90, 180, 270)]
    grid = optimal_grid(images)
    assert_holds(grid, images)
    assert max(grid.shape) < 400


def test_tangent_point_on_a_pole_keeps_an_orientation() -> None:
    wcs, shape = field(0.0, -90.0)
    wcs.wcs.radesys, wcs.wcs.equinox = "FK5", 2000.0
    grid = optimal_grid([(wcs, shape)])
    assert grid.shape == shape
    assert grid.wcs.wcs.crval[0] == 0


def test_across_the_origin_of_right_ascension() -> None:
    images = [field(359.95, 0.0), field(0.05, 0.0)]
    grid = optimal_grid(images)
    assert_holds(grid, images)
    assert grid.shape == (100, 560)


def test_cutouts_far_from_their_reference_pixel() -> None:
    """Cut-outs of an all-sky map: CRVAL is 100 degrees away, where reproject fails."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["GLON-CAR", "GLAT-CAR"]
    wcs.wcs.crval = [0.0, 0.0]
    wcs.wcs.cdelt = [-0.01, 0.01]
    wcs.wcs.crpix = [10_050.0, 50.0]
    grid = optimal_grid([(wcs, (100, 100))])
    assert max(grid.shape) < 110
    assert_holds(grid, [(wcs, (100, 100))])


def test_all_sky_map_whose_corners_are_not_on_the_sky() -> None:
    wcs, shape = field(0, 0, (180, 360), 3600.0, ctype=("RA---AIT", "DEC--AIT"))
    grid = optimal_grid([(wcs, shape)], projection="AIT")
    # The sky's boundary is found to a step of the lattice.
    assert grid.shape[0] == pytest.approx(162, abs=12)
    assert grid.shape[1] == pytest.approx(324, abs=12)


def test_image_off_the_sky_is_named() -> None:
    wcs, shape = field(0, 0, (180, 360), 3600.0, ctype=("RA---AIT", "DEC--AIT"))
    wcs.wcs.crpix = [5000.0, 5000.0]
    with pytest.raises(GridError, match=r"bad\.fits: no point"):
        optimal_grid([field(), (wcs, shape)], names=["good.fits", "bad.fits"])


# ------------------------------------------------------------------------------ absurd extents


@pytest.mark.parametrize("far", [(190.0, -20.0), (190.0, 20.0), (100.0, 0.0), (60.0, 65.0)])
def test_two_inputs_far_apart_are_refused(far: tuple[float, float]) -> None:
    with pytest.raises(GridError, match=r"b\.fits|a\.fits") as error:
        optimal_grid([field(10, 20), field(*far)], names=["a.fits", "b.fits"])
    text = str(error.value)
    assert "nan" not in text
    assert "\n" not in text
    assert "deg away" in text


def test_stray_pointings_are_named() -> None:
    images = [field(10 + 0.02 * n, 20) for n in range(20)] + [field(150, -40), field(60, 65)]
    names = [f"{n}.fits" for n in range(20)] + ["stray1.fits", "stray2.fits"]
    with pytest.raises(GridError) as error:
        optimal_grid(images, names=names)
    text = str(error.value)
    assert "stray1.fits" in text
    assert "stray2.fits (5" in text
    assert ".fits" not in text.replace("stray1.fits", "").replace("stray2.fits", "")


def test_limit() -> None:
    images = [field(10, 20), field(11, 20)]
    grid = optimal_grid(images)
    assert grid.height * grid.width > 3e5
    with pytest.raises(GridError, match="limit 1e\\+05"):
        optimal_grid(images, max_output_pixels=1e5)
    assert optimal_grid(images, size=(1000, 1000)).shape == (1000, 1000)
    with pytest.raises(GridError, match="--max-output-pixels"):
        optimal_grid(images, size=(1000, 1000), max_output_pixels=1e5)
    wide = [field(10, 20), field(50, 50)]
    with pytest.raises(GridError):
        optimal_grid(wide)
    assert max(optimal_grid(wide, max_output_pixels=1e12).shape) > 100_000


def test_opposite_inputs_with_centre_and_size_are_the_users_wish() -> None:
    images = [field(10, 20), field(190, -20)]
    assert optimal_grid(images, center=(10, 20), size=(200, 100)).shape == (100, 200)
    with pytest.raises(GridError):
        optimal_grid(images, size=(200, 100))


# ------------------------------------------------------------------------- templates and header


def test_template(tmp_path: Path) -> None:
    grid = optimal_grid([field(rotate=10), field(10.1, 20.1)])
    header = fits.Header(grid.to_header())
    path = tmp_path / "t.fits"
    fits.writeto(path, np.zeros(grid.shape, np.float32), header)
    back = make_grid([field()], template=path)
    assert back.shape == grid.shape
    assert_same_grid(back, grid)
    text = tmp_path / "t.hdr"
    fits.PrimaryHDU(np.zeros(grid.shape, np.float32), header).header.totextfile(text)
    assert_same_grid(grid_from_template(text), grid)
    with pytest.raises(UsageError, match="drop it or --scale, --frame"):
        make_grid([field()], template=path, scale_arcsec=1.0, frame="icrs")
    with pytest.raises(GridError, match="--max-output-pixels"):
        make_grid([field()], template=path, max_output_pixels=10)


def test_header_gives_the_grid_back_to_15_digits() -> None:
    grid = optimal_grid([field(10 / 3, 20 / 7, scale=1 / 3)], rotate_deg=1 / 3)
    cards = grid.to_header()
    assert not any(keyword.startswith("NAXIS") for keyword, _, _ in cards)
    back = WCS(fits.Header(cards))
    for name in ("crval", "crpix", "cdelt", "pc"):
        np.testing.assert_allclose(
            getattr(back.wcs, name), getattr(grid.wcs.wcs, name), rtol=2e-14, atol=1e-17
        )


def test_header_of_a_template_with_a_cd_matrix(tmp_path: Path) -> None:
    wcs, shape = field(rotate=12.3)
    path = tmp_path / "t.fits"
    header = wcs.to_header()
    fits.writeto(path, np.zeros(shape, np.float32), header)
    grid = Grid(wcs, *shape)
    back = WCS(fits.Header(grid.to_header()))
    np.testing.assert_allclose(back.pixel_scale_matrix, wcs.pixel_scale_matrix, rtol=1e-13)


def test_description() -> None:
    grid = optimal_grid([field(10, 20)])
    assert grid.description() == (
        "200 x 100 px, 1 arcsec/px, TAN, centre RA 10.00000 Dec +20.00000 deg (ICRS)"
    )
    assert "(galactic)" in optimal_grid([field(10, 20)], frame="galactic").description()


def test_input_pixel_scale() -> None:
    wcs, shape = field(scale=2.5, rotate=40)
    assert input_pixel_scale_arcsec(wcs, shape) == pytest.approx(2.5, rel=1e-6)
    wcs, _ = field(0, 0, ctype=("RA---CAR", "DEC--CAR"), scale=60)
    # A plate carree squeezes the parallels: at latitude 60 a pixel covers half the area.
    wcs.wcs.crpix = [100, -3549.5]
    assert input_pixel_scale_arcsec(wcs, (100, 200)) == pytest.approx(60 * 0.5**0.5, rel=1e-3)
    wcs.wcs.crpix = [100, -10_000]
    assert input_pixel_scale_arcsec(wcs, (100, 200)) == pytest.approx(60, rel=1e-6)


def test_thousand_inputs_are_quick() -> None:
    images = [field(10 + 0.01 * (n % 30), 20 + 0.01 * (n // 30)) for n in range(300)]
    optimal_grid(images)
    laps = [time.perf_counter()]
    for _ in range(3):
        optimal_grid(images)
        laps.append(time.perf_counter())
    # Alone it takes 0.04 ms an image.
    assert min(b - a for a, b in pairwise(laps)) / 300 < 1e-3
