"""Everything zmrs raises on purpose: one class per kind of failure, one exit status per class.

A message is one sentence that says which file or option, what is wrong with it, and what to do.
The Rust engine raises the same classes (its error table names them), so a caller needs only
``except ZmrsError``.  A missing file stays ``FileNotFoundError`` and Ctrl-C stays
``KeyboardInterrupt``, as everywhere in Python.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "Cancelled",
    "DeviceError",
    "DeviceMemoryError",
    "DiskFullError",
    "GridError",
    "InputError",
    "OutputError",
    "PlanError",
    "UsageError",
    "ZmrsError",
]


class ZmrsError(Exception):
    """Base of all deliberate failures.

    Attributes
    ----------
    exit_status
        What the command line exits with when this error ends it.
    """

    exit_status: int = 1


class UsageError(ZmrsError):
    """An option, a combination of options, or a path that cannot be used as asked."""

    exit_status = 2


class OutputError(ZmrsError):
    """The output cannot be written where it was asked for (exists, read-only, missing folder)."""

    exit_status = 2


class PlanError(ZmrsError):
    """A resource plan with a field that makes no sense; the message names the field."""

    exit_status = 2


class BudgetError(ZmrsError):
    """The job does not fit the memory limit; the message names the smallest limit that would.

    Attributes
    ----------
    least_bytes
        That limit, where it is known; else 0.
    """

    exit_status = 3

    def __init__(self, message: str, least_bytes: int = 0) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes


class GridError(ZmrsError):
    """No sensible output grid: absurd extent, no common sky, or a bad grid option."""

    exit_status = 3


class InputError(ZmrsError):
    """An input that cannot be used; fatal only if no usable input is left or with ``strict``."""

    exit_status = 4


class DiskFullError(OutputError):
    """The disk filled up while the output or the scratch was written."""

    exit_status = 5


class DeviceError(ZmrsError):
    """A device failed while it computed; without ``--gpu on`` the CPU then does its work."""


class DeviceMemoryError(DeviceError):
    """The memory of a device did not suffice."""


class Cancelled(ZmrsError):  # noqa: N818  (its public name)
    """The job was stopped on request before it was complete; nothing was left behind."""

    exit_status = 130
