"""Mosaics of observed data against `reproject_and_coadd` on the same grid.

What is compared, and printed as a table (``pytest tests/real -m '' -s``):

*value*: 99.9th percentile of |ours - theirs| / s over the pixels covered equally in both, where s
is the local scale of the image: the mean absolute deviation from the local mean in 15 x 15 pixels,
but at least the median of that over the image (the noise).  Must be below 1e-3.

*coverage*: counts of inputs; equal to 1e-3 but for a rim.

*rim*: pixels whose coverage differs.  All must lie within one pixel of a border of a footprint or a
hole, where rounding decides which side a sample falls on.

Astropy reads the files for reproject, the HDU is given here by hand: nothing of zmrs is trusted but
`result.wcs`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter

import zmrs
from sky import unmatched
from zmrs.errors import InputError

DATA = Path(__file__).parents[3] / "shared" / "data"
NEIGHBOURHOOD = 15
PERCENTILE = 99.9

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"THE OBSERVED DATA ARE MISSING: {DATA} is no folder"
)


@dataclass(frozen=True)
class Set:
    """Files of a folder that make one mosaic, and the HDU of their images."""

    name: str
    folder: str
    pattern: str
    hdu: int = 0
    rotate: float | None = None
    grid_of: str | None = None

    @property
    def paths(self) -> list[Path]:
        return sorted((DATA / self.folder).glob(self.pattern))


def one(name: str, folder: str, pattern: str, hdu: int = 0, **kw: object) -> Set:
    """A single image: its own grid would hardly interpolate, so the output is turned."""
    return Set(name, folder, pattern, hdu, **{"rotate": 17.0} | kw)


GALACTIC = "galactic_center_multiframe"

SETS = [
    Set("m101_2mass_j", "m101_2mass_j", "2mass-*.fits"),
    Set("seestar_m94, Bayer plane", "seestar_m94", "*.fits.fz", 1),
    Set("decam_tpv_200px_grz", "decam_tpv_200px_grz", "*_ooi_*.fits", 1),
    Set("bass_mzls_tpv, 90Prime r", "bass_mzls_tpv_60px", "ksb_16020*_ooi_*.fits", 1),
    Set("bass_mzls_tpv, 90Prime g", "bass_mzls_tpv_60px", "ksb_16070*_ooi_*.fits", 1),
    Set("bass_mzls_tpv, Mosaic-3", "bass_mzls_tpv_60px", "k4m_*_ooi_*.fits", 1),
    Set("bass_mzls_tpv, mixed scales", "bass_mzls_tpv_60px", "*_ooi_*.fits", 1),
    one("decam_fz ooi, RICE", "decam_fz", "*_ooi_*.fz", 1),
    one("decam_fz coadd", "decam_fz", "*-image-z.fits.fz", 1),
    one("galactic_center J", GALACTIC, "gc_2mass_j.fits"),
    one("galactic_center H", GALACTIC, "gc_2mass_h.fits"),
    one("galactic_center K", GALACTIC, "gc_2mass_k.fits"),
    one("galactic_center Bolocam", GALACTIC, "gc_bolocam_gps.fits"),
    one("galactic_center MSX E, gzip", GALACTIC, "MSX_E.fits.gz"),
    Set("both MSX E", GALACTIC, "*[mM][sS][xX]_[eE]*"),
    one("Bolocam on the grid of K", GALACTIC, "gc_bolocam_gps.fits", rotate=None,
        grid_of="gc_2mass_k.fits"),
    one("K on the grid of Bolocam", GALACTIC, "gc_2mass_k.fits", rotate=None,
        grid_of="gc_bolocam_gps.fits"),
    one("herschel_spire_w5 350", "herschel_spire_w5", "*PMP350*", 1),
    one("herschel_spire_w5 500", "herschel_spire_w5", "*PMP500*", 1),
    one("huntsman_sip", "huntsman_sip", "science_0.fits"),
    one("lco_banzai_fz", "lco_banzai_fz", "*.fits.fz", 1),
    one("m13 plain", "m13_compression", "m13.fits"),
    one("m13 GZIP_1", "m13_compression", "m13_gzip.fits", 1),
    one("m13 HCOMPRESS_1", "m13_compression", "m13_hcomp.fits", 1),
    one("m13 PLIO_1", "m13_compression", "m13_plio.fits", 1),
    one("m13 RICE_1", "m13_compression", "m13_rice.fits", 1),
    one("m13 float", "m13_compression", "m13real.fits"),
    one("m13 float, RICE_1", "m13_compression", "m13real_rice.fits", 1),
    one("panoptes, near the pole", "panoptes_dslr_bayer", "pole.fits"),
    one("panoptes, solved", "panoptes_dslr_bayer", "solved.fits.fz", 1),
    Set("proj_1904-66, all", "proj_1904-66", "*.fits"),
]  # fmt: skip


# The others take a second or more of reproject's time each.
QUICK = {
    "decam_tpv_200px_grz",
    "bass_mzls_tpv, mixed scales",
    "Bolocam on the grid of K",
    "herschel_spire_w5 500",
    "m13 float, RICE_1",
    "panoptes, near the pole",
}


def parameters() -> list[object]:
    slow = [pytest.mark.slow]
    return [
        pytest.param(each, id=each.name, marks=[] if each.name in QUICK else slow) for each in SETS
    ]


@pytest.fixture(autouse=True)
def dirty_headers(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """These files are as they are: what astropy says of their headers is no failure here."""
    caplog.set_level(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)
        warnings.filterwarnings("ignore", message="The following header keyword is invalid")
        yield


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    lines: list[str] = []
    yield lines
    print(f"\n\n{'set':30} {'inputs':>6} {'shape':>12} {'value':>9} {'worst':>9} {'rim px':>7}")
    print("\n".join(lines))


def read(path: Path, hdu: int) -> tuple[np.ndarray, WCS]:
    with fits.open(path, memmap=False) as hdus:
        return hdus[hdu].data.astype(float), WCS(hdus[hdu].header, hdus)


def theirs(
    inputs: Sequence[tuple[np.ndarray, WCS]], wcs: WCS, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    from reproject import reproject_interp
    from reproject.mosaicking import reproject_and_coadd

    with np.errstate(all="ignore"):
        data, count = reproject_and_coadd(
            list(inputs), wcs, shape_out=shape, reproject_function=reproject_interp,
            combine_function="mean", match_background=False,
        )  # fmt: skip
    return np.where(count > 0, data, np.nan), count


def local_scale(image: np.ndarray) -> np.ndarray:
    """Mean absolute deviation from the local mean, at least its median where it is not 0."""
    valid = np.isfinite(image)
    share = uniform_filter(valid.astype(float), NEIGHBOURHOOD)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = uniform_filter(np.where(valid, image, 0.0), NEIGHBOURHOOD) / share
        off = np.where(valid, np.abs(image - mean), 0.0)
        scale = uniform_filter(off, NEIGHBOURHOOD) / share
    return np.maximum(scale, np.median(scale[valid & (scale > 0)]))


def borders(count: np.ndarray) -> np.ndarray:
    """Pixels with a neighbour that more or fewer inputs cover."""
    return maximum_filter(count, 3) != minimum_filter(count, 3)


@pytest.mark.parametrize("each", parameters())
def test_mosaic_equals_that_of_reproject(each: Set, table: list[str]) -> None:
    assert each.paths
    template = str(DATA / each.folder / each.grid_of) if each.grid_of else None
    options: dict[str, Any] = {"rotate": each.rotate} if each.rotate is not None else {}
    # reproject takes zeros for values, also those that mean that nothing was observed.
    options |= {"memory": "2GiB", "threads": 2, "zero_is_blank": "off", "debayer": "none"}
    result = unmatched(each.paths, wcs=template, **options)
    assert [row.status for row in result.inputs] == ["used"] * len(each.paths)
    ours, coverage = result.data, result.coverage
    reference, count = theirs([read(p, each.hdu) for p in each.paths], result.wcs, ours.shape)

    rim = np.abs(coverage - count) > 1e-3
    # reproject loses a border pixel whose inner neighbour is a hole (0 times NaN), so the borders
    # of both count.
    edge = borders(count) | borders(coverage)
    same = ~rim & (count > 0)
    ratio = np.zeros(ours.shape)
    ratio[same] = np.abs(ours - reference)[same] / local_scale(reference)[same]
    value, worst = np.percentile(ratio[same], PERCENTILE), ratio.max()
    table.append(
        f"{each.name:30} {len(each.paths):6} {ours.shape[0]:>6}x{ours.shape[1]:<5} {value:9.1e} "
        f"{worst:9.1e} {rim.sum():7}"
    )
    assert same.any()
    np.testing.assert_array_equal(np.isnan(ours), coverage == 0)
    assert value < 1e-3
    stray = rim & ~edge
    assert not stray.any(), f"{stray.sum()} pixels differ away from every border"
    assert rim.sum() <= 0.01 * edge.sum() + 4


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("hips_dss2red_hpx", "Npix*.fits"),
        ("panoptes_dslr_bayer", "unsolved.fits"),
        ("panoptes_dslr_bayer", "rotation.fits"),
    ],
)
def test_images_without_a_wcs_say_so(folder: str, pattern: str) -> None:
    paths = sorted((DATA / folder).glob(pattern))
    assert paths
    for path in paths:
        with pytest.raises(InputError, match=f"{path.name}: no WCS in its header; "):
            unmatched([path])
    good = DATA / "m13_compression" / "m13.fits"
    result = unmatched([paths[0], good])
    assert [row.status for row in result.inputs] == ["used", "left_out"]
    with pytest.raises(InputError):
        unmatched([paths[0], good], strict=True)


@pytest.mark.parametrize("packed", ["gzip", "rice", "plio"])
def test_lossless_compressions_give_the_bits_of_the_plain_file(packed: str) -> None:
    folder = DATA / "m13_compression"
    plain = unmatched([folder / "m13.fits"], rotate=17.0)
    other = unmatched([folder / f"m13_{packed}.fits"], rotate=17.0)
    np.testing.assert_array_equal(other.data, plain.data)
    np.testing.assert_array_equal(other.coverage, plain.coverage)


@pytest.mark.parametrize("name", ["m101_2mass_j", "decam_tpv_200px_grz"])
def test_half_of_them_later(name: str, tmp_path: Path) -> None:
    """Frames added to a mosaic of the others: the mosaic of all, to the rounding."""
    (chosen,) = (one for one in SETS if one.name == name)
    paths = chosen.paths
    how = {"hdu": chosen.hdu, "match": "none"}
    grid, out = tmp_path / "grid.fits", tmp_path / "out.fits"
    zmrs.mosaic(paths, grid, **how)
    zmrs.mosaic(paths[: len(paths) // 2], out, wcs=grid, **how)
    before = fits.getdata(out)
    updated = zmrs.update(out, paths[len(paths) // 2 :], hdu=chosen.hdu)
    expected = zmrs.mosaic(paths, wcs=grid, **how)
    assert np.array_equal(updated.coverage, expected.coverage)
    assert np.isfinite(updated.data).sum() > np.isfinite(before).sum()
    seen = np.isfinite(expected.data)
    assert np.array_equal(np.isfinite(updated.data), seen)
    # Sums of values of either sign may be small: their rounding is that of the values.
    size = np.maximum(np.abs(expected.data[seen]), np.median(np.abs(expected.data[seen])))
    error = np.abs(updated.data[seen] - expected.data[seen]) / size
    print(f"{name}: {len(paths)} files, relative difference at most {error.max():.1e}")
    assert error.max() < 1e-6
