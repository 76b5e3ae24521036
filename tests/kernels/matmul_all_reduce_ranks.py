"""The calls of test_matmul_all_reduce.py, and one of the ranks that make them.

A rank is a process: the kernels of a process are interpreted one program after another. Run as a script: the rank, a
folder for its results, then "ranks:descriptor" of the shared memory of each group that it is in; "lost:descriptor" is
the group that waits for its last rank in vain. It says "ready" and starts when told to, for who comes early would
spin, and keep from the cores those who are still importing torch.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from fastserve.kernels.matmul import matmul
from fastserve.kernels.matmul_all_reduce import MAX_TILES, Peers, all_reduce, matmul_all_reduce
from torch import Tensor

GROUPS = (4, 3, 2)
LOST_RANKS = 3
FLAGS = 2 * MAX_TILES.value  # of an area, per source rank
SLOT_BYTES = 4 * 32 * 96


@dataclass(frozen=True, slots=True)
class Call:
    m: int
    n: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    architecture: int = 80
    ordered: bool = False  # K = 1, and parts of which the order shows in the result
    separate: bool = False  # a product, then its sum


# One after another in the same memory, so that halves are used again, by other shapes and types too; 100 rows are
# several calls.
# tl.dot of bf16 is wrong in the interpreter: fp16 and fp32.
CALLS = (
    Call(5, 33, torch.float16, torch.float16),
    Call(1, 7, torch.float32, torch.float32),
    Call(17, 70, torch.float16, torch.float32, architecture=90),
    Call(100, 33, torch.float32, torch.float32),
    Call(100, 33, torch.float16, torch.float16, separate=True),
    Call(9, 200, torch.float32, torch.float32, separate=True),
    Call(4, 83, torch.float32, torch.float32, ordered=True),
    Call(4, 83, torch.float16, torch.float16, ordered=True),
)


def operands(call_idx: int, rank: int, num_ranks: int) -> tuple[Tensor, Tensor]:
    """x [M, K_r] and w [N, K_r], columns of wider matrices of NaNs; K_r differs between ranks.

    Products are exact in fp32, in whatever order the interpreter's BLAS adds, and not in fp16.
    """
    call = CALLS[call_idx]
    generator = torch.Generator().manual_seed(100 * call_idx + rank)
    k = 1 if call.ordered else 23 + 21 * rank
    x = torch.full((call.m, k + 5), torch.nan, dtype=call.dtype)
    w = torch.full((call.n, k + 3), torch.nan, dtype=call.dtype)
    if call.ordered:
        # Row i: large from rank i, its negative from the next, and from the others what a large one swallows.
        x[:, 2] = (rank + 3) * 2.0**-15
        x[rank::num_ranks, 2] = 2.0**14
        x[(rank - 1) % num_ranks :: num_ranks, 2] = -(2.0**14)
        w[:, 1] = 1 + torch.arange(call.n) / 128
    else:
        x[:, 2 : 2 + k] = torch.randint(-31, 32, (call.m, k), generator=generator) / 16
        w[:, 1 : 1 + k] = torch.randint(-31, 32, (call.n, k), generator=generator) / 16
    return x[:, 2 : 2 + k], w[:, 1 : 1 + k]


def area_bytes(num_ranks: int) -> int:
    return 128 + num_ranks * (4 * FLAGS + 2 * SLOT_BYTES)


def region_bytes(num_ranks: int) -> int:
    """The epoch, then each rank's area."""
    return 64 + num_ranks * area_bytes(num_ranks)


class Group:
    """A rank's view of the shared memory."""

    def __init__(self, rank: int, num_ranks: int, descriptor: int) -> None:
        region = torch.frombuffer(mmap.mmap(descriptor, region_bytes(num_ranks)), dtype=torch.int32)
        words = area_bytes(num_ranks) // 4
        self.num_ranks = num_ranks
        self.epoch = region[:1]
        self.flags = (
            region[16:]
            .view(num_ranks, words)[:, 32:][:, : num_ranks * FLAGS]
            .unflatten(1, (2, num_ranks, -1))
        )
        self.peers = Peers(
            rank=rank,
            areas=region.data_ptr() + 64 + 4 * words * torch.arange(num_ranks),
            area_bytes=4 * words,
            epoch=region.data_ptr(),
        )

    def call(self, call_idx: int) -> Tensor:
        call = CALLS[call_idx]
        x, w = operands(call_idx, self.peers.rank, self.num_ranks)
        out = torch.full((call.m, call.n + 4), torch.nan, dtype=call.out_dtype)
        if call.separate:
            matmul(x, w, out=out[:, 3:-1], architecture=call.architecture)
            all_reduce(out[:, 3:-1], self.peers, architecture=call.architecture)
        else:
            matmul_all_reduce(x, w, self.peers, out=out[:, 3:-1], architecture=call.architecture)
        return out


def main(rank: int, folder: Path, groups: list[str]) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no rank outlives the test
    print("ready", flush=True)
    sys.stdin.readline()
    for name, descriptor in (group.split(":") for group in groups):
        if name != "lost":
            group = Group(rank, int(name), int(descriptor))
            for call_idx in range(len(CALLS)):
                np.save(folder / f"{name}_{call_idx}_{rank}.npy", group.call(call_idx).numpy())
            continue
        group = Group(rank, LOST_RANKS, int(descriptor))
        if rank < LOST_RANKS - 1:
            group.call(0)
            (folder / f"released_{rank}").touch()
        else:  # the others have pushed their first tile of call 1 and are about to wait
            while not (group.flags[rank, 1, : LOST_RANKS - 1, 0] == 1).all():
                os.sched_yield()
            group.epoch.fill_(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
