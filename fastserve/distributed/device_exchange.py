"""What the GPUs of a group exchange through: each other's memory, or NCCL where they do not reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastserve import _C
from fastserve.errors import GroupError

if TYPE_CHECKING:
    from types import ModuleType

    from fastserve import _cuda
    from fastserve.distributed.nccl_exchange import NcclExchange

MAX_PEERS = 8  # kMaxExchangeRanks of csrc/cuda/launch.h
BUS_ID_BYTES = 32


def connect_device_exchange(exchange: _C.Exchange) -> _cuda.ExchangeBuffer | NcclExchange:
    """On the current device of each rank; all ranks of the exchange call it. Raises GroupError.

    Which of the two is chosen changes no bits. In peers' memory the GPUs' epoch is the group's: whoever raises it, the
    watcher of a rank that died among them, ends their waits.
    """
    try:
        from fastserve import _cuda
    except ImportError as error:
        raise GroupError(
            "fastserve was built without its CUDA ops: install it where nvcc is on the PATH"
        ) from error
    if not reach_each_other(exchange, _cuda):
        from fastserve.distributed.nccl_exchange import NcclExchange

        return NcclExchange(exchange)
    buffer = _cuda.ExchangeBuffer(exchange.rank, exchange.size, exchange.epoch_address, exchange)
    buffer.connect(exchange.all_gather(buffer.handle))
    return buffer


def reach_each_other(exchange: _C.Exchange, cuda: ModuleType) -> bool:
    """Whether our kernels can run: the same on every rank, each of which has looked at its own GPU's ways."""
    own = cuda.bus_id().encode().ljust(BUS_ID_BYTES)
    others = [part.decode().rstrip() for part in exchange.all_gather(own)]
    reaches = exchange.size <= MAX_PEERS and all(cuda.can_reach(other) for other in others)
    return b"\x00" not in exchange.all_gather(bytes([reaches]))
