"""Tensors in memory that all ranks of a host see, so that a sum of them copies nothing."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

from fastserve import _C
from fastserve.errors import CapacityError

ALIGNMENT = 64


class SymmetricHeap:
    """Hands out this rank's part in order; every rank makes the same calls. Nothing is given back before the end."""

    def __init__(self, peers: _C.PeerGroup) -> None:
        self._peers = peers
        self._used = 0

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        """A torch tensor. Raises CapacityError with the numbers when the heap is full, ValueError for a bad shape."""
        import torch

        if any(extent < 0 for extent in shape):
            raise ValueError(f"shape must hold no negative numbers, got {tuple(shape)}")
        num_bytes = math.prod(shape) * dtype.itemsize
        left = self._peers.heap_bytes - self._used
        if num_bytes > left:
            raise CapacityError(
                f"a tensor of {num_bytes} bytes does not fit what is left of the symmetric heap: {left} of "
                f"{self._peers.heap_bytes}; raise heap_bytes of init_group"
            )
        if num_bytes == 0:
            return torch.empty(*shape, dtype=dtype)
        memory = (ctypes.c_uint8 * num_bytes).from_address(self._peers.heap_address + self._used)
        memory.peers = self._peers  # the tensor keeps the buffer, and that keeps the mapping
        self._used += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return torch.frombuffer(memory, dtype=dtype).view(*shape)
