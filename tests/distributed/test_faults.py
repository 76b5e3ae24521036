"""What is killed, stopped or slow, and what everybody else does then: no answer changes, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastserve import LLM, RequestOutput, SamplingParams
from fastserve.config import EngineConfig
from fastserve.engine.async_engine import AsyncEngine
from fastserve.engine.build import build_engine
from fastserve.errors import GroupError, RankLostError
from fastserve.testing.faults import Fault, committing

LIMITS: dict[str, Any] = {"max_model_len": 4096, "kv_cache_bytes": 512 << 20, "shares": "equal"}
LONG = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)  # far longer than a test takes
NOTICED_S = 1.0
HEARTBEAT_S = 1.0
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


def answers(llm: LLM, prompts: list[str], params: SamplingParams) -> list[RequestOutput]:
    """Without the requests' names, which count up."""
    return [replace(output, request_id="") for output in llm.generate(prompts, params)]


def epoch_of(llm: LLM) -> int:
    epoch = llm._engine.executor._group.epoch  # type: ignore[attr-defined]
    return 0 if epoch is None else int(epoch.number)


PROMPTS = ["Once upon a time", "The capital of France is", "one two three"]
SAMPLED = SamplingParams(temperature=0.8, seed=5, max_tokens=24, ignore_eos=True, logprobs=2)
FAULTS = {
    "before an op": [Fault(rank=1, action="kill", op="matmul_all_reduce", call=400)],
    "in the middle of a ring": [Fault(rank=1, action="kill", op="matmul_all_reduce", call=401, segment=2)],
    "rank 0, while it samples": [Fault(rank=0, action="kill", op="sample", call=7)],
    "in the first step": [Fault(rank=1, action="kill", op="embed")],
    "two at once": [
        Fault(rank=0, action="kill", op="matmul_all_reduce", call=300, segment=1),
        Fault(rank=1, action="kill", op="matmul_all_reduce", call=300, segment=1),
    ],
    "again in the first step of the next epoch": [
        Fault(rank=1, action="kill", op="sample", call=5),
        Fault(rank=0, action="kill", op="matmul_all_reduce", call=3, segment=2, epoch=2),
    ],
    "stopped": [Fault(rank=1, action="stop", op="matmul_all_reduce", call=400, segment=2)],
    "merely late": [Fault(rank=1, action="delay", op="rotary_store_kv", call=100, amount=0.2)],
    "merely slow": [Fault(rank=1, action="slow", call=0, amount=2)],
}
NO_LOSS = ("merely late", "merely slow")


@pytest.fixture(scope="module")
def expected(smollm2_path: Path) -> list[RequestOutput]:
    with LLM(str(smollm2_path), devices=2, **LIMITS) as llm:
        return answers(llm, PROMPTS, SAMPLED)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_the_answers_are_the_same_bits_whatever_happens_to_a_rank(
    faults: list[Fault], expected: list[RequestOutput], smollm2_path: Path, request: pytest.FixtureRequest
) -> None:
    with committing(*faults), LLM(str(smollm2_path), devices=2, heartbeat_s=HEARTBEAT_S, **LIMITS) as llm:
        assert answers(llm, PROMPTS, SAMPLED) == expected
        epochs = 1 if request.node.callspec.id in NO_LOSS else 1 + max(fault.epoch for fault in faults)
        assert epoch_of(llm) == epochs


@pytest.mark.usefixtures("nothing_left")
def test_a_rank_killed_among_many_that_share_cores_is_replaced(smollm2_path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    with LLM(str(smollm2_path), devices=4, **LIMITS) as llm:
        expected = answers(llm, PROMPTS, params)
    fault = Fault(rank=2, action="kill", op="matmul_all_reduce", call=300, segment=1)
    with committing(fault), LLM(str(smollm2_path), devices=4, **LIMITS) as llm:
        assert answers(llm, PROMPTS, params) == expected
        assert epoch_of(llm) == 2


@pytest.mark.usefixtures("nothing_left")
def test_a_killed_rank_is_noticed_at_once_and_reaped(smollm2_path: Path) -> None:
    with LLM(str(smollm2_path), devices=2, **LIMITS) as llm:
        stream = llm.stream("one", LONG)
        next(stream)
        survivor, victim = llm._engine.executor.pids  # type: ignore[attr-defined]
        os.kill(victim, signal.SIGKILL)
        noticed_s = wait_until(lambda: epoch_of(llm) != 1)
        assert not psutil.pid_exists(victim)
        next(stream)  # goes on
        pids = llm._engine.executor.pids  # type: ignore[attr-defined]
        stream.close()
    print(f"noticed after {noticed_s * 1000:.0f} ms")
    assert noticed_s < NOTICED_S
    assert pids[0] == survivor  # which kept its weights
    assert pids[1] != victim


@pytest.mark.usefixtures("nothing_left")
def test_a_rank_killed_while_it_takes_the_place_of_another_is_replaced_too(smollm2_path: Path) -> None:
    with LLM(str(smollm2_path), devices=2, **LIMITS) as llm:
        stream = llm.stream("one", SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))
        next(stream)
        pids = llm._engine.executor.pids  # type: ignore[attr-defined]
        os.kill(pids[1], signal.SIGKILL)
        us = psutil.Process()
        wait_until(lambda: bool({child.pid for child in us.children()} - set(pids)))
        for child in us.children():
            if child.pid not in pids:
                child.kill()
        *_, last = stream
        assert len(last.outputs[0].token_ids) == 60
        assert epoch_of(llm) == 3


@pytest.mark.usefixtures("nothing_left")
def test_a_group_that_shrinks_goes_on_and_grows_back(smollm2_path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    fault = Fault(rank=0, action="kill", op="matmul_all_reduce", call=500, segment=2)
    options = {"on_loss": "shrink", "speculation": "off", **LIMITS}  # a token a step: they are counted
    with committing(fault), LLM(str(smollm2_path), devices=2, **options) as llm:
        stream = llm.stream("one", params)
        sizes = [len(llm._engine.executor.pids) for _ in stream]  # type: ignore[attr-defined]
        assert len(sizes) == 200
        assert sizes[0] == 2
        assert 1 in sizes
        wait_until(lambda: len(llm._engine.executor.pids) == 2)  # type: ignore[attr-defined]
        assert len(llm.generate("one", params)[0].outputs[0].token_ids) == 200


def test_a_rank_killed_while_nothing_runs_is_replaced_without_a_request(smollm2_path: Path) -> None:
    engine = build_engine(EngineConfig(model=str(smollm2_path), devices=2, **LIMITS))
    front = AsyncEngine(engine)
    executor: Any = engine.executor
    try:
        before = executor.pids
        os.kill(before[1], signal.SIGKILL)
        wait_until(lambda: executor.pids not in (before, []))
        assert front.healthy

        async def ask() -> int:
            outputs = front.generate(
                [1, 2, 3], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True), "r"
            )
            return len([output async for output in outputs])

        assert asyncio.run(ask()) > 0
    finally:
        front.close()


@pytest.mark.usefixtures("nothing_left")
def test_a_group_that_cannot_go_on_says_why(smollm2_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(smollm2_path, path)
    with LLM(str(path), devices=2, **LIMITS) as llm:
        stream = llm.stream("one", LONG)
        next(stream)
        path.unlink()
        os.kill(llm._engine.executor.pids[1], signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(
            RankLostError, match=r"rank 1 of 2 was lost \(was killed by SIGKILL\), and the group"
        ) as raised:
            read_on(stream)
        assert str(path) in str(raised.value)
        assert not psutil.Process().children()


@pytest.mark.usefixtures("nothing_left")
def test_a_request_that_kills_its_rank_every_time_ends_in_an_error(smollm2_path: Path) -> None:
    fault = Fault(rank=1, action="kill", op="sample", call=1, epoch=0)
    with (
        committing(fault),
        LLM(str(smollm2_path), devices=2, **LIMITS) as llm,
        pytest.raises(RankLostError, match="5 times in a row before a step was done"),
    ):
        llm.generate("one", SAMPLED)


def test_faults_of_ops_that_do_not_exist_are_refused(smollm2_path: Path) -> None:
    with committing(Fault(rank=0, action="kill", op="matmull")), pytest.raises(GroupError, match="matmull"):
        LLM(str(smollm2_path), devices=2, **LIMITS)


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
