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
    """One rank's view of its group; `exchange` is what ops take.

    Every rank calls the same collectives in the same order, one at a time.
    """

    def __init__(self, rank: int, region: _C.SharedRegion, exchange: _C.Exchange, watched: list[int]) -> None:
        self.rank = rank
        self.size = region.num_ranks
        self.exchange = exchange
        self._floats = exchange.gather_capacity // 4
        self._watcher = _C.Watcher(watched, region)
        # Also at exit: a process that ends in good order is no loss to the others.
        self._leave = weakref.finalize(self, _leave, exchange, self._watcher)

    def all_reduce(self, tensor: TorchTensor) -> None:
        """Sums a contiguous fp32 CPU tensor over the ranks, in place: the same bits on all of them.

        Raises ValueError for another kind of tensor, RankLostError when a rank is gone.
        """
        if not self._leave.alive:
            raise GroupError("the group is closed")
        address, rows, columns = _matrix(tensor)
        if columns <= self._floats:
            self.exchange.all_reduce(address, rows, columns)
            return
        # A row that does not fit the buffers: the order of the elements is all that a sum needs.
        for begin in range(0, rows * columns, self._floats):
            length = min(self._floats, rows * columns - begin)
            self.exchange.all_reduce(address + 4 * begin, 1, length)

    def barrier(self) -> None:
        """Returns when every rank has come here. Raises RankLostError when one is gone."""
        if not self._leave.alive:
            raise GroupError("the group is closed")
        self.exchange.barrier()

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


def _matrix(tensor: TorchTensor) -> tuple[int, int, int]:
    """(address, rows, columns) of a tensor seen as a matrix."""
    if getattr(tensor, "data_ptr", None) is None:  # isinstance of a Protocol takes 7 us
        raise ValueError(f"tensor must be a torch tensor, got {type(tensor).__name__}")
    dtype, device = str(getattr(tensor, "dtype", "")), str(getattr(tensor, "device", "cpu"))
    if dtype != "torch.float32" or device != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"tensor must be contiguous float32 on the CPU, got {dtype} on {device}")
    columns = tensor.shape[-1] if tensor.shape else 1
    return tensor.data_ptr(), math.prod(tensor.shape[:-1]) if columns else 0, max(columns, 1)


def init_group(*, symmetric_bytes: int = SYMMETRIC_BYTES, timeout_s: float = TIMEOUT_S) -> Group:
    """Makes the group of all processes of this torchrun; every one of them calls it.

    symmetric_bytes  what one collective can hold per rank; rank 0's counts. Larger matrices go in slices.
    Raises GroupError if torchrun's variables are missing, the run spans several hosts, or a rank does not
    come within timeout_s.
    """
    place = Place.from_environment(os.environ)
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
    region = _C.SharedRegion.create(place.size, symmetric_bytes, 0)
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
