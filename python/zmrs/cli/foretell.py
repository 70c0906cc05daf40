"""What ``zmrs plan`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zmrs.pipeline import Prepared

__all__ = ["as_dict", "as_text"]

# From `make bench`, two threads, everything in the page cache: a forecast to plan the evening by,
# not a promise.
_SECONDS_PER_READ_BYTE = 0.7e-9
_SECONDS_PER_WRITTEN_BYTE = 1.0e-9


def as_dict(prepared: Prepared, scratch_bytes: int) -> dict[str, Any]:
    """The forecast as plain values, in the form that scripts rely on."""
    grid, layout = prepared.grid, prepared.layout
    return {
        "grid": {
            "width": grid.width,
            "height": grid.height,
            "wcs": {keyword: value for keyword, value, _ in grid.to_header()},
        },
        "plan": prepared.plan.to_dict(),
        "backend": "cpu",
        "bands": layout.bands,
        "memory": {
            "allowed_bytes": prepared.allowed.bytes,
            "reserved_bytes": prepared.reserved_bytes,
            "projected_bytes": layout.projected_bytes,
            "terms": layout.terms,
        },
        "read_bytes": layout.read_bytes,
        "write_bytes": layout.write_bytes,
        "scratch_bytes": scratch_bytes,
        "time_s": round(_seconds(prepared), 2),
        "inputs": {
            "used": len(prepared.placed),
            "left_out": [{"name": left.name, "reason": left.reason} for left in prepared.left_out],
        },
    }


def as_text(prepared: Prepared, scratch_bytes: int) -> str:
    """The forecast for people."""
    layout, mib = prepared.layout, 2**20
    lines = [
        f"grid       {prepared.grid.description()}",
        f"inputs     {len(prepared.placed)} used, {len(prepared.left_out)} left out",
        f"plan       {prepared.plan.name} {prepared.plan.figures()}",
        f"bands      {layout.bands} of {layout.band_rows} rows, {layout.blocks} blocks",
        f"read       {layout.read_bytes / mib:.1f} MiB",
        f"write      {layout.write_bytes / mib:.1f} MiB",
        f"scratch    {scratch_bytes / mib:.1f} MiB",
        f"time       about {_seconds(prepared):.0f} s",
        f"memory     {layout.projected_bytes / mib:.1f} MiB of {prepared.allowed.bytes / mib:.1f}"
        f" MiB allowed ({prepared.allowed.reason})",
    ]
    lines += [
        f"             {name:<20}{size / mib:9.1f} MiB"
        for name, size in layout.terms.items()
        if size
    ]
    return "\n".join(lines)


def _seconds(prepared: Prepared) -> float:
    layout = prepared.layout
    return (
        sum(prepared.seconds.values())
        + layout.read_bytes * _SECONDS_PER_READ_BYTE
        + layout.write_bytes * _SECONDS_PER_WRITTEN_BYTE
    )
