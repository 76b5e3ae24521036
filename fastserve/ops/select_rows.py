"""The rows that will be sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, registry


def select_rows(x: Tensor, sample_rows: Tensor) -> Tensor:
    """x[sample_rows].

    x           [T, D] fp32, rows contiguous
    sample_rows [S]    int32, each in [0, T)
    out         [S, D] fp32
    Raises ValueError naming the argument whose shape, dtype or content is wrong.
    """
    return _op(x, sample_rows)


def reference(x: Tensor, sample_rows: Tensor) -> Tensor:
    return x[sample_rows.long()]


def _allocate(x: Tensor, sample_rows: Tensor) -> Tensor:
    arguments.rows("x", x)
    arguments.vector("sample_rows", sample_rows, dtype=torch.int32)
    return x.new_empty((sample_rows.shape[0], x.shape[1]))


def _cpu(x: Tensor, sample_rows: Tensor) -> Tensor:
    out = _allocate(x, sample_rows)
    num_samples, d = out.shape
    if num_samples and d:
        _C.ops.select_rows(
            x.data_ptr(), x.stride(0), x.shape[0], sample_rows.data_ptr(),
            num_samples, d, out.data_ptr(), out.stride(0),
        )  # fmt: skip
    return out


def _triton(x: Tensor, sample_rows: Tensor) -> Tensor:
    from fastserve.kernels.select_rows import select_rows as kernel

    out = _allocate(x, sample_rows)
    kernel(x, sample_rows, out=out)
    return out


_op = registry.register(
    "select_rows(Tensor x, Tensor sample_rows) -> Tensor",
    fake=_allocate,
    reference=reference,
    cpu=_cpu,
    triton=_triton,
)
