"""Sums over GPUs that do not reach each other's memory: NCCL moves the parts, and they are added here.

NCCL's own sums would be added in an order that depends on the size of the matrix and on the machine, so a row's bits
would depend on what else is in the batch. Here the order is that of the kernels over peer memory (csrc/cuda/peers.cuh):
columns are cut into R chunks at multiples of 128, and chunk c is p[c + 1] + p[c + 2] + ... + p[c], in fp32, rounded
once. So it does not matter for the bits which of the two a group uses.

gathered     every rank receives all parts whole and adds them: one hop, (R - 1) matrices to each rank
by chunks    every rank receives all parts of its chunk, adds them, and hands the sum to all: two hops, 2 (R - 1) / R
"""

from __future__ import annotations

import struct
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from fastserve import _C

CHUNK_COLUMNS = 128  # kChunkColumns of csrc/cuda/peers.cuh
# Up to there two more microseconds of NCCL's launch and first byte are worth more than the bytes: 8 ranks at 20 GB/s.
MAX_GATHERED_BYTES = 64 << 10
TIMEOUT = timedelta(seconds=60)
_PORT = struct.Struct("<i")


def choose_route(num_bytes: int, num_ranks: int) -> Literal["gathered", "by_chunks"]:
    """num_bytes: of one rank's matrix."""
    return "gathered" if num_bytes <= MAX_GATHERED_BYTES or num_ranks == 2 else "by_chunks"


def chunk_begin(chunk: int, num_ranks: int, num_columns: int) -> int:
    units = -(-num_columns // CHUNK_COLUMNS)
    return min(chunk * units // num_ranks * CHUNK_COLUMNS, num_columns)


class NcclExchange:
    """Made by all ranks of `exchange` together. backend: torch.distributed's, of the tensors' device.

    Waits for a dead peer end when the process does: who watches the ranks ends it.
    """

    def __init__(self, exchange: _C.Exchange, *, backend: str = "nccl") -> None:
        self.rank, self.size = exchange.rank, exchange.size
        store = self._open_store(0) if self.rank == 0 else None
        (port,) = _PORT.unpack(exchange.all_gather(_PORT.pack(store.port if store else 0))[0])
        store = store or self._open_store(port)
        dist.init_process_group(
            backend, store=store, rank=exchange.rank, world_size=exchange.size, timeout=TIMEOUT
        )

    def _open_store(self, port: int) -> TCPStore:
        """port: rank 0's, who makes it; 0: chosen by the system."""
        return TCPStore(
            "127.0.0.1", port, self.size, is_master=self.rank == 0, timeout=TIMEOUT, wait_for_workers=False
        )

    def all_reduce(self, x: Tensor) -> None:
        """x [T, D], rows contiguous, the same shape and dtype on every rank: its sum over the ranks, in place."""
        if not x.numel():
            return
        if choose_route(x.numel() * x.element_size(), self.size) == "gathered":
            self._gather(x)
        else:
            self._exchange_chunks(x)

    def close(self) -> None:
        dist.destroy_process_group()

    def _columns(self, chunk: int, num_columns: int) -> slice:
        return slice(*(chunk_begin(c, self.size, num_columns) for c in (chunk, chunk + 1)))

    def _sum(self, chunk: int, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        order = [(chunk + 1 + i) % self.size for i in range(self.size)]
        total = parts[order[0]].float()
        for rank in order[1:]:
            total = total + parts[rank].float()
        return total.to(dtype)

    def _gather(self, x: Tensor) -> None:
        parts = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous())
        for chunk in range(self.size):
            columns = self._columns(chunk, x.shape[1])
            x[:, columns] = self._sum(chunk, [part[:, columns] for part in parts], x.dtype)

    def _exchange_chunks(self, x: Tensor) -> None:
        mine = [x[:, self._columns(chunk, x.shape[1])].contiguous() for chunk in range(self.size)]
        parts = [torch.empty_like(mine[self.rank]) for _ in range(self.size)]
        self._swap(mine, parts)
        total = self._sum(self.rank, parts, x.dtype)
        sums = [torch.empty_like(chunk) for chunk in mine]
        self._swap([total] * self.size, sums)
        for chunk in range(self.size):
            x[:, self._columns(chunk, x.shape[1])] = sums[chunk]

    def _swap(self, to: list[Tensor], got: list[Tensor]) -> None:
        """to[r] goes to rank r, got[r] comes from there; empty chunks stay at home."""
        got[self.rank].copy_(to[self.rank])
        moves = []
        for step in range(1, self.size):
            after, before = (self.rank + step) % self.size, (self.rank - step) % self.size
            if to[after].numel():
                moves.append(dist.P2POp(dist.isend, to[after], after))
            if got[before].numel():
                moves.append(dist.P2POp(dist.irecv, got[before], before))
        for move in dist.batch_isend_irecv(moves) if moves else []:
            move.wait()
