"""The memory through which Triton's kernels reach the other ranks of a group.

On GPUs it is an area of the group's exchange buffers, which fastserve._cuda makes and maps. The interpreter's ranks are
processes of one host: theirs lies in the group's symmetric heap, init_group(heap_bytes=32 << 20) has room for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from fastserve.errors import BackendError
from fastserve.ops.backend import HOW_TO_GET, cuda_ops
from fastserve.ops.group import Group, group_of, moves_by_itself

if TYPE_CHECKING:
    from fastserve.kernels.matmul_all_reduce import Peers

HOST_SLOTS_BYTES = 16 << 20  # of a rank, of two calls: 256 rows of 4096 floats from 2 ranks

_peers: WeakKeyDictionary[Any, Peers] = WeakKeyDictionary()  # by what holds the memory


def peers_of(handle: int, device: torch.device) -> Peers | None:
    """None: alone. Made at the group's first call on such a device, at which all ranks must be and which no CUDA graph
    may capture.

    Raises BackendError where fastserve was built without its CUDA ops, CapacityError for too small a heap.
    """
    group = group_of(handle)
    if group is None:
        return None
    if device.type == "cuda" and cuda_ops() is None:
        raise BackendError(
            f"Triton's sums over GPUs go through memory that fastserve._cuda makes: {HOW_TO_GET['cuda']}"
        )
    if device.type == "cuda" and moves_by_itself(group.device_exchange):
        raise BackendError(
            "Triton's sums need GPUs that reach each other's memory: leave the choice to the op"
        )
    owner = group.device_exchange if device.type == "cuda" else group.exchange
    peers = _peers.get(owner)
    if peers is None:
        made = _on_devices(group, device) if device.type == "cuda" else _on_host(group)
        peers = _peers[owner] = made
    return peers


def _on_devices(group: Group, device: torch.device) -> Peers:
    from fastserve.kernels.matmul_all_reduce import Peers

    cuda = cuda_ops()
    assert cuda is not None
    buffer = group.device_exchange
    areas = torch.tensor(buffer.triton_areas, dtype=torch.int64, device=device)
    return Peers(group.rank, areas, cuda.TRITON_AREA_BYTES, buffer.epoch_address)


def _on_host(group: Group) -> Peers:
    from fastserve.kernels.matmul_all_reduce import Peers, slots_offset

    area_bytes = slots_offset(group.size) + HOST_SLOTS_BYTES
    own = group.empty(area_bytes, dtype=torch.uint8)
    offset = own.data_ptr() - group.peers.heap_address  # the same on all ranks
    areas = [group.peers.heap_address_of(rank) + offset for rank in range(group.size)]
    return Peers(group.rank, torch.tensor(areas), area_bytes, group.exchange.epoch_address)


def check(handle: int, device: torch.device) -> None:
    """Raises RankLostError if the interpreter's group has lost a rank. A GPU's call is not awaited."""
    group = group_of(handle)
    if group is not None and device.type != "cuda" and group.exchange.failed:
        group.exchange.barrier()  # in a group that is over it says at once who was lost
