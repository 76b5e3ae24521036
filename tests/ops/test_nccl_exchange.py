"""Sums whose parts another library moves have the bits of our own kernels."""

from __future__ import annotations

import pytest

from fastserve.distributed.nccl_exchange import MAX_GATHERED_BYTES, choose_route, chunk_begin

from .nccl_exchange_script import CASES
from .torchrun import run_ranks


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_every_rank_has_the_sum_in_the_stated_order(num_ranks: int) -> None:
    assert run_ranks("nccl_exchange_script.py", num_ranks) == sorted(
        f"case {case} rank {rank}: same bits" for case in range(len(CASES)) for rank in range(num_ranks)
    )


@pytest.mark.parametrize("num_columns", [1, 128, 130, 4096, 5000])
@pytest.mark.parametrize("num_ranks", [2, 5, 8])
def test_chunks_are_runs_of_whole_units_and_cover_all_columns(num_columns: int, num_ranks: int) -> None:
    begins = [chunk_begin(chunk, num_ranks, num_columns) for chunk in range(num_ranks + 1)]
    assert begins == sorted(begins)
    assert (begins[0], begins[-1]) == (0, num_columns)
    assert all(begin % 128 == 0 for begin in begins[:-1] if begin < num_columns)


def test_large_sums_of_many_ranks_go_by_chunks() -> None:
    assert choose_route(MAX_GATHERED_BYTES, 8) == "gathered"
    assert choose_route(MAX_GATHERED_BYTES + 1, 8) == "by_chunks"
    assert choose_route(1 << 30, 2) == "gathered"  # the same bytes, and one hop less
