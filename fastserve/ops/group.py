"""What the collective ops need of a group of ranks, and how they name it to torch."""

from __future__ import annotations

from typing import Protocol
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
    def exchange(self) -> _C.Exchange: ...


# A torch op takes tensors and numbers, so an exchange travels as its id; an entry dies with its exchange.
_exchanges: WeakValueDictionary[int, _C.Exchange] = WeakValueDictionary()


def handle_of(group: Group | None) -> int:
    """The number under which a registered op finds the group's exchange; 0: alone."""
    if group is None or group.size == 1:
        return 0
    _exchanges[id(group.exchange)] = group.exchange
    return id(group.exchange)


def exchange_of(handle: int) -> _C.Exchange | None:
    """Raises ValueError for a handle of no living group."""
    if handle == 0:
        return None
    exchange = _exchanges.get(handle)
    arguments.require("exchange", exchange is not None, "be the handle of a living group", handle)
    return exchange


def reference_sum(x: Tensor, group: Group | None) -> Tensor:
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
