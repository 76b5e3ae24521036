"""A rank's group as the ops see it: ranks of one host, each with a GPU, or none where there is one rank."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from fastserve import _C
from fastserve.distributed.device_exchange import connect_device_exchange
from fastserve.errors import GroupError
from fastserve.ops.group import moves_by_itself

if TYPE_CHECKING:
    from fastserve import _cuda
    from fastserve.distributed.nccl_exchange import NcclExchange


class RankGroup:
    spans_hosts = False

    def __init__(self, exchange: _C.Exchange) -> None:
        self.exchange = exchange
        self.rank = exchange.rank
        self.size = exchange.size

    @property
    def peers(self) -> NoReturn:
        raise GroupError("ranks on GPUs are of one host")

    def empty(self, *shape: int, dtype: Any) -> NoReturn:
        raise GroupError("ranks on GPUs have no symmetric heap")

    @property
    def outlives_loss(self) -> bool:
        """False: its processes end with it, for a communicator of NCCL does not survive the loss of a rank."""
        return not moves_by_itself(self.__dict__.get("device_exchange"))

    @cached_property
    def device_exchange(self) -> _cuda.ExchangeBuffer | NcclExchange:
        """Made by all ranks together, at their first collective on GPUs. Raises GroupError."""
        return connect_device_exchange(self.exchange)
