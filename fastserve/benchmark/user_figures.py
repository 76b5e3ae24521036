"""What `fastserve bench` measures besides phases: drafts, the first token of a new process, clients over HTTP."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter

from fastserve.benchmark.peers import greedy, random_prompt
from fastserve.benchmark.served import running_server
from fastserve.benchmark.serving import (
    VOCAB_SIZE,
    ServingFigures,
    Trace,
    run_closed_loops,
    run_poisson_arrivals,
)
from fastserve.benchmark.speculation import KINDS, SpeculationBenchmark
from fastserve.config import EngineConfig

NUM_CLIENTS, NUM_REQUESTS = 16, 64
PROMPT_TOKENS, NEW_TOKENS = 128, 64
DRAFTED_TOKENS = 160  # of each text
START_PROMPT = "The history of the town begins with a bridge. " * 3  # some 32 tokens


def drafts(config: EngineConfig, rounds: int) -> Iterator[str]:
    """A line for each kind of text: with drafts against without."""
    params = replace(greedy(DRAFTED_TOKENS), ignore_eos=False)
    benchmark = SpeculationBenchmark(config, params)
    try:
        for kind in KINDS:
            yield f"drafts, {benchmark.compare(kind, rounds)}"
    finally:
        benchmark.close()


def first_token(model: str, options: Sequence[str], rounds: int) -> str:
    """The median, from the start of a process to its first token. Raises RuntimeError if it fails."""
    command = [
        sys.executable,
        "-m",
        "fastserve",
        "generate",
        "--model",
        model,
        "--max-tokens",
        "1",
        "--ignore-eos",
    ]
    command += [*options, START_PROMPT]
    seconds = []
    for _ in range(rounds + 1):  # the first brings the file into memory
        start = perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = process.stdout.read(1)
            seconds.append(perf_counter() - start)
            process.stdout.read()
        if process.returncode or not first:
            raise RuntimeError(f"fastserve generate ended with exit code {process.returncode}")
    return f"start to first token: {median(seconds[1:]):.2f} s"


def clients(model: str, options: Sequence[str]) -> Iterator[str]:
    """Streaming clients on the same cores: in closed loops, then by chance at half the rate that those reached."""
    chance = random.Random(0)

    def prompts(count: int) -> list[list[int]]:
        return [random_prompt(chance, PROMPT_TOKENS, VOCAB_SIZE) for _ in range(count)]

    def loops(url: str, count: int) -> list[Trace]:
        return run_closed_loops(url, prompts(count), num_clients=NUM_CLIENTS, max_tokens=NEW_TOKENS)

    with running_server(model, options) as served:
        loops(served.url, NUM_CLIENTS)
        figures = ServingFigures.of(loops(served.url, NUM_REQUESTS))
        load = f"{PROMPT_TOKENS} in / {NEW_TOKENS} out"
        yield f"HTTP, {NUM_CLIENTS} closed loops, {load}: {figures}"
        rate = figures.tokens_per_s / NEW_TOKENS / 2
        given = prompts(NUM_REQUESTS)
        figures = ServingFigures.of(
            run_poisson_arrivals(served.url, given, rate=rate, gaps=chance, max_tokens=NEW_TOKENS)
        )
        yield f"HTTP, Poisson at half that rate, {load}: {figures}"
