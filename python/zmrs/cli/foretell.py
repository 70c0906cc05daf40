"""What ``zmrs plan`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zmrs.plan import REASONS

if TYPE_CHECKING:
    from zmrs.prepare import Prepared

__all__ = ["as_dict", "as_text"]


def as_dict(prepared: Prepared) -> dict[str, Any]:
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
        "batches": len(prepared.batches),
        "bands": layout.bands,
        "memory": {
            "allowed_bytes": prepared.allowed.bytes,
            "reserved_bytes": prepared.reserved_bytes,
            "projected_bytes": prepared.worst.projected_bytes,
            "terms": prepared.worst.terms,
        },
        "read_bytes": prepared.read_bytes,
        "write_bytes": layout.write_bytes,
        "scratch_bytes": prepared.scratch_bytes,
        "time_s": round(prepared.forecast_s, 2),
        "inputs": {
            "used": len(prepared.placed),
            "left_out": [{"name": left.name, "reason": left.reason} for left in prepared.left_out],
        },
    }


def as_text(prepared: Prepared) -> str:
    """The forecast for people."""
    layout, worst, mib = prepared.layout, prepared.worst, 2**20
    lines = [
        f"grid       {prepared.grid.description()}",
        f"inputs     {len(prepared.placed)} used, {len(prepared.left_out)} left out",
        f"plan       {prepared.plan.name} {prepared.plan.figures()}",
        *(f"             {REASONS[reason]}" for reason in prepared.plan.reasons),
        *([f"batches    {len(prepared.batches)}"] if prepared.batches else []),
        f"bands      {layout.bands} of {layout.band_rows} rows, {layout.blocks} blocks",
        f"read       {prepared.read_bytes / mib:.1f} MiB",
        f"write      {layout.write_bytes / mib:.1f} MiB",
        f"scratch    {prepared.scratch_bytes / mib:.1f} MiB",
        f"time       about {prepared.forecast_s:.0f} s",
        f"memory     {worst.projected_bytes / mib:.1f} MiB of {prepared.allowed.bytes / mib:.1f}"
        f" MiB allowed ({prepared.allowed.reason})",
    ]
    lines += [
        f"             {name:<20}{size / mib:9.1f} MiB"
        for name, size in worst.terms.items()
        if size
    ]
    return "\n".join(lines)
