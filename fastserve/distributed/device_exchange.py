"""The exchange buffers of a group's GPUs: made on each, and mapped by all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastserve import _C
from fastserve.errors import GroupError

if TYPE_CHECKING:
    from fastserve import _cuda


def connect_device_exchange(exchange: _C.Exchange) -> _cuda.ExchangeBuffer:
    """On the current device of each rank; all ranks of the exchange call it. Raises GroupError.

    The GPUs' epoch is the group's: whoever raises it, the watcher of a rank that died among them, ends their waits.
    """
    try:
        from fastserve import _cuda
    except ImportError as error:
        raise GroupError(
            "fastserve was built without its CUDA ops: install it where nvcc is on the PATH"
        ) from error
    buffer = _cuda.ExchangeBuffer(exchange.rank, exchange.size, exchange.epoch_address, exchange)
    buffer.connect(exchange.all_gather(buffer.handle))
    return buffer
