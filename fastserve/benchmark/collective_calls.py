"""Calls of the collective ops, as op_calls.py has them of the others. Ranks draw operands from seeds of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastserve.benchmark.op_calls import EPS, Call, Setting
from fastserve.ops.group import Group
from fastserve.ops.packed_weight import WeightType


def all_reduce(setting: Setting, group: Group | None, *, rows: int, d: int) -> Call:
    x = setting.randn(rows, d)

    def apply(ops: Any) -> tuple[Tensor, ...]:
        ops.all_reduce(x, group)
        return ()

    return Call("all_reduce", {"x": x}, apply, "x", ("x",))


def all_reduce_add_rms_norm(setting: Setting, group: Group | None, *, rows: int, d: int) -> Call:
    """The residual and the norm's weight are the same on every rank, as everywhere below."""
    x, (residual, weight) = setting.randn(rows, d), _residual(setting, rows, d)
    return Call(
        "all_reduce_add_rms_norm",
        {"x": x, "residual": residual, "weight": weight},
        lambda ops: (ops.all_reduce_add_rms_norm(x, group, residual, weight, EPS),),
        "x",
        ("residual",),
    )


def matmul_all_reduce(
    setting: Setting, group: Group | None, type: WeightType, *, rows: int, n: int, k: int
) -> Call:
    x, w = setting.randn(rows, k), setting.weight(type, n, k)
    return Call(
        "matmul_all_reduce",
        {"x": x, "w": w.data},
        lambda ops: (ops.matmul_all_reduce(x, w, group),),
        "x",
        weight=w,
    )


def matmul_all_reduce_add_rms_norm(
    setting: Setting, group: Group | None, type: WeightType, *, rows: int, n: int, k: int
) -> Call:
    x, w = setting.randn(rows, k), setting.weight(type, n, k)
    residual, weight = _residual(setting, rows, n)
    return Call(
        "matmul_all_reduce_add_rms_norm",
        {"x": x, "w": w.data, "residual": residual, "weight": weight},
        lambda ops: (ops.matmul_all_reduce_add_rms_norm(x, w, group, residual, weight, EPS),),
        "x",
        ("residual",),
        weight=w,
    )


def _residual(setting: Setting, rows: int, d: int) -> tuple[Tensor, Tensor]:
    shared = Setting.on(setting.device, setting.dtype, seed=7)
    return shared.randn(rows, d), shared.randn(d, dtype=torch.float32)
