"""Its presence puts this folder on the path: tests import ``sky`` and ``child`` from here."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_library import COMPILER


def _cuda() -> Any:
    from zmrs.backends.cuda import Cuda
    from zmrs.errors import DeviceError

    try:
        return Cuda()
    except DeviceError as error:
        pytest.skip(f"NOT RUN: there is no CUDA device ({error})")


def _emulated() -> Any:
    from emulated_device import Emulated

    if COMPILER is None:
        pytest.skip("NOT RUN: there is no C compiler for the kernels")
    return Emulated()


@pytest.fixture(params=[_emulated, pytest.param(_cuda, marks=pytest.mark.gpu)])
def hardware(request: pytest.FixtureRequest) -> Any:
    """A device: an emulated one, and CUDA's where there is one.  Buffers may take 1 GiB."""
    found = request.param()
    found.allow(1 << 30)
    return found
