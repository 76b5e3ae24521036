"""Where the host has put the two cores that a measurement uses.

A host that does not pin its virtual CPUs moves them every 1-20 s, and what two threads or ranks do together then
changes by factors. The time of a cache line between the cores tells how they are placed. On a Zen 4 EPYC it took
24 ns one way between two hyper-threads of one core, 57 ns between cores that share an L3, 255 ns between L3s; the
thresholds are the geometric means of neighbours. On other CPUs a name means no more than that interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fastserve import _C
from fastserve.distributed.cores import usable_cores

State = Literal["smt", "near", "far", "single", "moved"]

PING_PONGS = 150  # 0.1 ms: cheap enough before and after each batch
SMT_MAX_NS = 37.0  # sqrt(24 x 57)
NEAR_MAX_NS = 120.0  # sqrt(57 x 255)


@dataclass(frozen=True, slots=True)
class Placement:
    state: State
    one_way_ns: float | None = None

    def __str__(self) -> str:
        return self.state if self.one_way_ns is None else f"{self.state} ({self.one_way_ns:.0f} ns)"


Probe = Callable[[], Placement]


def classify(one_way_ns: float | None) -> State:
    """None: there are no two cores that threads could be pinned to."""
    if one_way_ns is None:
        return "single"
    if one_way_ns < SMT_MAX_NS:
        return "smt"
    return "near" if one_way_ns < NEAR_MAX_NS else "far"


def probe(cores: Sequence[int] | None = None) -> Placement:
    """How the first two of the cores stand to each other now; all other threads of ours should be idle."""
    pair = list(usable_cores() if cores is None else cores)[:2]
    one_way_ns = _C.measure_one_way_ns(pair[0], pair[1], PING_PONGS) if len(pair) == 2 else None
    return Placement(classify(one_way_ns), one_way_ns)


def bucket(before: Placement, after: Placement) -> State:
    """Where a batch between two probes belongs; "moved" is compared with nothing."""
    return before.state if before.state == after.state else "moved"
