"""Makes ranks die, stop, wait or work slowly at a named op, to see what everybody else does then.

with committing(Fault(rank=1, action="kill", op="matmul_all_reduce", call=100, segment=2)):
    llm = LLM("smollm2-135m", devices=2)  # rank 1 dies in the middle of its 100th all-reduce

Ranks that are started inside the block commit them, also in processes that inherit the environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import msgspec

from fastserve.distributed.planned_faults import VARIABLE, PlannedFault

FaultAction = Literal["kill", "stop", "delay", "slow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of one rank.

    action   kill (SIGKILL), stop (SIGSTOP), delay (`amount` seconds), slow (`amount` times as long)
    op       an op of the program, as `python -m fastserve.ops` names it; "" is every op
    call     which call of that op, from 1; 0 is every one
    segment  before this segment of the op's exchange is published, from 1; 0 is before the op
    epoch    of the group, from 1, so that the rank that takes the place of a dead one lives; 0 is every one
    """

    rank: int
    action: FaultAction
    op: str = ""
    call: int = 1
    segment: int = 0
    amount: float = 1.0
    epoch: int = 1


@contextmanager
def committing(*faults: Fault) -> Iterator[None]:
    """Ranks that start in this block commit `faults`."""
    planned = [
        PlannedFault(
            rank=fault.rank,
            epoch=fault.epoch,
            action=fault.action,
            op=fault.op,
            call=fault.call,
            segment=fault.segment,
            amount=fault.amount,
        )
        for fault in faults
    ]
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = msgspec.json.encode(planned).decode()
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
