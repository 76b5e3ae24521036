"""What the ranks measured of a collective, as lines: one per placement state and contestant."""

from __future__ import annotations

from fastserve.benchmark.collective_cases import CollectiveCase
from fastserve.benchmark.machine import Machine
from fastserve.benchmark.report import Line, duration
from fastserve.benchmark.turns import Buckets


def lines(case: CollectiveCase, buckets: Buckets, machine: Machine, *, num_ranks: int) -> list[Line]:
    """The states in which all were measured, the best covered first; the last contestant is the baseline."""
    *names, baseline = buckets.contestants
    return [
        Line(
            machine=machine,
            state=state,
            op=case.op,
            shape=case.shape,
            dtype=case.dtype,
            backend=f"{name} {machine.isa} {num_ranks} ranks",
            seconds=found,
            gbps=None if case.num_bytes is None else case.num_bytes / found.median / 1e9,
            baseline=f"{baseline} ({duration(buckets.summary(state, baseline).median)})",
            ratio=buckets.ratio(state, baseline, name),
        )
        for state in buckets.comparable(buckets.contestants)
        for name in names
        for found in [buckets.summary(state, name)]
    ]
