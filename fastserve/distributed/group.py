"""A group of processes that torchrun started on one host, for the fused ops from Python.

group = init_group()                       # in every process
fastserve.ops.matmul_all_reduce(x, w, group=group)
group.all_reduce(x)                        # in place
"""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from types import TracebackType
from typing import Protocol, Self

from fastserve import _C
from fastserve.distributed.rendezvous import (
    Deadline,
    Peer,
    Place,
    accept_peers,
    confirm,
    hand_out,
    join,
    listen,
)
from fastserve.errors import GroupError

SYMMETRIC_BYTES = 8 << 20  # 512 rows of 4096 floats in one go; larger matrices go in slices
TIMEOUT_S = 60.0  # ranks that import torch from a cold disk start many seconds apart


class TorchTensor(Protocol):
    """What is used of a torch tensor, so that nothing here imports torch."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def data_ptr(self) -> int: ...
    def is_contiguous(self) -> bool: ...


class Group:
    """One rank's view of its group; `exchange` is what the fused ops take, `peers` moves and reduces buffers.

    Every rank calls the same collectives in the same order, one at a time.
    """

    def __init__(self, rank: int, region: _C.SharedRegion, exchange: _C.Exchange, watched: list[int]) -> None:
        self.rank = rank
        self.size = region.num_ranks
        self.region = region
        self.exchange = exchange
        self.peers = _C.PeerGroup(exchange)
        self._watcher = _C.Watcher(watched, region)
        # Also at exit: a process that ends in good order is no loss to the others.
        self._leave = weakref.finalize(self, _leave, exchange, self._watcher)

    def all_reduce(self, tensor: TorchTensor) -> None:
        """Sums a contiguous CPU tensor over the ranks, in place: the same bits on all of them.

        fp32, fp64, fp16, bf16 (both summed in fp32 and rounded once) or integers. Raises ValueError for another
        kind of tensor, RankLostError when a rank is gone.
        """
        if not self._leave.alive:
            raise GroupError("the group is closed")
        self.peers.all_reduce(*_buffer(tensor), _SUM, False)

    def barrier(self) -> None:
        """Returns when every rank has come here. Raises RankLostError when one is gone."""
        if not self._leave.alive:
            raise GroupError("the group is closed")
        self.peers.barrier()

    def close(self) -> None:
        """Leaves the group; a rank that still waits for this one gets a RankLostError. Idempotent."""
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _leave(exchange: _C.Exchange, watcher: _C.Watcher) -> None:
    exchange.leave()
    watcher.close()


_SUM = _C.REDUCE_OPS.index("sum")
_TYPES = {
    f"torch.{name}": _C.DATA_TYPES.index(code)
    for name, code in {
        "float32": "f32",
        "float64": "f64",
        "float16": "f16",
        "bfloat16": "bf16",
        "uint8": "u8",
        "int8": "s8",
        "int16": "s16",
        "int32": "s32",
        "int64": "s64",
    }.items()
}


def _buffer(tensor: TorchTensor) -> tuple[int, int, int]:
    """(address, elements, type) of a tensor."""
    if getattr(tensor, "data_ptr", None) is None:  # isinstance of a Protocol takes 7 us
        raise ValueError(f"tensor must be a torch tensor, got {type(tensor).__name__}")
    dtype, device = str(getattr(tensor, "dtype", "")), str(getattr(tensor, "device", "cpu"))
    code = _TYPES.get(dtype)
    if code is None or device != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"tensor must be contiguous numbers on the CPU, got {dtype} on {device}")
    return tensor.data_ptr(), math.prod(tensor.shape), code


def init_group(*, symmetric_bytes: int = SYMMETRIC_BYTES, timeout_s: float = TIMEOUT_S) -> Group:
    """Makes the group of all processes of this torchrun; every one of them calls it.

    symmetric_bytes  what one fused op can hold per rank; rank 0's counts. Larger matrices go in slices.
    Raises GroupError if torchrun's variables are missing, the run spans several hosts, or a rank does not
    come within timeout_s.
    """
    return meet(Place.from_environment(os.environ), symmetric_bytes=symmetric_bytes, timeout_s=timeout_s)


def meet(place: Place, *, symmetric_bytes: int, timeout_s: float) -> Group:
    """Makes the group of all processes that call this with the same place. Raises GroupError."""
    peers: dict[int, Peer] = {}
    try:
        if place.rank == 0:
            return _found(place, Deadline(timeout_s), peers, symmetric_bytes)
        return _join(place, Deadline(timeout_s), peers)
    except TimeoutError:
        found = sorted([place.rank, *peers])
        raise GroupError(
            f"rank {place.rank} waited {timeout_s:g} s for the group of {place.size}; here: {found}"
        ) from None
    except OSError as error:
        raise GroupError(f"the group could not be made: {error}") from error
    finally:
        for peer in peers.values():
            peer.channel.close()


def _found(place: Place, deadline: Deadline, peers: dict[int, Peer], symmetric_bytes: int) -> Group:
    region = _C.SharedRegion.create(place.size, symmetric_bytes, _C.peer_memory_bytes(place.size))
    exchange = _C.Exchange(region, 0)
    with listen(place) as listener:
        accept_peers(place, listener, deadline, peers)
    hand_out(peers, region.fd, deadline)
    # Rank 0 watches all others, and they watch rank 0: whoever notices tells everybody by the epoch.
    return Group(0, region, exchange, [peer.pid for peer in peers.values()])


def _join(place: Place, deadline: Deadline, peers: dict[int, Peer]) -> Group:
    peers[0], descriptor = join(place, deadline)
    try:
        region = _C.SharedRegion.attach(descriptor)
    except RuntimeError as error:
        raise GroupError(str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    if region.num_ranks != place.size:
        raise GroupError(f"rank 0 made a group of {region.num_ranks}, expected {place.size}")
    exchange = _C.Exchange(region, place.rank)
    confirm(peers[0], deadline)
    return Group(place.rank, region, exchange, [peers[0].pid])
