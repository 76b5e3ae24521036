"""Collectives of two ranks: all_reduce and a DDP step against gloo, matmul_all_reduce against its two halves.

And all_reduce of four and eight ranks, which are more than the cores of a small machine. An MPI takes part where this
interpreter has mpi4py (the test extra brings it with Open MPI), and each interpreter that is named by `--mpi`.

`pytest bench/collectives.py -k all_reduce-f32-64_KB`, `--benchmark-json FILE` for all numbers. Every rank is a process
whose main thread is pinned to one core. Lines at the end compare in turns and per placement state; pytest-benchmark's
own table holds ours alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fastserve.benchmark.collective_cases import CASES
from fastserve.benchmark.collective_lines import lines as lines_of
from fastserve.benchmark.machine import Machine
from fastserve.benchmark.mpi import Mpi, MpiError, own_mpi
from fastserve.benchmark.rank_group import RankGroup, start_ranks
from fastserve.benchmark.report import Line

pytestmark = pytest.mark.timeout(0)
CROWDED = tuple(name for name in CASES if re.fullmatch(r"all_reduce-f32-(1|16|64|1024|16384)_KB", name))
MAX_TABLE_CALLS = 100  # of a round of pytest-benchmark's table


@pytest.fixture(scope="module")
def mpis(pytestconfig: pytest.Config) -> list[Mpi]:
    try:
        named = [Mpi.of(python) for python in pytestconfig.getoption("--mpi")]
    except MpiError as error:
        raise pytest.UsageError(f"--mpi: {error}") from error
    own = own_mpi()
    return [own, *named] if own else named


@pytest.fixture(scope="module")
def groups(mpis: list[Mpi]) -> Iterator[Callable[[int], RankGroup]]:
    """A group of so many ranks; one at a time, the last one lives on."""
    with ExitStack() as stack:
        started: dict[int, RankGroup] = {}

        def group_of(num_ranks: int) -> RankGroup:
            if num_ranks not in started:
                stack.close()
                started.clear()
                started[num_ranks] = stack.enter_context(start_ranks(num_ranks, mpis))
            return started[num_ranks]

        yield group_of


@pytest.mark.parametrize(
    ("num_ranks", "name"),
    [
        *(pytest.param(2, name, id=name) for name in CASES),
        *(pytest.param(size, name, id=f"{name}-{size}_ranks") for size in (4, 8) for name in CROWDED),
    ],
)
def test_collective(
    request: pytest.FixtureRequest,
    name: str,
    num_ranks: int,
    groups: Callable[[int], RankGroup],
    lines: list[Line],
) -> None:
    benchmark: Any = request.getfixturevalue("benchmark")
    machine: Machine = request.getfixturevalue("machine")
    rounds: int = request.config.getoption("--turns")
    batch_s: float = request.config.getoption("--batch-ms") / 1e3
    group = groups(num_ranks)
    buckets = group.measure(name, rounds=rounds, batch_s=batch_s)
    found = lines_of(CASES[name], buckets, machine, num_ranks=num_ranks)
    lines += found
    benchmark.group = f"{CASES[name].op} {CASES[name].dtype}"
    benchmark.extra_info.update(lines=[line.as_dict() for line in found], seconds_by_state=buckets.seconds)
    calls = max(1, min(MAX_TABLE_CALLS, round(batch_s / buckets.fastest_s)))
    # A warm-up round, and one call more, which pytest-benchmark makes for its result.
    with group.repeating(name, max_calls=calls * (rounds + 1) + 1) as ours:
        benchmark.pedantic(ours, rounds=rounds, iterations=calls, warmup_rounds=1)
