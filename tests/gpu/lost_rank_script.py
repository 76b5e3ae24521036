"""Run by torchrun: rank 1 ends without a word, rank 0's next sum ends too. Argument: cuda, or cpu.

Whoever watches rank 1 raises the group's epoch, which is its GPUs' as well.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

import pytest
import torch

import fastserve.ops
from fastserve.distributed.group import init_group
from fastserve.errors import RankLostError

LIMIT_S = 60  # a kernel that waits for ever ends with its process


def main(device: str) -> None:
    signal.alarm(LIMIT_S)
    group = init_group()
    if device == "cuda":
        torch.cuda.set_device(group.rank % torch.cuda.device_count())
    x = torch.ones(16, 4096, device=device)
    fastserve.ops.all_reduce(x, group)
    assert (x == group.size).all()
    if group.rank == 1:
        os._exit(0)
    with suppress(RankLostError):  # on a GPU the call is only enqueued: its kernel waits for rank 1
        fastserve.ops.all_reduce(x, group)
    with pytest.raises(RankLostError):
        group.barrier()
    if device == "cuda":
        torch.cuda.synchronize()
    print("ended")


if __name__ == "__main__":
    main(sys.argv[1])
