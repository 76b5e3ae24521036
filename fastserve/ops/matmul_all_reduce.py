"""A row-parallel matmul whose finished tiles enter the all-reduce while the next are computed."""

from __future__ import annotations

from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, device_call, registry, triton_peers, weight_rows
from fastserve.ops.all_reduce import sum_on_device
from fastserve.ops.backend import has_triton
from fastserve.ops.group import (
    Group,
    Sized,
    device_exchange_of,
    group_of,
    handle_of,
    host_reducer_of,
    moves_by_itself,
    reference_sum,
    sum_rows,
)
from fastserve.ops.matmul import (
    ACTIVATION_BITS,
    allocate,
    check_alignment,
    multiply_by_cuda,
    multiply_by_triton,
)
from fastserve.ops.matmul import reference as reference_matmul
from fastserve.ops.packed_weight import PLAIN_TYPES, PackedWeight, pack


def matmul_all_reduce(x: Tensor, w: PackedWeight | Tensor, group: Group | None) -> Tensor:
    """sum over ranks of x w^T; every rank ends with the same bits: those of matmul, then all_reduce.

    x     [M, K_rank] as in matmul: this rank's columns; M the same on every rank
    w     [N, K_rank] PackedWeight, or a plain fp32, bf16 or fp16 tensor, which every call packs anew (fp32
          stays fp32): pack a weight that is used twice
    group the ranks that all make this call; None: alone. Across hosts rows are summed once they are finished.
    out   [M, N] of x's dtype
    Raises ValueError naming the argument whose shape or dtype is wrong, RankLostError if a rank died.
    """
    w = packed(w)
    return _op(x, w.data, w.type, w.n, w.k, handle_of(group))


def packed(w: PackedWeight | Tensor) -> PackedWeight:
    """A plain tensor as its own type. Raises ValueError for one of another type."""
    if not isinstance(w, Tensor):
        return w
    arguments.require("w", w.dtype in PLAIN_TYPES, "be fp32, bf16, fp16 or packed", arguments.describe(w))
    return pack(w, PLAIN_TYPES[w.dtype])


def reference(x: Tensor, w: Tensor | PackedWeight, group: Sized | None) -> Tensor:
    return reference_sum(reference_matmul(x, w).float(), group).to(x.dtype)


def _allocate(x: Tensor, w: Tensor, type: str, n: int, k: int, exchange: int) -> Tensor:  # noqa: PLR0917 (the schema's order)
    return allocate(x, w, type, n, k)


def multiply_and_sum(  # noqa: PLR0917 (the schemas' order)
    x: Tensor, w: Tensor, type: str, n: int, k: int, exchange: int, out: Tensor, *norm: float
) -> None:
    """Into `out`. norm: address and row stride of a residual, address of a norm's weight, eps; none: no norm."""
    check_alignment(w)
    reducer = host_reducer_of(exchange)
    rows = x.shape[0]
    if not rows:
        return
    to = out.data_ptr(), out.stride(0)
    product = (x.data_ptr(), x.stride(0), rows, w.data_ptr(), type, n, k, *to)
    if isinstance(reducer, _C.PeerGroup):
        _C.ops.matmul(*product, ACTIVATION_BITS)
        sum_rows(reducer, out)
        if norm:
            _C.ops.rms_norm(*to, *norm, rows, n, *to)  # in place: a row is read before it is written
    else:
        _C.ops.matmul_all_reduce(*product, reducer, *norm)
        if reducer is not None:
            reducer.check()


def _cpu(x: Tensor, w: Tensor, type: str, n: int, k: int, exchange: int) -> Tensor:  # noqa: PLR0917 (the schema's order)
    out = allocate(x, w, type, n, k)
    multiply_and_sum(x, w, type, n, k, exchange, out)
    return out


def _reference(x: Tensor, w: Tensor, type: str, n: int, k: int, exchange: int) -> Tensor:  # noqa: PLR0917 (the schema's order)
    return reference(x, PackedWeight(w, type, n, k), group_of(exchange))  # type: ignore[arg-type]


def _cuda(x: Tensor, w: Tensor, type: str, n: int, k: int, exchange: int) -> Tensor:  # noqa: PLR0917 (the schema's order)
    out = allocate(x, w, type, n, k)
    if is_fused(exchange, type):
        through = device_exchange_of(exchange)
        call = device_call.product(device_call.aligned_rows(x), weight_rows.parts(w, type, n, k).values, out)
        device_call.cuda().matmul_all_reduce(through, *call, device_call.stream_of(x))
    else:
        multiply_part(x, w, type, n, k, exchange, out)
        sum_on_device(out, exchange)
    return out


def _triton(x: Tensor, w: Tensor, type: str, n: int, k: int, exchange: int) -> Tensor:  # noqa: PLR0917 (the schema's order)
    from fastserve.kernels import matmul_all_reduce as kernels

    out = allocate(x, w, type, n, k)
    peers = triton_peers.peers_of(exchange, x.device)
    if peers is not None and type in weight_rows.PLAIN:
        kernels.matmul_all_reduce(x, weight_rows.parts(w, type, n, k).values, peers, out=out)
    else:  # a product of a quantised weight is finished before it is summed: the same bits
        multiply_by_triton(x, w, type, n, k, None, "none", out)
        if peers is not None:
            kernels.all_reduce(out, peers)
    triton_peers.check(exchange, x.device)
    return out


def is_fused(exchange: int, type: str) -> bool:
    """Whether the group's GPUs have the fused kernel for such a weight."""
    through = device_exchange_of(exchange)
    return through is not None and not moves_by_itself(through) and type in ("bf16", "f16")


def multiply_part(  # noqa: PLR0917 (the schema's order)
    x: Tensor, w: Tensor, type: str, n: int, k: int, exchange: int, out: Tensor
) -> None:
    """This rank's part into `out`: by the main loop of the fused kernel where there is one, else by Triton.

    A product by other instructions has other bits, and how many rows a step has must not decide about them.
    """
    multiply = multiply_by_cuda if is_fused(exchange, type) or not has_triton() else multiply_by_triton
    multiply(x, w, type, n, k, None, "none", out)


_op = registry.register(
    "matmul_all_reduce(Tensor x, Tensor w, str type, int n, int k, int exchange) -> Tensor",
    fake=_allocate,
    reference=_reference,
    cpu=_cpu,
    triton=_triton,
    cuda=_cuda,
    prefer_cuda=True,
)
