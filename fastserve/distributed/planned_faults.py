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


def are_planned() -> bool:
    return bool(os.environ.get(VARIABLE))


def commit_planned(program: _C.Program, *, rank: int, epoch: int) -> None:
    """Gives the program its faults of this epoch; without the variable there are none. Raises ValueError."""
    _commit(program, [fault for fault in _planned() if fault.rank == rank and fault.epoch in (0, epoch)])


def commit_slowness(program: _C.Program, *, rank: int) -> None:
    """Only what makes the rank's device a slow one."""
    _commit(program, [fault for fault in _planned() if fault.rank == rank and fault.action == "slow"])


def _planned() -> list[PlannedFault]:
    return msgspec.json.decode(os.environ[VARIABLE], type=list[PlannedFault]) if are_planned() else []


def _commit(program: _C.Program, faults: list[PlannedFault]) -> None:
    if faults:
        program.commit_faults(
            [(fault.action, fault.op, fault.call, fault.segment, fault.amount) for fault in faults]
        )
