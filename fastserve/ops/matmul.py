"""Activations times a packed weight."""

from __future__ import annotations

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, registry
from fastserve.ops.packed_weight import QUANT_BLOCK, PackedWeight, check, unpack

# What the kernels do to x before they multiply; f32 and f16 weights leave it as it is.
_ROUNDED = ("bf16", "q8", "q4", "q4m")
MAX_CODE = 8127  # kMaxCode of csrc/cpu/matmul.h: two digits of base 128


def matmul(x: Tensor, w: PackedWeight) -> Tensor:
    """x w^T, in fp32; the order of a sum depends on K alone, so a row's bits do not depend on other rows.

    x   [M, K] fp32, rows contiguous; rounded to bf16 for a bf16 weight, to 14 bits with a scale per 32 for a
        quantised one
    w   [N, K] PackedWeight (fastserve.ops.pack)
    out [M, N] fp32
    Raises ValueError naming the argument whose shape or dtype is wrong.
    """
    return _op(x, w.data, w.type, w.n, w.k)


def reference(x: Tensor, w: Tensor | PackedWeight) -> Tensor:
    """In fp32: x stays as it is for a plain w [N, K] of any dtype, is rounded as above for a packed one."""
    if isinstance(w, PackedWeight):
        return round_activations(x, w.type) @ unpack(w).T
    return x @ w.float().T


def round_activations(x: Tensor, weight_type: str) -> Tensor:
    if weight_type == "bf16":
        return x.bfloat16().float()
    if weight_type not in _ROUNDED:
        return x
    blocks = x.reshape(x.shape[0], -1, QUANT_BLOCK)
    scale = blocks.abs().amax(-1, keepdim=True) / MAX_CODE
    return ((blocks / torch.where(scale == 0, 1.0, scale)).round() * scale).flatten(-2)


def allocate(x: Tensor, w: Tensor, type: str, n: int, k: int) -> Tensor:
    """Checks the arguments and makes room for the product."""
    check(w, type, n, k)
    arguments.rows("x", x, num_columns=k)
    return x.new_empty((x.shape[0], n))


def check_alignment(w: Tensor) -> None:
    arguments.require("w", w.data_ptr() % 64 == 0, "start at a multiple of 64 bytes", hex(w.data_ptr()))


def _cpu(x: Tensor, w: Tensor, type: str, n: int, k: int) -> Tensor:
    out = allocate(x, w, type, n, k)
    check_alignment(w)
    if x.shape[0]:
        _C.ops.matmul(
            x.data_ptr(), x.stride(0), x.shape[0], w.data_ptr(), type, n, k,
            out.data_ptr(), out.stride(0),
        )  # fmt: skip
    return out


_op = registry.register(
    "matmul(Tensor x, Tensor w, str type, int n, int k) -> Tensor", cpu=_cpu, fake=allocate
)
