"""A simulated sky whose truth is known, and frames of it: for the demo, the tests, the benchmarks.

The photometric model of a frame, pixel by pixel, in adu:

    value = gain * (stars + nebula) + sky_level + gradient . (pixel - frame centre) + noise
            + contaminants

*Stars.*  The PSF is a circular Gaussian in the pixels of the frame, integrated over each pixel
(differences of the error function), so that the pixels of one star add up to ``gain * flux`` and
not to a sampled approximation of it.  Stamps end at 5.5 sigma, outside of which lie 8e-8 of the
light.

*Surface brightness.*  The nebula is a surface brightness: its value in a frame is the same whatever
the pixel scale.  zmrs treats all values so and applies no Jacobian.  A star of flux ``F``, summed
over the pixels of a frame, therefore sums to ``F * a_frame / a_grid`` over the pixels of a mosaic,
where ``a`` are the pixel areas *at the star* (`pixel_area`; within one TAN frame they change by
1e-4 at half a degree from the centre).  By default ``F`` is the sum in every frame, whatever its
scale, as for one camera.  For sets of mixed scales give the sky a ``reference_scale_arcsec``: ``F``
is then the sum over pixels of that size, every frame sees one and the same sky, and over a grid of
pixel area ``a_grid`` a star sums to ``F * reference_scale_arcsec**2 / a_grid``.

All randomness comes from the seeds: equal arguments give equal bytes.
"""

from zmrs.simulate.contaminants import Contaminants
from zmrs.simulate.demo import demo_set
from zmrs.simulate.files import write_frames, write_truth
from zmrs.simulate.frames import FrameSpec, render
from zmrs.simulate.nebula import GaussianSum, Nebula
from zmrs.simulate.sky import Sky
from zmrs.simulate.wcs import dither_pattern, make_frame_wcs, pixel_area

__all__ = [
    "Contaminants",
    "FrameSpec",
    "GaussianSum",
    "Nebula",
    "Sky",
    "demo_set",
    "dither_pattern",
    "make_frame_wcs",
    "pixel_area",
    "render",
    "write_frames",
    "write_truth",
]
