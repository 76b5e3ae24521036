"""Times calls on a GPU by the GPU's own clock, and whole engines by the wall's.

A contestant is the same call on several sets of operands. Its calls are recorded into one CUDA graph, one after the
other, and the graph is replayed between two events: what is timed is kernels and the gaps between them, and no
Python. The sets together are larger than the L2, but for calls so small that twenty of them fit: these are timed in
the L2, where the op before would have left their operands in a model as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch

from fastserve.benchmark.placement import Placement
from fastserve.benchmark.turns import Buckets, take_timed_turns

MIN_COPIES, MAX_COPIES = 2, 20  # of a call's operands
L2_SHARES = (
    3  # the copies together are as many times the L2: none of it is left when a copy's turn comes again
)
ROUNDS = 11

Run = Callable[[], object]


class Clock(Protocol):
    """The GPU's, or a test's."""

    def recorded(self, run: Run) -> Run:
        """What replays it."""

    def seconds(self, run: Run) -> float:
        """How long one run takes."""


class CudaClock:
    """On the current device."""

    def recorded(self, run: Run) -> Run:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile, NCCL's watchdog among them, is no part of it.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
        return graph.replay

    def seconds(self, run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


class WallClock:
    """For calls that return when their work is done."""

    def recorded(self, run: Run) -> Run:
        """As it is: what it does on the host is part of what is timed."""
        return run

    def seconds(self, run: Run) -> float:
        start = perf_counter()
        run()
        return perf_counter() - start


class Timed(Protocol):
    def batch(self, clock: Clock) -> Callable[[], float]:
        """What gives seconds of one call, again and again. Raises whatever the call does where it cannot run."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """`calls` do the same on different operands; capturable: none of them waits for the GPU."""

    calls: Sequence[Run]
    capturable: bool = True
    context: Callable[[], AbstractContextManager[object]] = nullcontext  # in which they are made

    def batch(self, clock: Clock) -> Callable[[], float]:
        """Seconds per call. What it calls has run once before, so that everything is compiled and loaded."""
        with self.context():
            self._run()
            run = clock.recorded(self._run) if self.capturable else self._run
        run()
        return lambda: clock.seconds(run) / len(self.calls)

    def _run(self) -> None:
        for call in self.calls:
            call()


def num_copies(num_bytes: float, l2_bytes: int) -> int:
    """How many sets of operands of that size a contestant walks over."""
    return max(MIN_COPIES, min(MAX_COPIES, math.ceil(L2_SHARES * l2_bytes / max(num_bytes, 1))))


def measure(
    contestants: Mapping[str, Timed], clock: Clock, *, rounds: int = ROUNDS
) -> tuple[Buckets, dict[str, str]]:
    """In turns; and by name the errors of those that cannot run. A graph's replay does not hang on where cores lie."""
    batches: dict[str, Callable[[], float]] = {}
    errors: dict[str, str] = {}
    for name, contestant in contestants.items():
        try:
            batches[name] = contestant.batch(clock)
        except Exception as error:  # whatever one library throws, the others are measured
            errors[name] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            )
    return take_timed_turns(
        batches, rounds=rounds, probe=lambda: Placement("single"), settle=lambda: None
    ), errors
