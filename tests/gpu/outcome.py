"""Runs a call and compares what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

import fastserve.ops
from fastserve.benchmark.op_calls import Call

from .op_table import TOLERANCE
from .place import Place


def outcome(call: Call, ops: Any, place: Place) -> list[Tensor]:
    """What a call returns, then what it has made of the operands that it updates; these are then as before."""
    before = [call.operands[name].clone() for name in call.mutated]
    returned = call.apply(ops)
    place.synchronize()  # the host's memory is read below
    updated = [call.operands[name].clone() for name in call.mutated]
    restore(call, before)
    return [*returned, *updated]


def restore(call: Call, values: Iterable[Tensor]) -> None:
    for name, value in zip(call.mutated, values, strict=True):
        call.operands[name].copy_(value)


def vary(call: Call) -> None:
    operand = call.operands[call.varied]
    operand.copy_(operand.neg() if operand.is_floating_point() else operand.flip(0))


def check(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        tolerance = TOLERANCE.get(one.dtype, 0)
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=tolerance, atol=tolerance)


def check_captured(call: Call, slow: Any, place: Place) -> None:
    """Replays its CUDA graph with other operands each time; `slow` computes the same."""
    before = [call.operands[name].clone() for name in call.mutated]
    returned: list[Tensor] = []

    def apply() -> None:
        returned[:] = call.apply(fastserve.ops)

    replay = place.captured(apply)
    for _ in range(2):
        restore(call, before)
        vary(call)
        wanted = outcome(call, slow, place)
        replay()
        place.synchronize()
        check([*returned, *(call.operands[name] for name in call.mutated)], wanted)
