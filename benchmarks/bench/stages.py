"""Single stages, timed by the Rust benchmarks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

RUST = Path(__file__).resolve().parents[2] / "rust"


def stages() -> list[tuple[str, float, float]]:
    """Name, nanoseconds an element, millions of elements a second."""
    subprocess.run(["cargo", "bench", "-p", "zmrs-core", "--quiet"], cwd=RUST, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    rows = []
    for file in sorted((RUST / "target" / "criterion").glob("**/new/estimates.json")):
        seconds = json.loads(file.read_text())["median"]["point_estimate"] * 1e-9
        info = json.loads((file.parent / "benchmark.json").read_text())
        elements = info["throughput"]["Elements"]
        rows.append((info["full_id"], seconds / elements * 1e9, elements / seconds / 1e6))
    return rows
