"""Prefill and decode of a user's own model, by the timeline of the program that runs it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fastserve import _C
from fastserve.benchmark.peers import greedy, random_prompt
from fastserve.benchmark.timeline import Pass, take_passes
from fastserve.engine.engine import Engine
from fastserve.llm import LLM


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one phase: medians over rounds."""

    name: str  # "decode, 16 together"
    tokens_per_s: float
    passes: list[Pass]  # of all rounds
    scheduling_share: float | None = None  # of a step's time: choosing and writing the next one meanwhile


class ModelPhases:
    """Runs an engine of one device. `program` is the one that it replays; its timeline is turned on."""

    def __init__(self, llm: LLM, program: _C.Program, engine: Engine, *, seed: int = 0) -> None:
        self._llm = llm
        self._program = program
        self._engine = engine
        self._vocab_size = engine.executor.vocab_size
        self._random = random.Random(seed)
        program.record_timeline()

    def prefill(self, num_tokens: int, rounds: int) -> Rate:
        """Of one prompt, from the begin of its first step to the end of the one that draws."""
        self._run(1, num_tokens, 1)
        found = [self._run(1, num_tokens, 1) for _ in range(rounds)]
        rates = [num_tokens / (passes[-1].spans[-1].end - passes[0].spans[0].begin) for passes in found]
        return Rate(
            f"prefill, {num_tokens} tokens", median(rates), [one for passes in found for one in passes]
        )

    def decode(self, batch: int, context: int, new_tokens: int, rounds: int) -> Rate:
        """Of `batch` sequences together: from the first step in which all draw to the last one."""
        self._run(batch, context, new_tokens)
        before = self._scheduling()
        found = [self._together(batch, context, new_tokens) for _ in range(rounds)]
        scheduling_s, num_steps = (now - then for now, then in zip(self._scheduling(), before, strict=True))
        rates = [
            batch * (len(passes) - 1) / (passes[-1].spans[0].begin - passes[0].spans[0].begin)
            for passes in found
        ]
        passes = [one for passes in found for one in passes]
        step_s = median(one.seconds for one in passes)
        return Rate(f"decode, {batch} together", median(rates), passes, scheduling_s / num_steps / step_s)

    def _scheduling(self) -> tuple[float, float]:
        """Seconds and steps, so far."""
        metrics = self._engine.metrics
        return metrics.scheduling.value, metrics.steps.value

    def _together(self, batch: int, context: int, new_tokens: int) -> list[Pass]:
        return [
            one
            for one in self._run(batch, context, new_tokens)
            if one.phase == "decode" and one.num_tokens == batch
        ]

    def _run(self, batch: int, context: int, new_tokens: int) -> list[Pass]:
        prompts: Sequence[list[int]] = [
            random_prompt(self._random, context, self._vocab_size) for _ in range(batch)
        ]
        self._llm.generate(prompts, greedy(new_tokens))
        return take_passes(self._program)
