"""What a group of devices is measured by: against one device of as many cores, uneven, and with a rank that is lost."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastserve.benchmark.contestants import OURS
from fastserve.benchmark.placement import Probe
from fastserve.benchmark.turns import Buckets, take_timed_turns
from fastserve.llm import LLM
from fastserve.request import SamplingParams
from fastserve.testing.faults import Fault, committing
from fastserve.worker.group_executor import GroupExecutor

PROMPT = "Write a story about a lighthouse keeper who finds a letter."
LIMITS: dict[str, Any] = {"max_model_len": 1024, "kv_cache_bytes": 512 << 20, "speculation": "off"}
NUM_STREAMS = 16
STREAM_TOKENS = 128
SLOWNESS = 2.0


@dataclass(frozen=True, slots=True)
class GroupCase:
    """A comparison of two ways to run the same model; `num_prompts` at a time, `num_tokens` each."""

    op: str
    ours: Mapping[str, Any]
    theirs: Mapping[str, Any]
    baseline: str
    num_prompts: int
    num_tokens: int
    faults: tuple[Fault, ...] = ()
    dtype: str = "per token"
    num_bytes: int | None = None

    @property
    def shape(self) -> str:
        return f"{self.num_prompts} x {self.num_tokens} tokens"

    def measure(self, model: str, *, rounds: int, probe: Probe) -> Buckets:
        """Seconds per token, of both in turns; both are loaded all the while."""
        sampling = SamplingParams(temperature=0, max_tokens=self.num_tokens, ignore_eos=True)
        with ExitStack() as stack:
            stack.enter_context(committing(*self.faults))
            batches = {}
            for name, options in ((OURS, self.ours), (self.baseline, self.theirs)):
                llm = stack.enter_context(LLM(model, **LIMITS, **options))
                llm.generate(PROMPT, sampling)
                batches[name] = partial(_seconds_per_token, llm, [PROMPT] * self.num_prompts, sampling)
            return take_timed_turns(batches, rounds=rounds, probe=probe)


def _seconds_per_token(llm: LLM, prompts: list[str], sampling: SamplingParams) -> float:
    start = time.perf_counter()
    llm.generate(prompts, sampling)
    return (time.perf_counter() - start) / (len(prompts) * (sampling.max_tokens or 1))


CASES = {
    "two_devices": GroupCase(
        op="decode, 2 devices",
        ours={"devices": 2, "num_threads": 1},
        theirs={"devices": 1, "num_threads": 2},
        baseline="1 device of 2 threads",
        num_prompts=1,
        num_tokens=128,
    ),
    "slow_rank": GroupCase(
        op=f"decode, a rank {SLOWNESS:g}x slower",
        ours={"devices": 2, "num_threads": 1, "shares": "auto"},
        theirs={"devices": 2, "num_threads": 1, "shares": "equal"},
        baseline="equal shares",
        num_prompts=16,
        num_tokens=32,
        faults=(Fault(rank=1, action="slow", call=0, amount=SLOWNESS, epoch=0),),
    ),
}


@dataclass(frozen=True, slots=True)
class Kill:
    """One rank killed while streams run."""

    noticed_s: float  # until the group was known not to be whole
    pause_s: float  # from when the engine knew of the loss until the group was whole
    num_lost: int
    num_equal: int  # answers with the undisturbed run's tokens


def kills(model: str, *, count: int, on_loss: str = "respawn", seed: int = 0) -> Iterator[Kill]:
    """Kills a rank of two at a random moment of 16 streams, so many times. Answers are greedy."""
    sampling = SamplingParams(temperature=0, max_tokens=STREAM_TOKENS, ignore_eos=True)
    prompts = [f"{PROMPT} Number {i}." for i in range(NUM_STREAMS)]
    chance = random.Random(seed)
    with LLM(model, devices=2, num_threads=1, shares="equal", on_loss=on_loss, **LIMITS) as llm:
        undisturbed = [output.outputs[0].token_ids for output in llm.generate(prompts, sampling)]
        start = time.perf_counter()
        llm.generate(prompts, sampling)
        whole_s = time.perf_counter() - start
        for _ in range(count):
            with _killing(llm, whole_s * chance.uniform(0.1, 0.8), chance.randrange(2)) as noticed_s:
                before_s = _recovery_s(llm)
                outputs = llm.generate(prompts, sampling)
            tokens = [output.outputs[0].token_ids for output in outputs]
            yield Kill(
                noticed_s=noticed_s(),
                pause_s=_recovery_s(llm) - before_s,
                num_lost=sum(len(found) != STREAM_TOKENS for found in tokens),
                num_equal=sum(a == b for a, b in zip(tokens, undisturbed, strict=True)),
            )


def _recovery_s(llm: LLM) -> float:
    """Seconds that all recoveries have taken, from the loss to a whole group."""
    return llm._engine.metrics.recovery.sum


@contextmanager
def _killing(llm: LLM, after_s: float, rank: int) -> Iterator[Callable[[], float]]:
    """Kills the rank so long after the block has begun; what it yields says how soon that was noticed."""
    executor = llm._engine.executor
    assert isinstance(executor, GroupExecutor)
    noticed: list[float] = []

    def run() -> None:
        time.sleep(after_s)
        os.kill(executor.pids[rank], signal.SIGKILL)
        start = time.perf_counter()
        while executor.pids and time.perf_counter() - start < 60:
            time.sleep(0.0005)
        noticed.append(time.perf_counter() - start)

    killer = threading.Thread(target=run)
    killer.start()
    try:
        yield lambda: noticed[0]
    finally:
        killer.join()
