"""Moves KV blocks between a GPU and pinned memory of the host, on a stream of its own, while steps run.

A swap out waits for the steps that were enqueued before it, for they have written its blocks; a swap in waits for them
too, for they may still read what it overwrites. Steps wait for no swap by themselves: who wants a block that comes in,
or gives away one that goes out, lets the steps' stream wait for the event that it was given. So a swap ahead of need
costs the steps nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from fastserve import ops
from fastserve.cuda.kv_memory import KvMemory
from fastserve.cuda.runtime import Event, Runtime, Stream

Moves = Sequence[tuple[int, int]]  # (block on the device, block on the host)


class KvSwap:
    """steps: the stream that runs them. max_moves: of one call."""

    def __init__(
        self, runtime: Runtime, memory: KvMemory, steps: Stream, *, num_host_blocks: int, max_moves: int
    ) -> None:
        self._runtime = runtime
        self._steps = steps
        self._stream = runtime.new_stream()
        self._max_moves = max_moves
        self._num_device_blocks = memory.num_blocks
        num_pieces, _, size = memory.pieces.shape
        self._num_pieces = num_pieces
        self._num_host_blocks = num_host_blocks
        self._on_device = memory.pieces.view(-1, size)
        self._on_host = runtime.pinned(num_host_blocks * num_pieces, size, dtype=memory.pieces.dtype)
        self._lists: deque[tuple[Event, Tensor]] = deque()  # staged, free again once the event is done

    def swap_out(self, moves: Moves) -> Event:
        """Device to host. The device's blocks may be written again after the event."""
        return self._enqueue(moves, out=True)

    def swap_in(self, moves: Moves) -> Event:
        """Host to device. Steps may read the device's blocks after the event, which must see what `swap_out` wrote:
        swaps are done in their order."""
        return self._enqueue(moves, out=False)

    def _enqueue(self, moves: Moves, *, out: bool) -> Event:
        """Raises ValueError for a block that is not there, or one that is written twice."""
        self._check(moves, out=out)
        staged = self._free_list()
        num_pieces, count = self._num_pieces, len(moves) * self._num_pieces
        on_device = [
            piece * self._num_device_blocks + block for block, _ in moves for piece in range(num_pieces)
        ]
        on_host = [block * num_pieces + piece for _, block in moves for piece in range(num_pieces)]
        staged[:, :count] = torch.tensor([on_device, on_host], dtype=torch.int32)
        self._stream.wait(self._steps.record())
        with self._stream.run():
            lists = torch.empty_like(staged, device=self._runtime.device)
            lists.copy_(staged, non_blocking=True)
            device_list, host_list = lists[0, :count], lists[1, :count]
            if out:
                ops.swap(self._on_device, self._on_host, device_list, host_list)
            else:
                ops.swap(self._on_host, self._on_device, host_list, device_list)
        done = self._stream.record()
        self._lists.append((done, staged))
        return done

    def _check(self, moves: Moves, *, out: bool) -> None:
        if not 1 <= len(moves) <= self._max_moves:
            raise ValueError(f"moves must be 1 to {self._max_moves}, got {len(moves)}")
        for name, side, limit in (("device", 0, self._num_device_blocks), ("host", 1, self._num_host_blocks)):
            blocks = [move[side] for move in moves]
            if wrong := [block for block in blocks if not 0 <= block < limit]:
                raise ValueError(f"blocks of the {name} must be in [0, {limit}), got {wrong[0]}")
            if side == int(out) and len(set(blocks)) < len(blocks):
                raise ValueError(f"a block of the {name} is written twice")

    def _free_list(self) -> Tensor:
        if self._lists and self._lists[0][0].done():
            return self._lists.popleft()[1]
        return self._runtime.pinned(2, self._max_moves * self._num_pieces, dtype=torch.int32)
