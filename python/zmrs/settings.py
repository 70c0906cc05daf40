"""Reading single settings from configurations of any kind: objects, mappings, or nothing at all.

Plans are made from the configurations of other programs too, so a setting that is missing or
cannot be read means its default, as those programs have it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["flag", "known", "number", "positive", "setting"]


def setting(source: Any, name: str) -> Any:
    """The attribute `name` of a configuration, else its item of that name, else None."""
    found = None
    # Whatever an object or a mapping of somebody else's raises, there is no setting then.
    with contextlib.suppress(Exception):
        found = getattr(source, name)
    if found is None and isinstance(source, Mapping):
        with contextlib.suppress(Exception):
            found = source.get(name)
    return found


def number(source: Any, name: str, default: float, low: float, high: float = math.inf) -> float:
    """A number within [low, high]; `default` where there is none that can be read."""
    value = setting(source, name)
    if value is None or isinstance(value, bool):
        return default
    try:
        read = float(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return min(max(read, low), high) if math.isfinite(read) else default


def flag(source: Any, name: str, default: bool) -> bool:
    """A truth value, also as text; `default` where there is none."""
    value = setting(source, name)
    if isinstance(value, str):
        text = value.strip().lower()
        return text not in ("0", "false", "no", "off") if text else default
    try:
        return default if value is None else bool(value)
    except (TypeError, ValueError):
        return default


def known(source: Any, name: str) -> int | None:
    """A count or a size of a configuration; see `positive`."""
    return positive(setting(source, name))


def positive(value: Any) -> int | None:
    """A count or a size above 0, at most 2^53, which is beyond any machine; None if unknown."""
    if value is None or isinstance(value, bool | str | bytes):
        return None
    try:
        whole = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return min(whole, 1 << 53) if whole > 0 else None
