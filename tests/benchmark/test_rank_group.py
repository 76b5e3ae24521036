"""Ranks measure together, and none outlives the others."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from fastserve import _C
from fastserve.benchmark.collective_cases import CASES
from fastserve.benchmark.collective_lines import lines as lines_of
from fastserve.benchmark.machine import describe_machine
from fastserve.benchmark.rank_group import RankGroup, start_ranks
from fastserve.errors import RankLostError

CASE = "all_reduce-f32-4_KB"


def settings() -> tuple[set[int], int, int, dict[str, str]]:
    return os.sched_getaffinity(0), torch.get_num_threads(), _C.ops.num_threads(), dict(os.environ)


@pytest.fixture
def pair() -> Iterator[RankGroup]:
    with start_ranks(2) as pair:
        yield pair


def test_every_contestant_is_measured_in_every_round(pair: RankGroup) -> None:
    buckets = pair.measure(CASE, rounds=2, batch_s=1e-4)
    counts = {
        name: sum(len(found.get(name, [])) for found in buckets.seconds.values())
        for name in ("fastserve", "gloo")
    }
    assert counts == {"fastserve": 2, "gloo": 2}
    for line in lines_of(CASES[CASE], buckets, describe_machine(), num_ranks=2):
        assert (line.op, line.shape, line.dtype) == ("all_reduce", "4 KB", "f32")
        assert str(line.baseline).startswith("gloo (")


def test_calls_that_were_not_made_are_made_up_for(pair: RankGroup) -> None:
    with pair.repeating(CASE, max_calls=5) as ours:
        ours()
    with pair.repeating(CASE, max_calls=3) as ours:
        for _ in range(3):
            ours()
        with pytest.raises(AssertionError, match="more than 3 calls"):
            ours()


def test_all_is_as_before_afterwards() -> None:
    before = settings()
    with start_ranks(2) as pair:
        (process,) = pair.processes
    assert settings() == before
    assert process.returncode == 0


def test_a_lost_rank_ends_the_measurement() -> None:
    with start_ranks(2) as pair:
        pair.processes[0].kill()
        with pytest.raises((RuntimeError, OSError, RankLostError)):
            pair.measure(CASE, rounds=1000, batch_s=1e-3)
        pair.processes[0].wait()
    assert not torch.distributed.is_initialized()


def test_more_ranks_than_cores_measure_too() -> None:
    with start_ranks(3) as group:
        buckets = group.measure(CASE, rounds=1, batch_s=1e-4)
    assert set(buckets.contestants) == {"fastserve", "gloo"}
