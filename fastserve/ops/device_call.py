"""What the CUDA backend's calls take: the module, streams, types, addresses."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops.backend import cuda_ops

TYPES = {
    torch.float32: _C.DATA_TYPES.index("f32"),
    torch.float16: _C.DATA_TYPES.index("f16"),
    torch.bfloat16: _C.DATA_TYPES.index("bf16"),
}
ROW_ALIGNMENT = 16  # bytes: what a matmul reads at once


def cuda() -> ModuleType:
    """fastserve._cuda, which the choice of backend has found."""
    module = cuda_ops()
    assert module is not None
    return module


def stream_of(tensor: Tensor) -> int:
    """The caller's stream on the tensor's device, as an integer."""
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def rows_of(tensor: Tensor) -> tuple[int, int]:
    """Address and row stride."""
    return tensor.data_ptr(), tensor.stride(0)


def aligned_rows(x: Tensor) -> Tensor:
    """x [M, K], or a copy of it whose rows are padded to 16 bytes and begin at multiples of that."""
    per_row = ROW_ALIGNMENT // x.element_size()
    if x.stride(0) % per_row == 0 and x.data_ptr() % ROW_ALIGNMENT == 0 and x.stride(0) >= x.shape[1]:
        return x
    copy = x.new_empty((x.shape[0], -(-x.shape[1] // per_row) * per_row))[:, : x.shape[1]]
    copy.copy_(x)
    return copy


def product(x: Tensor, w: Tensor, out: Tensor) -> tuple[Any, ...]:
    """The arguments of both matmuls, up to the types: w [N, K] with rows padded to 16 bytes."""
    m, k = x.shape
    shape = (m, out.shape[1], k, TYPES[x.dtype], TYPES[out.dtype])
    return (*rows_of(x), *rows_of(w), *rows_of(out), *shape)
