"""What the collective ops need of a group of ranks, and how they name it to torch."""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments


class Group(Protocol):
    """fastserve.distributed.group.Group, and whatever else looks like it."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def spans_hosts(self) -> bool: ...
    @property
    def exchange(self) -> _C.Exchange: ...
    @property
    def peers(self) -> _C.PeerGroup: ...
    @property
    def device_exchange(self) -> Any: ...
    def empty(self, *shape: int, dtype: Any) -> Any: ...


class Sized(Protocol):
    """What the reference needs of a group, or of what sums for it."""

    @property
    def size(self) -> int: ...


# Tiles go through an exchange; ranks of several hosts share no memory for tiles and sum finished rows.
HostReducer = _C.Exchange | _C.PeerGroup

# A torch op takes tensors and numbers, so a group travels as its id; an entry dies with its group. What the ranks
# exchange through is asked of the group by the backend that was chosen: another's may not be there.
_groups: WeakValueDictionary[int, Group] = WeakValueDictionary()

_F32 = _C.DATA_TYPES.index("f32")
_SUM = _C.REDUCE_OPS.index("sum")


def handle_of(group: Group | None) -> int:
    """The number under which a registered op finds the group; 0: alone."""
    if group is None or group.size == 1:
        return 0
    _groups[id(group)] = group
    return id(group)


def group_of(handle: int) -> Group | None:
    """None: alone. Raises ValueError for a handle of no living group."""
    if handle == 0:
        return None
    group = _groups.get(handle)
    arguments.require("exchange", group is not None, "be the handle of a living group", handle)
    return group


def host_reducer_of(handle: int) -> HostReducer | None:
    """None: alone."""
    group = group_of(handle)
    if group is None:
        return None
    return group.peers if group.spans_hosts else group.exchange


def device_exchange_of(handle: int) -> Any:
    """What the group's GPUs exchange through: a fastserve._cuda.ExchangeBuffer, or what moves between GPUs that do not
    reach each other's memory (moves_by_itself). None: alone."""
    group = group_of(handle)
    return None if group is None else group.device_exchange


def moves_by_itself(exchange: Any) -> bool:
    """Whether it sums matrices by itself (distributed/nccl_exchange.py), where our kernels cannot."""
    return hasattr(exchange, "all_reduce")


def sum_rows(peers: _C.PeerGroup, x: Tensor) -> None:
    """x [T, D] fp32 = its sum over the ranks, in place. Raises RankLostError."""
    rows = x if x.is_contiguous() else x.contiguous()
    peers.all_reduce(rows.data_ptr(), rows.numel(), _F32, _SUM, False)
    if rows is not x:
        x.copy_(rows)


def reference_sum(x: Tensor, group: Sized | None) -> Tensor:
    """The sum of the ranks' x in the order of the ranks, by torch.distributed's default group.

    Raises ValueError if there is more than one rank and torch.distributed is not initialised with as many.
    """
    if group is None or group.size == 1:
        return x.clone()
    distributed = torch.distributed
    ready = distributed.is_initialized() and distributed.get_world_size() == group.size
    arguments.require("group", ready, "match torch.distributed's default group", f"{group.size} ranks")
    parts = [torch.empty_like(x) for _ in range(group.size)]
    distributed.all_gather(parts, x.contiguous())
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
