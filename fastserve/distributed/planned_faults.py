"""Faults that a rank is to commit, as fastserve.testing.faults hands them to it: a variable of its environment."""

from __future__ import annotations

import os

import msgspec

from fastserve import _C

VARIABLE = "FASTSERVE_FAULTS"


class PlannedFault(msgspec.Struct, frozen=True):
    """csrc/program/faults.h says what the last five mean."""

    rank: int
    epoch: int  # 0: every one
    action: str
    op: str
    call: int
    segment: int
    amount: float


def commit_planned(program: _C.Program, *, rank: int, epoch: int) -> None:
    """Gives the program its faults of this epoch; without the variable there are none. Raises ValueError."""
    text = os.environ.get(VARIABLE)
    if not text:
        return
    planned = msgspec.json.decode(text, type=list[PlannedFault])
    program.commit_faults(
        [
            (fault.action, fault.op, fault.call, fault.segment, fault.amount)
            for fault in planned
            if fault.rank == rank and fault.epoch in (0, epoch)
        ]
    )
