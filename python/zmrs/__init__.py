"""Sky mosaics from many overlapping FITS images, inside a memory limit that holds.

>>> import zmrs
>>> result = zmrs.mosaic(["a.fits", "b.fits"], "mosaic.fits", memory="512MiB")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zmrs import errors, plan
    from zmrs.api import mosaic, update
    from zmrs.pipeline import Result
    from zmrs.plan import Plan

__version__ = "0.1.0"

__all__ = ["Plan", "Result", "__version__", "errors", "mosaic", "plan", "update"]

# Importing the package costs nothing; each name brings its module when it is first used.
_HOMES = {
    "Plan": "zmrs.plan",
    "Result": "zmrs.pipeline",
    "mosaic": "zmrs.api",
    "update": "zmrs.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in ("errors", "plan"):
        return importlib.import_module(f"zmrs.{name}")
    raise AttributeError(f"module 'zmrs' has no attribute '{name}'")
