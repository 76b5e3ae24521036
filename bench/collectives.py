"""Collectives of two ranks: all_reduce and a DDP step against gloo, matmul_all_reduce against its two halves.

`pytest bench/collectives.py -k all_reduce-f32-64_KB`, `--benchmark-json FILE` for all numbers. Every rank is a process
whose main thread is pinned to one core. Lines at the end compare in turns and per placement state; pytest-benchmark's
own table holds ours alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fastserve.benchmark.collective_cases import CASES
from fastserve.benchmark.collective_lines import lines as lines_of
from fastserve.benchmark.machine import Machine
from fastserve.benchmark.rank_pair import RankPair, start_pair
from fastserve.benchmark.report import Line

pytestmark = pytest.mark.timeout(0)
MAX_TABLE_CALLS = 100  # of a round of pytest-benchmark's table


@pytest.fixture(scope="module")
def pair(machine: Machine) -> Iterator[RankPair]:
    with start_pair() as pair:
        yield pair


@pytest.mark.parametrize("name", CASES)
def test_collective(
    request: pytest.FixtureRequest, name: str, pair: RankPair, machine: Machine, lines: list[Line]
) -> None:
    benchmark: Any = request.getfixturevalue("benchmark")
    rounds: int = request.config.getoption("--turns")
    batch_s: float = request.config.getoption("--batch-ms") / 1e3
    buckets = pair.measure(name, rounds=rounds, batch_s=batch_s)
    found = lines_of(CASES[name], buckets, machine, num_ranks=pair.rank.group.size)
    lines += found
    benchmark.group = f"{CASES[name].op} {CASES[name].dtype}"
    benchmark.extra_info.update(lines=[line.as_dict() for line in found], seconds_by_state=buckets.seconds)
    calls = max(1, min(MAX_TABLE_CALLS, round(batch_s / buckets.fastest_s)))
    # A warm-up round, and one call more, which pytest-benchmark makes for its result.
    with pair.repeating(name, max_calls=calls * (rounds + 1) + 1) as ours:
        benchmark.pedantic(ours, rounds=rounds, iterations=calls, warmup_rounds=1)
