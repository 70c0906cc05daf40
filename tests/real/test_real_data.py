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

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from scipy.ndimage import binary_dilation, maximum_filter, minimum_filter, uniform_filter

import zmrs
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
    grid_of: str | None = None

    @property
    def paths(self) -> list[Path]:
        return sorted((DATA / self.folder).glob(self.pattern))


SETS = [
    Set("m101_2mass_j", "m101_2mass_j", "2mass-*.fits"),
    Set("seestar_m94 (Bayer plane)", "seestar_m94", "*.fits.fz", 1),
    Set("seestar_m94, 3 sessions", "seestar_m94", "*[23]*-*[24]*5[14][36]*.fits.fz", 1),
    Set("decam_tpv_200px_grz", "decam_tpv_200px_grz", "*_ooi_*.fits"),
    Set("bass_mzls_tpv_60px, 90Prime", "bass_mzls_tpv_60px", "ksb_16070*_ooi_*.fits"),
    Set("bass_mzls_tpv_60px, Mosaic-3", "bass_mzls_tpv_60px", "k4m_*_ooi_*.fits"),
    Set("decam_fz ooi (RICE)", "decam_fz", "*_ooi_*.fz", 1),
    Set("decam_fz coadd (3600x3600)", "decam_fz", "*-image-z.fits.fz", 1),
    Set("galactic_center 2MASS J", "galactic_center_multiframe", "gc_2mass_j.fits"),
    Set("galactic_center 2MASS H", "galactic_center_multiframe", "gc_2mass_h.fits"),
    Set("galactic_center 2MASS K", "galactic_center_multiframe", "gc_2mass_k.fits"),
    Set("galactic_center Bolocam", "galactic_center_multiframe", "gc_bolocam_gps.fits"),
    Set("galactic_center MSX E", "galactic_center_multiframe", "gc_msx_e.fits"),
    Set("galactic_center MSX (gz)", "galactic_center_multiframe", "MSX_E.fits.gz"),
    Set("Bolocam on the 2MASS grid", "galactic_center_multiframe", "gc_bolocam_gps.fits",
        grid_of="gc_2mass_k.fits"),
    Set("2MASS K on the Bolocam grid", "galactic_center_multiframe", "gc_2mass_k.fits",
        grid_of="gc_bolocam_gps.fits"),
    Set("herschel_spire_w5 350", "herschel_spire_w5", "*PMP350*", 1),
    Set("herschel_spire_w5 500", "herschel_spire_w5", "*PMP500*", 1),
    Set("huntsman_sip", "huntsman_sip", "science_0.fits"),
    Set("lco_banzai_fz", "lco_banzai_fz", "*.fits.fz", 1),
    Set("m13 plain", "m13_compression", "m13.fits"),
    Set("m13 GZIP_1", "m13_compression", "m13_gzip.fits", 1),
    Set("m13 HCOMPRESS_1", "m13_compression", "m13_hcomp.fits", 1),
    Set("m13 PLIO_1", "m13_compression", "m13_plio.fits", 1),
    Set("m13 RICE_1", "m13_compression", "m13_rice.fits", 1),
    Set("m13 float", "m13_compression", "m13real.fits"),
    Set("m13 float RICE_1", "m13_compression", "m13real_rice.fits", 1),
    Set("panoptes, pole", "panoptes_dslr_bayer", "pole.fits"),
    Set("panoptes, solved", "panoptes_dslr_bayer", "solved.fits.fz", 1),
    Set("proj_1904-66", "proj_1904-66", "*.fits"),
]  # fmt: skip
