"""Where the weight maps of inputs are, as users say it, and what their values mean."""

from __future__ import annotations

import os
from dataclasses import dataclass

from zmrs.errors import UsageError

__all__ = ["KINDS", "WeightRule", "weight_rule"]

KINDS = ("weight", "variance", "rms", "mask")
"""What the values of a map may be; in a mask those that are not 0 are bad."""


@dataclass(frozen=True, slots=True)
class WeightRule:
    """Where the weight map of an input is.

    Attributes
    ----------
    kind
        What its values mean: one of `KINDS`, or ``alpha``, opacities.
    extension
        Name or number of an HDU of the input's own file; None where it is elsewhere.
    change
        Old and new text: the second in the place of the first makes the name of the map's file
        from that of the input's.
    is_optional
        Whether an input may do without.
    """

    kind: str
    extension: str | None = None
    change: tuple[str, str] | None = None
    is_optional: bool = False

    def beside(self, path: str) -> str | None:
        """The name of the map's file; None where the input's name lacks the old text.

        The old text is plain, not a pattern; its first occurrence in the file's name counts, or in
        the whole path if either text has a slash in it.
        """
        assert self.change is not None
        old, new = self.change
        folder, name = os.path.split(path)
        if "/" in old or "/" in new:
            folder, name = "", os.path.abspath(path)  # noqa: PTH100 (keeps links as they are)
        if old not in name:
            return None
        changed = name.replace(old, new, 1)
        return os.path.join(folder, changed) if folder else changed  # noqa: PTH118


def weight_rule(text: str | None, kind: str) -> WeightRule:
    """What ``--weights`` and ``--weight-type`` say.

    Parameters
    ----------
    text
        Name or number of an extension; ``s/OLD/NEW/``, with any other sign in the place of the
        slashes; ``none`` for no maps at all; None for the extension ``ALPHA`` where there is one.
    kind
        One of `KINDS`.

    Raises
    ------
    UsageError
        A substitution that is none.
    """
    if text is None:
        return WeightRule("alpha", "ALPHA", is_optional=True)
    if text.strip().lower() == "none":
        return WeightRule(kind, is_optional=True)
    sign = text[1:2]
    if text[:1] != "s" or not sign or sign.isalnum() or sign in "_-+. ":
        if not text.strip():
            raise UsageError("--weights: it names nothing; give an extension or s/OLD/NEW/.")
        return WeightRule(kind, text.strip())
    parts = text[2:].removesuffix(sign).split(sign)
    if len(parts) != 2 or not parts[0] or parts[0] == parts[1]:
        raise UsageError(f"--weights: '{text}' is no substitution; write s/OLD/NEW/.")
    return WeightRule(kind, change=(parts[0], parts[1]))
