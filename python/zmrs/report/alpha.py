"""How opaque the pixels of a picture are.

>>> import numpy as np
>>> alpha_mask(coverage=np.array([[0.0, 1.0, 4.0]])).tolist()
[[0, 63, 255]]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zmrs.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["alpha_mask"]


def alpha_mask(
    *,
    alpha: ArrayLike | None = None,
    coverage: ArrayLike | None = None,
    image: ArrayLike | None = None,
    shape: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Opacities of 8 bits from the first of these that is given, as ZeMosaic 4.5 derives them.

    Fractions are cut off, not rounded.

    Parameters
    ----------
    alpha
        (H, W) opacities: truths, fractions from 0 to 1, or numbers up to 255, which are kept within
        0 to 255.  NaN is 0.
    coverage
        (H, W) weights: the greatest is opaque, others in proportion; negative ones and NaN are 0.
    image
        (H, W) or (C, H, W): opaque where every channel is finite.
    shape
        (H, W) of the result, found by the nearest pixel; None is that of what is given.

    Returns
    -------
    ndarray
        (H, W) uint8.

    Raises
    ------
    UsageError
        Nothing is given.
    """
    if alpha is not None:
        mask = _from_alpha(np.asarray(alpha))
    elif coverage is not None:
        weights = np.nan_to_num(np.asarray(coverage, np.float64), nan=0.0)
        mask = _bytes(255.0 * weights / max(float(weights.max(initial=0.0)), 1e-300))
    elif image is not None:
        finite = np.isfinite(np.asarray(image))
        mask = 255 * (finite.all(axis=0) if finite.ndim == 3 else finite).astype(np.uint8)
    else:
        raise UsageError("alpha_mask: give opacities, a coverage or an image.")
    if shape is None or mask.shape == tuple(shape):
        return mask
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]


def _from_alpha(alpha: NDArray[np.generic]) -> NDArray[np.uint8]:
    if alpha.dtype == bool:
        return 255 * alpha.astype(np.uint8)
    values = np.nan_to_num(alpha.astype(np.float64), nan=0.0)
    are_fractions = alpha.dtype.kind == "f" and bool(((values >= 0) & (values <= 1)).all())
    return _bytes(255.0 * values if are_fractions else values)


def _bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(values, 0.0, 255.0).astype(np.uint8)
