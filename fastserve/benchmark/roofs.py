"""What the machine allows, measured with the ISA in use, and which share of it a measurement reached.

The arithmetic roofs are of the instructions that our kernels use. Units beyond them (AMX) would lie higher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from fastserve import _C
from fastserve.benchmark.placement import Placement, probe

Arithmetic = Literal["f32", "bf16", "int8"]
ARITHMETIC: tuple[Arithmetic, ...] = ("f32", "bf16", "int8")

# What cases stream before they come to the same bytes again: about the weights of a small model.
WORKING_SET_BYTES = 128 << 20
MAX_BEYOND_BYTES = 1 << 30  # some hosts report an L3 of hundreds of megabytes, shared with strangers
ROUND_US = 2000
LEVEL_3_SIZE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class Work:
    """What one call must do at least."""

    num_bytes: float  # read, packed weights and KV
    num_operations: float  # a product and its addition are two
    arithmetic: Arithmetic


@dataclass(frozen=True, slots=True)
class Roofs:
    """Of some threads together: the median of several rounds."""

    isa: str
    num_threads: int
    read_gbps: float  # over the working set of the cases
    peak_gops: dict[Arithmetic, float]
    placement: Placement

    def seconds(self, work: Work) -> float:
        """What the call takes at least: the memory roof or the arithmetic roof, whichever is later."""
        reading = work.num_bytes / (self.read_gbps * 1e9)
        return max(reading, work.num_operations / (self.peak_gops[work.arithmetic] * 1e9))

    def share(self, work: Work, seconds: float) -> float:
        """1.0: nothing can be faster."""
        return self.seconds(work) / seconds


def measure_roofs(
    cores: Sequence[int], *, working_set_bytes: int = WORKING_SET_BYTES, rounds: int = 15
) -> Roofs:
    """Takes about half a second; the machine should be quiet."""
    threads = list(cores)
    return Roofs(
        isa=_C.isa(),
        num_threads=len(threads),
        read_gbps=median(_C.measure_read(threads, working_set_bytes, rounds)),
        peak_gops={kind: median(_C.measure_peak(kind, threads, ROUND_US, rounds)) for kind in ARITHMETIC},
        placement=probe(threads),
    )


def beyond_caches_bytes(level_3_size: Path = LEVEL_3_SIZE) -> int:
    """Twice the last cache that the system reports, within reason."""
    try:
        text = level_3_size.read_text().strip()
        size = int(text[:-1]) * _UNITS[text[-1]]
    except (OSError, ValueError, KeyError, IndexError):
        return WORKING_SET_BYTES * 2
    return min(max(2 * size, WORKING_SET_BYTES), MAX_BEYOND_BYTES)
