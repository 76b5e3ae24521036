"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, registry

MAX_PAIRS = 128  # kMaxPairs of csrc/cpu/rotary.cpp


def rotary(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, *, head_dim: int) -> None:
    """Turns the pairs (2i, 2i + 1) of every head by the angle position * inv_freq[i].

    q         [T, H * E] fp32, rows contiguous; updated in place
    k         [T, K * E] fp32, rows contiguous; updated in place
    positions [T]        int32, >= 0
    inv_freq  [R / 2]    fp32; only the first R <= E elements of a head turn
    head_dim  E
    Raises ValueError naming the argument whose shape or dtype is wrong.
    Source: Su et al. 2021, eq. 34; pairs are neighbours, as GGUF stores the llama family.
    """
    _op(q, k, positions, inv_freq, head_dim=head_dim)


def reference(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, *, head_dim: int) -> None:
    angles = positions[:, None].double() * inv_freq.double()  # a float angle of a million is off by 0.03
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]  # [T, 1, R / 2]
    num_turned = 2 * inv_freq.numel()
    for x in (q, k):
        heads = x.reshape(x.shape[0], -1, head_dim).float().clone()
        pairs = heads[..., :num_turned].reshape(*heads.shape[:2], -1, 2)
        heads[..., :num_turned] = torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2)
        x.copy_(heads.reshape(x.shape))


def _check(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, *, head_dim: int) -> None:
    arguments.require("head_dim", head_dim >= 1, "be >= 1", head_dim)
    arguments.rows("q", q, written=True)
    arguments.rows("k", k, num_rows=q.shape[0], written=True, dtype=q.dtype)
    arguments.require("q", q.shape[1] % head_dim == 0, f"hold heads of {head_dim}", f"{q.shape[1]} columns")
    arguments.require("k", k.shape[1] % head_dim == 0, f"hold heads of {head_dim}", f"{k.shape[1]} columns")
    arguments.vector("positions", positions, dtype=torch.int32, size=q.shape[0])
    arguments.vector("inv_freq", inv_freq, dtype=torch.float32)
    num_pairs = inv_freq.shape[0]
    arguments.require(
        "inv_freq", 2 * num_pairs <= head_dim, f"hold at most head_dim / 2 = {head_dim // 2}", num_pairs
    )


def _cpu(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, *, head_dim: int) -> None:
    _check(q, k, positions, inv_freq, head_dim=head_dim)
    if q.shape[0]:
        _C.ops.rotary(
            q.data_ptr(), q.stride(0), k.data_ptr(), k.stride(0), positions.data_ptr(), inv_freq.data_ptr(),
            q.shape[0], q.shape[1] // head_dim, k.shape[1] // head_dim, head_dim, 2 * inv_freq.shape[0],
        )  # fmt: skip


def _triton(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, *, head_dim: int) -> None:
    from fastserve.kernels.rotary import rotary as kernel

    _check(q, k, positions, inv_freq, head_dim=head_dim)
    kernel(q, k, positions, inv_freq, head_dim=head_dim)


_op = registry.register(
    "rotary(Tensor(a!) q, Tensor(b!) k, Tensor positions, Tensor inv_freq, *, int head_dim) -> ()",
    fake=_check,
    reference=reference,
    cpu=_cpu,
    triton=_triton,
)
