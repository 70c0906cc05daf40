"""How good is a frame? Sky, noise, number and shape of its stars, measured in its middle.

The library ``sep`` (Barbary 2016, after Bertin & Arnouts 1996) finds background and sources.  A
source counts as a star when it is not one hot pixel or cosmic ray, and neither cut nor blended.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MEASURING_BYTES", "WINDOW_PX", "Quality", "measure", "need_library", "superpixels"]

WINDOW_PX = 1024
"""Rows and columns that are looked at: 50 ms a frame; half as many leave too few stars to some."""

MEASURING_BYTES = 80 << 20
"""What a look takes at most beside the process; the worst seen are 74 MiB, of 29,000 sources, where
the library gives up at 30,000; ordinary frames take 10 to 20."""

_MESH_PX = 64
_DETECTION_SIGMAS = 5.0
_LEAST_PIXELS = 5
_MOST_SHAPES = 200
"""Shapes are measured of so many stars, the brightest."""

_APERTURE = 5.0
"""Radius within which all of a star's light is, in its root mean square radius along the major axis
as far as it rises above the threshold: a Gaussian's width comes out 2 to 5 % too large, whatever
its brightness (4 makes faint stars too narrow, 6 takes neighbours in)."""

_LEAST_ZEROS = 0.05
_MOST_RUNS = 0.25


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of a frame; NaN is one that could not be measured.

    Attributes
    ----------
    background
        Level of the sky, in the unit of the pixels.
    noise
        Standard deviation of the pixels about it, in the same unit.
    stars
        Number of stars in the window.
    fwhm
        Full width at half maximum of the stars, the pixels' own width included; median, pixels.
    roundness
        Minor over major axis of the stars, median; 1 is round.
    note
        Why some figure could not be measured; empty if all could.
    """

    background: float = math.nan
    noise: float = math.nan
    stars: float = math.nan
    fwhm: float = math.nan
    roundness: float = math.nan
    note: str = ""

    def figures(self) -> dict[str, float]:
        """The quantities by name."""
        return {name: value for name, value in asdict(self).items() if name != "note"}

    def scaled(self, times: float) -> Quality:
        """The same where the pixels that were measured are so many times as wide as those meant."""
        return replace(self, fwhm=times * self.fwhm)


def need_library() -> None:
    """Refuse to select frames where what measures them is missing.

    Raises
    ------
    UsageError
        ``sep`` is not installed.
    """
    try:
        import sep  # noqa: F401, PLC0415  (late, and optional)
    except ImportError:
        raise UsageError(
            "--select: it needs the library sep, which is not installed; install zmrs[select]."
        ) from None


def superpixels(window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of 2 x 2 pixels, (H // 2, W // 2): what is left of a raw colour frame is grey."""
    height, width = (length // 2 * 2 for length in window.shape)
    even, odd = window[:height:2], window[1:height:2]
    four = even[:, :width:2] + even[:, 1:width:2] + odd[:, :width:2] + odd[:, 1:width:2]
    return np.float32(0.25) * four


def measure(
    window: NDArray[np.float32], *, saturation: float | None = None, zero_is_blank: str = "off"
) -> Quality:
    """Measure a part of a frame.

    Parameters
    ----------
    window
        (H, W) float32, C order; NaN is invalid.  Overwritten.
    saturation
        Value from which on pixels are saturated; the shapes of such stars do not count.
    zero_is_blank
        ``on``: pixels of exactly 0 are invalid; ``auto``: where many of them lie together.
    """
    import sep  # noqa: PLC0415  (late, and optional)

    invalid = ~np.isfinite(window)
    zeros = window == 0
    if zero_is_blank == "on" or (zero_is_blank == "auto" and _lie_together(zeros)):
        invalid |= zeros
    if invalid.all():
        return Quality(note="it has no valid pixel in its middle")
    valid = ~invalid
    least = float(window.min(where=valid, initial=np.inf))
    if least == window.max(where=valid, initial=-np.inf):
        # The library would call that a noise of 1.
        return Quality(least, 0.0, 0.0, note="its middle has one value")
    saturated = window >= (math.inf if saturation is None else saturation)
    window[invalid] = 0
    sky = sep.Background(window, mask=invalid, bw=_MESH_PX, bh=_MESH_PX)
    background, noise = float(sky.globalback), float(sky.globalrms)
    sky.subfrom(window)
    window[invalid] = 0
    sources = _sources(window, invalid, _DETECTION_SIGMAS * noise)
    if sources is None:
        return Quality(background, noise, note="its sources cannot be told apart")
    stars = sources[(sources["flag"] == 0) & (sources["tnpix"] >= _LEAST_PIXELS)]
    shaped = stars[~saturated[stars["ypeak"], stars["xpeak"]]]
    brightest = shaped[np.argsort(-shaped["flux"], kind="stable")[:_MOST_SHAPES]]
    if not len(brightest):
        note = "all its stars are saturated" if len(stars) else "no star was found in its middle"
        return Quality(background, noise, float(len(stars)), note=note)
    # Half of the light of a Gaussian is within half of its full width at half maximum.
    radii, _ = sep.flux_radius(
        window,
        brightest["x"],
        brightest["y"],
        _APERTURE * brightest["a"],
        0.5,
        mask=invalid,
        subpix=5,
    )
    return Quality(
        background,
        noise,
        float(len(stars)),
        2 * float(np.median(radii)),
        float(np.median(brightest["b"] / brightest["a"])),
    )


def _sources(
    window: NDArray[np.float32], invalid: NDArray[np.bool_], threshold: float
) -> NDArray[Any] | None:
    """Sources above the threshold; None where there are more than can be told apart."""
    import sep  # noqa: PLC0415

    for deblending in (0.005, 1.0):
        # Too many pixels or parts of a blend: sep raises a bare Exception; 1 leaves blends alone.
        with contextlib.suppress(Exception):
            found: NDArray[Any] = sep.extract(
                window, threshold, mask=invalid, minarea=_LEAST_PIXELS, deblend_cont=deblending
            )
            return found
    return None


def _lie_together(zeros: NDArray[np.bool_]) -> bool:
    """Whether zeros are many and lie together, as borders and gaps do and counts of 0 do not.

    The rule is that of the engine's survey (``rust/core/src/survey.rs``): a twentieth of the
    pixels, in at most a quarter of the runs that as many zeros strewn at random would make.
    """
    count = np.count_nonzero(zeros)
    runs = np.count_nonzero(zeros[:, 0]) + np.count_nonzero(zeros[:, 1:] & ~zeros[:, :-1])
    share = count / zeros.size
    return bool(share >= _LEAST_ZEROS and runs <= _MOST_RUNS * count * (1 - share))
