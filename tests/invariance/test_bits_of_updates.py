"""The bytes of an update do not depend on how it is run, or on how the mosaic was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bits import SHAPE, assert_same_bits, frames, weights_of

import sky
import zmrs


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", ["bilinear", "lanczos3"])
def test_threads_bands_and_memory(kernel: str, channels: int, tmp_path: Path) -> None:
    tiles = frames(channels)
    weights = weights_of(tiles)
    out = tmp_path / "out.fits"
    grid = {"wcs": sky.frame_wcs(SHAPE, 1.3), "shape": SHAPE}
    zmrs.mosaic(tiles[:4], out, kernel=kernel, weights=weights[:4], **grid)

    def update(number: int, **how: Any) -> zmrs.Result:
        other = tmp_path / f"{number}.fits"
        return zmrs.update(out, tiles[4:] + frames(channels, 1)[:2], other, **how)

    wide = update(0, threads=2, memory="2GiB")
    assert np.unique(wide.coverage).size > 1000
    ways: list[dict[str, Any]] = [
        {"threads": 1},
        {"threads": 8},
        {"memory": "60MiB"},
        {"plan": {"rows_per_chunk": 1, "cpu_workers": 2}},
        {"plan": {"rows_per_chunk": 47, "cpu_workers": 3}},
    ]
    for number, how in enumerate(ways, start=1):
        assert_same_bits(update(number, **how), wide)
    assert update(number + 1, **ways[-2]).stats["bands"] > wide.stats["bands"]
