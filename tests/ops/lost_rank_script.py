"""Run by torchrun: rank 1 ends without a word, rank 0 finds out in the middle of a collective."""

from __future__ import annotations

import os

import pytest
import torch

import fastserve.ops
from fastserve.distributed.group import init_group
from fastserve.errors import RankLostError

group = init_group()
fastserve.ops.matmul_all_reduce(torch.ones(2, 32), torch.ones(16, 32), group)
if group.rank == 1:
    os._exit(0)
with pytest.raises(RankLostError):
    fastserve.ops.matmul_all_reduce(torch.ones(2, 32), torch.ones(16, 32), group)
with pytest.raises(RankLostError):
    fastserve.ops.all_reduce(torch.ones(2, 32), group)
print("noticed")
