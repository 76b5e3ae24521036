"""A residual addition and the normalisation behind it, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, device_call, registry


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x; return residual / sqrt(mean(residual^2) + eps) * weight.

    x        [T, D] fp32, on GPUs also bf16 or fp16; rows contiguous
    residual [T, D] of x's dtype, rows contiguous; updated in place
    weight   [D]    fp32
    out      [T, D] of x's dtype
    A row has the same bits whatever rows are beside it; Triton and CUDA add its squares in different orders.
    Raises ValueError naming the argument whose shape or dtype is wrong.
    Source: Zhang & Sennrich 2019, eq. 4.
    """
    return _op(x, residual, weight, eps)


def reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    residual += x
    exact = residual.float()
    return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _allocate(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    arguments.rows("x", x)
    num_rows, d = x.shape
    arguments.rows("residual", residual, num_rows=num_rows, num_columns=d, written=True, dtype=x.dtype)
    arguments.vector("weight", weight, dtype=torch.float32, size=d)
    return x.new_empty(x.shape)


def _cpu(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = _allocate(x, residual, weight, eps)
    num_rows, d = x.shape
    if num_rows and d:
        _C.ops.rms_norm(
            x.data_ptr(), x.stride(0), residual.data_ptr(), residual.stride(0), weight.data_ptr(), eps,
            num_rows, d, out.data_ptr(), out.stride(0),
        )  # fmt: skip
    return out


def _triton(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    from fastserve.kernels.add_rms_norm import add_rms_norm as kernel

    out = _allocate(x, residual, weight, eps)
    kernel(x, residual, weight, eps, out=out)
    return out


def _cuda(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = _allocate(x, residual, weight, eps)
    normalise_by_cuda(x, residual, weight, eps, out)
    return out


def normalise_by_cuda(x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """Into `out`, which may be x: the bits of the norm that the CUDA sum over ranks takes along."""
    device_call.cuda().add_rms_norm(
        *device_call.rows_of(x), *device_call.rows_of(residual), weight.data_ptr(), eps,
        *device_call.rows_of(out), *x.shape, device_call.TYPES[x.dtype], device_call.stream_of(x),
    )  # fmt: skip


_op = registry.register(
    "add_rms_norm(Tensor x, Tensor(a!) residual, Tensor weight, float eps) -> Tensor",
    fake=_allocate,
    reference=reference,
    cpu=_cpu,
    triton=_triton,
    cuda=_cuda,
)
