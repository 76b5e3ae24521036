"""Whole engines on GPUs, by the wall clock: decode, prefill and the first token; with one GPU, and with all there are.

A step of decode is timed by difference: a call that draws many tokens, less one that draws the first of them, is as
many steps as there are tokens more. So an engine needs no other door than the one that callers use.
"""

from __future__ import annotations

import importlib.util
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from fastserve.benchmark.gpu_lines import Device, Failure, GpuLine, Measured
from fastserve.benchmark.gpu_theory import Work
from fastserve.benchmark.gpu_timer import Clock, measure
from fastserve.benchmark.peers import random_prompt
from fastserve.benchmark.step_theory import StepTheory
from fastserve.benchmark.whole_engines import FastServe, OwnEngine, Vllm, WholeEngine
from fastserve.distributed.rank_program import OpenModel, open_model

ROUNDS = 5
SHORT_PROMPT = 32  # tokens
DECODE_STEPS = 96
MEASURING_S = 8.0  # kept back from engines that start slowly

E = TypeVar("E", bound=WholeEngine)
OpenOwn = Callable[[Path, int], OwnEngine]
OpenPeer = Callable[[Path, int], WholeEngine]


class SlowStartError(Exception):
    """No TimeoutError: that is an OSError, and what starts an engine may take those for a rank's."""


@dataclass(frozen=True, slots=True)
class EngineCase:
    """decode_steps: 0 times the call that draws the first tokens."""

    op: str
    num_streams: int
    prompt_tokens: int
    decode_steps: int = 0

    @property
    def num_tokens(self) -> int:
        """That a timed step brings."""
        return self.num_streams * (1 if self.decode_steps else self.prompt_tokens)

    def work(self, theory: StepTheory) -> Work:
        """Of a decode step: of the one in the middle."""
        shape = f"{self.num_streams} x {self.prompt_tokens} tokens, {shape_of(theory.num_gpus)}"
        rows, context = self.prompt_tokens, 0.0
        if self.decode_steps:
            rows, context = 1, self.prompt_tokens + (self.decode_steps - 1) / 2
        return theory.step(self.op, shape, num_streams=self.num_streams, rows=rows, context=context)


CASES = (
    EngineCase("decode", 1, SHORT_PROMPT, DECODE_STEPS),
    EngineCase("decode", 64, SHORT_PROMPT, DECODE_STEPS),
    EngineCase("prefill", 1, 2048),
    EngineCase("prefill", 1, 512),
    EngineCase("first token", 1, SHORT_PROMPT),
)


@dataclass(frozen=True, slots=True)
class TimedEngine:
    """A case on one engine, with prompts that it has not seen."""

    engine: WholeEngine
    case: EngineCase
    draw_prompt: Callable[[int], list[int]]

    def batch(self, clock: Clock) -> Callable[[], float]:
        self._seconds(clock)  # kernels for these shapes are compiled
        return lambda: self._seconds(clock)

    def _seconds(self, clock: Clock) -> float:
        first_s = self._generate_s(clock, 1)
        if not self.case.decode_steps:
            return first_s
        return (self._generate_s(clock, 1 + self.case.decode_steps) - first_s) / self.case.decode_steps

    def _generate_s(self, clock: Clock, num_tokens: int) -> float:
        prompts = [self.draw_prompt(self.case.prompt_tokens) for _ in range(self.case.num_streams)]
        return clock.seconds(lambda: self.engine.generate(prompts, num_tokens))


@dataclass(frozen=True, slots=True)
class Opened:
    """Engines that hold a model at the same time; `own` names ours."""

    own: str
    engines: Mapping[str, WholeEngine]
    theory: StepTheory
    dtype: str  # of the weights
    random_ids: random.Random

    @classmethod
    def on(cls, path: Path, own: OwnEngine, engines: Mapping[str, WholeEngine], num_gpus: int) -> Self:
        model = open_model(str(path))
        theory = StepTheory(model.config, max(own.packed_bytes), num_gpus)
        return cls(own.name, engines, theory, weight_type(model), random.Random(num_gpus))

    def timed(self, case: EngineCase) -> dict[str, TimedEngine]:
        return {name: TimedEngine(engine, case, self._prompt) for name, engine in self.engines.items()}

    def _prompt(self, num_tokens: int) -> list[int]:
        return random_prompt(self.random_ids, num_tokens, self.theory.config.vocab_size)


def installed_peers() -> dict[str, OpenPeer]:
    return {"vllm": Vllm} if importlib.util.find_spec("vllm") is not None else {}


@dataclass(frozen=True, slots=True)
class EngineRun:
    """Ours and its peers on one model; they take turns."""

    path: Path
    device: Device
    clock: Clock
    open_own: OpenOwn = FastServe
    peers: Mapping[str, OpenPeer] = field(default_factory=installed_peers)
    rounds: int = ROUNDS
    monotonic: Callable[[], float] = time.monotonic

    def lines(self, deadline: float) -> Iterator[GpuLine | Failure]:
        """With one GPU and with all, which share the time left; nothing is begun after the deadline, of that clock."""
        sizes = sorted({1, self.device.num_gpus})
        for num_left, num_gpus in zip(range(len(sizes), 0, -1), sizes, strict=True):
            now = self.monotonic()
            yield from self._with_gpus(num_gpus, now + (deadline - now) / num_left)

    def _with_gpus(self, num_gpus: int, end: float) -> Iterator[GpuLine | Failure]:
        def failure(name: str, error: Exception) -> Failure:
            return Failure("model", "all", shape_of(num_gpus), name, f"{type(error).__name__}: {error}")

        engines: dict[str, WholeEngine] = {}
        with ExitStack() as stack:
            try:
                own = self._opened(self.open_own, num_gpus, end)
            except Exception as error:  # fewer heads than GPUs, say
                yield failure("fastserve", error)
                return
            engines[own.name] = own
            stack.callback(own.close)
            for name, open_peer in self.peers.items():
                try:
                    peer = self._opened(open_peer, num_gpus, end)
                except Exception as error:  # whatever one engine throws, the others are measured
                    yield failure(name, error)
                    continue
                engines[peer.name] = peer
                stack.callback(peer.close)
            yield from self._measured(Opened.on(self.path, own, engines, num_gpus), end)

    def _opened(self, opener: Callable[[Path, int], E], num_gpus: int, end: float) -> E:
        """Raises SlowStartError where too little time would be left to measure with it."""
        with time_limit(end - MEASURING_S - self.monotonic()):
            return opener(self.path, num_gpus)

    def _measured(self, opened: Opened, end: float) -> Iterator[GpuLine | Failure]:
        for case in CASES:
            work = case.work(opened.theory)
            if self.monotonic() > end:
                yield Failure("model", work.op, work.shape, "all", "not reached in time")
                continue
            try:
                buckets, errors = measure(opened.timed(case), self.clock, rounds=self.rounds)
            except Exception as error:  # an engine that broke after its first calls
                yield Failure("model", work.op, work.shape, "all", f"{type(error).__name__}: {error}")
                continue
            own = (opened.own,)
            measured = Measured("model", work, opened.dtype, own, buckets, errors, num_tokens=case.num_tokens)
            yield from measured.lines(self.device)


def shape_of(num_gpus: int) -> str:
    return f"{num_gpus} GPU{'s' if num_gpus > 1 else ''}"


def weight_type(model: OpenModel) -> str:
    """Of the file's matrices, by bytes."""
    num_bytes = Counter[str]()
    for tensor in model.file.tensors.values():
        if len(tensor.shape) == 2:
            num_bytes[tensor.type_name] += tensor.nbytes
    return num_bytes.most_common(1)[0][0]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises SlowStartError inside, in the main thread, when the time is over."""

    def ring(*_: object) -> None:
        raise SlowStartError(f"not ready after {max(seconds, 0):.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))  # 0 would be: never
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
