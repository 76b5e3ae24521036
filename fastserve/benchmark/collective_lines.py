"""What ranks measured together, as lines: one per placement state and contestant."""

from __future__ import annotations

from typing import Protocol

from fastserve.benchmark.machine import Machine
from fastserve.benchmark.report import Line, duration
from fastserve.benchmark.turns import Buckets


class Described(Protocol):
    """What a line says of a case."""

    @property
    def op(self) -> str: ...
    @property
    def shape(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def num_bytes(self) -> int | None: ...  # that a rank contributes; None: not what bounds the case


def lines(case: Described, buckets: Buckets, machine: Machine, *, num_ranks: int) -> list[Line]:
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
