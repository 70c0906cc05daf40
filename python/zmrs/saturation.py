"""Is a frame blown out? Nearly all of its pixels are at the end of what they can hold.

That end is ``SATURATE``, or the greatest value of the integers in which they are stored.  Some rows
tell, evenly spread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from zmrs.io.storage import Storage

__all__ = ["ROWS", "is_blown"]

ROWS = 32
"""Rows of each channel that are looked at, as many as the survey does."""

_NEARLY_ALL = 0.95


def is_blown(rows: Iterable[NDArray[Any]], store: Storage, saturation: float | None) -> bool:
    """Whether nearly all valid pixels are saturated.

    Parameters
    ----------
    rows
        Stored samples, as arrays of any shape.
    store
        What these mean.
    saturation
        Value from which on pixels are saturated, in physical units; None if not known.
    """
    valid = blown = 0
    for stored in rows:
        ends = np.zeros(stored.shape, bool)
        if stored.dtype.kind in "iu":
            ends |= stored == np.iinfo(stored.dtype).max
        if saturation is not None:
            ends |= store.bzero + store.bscale * stored.astype(np.float64) >= saturation
        known = np.isfinite(stored) if store.blank is None else stored != store.blank
        valid += int(np.count_nonzero(known))
        blown += int(np.count_nonzero(ends & known))
    return valid > 0 and blown >= _NEARLY_ALL * valid
