"""matmul_all_reduce whose sum goes straight into the residual stream, and the normalisation behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastserve.ops import arguments, registry
from fastserve.ops.add_rms_norm import reference as reference_norm
from fastserve.ops.all_reduce_add_rms_norm import norm_of_sum, norm_on_device
from fastserve.ops.group import Group, Sized, group_of, handle_of
from fastserve.ops.matmul import check_operands
from fastserve.ops.matmul_all_reduce import multiply_and_sum, multiply_part, packed
from fastserve.ops.matmul_all_reduce import reference as reference_product
from fastserve.ops.packed_weight import PackedWeight

# On GPUs: up to there the sum is one exchange of a few tens of microseconds, which takes the norm along; beyond it,
# overlapping product and exchange is worth more.
MAX_SEPARATE_ROWS = 64


def matmul_all_reduce_add_rms_norm(  # noqa: PLR0917 (the order of the two ops in one)
    x: Tensor,
    w: PackedWeight | Tensor,
    group: Group | None,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
) -> Tensor:
    """residual += sum over ranks of x w^T; return residual / sqrt(mean(residual^2) + eps) * norm_weight.

    The bits of matmul_all_reduce, then add_rms_norm (of the backend cuda on GPUs that write to each other): a rank
    adds what it receives to its residual, tile by tile, and normalises rows while they are in the caches.
    x           [M, K_rank] as in matmul: this rank's columns; M the same on every rank
    w           [N, K_rank] as in matmul_all_reduce
    group       the ranks that all make this call; None: alone
    residual    [M, N] of x's dtype, rows contiguous; the same on every rank; updated in place
    norm_weight [N] fp32
    out         [M, N] of x's dtype
    Raises ValueError naming the argument whose shape or dtype is wrong, RankLostError if a rank died; the residual
    then holds nothing of use.
    Source: Zhang & Sennrich 2019, eq. 4.
    """
    w = packed(w)
    return _op(x, w.data, w.type, w.n, w.k, handle_of(group), residual, norm_weight, eps)


def reference(  # noqa: PLR0917
    x: Tensor,
    w: Tensor | PackedWeight,
    group: Sized | None,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
) -> Tensor:
    return reference_norm(reference_product(x, w, group), residual, norm_weight, eps)


def _allocate(  # noqa: PLR0917 (the schema's order)
    x: Tensor,
    w: Tensor,
    type: str,
    n: int,
    k: int,
    exchange: int,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
) -> Tensor:
    _check(x, w, type, n, k, residual, norm_weight)
    return x.new_empty((x.shape[0], n))


def _check(  # noqa: PLR0917 (the schema's order)
    x: Tensor, w: Tensor, type: str, n: int, k: int, residual: Tensor, norm_weight: Tensor
) -> None:
    check_operands(x, w, type, n, k)
    arguments.rows("residual", residual, num_rows=x.shape[0], num_columns=n, written=True, dtype=x.dtype)
    arguments.vector("norm_weight", norm_weight, dtype=torch.float32, size=n)


def _cpu(  # noqa: PLR0917 (the schema's order)
    x: Tensor,
    w: Tensor,
    type: str,
    n: int,
    k: int,
    exchange: int,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
) -> Tensor:
    out = _allocate(x, w, type, n, k, exchange, residual, norm_weight, eps)
    norm = residual.data_ptr(), residual.stride(0), norm_weight.data_ptr(), eps
    multiply_and_sum(x, w, type, n, k, exchange, out, *norm)
    return out


def _reference(  # noqa: PLR0917 (the schema's order)
    x: Tensor,
    w: Tensor,
    type: str,
    n: int,
    k: int,
    exchange: int,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
) -> Tensor:
    weight = PackedWeight(w, type, n, k)  # type: ignore[arg-type]
    return reference(x, weight, group_of(exchange), residual, norm_weight, eps)


def _cuda(  # noqa: PLR0917 (the schema's order)
    x: Tensor,
    w: Tensor,
    type: str,
    n: int,
    k: int,
    exchange: int,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
) -> Tensor:
    _check(x, w, type, n, k, residual, norm_weight)
    if x.shape[0] > MAX_SEPARATE_ROWS:
        total = registry.implementation("matmul_all_reduce", "cuda")(x, w, type, n, k, exchange)
        return norm_of_sum(total, exchange, residual, norm_weight, eps)
    partial = x.new_empty((x.shape[0], n))
    multiply_part(x, w, type, n, k, exchange, partial)
    return norm_on_device(partial, exchange, residual, norm_weight, eps)


def _triton(  # noqa: PLR0917 (the schema's order)
    x: Tensor,
    w: Tensor,
    type: str,
    n: int,
    k: int,
    exchange: int,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
) -> Tensor:
    _check(x, w, type, n, k, residual, norm_weight)  # before the other ranks have to do with it
    total = registry.implementation("matmul_all_reduce", "triton")(x, w, type, n, k, exchange)
    return registry.implementation("add_rms_norm", "triton")(total, residual, norm_weight, eps)  # type: ignore[no-any-return]


_op = registry.register(
    "matmul_all_reduce_add_rms_norm(Tensor x, Tensor w, str type, int n, int k, int exchange, Tensor(a!) residual, "
    "Tensor norm_weight, float eps) -> Tensor",
    fake=_allocate,
    reference=_reference,
    cpu=_cpu,
    triton=_triton,
    cuda=_cuda,
    prefer_cuda=True,
)
