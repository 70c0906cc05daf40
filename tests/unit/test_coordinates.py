"""Where output pixels fall in an input: against astropy, pixel by pixel."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS, DistortionLookupTable
from astropy.wcs.utils import wcs_to_celestial_frame

from zmrs import coordinates
from zmrs.coordinates import MAX_COORD_ERROR_PX, PixelMap, locate
from zmrs.grid import optimal_grid
from zmrs.scan import InputImage, scan_image
from zmrs.simulate import make_frame_wcs
from zmrs.sky import frame_change, sky_system

DATA = Path(__file__).parents[3] / "shared" / "data"
EQUATORIAL = ("RA---{}", "DEC--{}")
GALACTIC = ("GLON-{}", "GLAT-{}")


def plain_wcs(code="TAN", crval=(150.0, 30.0), shape=(300, 400), scale=5e-4, axes=EQUATORIAL, **kw):
    """Square pixels, north up, reference point in the middle."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [axis.format(code) for axis in axes]
    wcs.wcs.crval = crval
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    wcs.wcs.cdelt = [-scale, scale]
    for name, value in kw.items():
        setattr(wcs.wcs, name, value)
    wcs.wcs.set()
    return wcs


def tpv_wcs(shape=(300, 400)):
    """TPV, with a CD matrix: wcslib takes CDELT and PC for another distortion."""
    header = plain_wcs(shape=shape).to_header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    header["CD1_1"], header["CD2_2"] = header.pop("CDELT1"), header.pop("CDELT2")
    terms = {0: 1e-4, 1: 1.001, 2: 2e-4, 4: 3e-3, 5: -2e-3, 6: 1e-3, 7: 0.05, 9: 0.05}
    header.update({f"PV{axis}_{m}": value for axis in (1, 2) for m, value in terms.items()})
    return WCS(header)


def table_wcs(shape=(300, 400), amplitude_px=0.05):
    """TAN with a smooth distortion that stands in coarse look-up tables."""
    wcs = plain_wcs(shape=shape)
    step = 25.0
    j, i = np.mgrid[0 : shape[0] / step + 1, 0 : shape[1] / step + 1]
    wave = (amplitude_px * np.sin(0.9 * i + 0.3) * np.cos(0.7 * j)).astype(np.float32)
    wcs.cpdis1 = DistortionLookupTable(wave, (1.0, 1.0), (1.0, 1.0), (step, step))
    wcs.cpdis2 = DistortionLookupTable(-wave, (1.0, 1.0), (1.0, 1.0), (step, step))
    return wcs


def by_astropy(source, target, x, y):
    """The same as `PixelMap`, point by point, without a check of the way back."""
    frames = wcs_to_celestial_frame(source), wcs_to_celestial_frame(target)
    world = source.all_pix2world(np.column_stack([x, y]), 0)
    sky = SkyCoord(
        world[:, source.wcs.lng], world[:, source.wcs.lat], unit="deg", frame=frames[0]
    ).transform_to(frames[1])
    there = np.empty_like(world)
    there[:, target.wcs.lng] = sky.spherical.lon.deg
    there[:, target.wcs.lat] = sky.spherical.lat.deg
    pixel = target.all_world2pix(there, 0, tolerance=1e-9, maxiter=60, quiet=True)
    return pixel[:, 0], pixel[:, 1]


class Located:
    """`locate`, and what the engine would see: a coordinate, or NaN, for each output pixel."""

    def __init__(self, output, image, folder, monkeypatch):
        lattices = []
        init = coordinates._Lattice.__init__

        def spy(lattice, *args):
            init(lattice, *args)
            lattices.append(lattice)

        monkeypatch.setattr(coordinates._Lattice, "__init__", spy)
        self.path = folder / "exact"
        self.output, self.image = output, image
        self.found = locate(output, image, lambda: self.path)
        self.lattice = lattices[-1] if lattices else None

    def seen(self):
        """Input coordinates (H, W) each; NaN where the pixel gets none."""
        y, x = np.mgrid[: self.output[1][0], : self.output[1][1]]
        u, v = self.found.grid.at(x.ravel().astype(float), y.ravel().astype(float))
        u, v = u.reshape(x.shape), v.reshape(x.shape)
        lattice, s = self.lattice, self.lattice.spacing
        kinds = self.found.grid.cells().reshape(lattice.down, lattice.across)
        rows = np.clip((y - lattice.origin[1]) // s, 0, lattice.down - 1)
        columns = np.clip((x - lattice.origin[0]) // s, 0, lattice.across - 1)
        left, top = lattice.origin
        covered = (x >= left) & (x < left + lattice.across * s)
        covered &= (y >= top) & (y < top + lattice.down * s)
        for plane in (u, v):
            plane[~covered | (kinds[rows, columns] != 1)] = np.nan
        if (kinds == 2).any():
            self._add_exact(u, v, kinds)
        return u, v

    def _add_exact(self, u, v, kinds):
        s = self.lattice.spacing
        records = np.fromfile(self.path).reshape(-1, s, s, 2)
        records = records[np.isfinite(records).any(axis=(1, 2, 3))]
        cells = np.argwhere(kinds == 2)
        assert len(cells) == len(records)
        for (row, column), record in zip(cells, records, strict=True):
            y0, x0 = row * s + self.lattice.origin[1], column * s + self.lattice.origin[0]
            i, j = max(-y0, 0), max(-x0, 0)
            view = np.s_[max(y0, 0) : max(y0 + s, 0), max(x0, 0) : max(x0 + s, 0)]
            height, width = u[view].shape
            u[view] = record[i : i + height, j : j + width, 0]
            v[view] = record[i : i + height, j : j + width, 1]

    def judge(self, bound=MAX_COORD_ERROR_PX):
        """Assert that each pixel is right, and return how many fall into the frame."""
        y, x = np.mgrid[: self.output[1][0], : self.output[1][1]]
        mapping = PixelMap(self.output[0], self.image[0])
        true = mapping(x.ravel().astype(float), y.ravel().astype(float))
        true_u, true_v = (c.reshape(x.shape) for c in true)
        height, width = self.image[1]

        def inside(u, v, margin):
            low = -0.5 - margin
            return (u > low) & (u < width - 1 - low) & (v > low) & (v < height - 1 - low)

        u, v = self.seen()
        well_inside = inside(true_u, true_v, -bound)
        assert np.isfinite(u[well_inside]).all(), "pixels of the frame get no coordinates"
        ghosts = inside(u, v, -bound) & ~inside(true_u, true_v, bound)
        assert not ghosts.any(), "pixels off the frame get coordinates"
        error = np.hypot(u - true_u, v - true_v)[well_inside]
        assert error.max(initial=0.0) <= bound
        assert self.found.error_px <= bound
        return int(well_inside.sum())


@pytest.fixture
def located(tmp_path, monkeypatch):
    return lambda output, image: Located(output, image, tmp_path, monkeypatch)


# ------------------------------------------------------------------------------------------ systems

SYSTEMS = {
    "icrs": (EQUATORIAL, (266.4, -28.9), {"radesys": "ICRS"}),
    "fk5": (EQUATORIAL, (266.4, -28.9), {"radesys": "FK5", "equinox": 2000.0}),
    "fk5-1975": (EQUATORIAL, (266.0, -28.9), {"radesys": "FK5", "equinox": 1975.0}),
    "fk4": (EQUATORIAL, (265.6, -28.9), {"radesys": "FK4", "equinox": 1950.0}),
    "galactic": (GALACTIC, (0.01, -0.01), {}),
}


def system_wcs(name, **kw):
    axes, crval, cards = SYSTEMS[name]
    return plain_wcs(crval=crval, axes=axes, scale=2e-3, **cards, **kw)


class TestSystems:
    @pytest.mark.parametrize(("here", "there"), list(permutations(SYSTEMS, 2)))
    def test_pairs_against_astropy(self, here, there):
        source, target = system_wcs(here), system_wcs(there)
        x, y = np.random.default_rng(1).uniform(0, 300, (2, 500))
        got, want = PixelMap(source, target)(x, y), by_astropy(source, target, x, y)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)

    @pytest.mark.parametrize("name", SYSTEMS)
    def test_equal_systems_need_no_change(self, name):
        assert frame_change(system_wcs(name), system_wcs(name)) is None

    def test_defaults_are_those_of_the_standard(self):
        assert sky_system(plain_wcs()) == sky_system(plain_wcs(radesys="ICRS", equinox=2000.0))
        assert sky_system(plain_wcs(equinox=2000.0)) == sky_system(plain_wcs(radesys="FK5"))
        assert sky_system(plain_wcs(equinox=1950.0)) == sky_system(plain_wcs(radesys="FK4"))
        assert sky_system(plain_wcs()).name == "ICRS"

    def test_radesys_says_nothing_about_galactic_axes(self):
        odd = system_wcs("galactic", radesys="FK5", equinox=2000.0)
        assert frame_change(odd, system_wcs("galactic")) is None

    def test_a_rotation_gives_a_point_the_same_bits_in_any_batch(self):
        turn = frame_change(system_wcs("icrs"), system_wcs("galactic"))
        lon, lat = np.random.default_rng(2).uniform(-80, 80, (2, 1000))
        whole = np.array(turn(lon, lat))
        for part in (slice(0, 1), slice(3, 10), slice(500, 1000)):
            np.testing.assert_array_equal(np.array(turn(lon[part], lat[part])), whole[:, part])

    def test_equal_systems_do_not_import_coordinates(self):
        code = (
            "import sys; from astropy.wcs import WCS; before = set(sys.modules)\n"
            "from zmrs.coordinates import PixelMap\n"
            "a, b = WCS(naxis=2), WCS(naxis=2)\n"
            "for w in (a, b): w.wcs.ctype = 'RA---TAN', 'DEC--TAN'; w.wcs.cdelt = -1e-3, 1e-3\n"
            "b.wcs.radesys = 'ICRS'; b.wcs.equinox = 2000.0; a.wcs.set(); b.wcs.set()\n"
            "PixelMap(a, b)\n"
            "print('astropy.coordinates' in set(sys.modules) - before)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "False"


class TestForms:
    """One sky written in several ways."""

    def test_cd_and_pc(self):
        matrix = 5e-4 * np.array([[-0.8, 0.6], [0.6, 0.8]])
        with_pc = plain_wcs(pc=matrix / np.array([[-5e-4], [5e-4]]))
        with_cd = WCS(naxis=2)
        with_cd.wcs.ctype, with_cd.wcs.crval = with_pc.wcs.ctype, with_pc.wcs.crval
        with_cd.wcs.crpix, with_cd.wcs.cd = with_pc.wcs.crpix, matrix
        with_cd.wcs.set()
        self._same(with_pc, with_cd)

    def test_declination_first(self):
        usual = plain_wcs()
        swapped = plain_wcs(axes=EQUATORIAL[::-1], crval=(30.0, 150.0), cdelt=[5e-4, -5e-4])
        swapped.wcs.pc = [[0.0, 1.0], [1.0, 0.0]]
        swapped.wcs.set()
        assert (swapped.wcs.lng, swapped.wcs.lat) == (1, 0)
        self._same(usual, swapped)
        self._same(swapped, usual)

    @staticmethod
    def _same(a, b):
        x, y = np.random.default_rng(3).uniform(0, 300, (2, 200))
        np.testing.assert_allclose(PixelMap(a, b)(x, y), (x, y), rtol=0, atol=1e-7)


# ---------------------------------------------------------------------------------------- the bound

SHAPE = (300, 400)
SMOOTH = {
    "SIN": plain_wcs("SIN"),
    "TAN-SIP": make_frame_wcs((150.0, 30.0), 1.8, 20.0, SHAPE, sip_strength=3.0),
    "TPV": tpv_wcs(),
    "galactic": plain_wcs(crval=(198.142, 52.464), axes=GALACTIC),
}


class TestBound:
    @pytest.mark.parametrize("name", SMOOTH)
    def test_smooth_ones_need_no_exact_cells(self, name, located):
        output = plain_wcs(crval=(150.05, 30.02), shape=(340, 420)), (340, 420)
        here = located(output, (SMOOTH[name], SHAPE))
        assert here.judge() > 80_000
        assert here.found.exact_fraction == 0.0
        back = located((SMOOTH[name], SHAPE), output)
        assert back.judge() > 80_000
        assert back.found.exact_fraction == 0.0

    def test_plate_carree_near_the_pole(self, located):
        car = plain_wcs("CAR", crval=(30.0, 86.0), shape=(200, 500), scale=0.02)
        tan = plain_wcs("TAN", crval=(30.0, 86.0), shape=(400, 400), scale=0.01)
        assert located((tan, (400, 400)), (car, (200, 500))).judge() > 10_000
        assert located((car, (200, 500)), (tan, (400, 400))).judge() > 10_000

    @pytest.mark.parametrize("longitude", [10.0, 179.5])
    def test_all_sky_map_on_a_field(self, longitude, located):
        sky = plain_wcs("AIT", crval=(0.0, 0.0), shape=(180, 360), scale=1.0)
        field = plain_wcs(crval=(longitude, 20.0), shape=(250, 300), scale=0.05)
        found = located((field, (250, 300)), (sky, (180, 360)))
        assert found.judge() > 70_000
        # The edge of the map, at 180 degrees, runs through the second field.
        assert (found.found.exact_fraction > 0) == (longitude > 170)

    def test_all_sky_map_on_another(self, located):
        ait = plain_wcs("AIT", crval=(0.0, 0.0), shape=(90, 180), scale=2.0, axes=GALACTIC)
        zea = plain_wcs("ZEA", crval=(10.0, 40.0), shape=(150, 150), scale=1.6)
        assert located((zea, (150, 150)), (ait, (90, 180))).judge() > 10_000
        assert located((ait, (90, 180)), (zea, (150, 150))).judge() > 8_000

    def test_map_across_the_far_side_of_the_output(self, located):
        """The frame's border goes round the antipode and says nothing of what it holds."""
        car = plain_wcs("CAR", crval=(0.0, 0.0), shape=(90, 180), scale=2.0)
        zea = plain_wcs("ZEA", crval=(10.0, 0.0), shape=(150, 150), scale=1.6)
        found = located((zea, (150, 150)), (car, (90, 180)))
        u, _ = found.seen()
        assert found.judge() == np.isfinite(u).sum() > 15_000

    def test_far_side_of_the_sky(self, located):
        output = plain_wcs(crval=(150.0, 0.0), shape=(800, 800), scale=0.05), (800, 800)
        image = plain_wcs(crval=(30.0, 0.0), shape=(800, 800), scale=0.05), (800, 800)
        assert located(output, image).found is None

    def test_beside_the_output(self, located):
        output = plain_wcs(), SHAPE
        image = plain_wcs(crval=(152.0, 30.0)), SHAPE
        assert located(output, image).found is None

    def test_look_up_tables(self, located):
        output = plain_wcs(crval=(150.01, 30.01), shape=(200, 240)), (200, 240)
        found = located(output, (table_wcs(), SHAPE))
        assert found.judge() > 40_000
        assert found.found.exact_fraction > 0.3

    def test_cobe_cube_whose_way_back_is_rough(self, located):
        """A strict check of the way back takes the whole image for the far side of the sky."""
        csc = plain_wcs("CSC", crval=(10.0, 5.0), shape=(120, 120), scale=0.07)
        field = plain_wcs(crval=(10.0, 5.0), shape=(120, 120), scale=0.07)
        assert located((field, (120, 120)), (csc, (120, 120))).judge() > 10_000

    def test_steps_of_the_output_pixels(self, located):
        """Tiny frames in one cell, and frames of many pixels for each of the output."""
        fine = plain_wcs(shape=(2000, 2000), scale=1e-4), (2000, 2000)
        coarse = plain_wcs(shape=(20, 20), scale=1e-2), (20, 20)
        assert located(coarse, fine).judge() == 400
        assert located((plain_wcs(scale=1e-3), SHAPE), coarse).judge() > 30_000


def test_cells_are_anchored_to_the_canvas():
    """A coordinate does not depend on the part of the canvas that is looked at."""
    output, image = plain_wcs(shape=(900, 900)), plain_wcs("SIN", crval=(150.01, 30.01))
    forward = PixelMap(output, image)
    whole = coordinates._Lattice((0, 0, 900, 900), 32, SHAPE, forward)
    x, y = np.random.default_rng(4).uniform(320, 470, (2, 300))
    want = whole.grid.at(x, y)
    assert np.isfinite(want).any()
    for box in ((301, 299, 480, 477), (320, 320, 480, 480), (5, 310, 900, 500)):
        part = coordinates._Lattice(box, 32, SHAPE, forward)
        np.testing.assert_array_equal(part.grid.at(x, y), want)


# --------------------------------------------------------------------------------------- real files

PROJECTIONS = [
    *("AIR", "AIT", "ARC", "AZP", "BON", "CAR", "CEA", "COD", "COE", "COO", "COP", "CSC", "CYP"),
    *("HPX", "MER", "MOL", "NCP", "PAR", "PCO", "QSC", "SFL", "SIN", "STG", "SZP", "TAN", "TSC"),
    *("ZEA", "ZPN"),
]
REAL = [
    "huntsman_sip/science_0.fits",
    "bass_mzls_tpv_60px/ksb_160203_115029_ooi_r_v1-ccd2.fits",
    "decam_tpv_200px_grz/c4d_141206_043719_ooi_z_a1-S10.fits",
    "galactic_center_multiframe/gc_msx_e.fits",
    "galactic_center_multiframe/gc_2mass_k.fits",
]


def real_image(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"REAL DATA MISSING: {path} is not there, so this check was not made")
    image = scan_image(path)
    assert isinstance(image, InputImage)
    return image.wcs, image.storage.shape


class TestRealFiles:
    @pytest.mark.parametrize("code", PROJECTIONS)
    def test_every_projection_both_ways(self, code, located):
        image = real_image(f"proj_1904-66/1904-66_{code}.fits")
        tan = real_image("proj_1904-66/1904-66_TAN.fits")
        assert located(tan, image).judge() > 5_000
        assert located(image, tan).judge() > 5_000

    @pytest.mark.parametrize("name", REAL)
    def test_distortions_and_systems(self, name, located):
        image = real_image(name)
        grid = optimal_grid([image], frame="icrs", size=(600, 500), projection="TAN")
        found = located((grid.wcs, grid.shape), image)
        assert found.judge() > 3_000
        assert found.found.exact_fraction == 0.0
