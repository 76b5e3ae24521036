"""Times an op case against its baseline, in turns, and writes a line per placement state."""

from __future__ import annotations

from fastserve.benchmark.machine import Machine
from fastserve.benchmark.op_cases import Case
from fastserve.benchmark.placement import Probe
from fastserve.benchmark.report import Line
from fastserve.benchmark.roofs import Roofs
from fastserve.benchmark.turns import Buckets, calls_for, take_turns

OURS = "fastserve"


def measure(case: Case, *, rounds: int, batch_s: float, probe: Probe) -> Buckets:
    contestants = {OURS: case.ours, case.baseline_name: case.baseline}
    calls = {name: calls_for(call, batch_s) for name, call in contestants.items()}
    return take_turns(contestants, rounds=rounds, calls=calls, probe=probe)


def lines(case: Case, buckets: Buckets, machine: Machine, roofs: Roofs) -> list[Line]:
    """One per state in which both were measured, the best covered first."""
    return [
        Line(
            machine=machine,
            state=state,
            op=case.op,
            shape=case.shape,
            dtype=case.dtype,
            backend=f"{roofs.isa} {roofs.num_threads}t",
            seconds=found,
            gbps=case.work.num_bytes / found.median / 1e9,
            gops=case.work.num_operations / found.median / 1e9,
            roof_share=None if case.in_cache else roofs.share(case.work, found.median),
            baseline=case.baseline_name,
            ratio=buckets.ratio(state, case.baseline_name, OURS),
        )
        for state in buckets.comparable((OURS, case.baseline_name))
        for found in [buckets.summary(state, OURS)]
    ]
