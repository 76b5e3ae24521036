"""A line of a benchmark: whoever reads it alone knows what was measured, where, and against what."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastserve.benchmark.summary import Summary

if TYPE_CHECKING:  # they need what has to be built; a page of lines is also written where building failed
    from fastserve.benchmark.machine import Machine
    from fastserve.benchmark.placement import State

UNKNOWN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """`seconds` of one call; rates and shares are None where they mean nothing."""

    machine: Machine
    state: State
    op: str
    shape: str
    dtype: str
    backend: str  # with its number of threads or ranks
    seconds: Summary
    gbps: float | None = None
    gops: float | None = None
    roof_share: float | None = None
    baseline: str | None = None  # its name
    ratio: float | None = None  # baseline's time / ours, in this state and run

    def __str__(self) -> str:
        parts = [
            str(self.machine),
            self.state,
            self.op,
            self.shape,
            self.dtype,
            self.backend,
            f"{duration(self.seconds.median)} +-{self.seconds.spread:.0%} n={self.seconds.count}",
            UNKNOWN if self.gbps is None else f"{self.gbps:.3g} GB/s",
            UNKNOWN if self.gops is None else f"{self.gops:.3g} GOP/s",
            "roof -" if self.roof_share is None else f"roof {self.roof_share:.0%}",
            UNKNOWN if self.ratio is None else f"{self.ratio:.2f}x {self.baseline}",
            self.machine.commit,
        ]
        return " | ".join(parts)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return dataclasses.asdict(self)


def duration(seconds: float) -> str:
    """Three digits and a unit that fits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
