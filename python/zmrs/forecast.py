"""How long a job will take: a forecast to plan the evening by, not a promise.

Costs were measured on two processors with all files in the page cache.  Runs of one pass took 0.87
to 1.5 times what was foretold, runs of two passes up to 1.6; slow disks and busy machines take
longer.  Every run says in its ``stats`` how good its forecast was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zmrs._zmrs import Layout

__all__ = ["seconds"]

_S_PER_SAMPLE = {
    "nearest": 4e-9,
    "bilinear": 6e-9,
    "bicubic": 14e-9,
    "lanczos2": 14e-9,
    "lanczos3": 18e-9,
}
_S_PER_COMBINED_SAMPLE = {
    "median": 6e-9,
    "kappa-sigma": 8e-9,
    "kappa-sigma-stream": 1.5e-9,
    "winsorized": 12e-9,
    "winsorized-reference": 300e-9,
    "winsor-percentile": 7e-9,
}
_S_PER_VARIANCE = {
    "nearest": 3e-9,
    "bilinear": 3e-9,
    "bicubic": 8e-9,
    "lanczos2": 8e-9,
    "lanczos3": 12e-9,
}
_S_PER_READ_BYTE = 0.6e-9
_S_PER_WRITTEN_BYTE = 1.5e-9
_S_PER_DECOMPRESSED_BYTE = 8e-9
_S_PER_MATCHED_BYTE = 0.3e-9
_S_PER_BLURRED_PIXEL = 12e-9
_S_PER_SURVEYED_BYTE = 1e-9


def seconds(
    layout: Layout,
    kernel: str,
    combine: str,
    *,
    matches: bool,
    pixels: int,
    survey_bytes: int = 0,
    variance: bool = False,
) -> float:
    """Seconds from the first pixel to the finished file.

    Workers share reading and sampling; a thread of its own writes, and competes with them.  What
    one sweep leaves for the next is written and read back.  `matches` is whether inputs are
    matched, `pixels` those of the output that a second pass blurs, 0 without one, `survey_bytes`
    what is read before the passes to know the inputs, `variance` whether that of the pixels is
    found, too.
    """
    workers = layout.plan.cpu_workers
    per_sample = _S_PER_SAMPLE[kernel] + _S_PER_COMBINED_SAMPLE.get(combine, 0.0)
    per_sample += _S_PER_VARIANCE[kernel] if variance else 0.0
    # Bounds that one sweep leaves for the next one are written and read back.
    read_bytes = layout.read_bytes + layout.bounds_bytes
    shared = layout.samples * per_sample + read_bytes * _S_PER_READ_BYTE
    writing = (layout.write_bytes + layout.bounds_bytes) * _S_PER_WRITTEN_BYTE
    decompressing = layout.terms["decompressed inputs"] * _S_PER_DECOMPRESSED_BYTE
    together = (shared + writing) / max(workers, 2)
    one_pass = max(shared / workers, writing, together)
    one_sweep = layout.read_bytes / layout.sweeps
    matching = one_sweep * _S_PER_MATCHED_BYTE / workers if matches else 0.0
    looking = survey_bytes * _S_PER_SURVEYED_BYTE / workers
    again = one_pass + pixels * _S_PER_BLURRED_PIXEL / workers if pixels else 0.0
    return decompressing + looking + matching + one_pass + again
