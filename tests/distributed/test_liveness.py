"""Who shows no sign of life for longer than the limit is noticed, and nobody else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from fastserve import _C
from fastserve.distributed.liveness import Heartbeats, Stops
from fastserve.distributed.rank_process import RankProcess

LIMIT_S = 5.0


def test_a_rank_stands_still_once_its_count_has_not_moved_for_the_limit() -> None:
    region = _C.SharedRegion.create(2, 4096, 0)
    first, _ = _C.Exchange(region, 0), _C.Exchange(region, 1)
    heartbeats = Heartbeats(region, LIMIT_S)
    assert heartbeats.standing_still(100.0) == []
    assert heartbeats.standing_still(104.0) == []
    first.beat()
    assert heartbeats.standing_still(105.1) == [1]
    assert heartbeats.standing_still(110.2) == [0, 1]
    first.beat()
    assert heartbeats.standing_still(110.3) == [1]


@pytest.fixture
def process() -> Iterator[RankProcess]:
    process = RankProcess(device=0)
    yield process
    process.kill()


def wait_until_stopped(process: RankProcess, *, stopped: bool) -> None:
    while process.is_stopped() is not stopped:
        os.sched_yield()


def test_a_process_counts_as_stopped_from_when_it_was_first_seen_so(process: RankProcess) -> None:
    stops = Stops(LIMIT_S)
    os.kill(process.pid, signal.SIGSTOP)
    wait_until_stopped(process, stopped=True)
    assert stops.too_long([process], 100.0) == []
    assert stops.too_long([process], 105.1) == [process]
    os.kill(process.pid, signal.SIGCONT)
    wait_until_stopped(process, stopped=False)
    assert stops.too_long([process], 106.0) == []
    os.kill(process.pid, signal.SIGSTOP)
    wait_until_stopped(process, stopped=True)
    assert stops.too_long([process], 107.0) == []


def test_a_stopped_process_can_be_killed_and_is_reaped(process: RankProcess) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    process.kill()
    assert process.how_it_ended() == "was killed by SIGKILL"
    process.kill()  # again is harmless
