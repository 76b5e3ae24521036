"""Groups of processes, each with a GPU of its own as long as there are enough; on CPU tensors, to test the scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.ops.torchrun import run_ranks

HERE = Path(__file__).parent
MAX_RANKS = 8
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.mark.parametrize("device", DEVICES)
def test_collectives_equal_their_references(device: str) -> None:
    num_ranks = max(2, min(MAX_RANKS, torch.cuda.device_count()))
    lines = run_ranks(HERE / "collectives_script.py", num_ranks, device)
    assert len(lines) == num_ranks
    for rank, line in enumerate(lines):
        assert line.startswith(f"rank {rank} of {num_ranks}: ")
        assert line.endswith(" calls equal their references")


@pytest.mark.parametrize("device", DEVICES)
def test_the_death_of_a_rank_ends_what_the_others_wait_for(device: str) -> None:
    assert run_ranks(HERE / "lost_rank_script.py", 2, device) == ["ended"]
