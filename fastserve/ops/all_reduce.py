"""The sum of a matrix over the ranks of a group."""

from __future__ import annotations

from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, registry
from fastserve.ops.group import Group, handle_of, reducer_of, reference_sum, sum_rows


def all_reduce(x: Tensor, group: Group | None) -> None:
    """x = sum over the ranks of x; every rank ends with the same bits.

    x     [T, D] fp32, rows contiguous, the same shape on every rank; updated in place
    group the ranks that all make this call; None: alone
    Raises ValueError naming the argument whose shape or dtype is wrong, RankLostError if a rank died
    (x is then garbage).
    """
    _op(x, handle_of(group))


def reference(x: Tensor, group: Group | None) -> None:
    x.copy_(reference_sum(x, group))


def _check(x: Tensor, exchange: int) -> None:
    arguments.rows("x", x, written=True)


def _cpu(x: Tensor, exchange: int) -> None:
    _check(x, exchange)
    reducer = reducer_of(exchange)
    if reducer is None or not x.numel():
        return
    if isinstance(reducer, _C.PeerGroup):
        sum_rows(reducer, x)
    else:
        _C.ops.all_reduce(x.data_ptr(), x.stride(0), x.shape[0], x.shape[1], reducer)
        reducer.check()


_op = registry.register("all_reduce(Tensor(a!) x, int exchange) -> ()", cpu=_cpu, fake=_check)
