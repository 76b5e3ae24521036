"""RMS normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, registry


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight.

    x      [T, D] fp32, rows contiguous
    weight [D]    fp32
    out    [T, D] fp32
    Raises ValueError naming the argument whose shape or dtype is wrong.
    Source: Zhang & Sennrich 2019, eq. 4.
    """
    return _op(x, weight, eps)


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    exact = x.float()
    return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _allocate(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    arguments.rows("x", x)
    arguments.vector("weight", weight, dtype=torch.float32, size=x.shape[1])
    return x.new_empty(x.shape)


def _cpu(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = _allocate(x, weight, eps)
    num_rows, d = x.shape
    if num_rows and d:
        _C.ops.rms_norm(
            0,
            0,
            x.data_ptr(),
            x.stride(0),
            weight.data_ptr(),
            eps,
            num_rows,
            d,
            out.data_ptr(),
            out.stride(0),
        )
    return out


def _triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    from fastserve.kernels.rms_norm import rms_norm as kernel

    out = _allocate(x, weight, eps)
    kernel(x, weight, eps, out=out)
    return out


_op = registry.register(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    fake=_allocate,
    reference=reference,
    cpu=_cpu,
    triton=_triton,
)
