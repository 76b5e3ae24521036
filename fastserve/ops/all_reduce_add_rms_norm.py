"""The sum of a matrix over the ranks, its addition to the residual stream and the normalisation behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastserve.ops import arguments, device_call, registry
from fastserve.ops.add_rms_norm import add_rms_norm, normalise_by_cuda
from fastserve.ops.add_rms_norm import reference as reference_norm
from fastserve.ops.all_reduce import sum_on_device
from fastserve.ops.group import (
    Group,
    Sized,
    device_exchange_of,
    group_of,
    handle_of,
    moves_by_itself,
    reference_sum,
)


def all_reduce_add_rms_norm(
    x: Tensor, group: Group | None, residual: Tensor, weight: Tensor, eps: float
) -> Tensor:
    """residual += sum over the ranks of x; return residual / sqrt(mean(residual^2) + eps) * weight.

    The bits of all_reduce, then add_rms_norm; on GPUs that write to each other in one kernel, by the backend cuda.
    x        [T, D] fp32, on GPUs also of residual's dtype; rows contiguous; left as it is
    group    the ranks that all make this call; None: alone
    residual [T, D] fp32, on GPUs also bf16 or fp16; rows contiguous; the same on every rank; updated in place
    weight   [D]    fp32
    out      [T, D] of residual's dtype
    Raises ValueError naming the argument whose shape or dtype is wrong, RankLostError if a rank died; the residual
    then holds nothing of use.
    Source: Zhang & Sennrich 2019, eq. 4.
    """
    return _op(x, handle_of(group), residual, weight, eps)


def reference(x: Tensor, group: Sized | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    total = reference_sum(x.float(), group).to(residual.dtype)
    return reference_norm(total, residual, weight, eps)


def _check(x: Tensor, residual: Tensor, weight: Tensor) -> None:
    num_rows, d = x.shape
    arguments.rows("residual", residual, num_rows=num_rows, num_columns=d, written=True)
    arguments.rows("x", x, dtype=torch.float32 if x.dtype == torch.float32 else residual.dtype)
    arguments.vector("weight", weight, dtype=torch.float32, size=d)


def _allocate(x: Tensor, exchange: int, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    _check(x, residual, weight)
    return residual.new_empty(x.shape)


def _reference(x: Tensor, exchange: int, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    return reference(x, group_of(exchange), residual, weight, eps)


def _cpu(x: Tensor, exchange: int, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    _check(x, residual, weight)  # before the other ranks have to do with it
    total = x.clone()
    registry.implementation("all_reduce", "cpu")(total, exchange)
    return registry.implementation("add_rms_norm", "cpu")(total, residual, weight, eps)  # type: ignore[no-any-return]


def _cuda(x: Tensor, exchange: int, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    _check(x, residual, weight)
    return norm_on_device(x, exchange, residual, weight, eps)


def norm_on_device(x: Tensor, exchange: int, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x may be fp32 where the rest is not."""
    through = device_exchange_of(exchange)
    if not _takes_norms_along(through):
        total = x if through is None else x.clone()
        sum_on_device(total, exchange)
        return norm_of_sum(total.to(residual.dtype), exchange, residual, weight, eps)
    out = residual.new_empty(x.shape)
    types = device_call.TYPES[x.dtype], device_call.TYPES[residual.dtype]
    device_call.cuda().all_reduce_add_rms_norm(
        through, *device_call.rows_of(x), *device_call.rows_of(residual), weight.data_ptr(), eps,
        *device_call.rows_of(out), *x.shape, *types, device_call.stream_of(x),
    )  # fmt: skip
    return out


def norm_of_sum(total: Tensor, exchange: int, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm of norm_on_device, behind a sum over the ranks, which it may overwrite.

    A step's number of rows decides whether a sum takes the norm along, and may not show in a row's bits: so where
    sums can, the norm behind one is CUDA's too. A lone GPU's, and that of sums that are moved, is always the op.
    """
    if not _takes_norms_along(device_exchange_of(exchange)):
        return add_rms_norm(total, residual, weight, eps)
    normalise_by_cuda(total, residual, weight, eps, total)
    return total


def _takes_norms_along(through: Any) -> bool:
    return through is not None and not moves_by_itself(through)


_op = registry.register(
    "all_reduce_add_rms_norm(Tensor x, int exchange, Tensor(a!) residual, Tensor weight, float eps) -> Tensor",
    fake=_allocate,
    reference=_reference,
    cpu=_cpu,
    cuda=_cuda,
)
