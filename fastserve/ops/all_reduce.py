"""The sum of a matrix over the ranks of a group."""

from __future__ import annotations

from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, device_call, registry
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


def all_reduce(x: Tensor, group: Group | None) -> None:
    """x = sum over the ranks of x, added in fp32; every rank ends with the same bits.

    x     [T, D] fp32, on GPUs also bf16 or fp16; rows contiguous, the same shape on every rank; updated in place
    group the ranks that all make this call; None: alone
    Raises ValueError naming the argument whose shape or dtype is wrong, RankLostError if a rank died
    (x is then garbage).
    """
    _op(x, handle_of(group))


def reference(x: Tensor, group: Sized | None) -> None:
    x.copy_(reference_sum(x.float(), group))


def _check(x: Tensor, exchange: int) -> None:
    arguments.rows("x", x, written=True)


def _reference(x: Tensor, exchange: int) -> None:
    reference(x, group_of(exchange))


def _cpu(x: Tensor, exchange: int) -> None:
    _check(x, exchange)
    reducer = host_reducer_of(exchange)
    if reducer is None or not x.numel():
        return
    if isinstance(reducer, _C.PeerGroup):
        sum_rows(reducer, x)
    else:
        _C.ops.all_reduce(x.data_ptr(), x.stride(0), x.shape[0], x.shape[1], reducer)
        reducer.check()


def _cuda(x: Tensor, exchange: int) -> None:
    _check(x, exchange)
    sum_on_device(x, exchange)


def sum_on_device(x: Tensor, exchange: int) -> None:
    through = device_exchange_of(exchange)
    if moves_by_itself(through):
        through.all_reduce(x)
    elif through is not None:
        rows, type = device_call.rows_of(x), device_call.TYPES[x.dtype]
        device_call.cuda().all_reduce(through, *rows, *rows, *x.shape, type, device_call.stream_of(x))


_op = registry.register(
    "all_reduce(Tensor(a!) x, int exchange) -> ()", fake=_check, reference=_reference, cpu=_cpu, cuda=_cuda
)
