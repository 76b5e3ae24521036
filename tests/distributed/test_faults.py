"""What is killed, and what everybody else does then: a clear error within a second, and nothing left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastserve import LLM, SamplingParams
from fastserve.config import EngineConfig
from fastserve.engine.async_engine import AsyncEngine
from fastserve.engine.build import build_engine
from fastserve.errors import RankLostError

LIMITS: dict[str, Any] = {"max_model_len": 4096, "kv_cache_bytes": 512 << 20}
LONG = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)  # far longer than a test takes
NOTICED_S = 1.0
GIVE_UP_S = 20.0  # a test that waits longer has found a hang
IDLE_S = 3.0
MAX_IDLE_SHARE = 0.03  # of one core: under 1 % by rights; times are counted in ticks of 10 ms
ENGINE = """
import sys, time
from fastserve import LLM, SamplingParams
llm = LLM(sys.argv[1], devices=2, max_model_len=4096, kv_cache_bytes=512 << 20)
print(*llm._engine.executor.pids, flush=True)
if sys.argv[2] == "busy":
    llm.generate("one", SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True))
time.sleep(600)
"""


def read_on(stream: Iterator[object]) -> None:
    start = time.monotonic()
    for _ in stream:
        assert time.monotonic() - start < GIVE_UP_S


def wait_until(holds: Callable[[], bool], limit_s: float = GIVE_UP_S) -> float:
    """Seconds until `holds`; fails where it does not in time."""
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < limit_s
        time.sleep(0.002)
    return time.monotonic() - start


def ended(pid: int) -> bool:
    """Also true of a process that its new parent has not reaped yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    def held() -> tuple[int, list[psutil.Process], list[str]]:
        gc.collect()
        process = psutil.Process()
        return process.num_fds(), process.children(recursive=True), sorted(os.listdir("/dev/shm"))

    before = held()
    yield
    assert held() == before


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_in_the_middle_of_a_generation_ends_it_with_a_clear_error(
    victim: int, smollm2_path: Path
) -> None:
    with LLM(str(smollm2_path), devices=2, **LIMITS) as llm:
        pids: list[int] = llm._engine.executor.pids  # type: ignore[attr-defined]
        stream = llm.stream("one", LONG)
        next(stream)
        killed_s = time.monotonic()
        os.kill(pids[victim], signal.SIGKILL)

        with pytest.raises(RankLostError) as raised:
            read_on(stream)
        noticed_s = time.monotonic() - killed_s

        print(f"rank {victim}: noticed after {noticed_s * 1000:.0f} ms: {raised.value}")
        assert str(raised.value) == f"rank {victim} of 2 was lost (was killed by SIGKILL)"
        assert noticed_s < NOTICED_S
        assert not any(psutil.pid_exists(pid) for pid in pids)  # reaped, all of them
        with pytest.raises(RankLostError, match=f"rank {victim} of 2"):
            llm.generate("two", LONG)


@pytest.mark.usefixtures("nothing_left")
def test_a_rank_killed_among_many_that_share_cores_ends_the_group(smollm2_path: Path) -> None:
    with LLM(str(smollm2_path), devices=4, **LIMITS) as llm:
        pids: list[int] = llm._engine.executor.pids  # type: ignore[attr-defined]
        stream = llm.stream("one", LONG)
        next(stream)
        killed_s = time.monotonic()
        os.kill(pids[2], signal.SIGKILL)
        with pytest.raises(RankLostError, match=r"rank 2 of 4 was lost \(was killed by SIGKILL\)"):
            read_on(stream)
        assert time.monotonic() - killed_s < NOTICED_S
        assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_rank_killed_while_nothing_runs_is_noticed_without_a_request(smollm2_path: Path) -> None:
    engine = build_engine(EngineConfig(model=str(smollm2_path), devices=2, **LIMITS))
    pids: list[int] = engine.executor.pids  # type: ignore[attr-defined]
    front = AsyncEngine(engine)
    try:
        assert front.healthy
        os.kill(pids[1], signal.SIGKILL)
        noticed_s = wait_until(lambda: not front.healthy)
        print(f"noticed after {noticed_s * 1000:.0f} ms")
        assert noticed_s < NOTICED_S
        assert isinstance(front.failure, RankLostError)
        assert "rank 1 of 2" in str(front.failure)
        assert not any(psutil.pid_exists(pid) for pid in pids)
    finally:
        front.close()


def test_an_engine_that_is_closed_has_not_failed(smollm2_path: Path) -> None:
    engine = build_engine(EngineConfig(model=str(smollm2_path), devices=2, **LIMITS))
    engine.close()
    assert engine.executor.failure is None


@pytest.mark.parametrize("work", ["idle", "busy"])
def test_ranks_end_when_the_engine_is_killed(work: str, smollm2_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(smollm2_path), work], stdout=subprocess.PIPE, text=True
    ) as engine:
        try:
            assert engine.stdout
            watchdog = threading.Timer(GIVE_UP_S, engine.kill)
            watchdog.start()
            pids = [int(word) for word in engine.stdout.readline().split()]
            watchdog.cancel()
            assert len(pids) == 2
            assert not any(ended(pid) for pid in pids)
            if work == "busy":
                ranks = [psutil.Process(pid) for pid in pids]
                start = cpu_seconds(ranks)
                wait_until(lambda: cpu_seconds(ranks) > start + 0.2)  # steps run
        finally:
            engine.kill()
    gone_s = wait_until(lambda: all(ended(pid) for pid in pids))
    print(f"{work}: ranks gone after {gone_s * 1000:.0f} ms")
    assert gone_s < NOTICED_S


def test_engine_and_ranks_rest_while_nothing_runs(smollm2_path: Path) -> None:
    engine = build_engine(EngineConfig(model=str(smollm2_path), devices=2, **LIMITS))
    ranks = [psutil.Process(pid) for pid in engine.executor.pids]  # type: ignore[attr-defined]
    front = AsyncEngine(engine)
    try:
        processes = [psutil.Process(), *ranks]
        start_s, start_cpu_s = time.monotonic(), cpu_seconds(processes)
        threading.Event().wait(IDLE_S)  # what is measured is this time itself
        share = (cpu_seconds(processes) - start_cpu_s) / (time.monotonic() - start_s)
    finally:
        front.close()
    print(f"idle: {share:.2%} of one core")
    assert share < MAX_IDLE_SHARE
