"""A group of two devices: against one device of two threads, with a rank that is slow, with ranks that are killed.

`pytest bench/groups.py -k kill`; lines at the end as those of the other benchmarks.
"""

from __future__ import annotations

from statistics import median

import pytest

from fastserve.benchmark.collective_lines import lines as lines_of
from fastserve.benchmark.group_cases import CASES, NUM_STREAMS, STREAM_TOKENS, kills
from fastserve.benchmark.machine import Machine
from fastserve.benchmark.placement import probe
from fastserve.benchmark.report import Line, duration
from fastserve.config import DEFAULT_MODEL
from fastserve.weights.store import resolve_model

pytestmark = pytest.mark.timeout(0)
MAX_ROUNDS = 9  # a batch takes seconds
NUM_KILLS = 8


@pytest.fixture(scope="module")
def model() -> str:
    return str(resolve_model(DEFAULT_MODEL))


@pytest.mark.parametrize("name", CASES)
def test_group(
    name: str, model: str, pytestconfig: pytest.Config, machine: Machine, lines: list[Line]
) -> None:
    case = CASES[name]
    buckets = case.measure(model, rounds=min(MAX_ROUNDS, pytestconfig.getoption("--turns")), probe=probe)
    lines += lines_of(case, buckets, machine, num_ranks=2)


@pytest.mark.parametrize("on_loss", ["respawn", "shrink"])
def test_kill(on_loss: str, model: str, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(kills(model, count=NUM_KILLS, on_loss=on_loss))
    noticed, pauses = ([getattr(kill, name) for kill in found] for name in ("noticed_s", "pause_s"))
    with capsys.disabled():
        print(
            f"\n{machine} | {on_loss} | {NUM_KILLS} kills, {NUM_STREAMS} streams of {STREAM_TOKENS} tokens | "
            f"lost {sum(kill.num_lost for kill in found)}, "
            f"equal to undisturbed {sum(kill.num_equal for kill in found)} of {NUM_STREAMS * NUM_KILLS} | "
            f"noticed p50 {duration(median(noticed))} max {duration(max(noticed))} | "
            f"whole again p50 {duration(median(pauses))} max {duration(max(pauses))} | {machine.commit}"
        )
    assert sum(kill.num_lost for kill in found) == 0
