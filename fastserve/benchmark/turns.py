"""Measures contestants in turns, so that whatever the machine does to one it does to all.

A round gives every contestant one short batch, in an order that rotates, with a probe of the cores before and after
each batch. Batches are compared only inside the bucket of one placement state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter, sleep

from fastserve.benchmark.placement import Probe, State, bucket
from fastserve.benchmark.summary import Summary

# Threads of a peer's runtime may spin for milliseconds after its last call (libgomp: 300,000 pauses).
SETTLE_S = 0.02


@dataclass(frozen=True, slots=True)
class Buckets:
    """Seconds per call, by placement state and contestant.

    `contestants` has their order: a state may lack some, or hold them in the order of its first round.
    """

    contestants: tuple[str, ...]
    seconds: dict[State, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, state: State, name: str, seconds: float) -> None:
        self.seconds.setdefault(state, {}).setdefault(name, []).append(seconds)

    def comparable(self, names: tuple[str, ...]) -> list[State]:
        """The states in which every one of them was measured, the best covered first; never "moved"."""
        states = [
            state
            for state, found in self.seconds.items()
            if state != "moved" and all(found.get(name) for name in names)
        ]
        return sorted(states, key=lambda state: -min(len(self.seconds[state][name]) for name in names))

    @property
    def fastest_s(self) -> float:
        """The shortest time of any contestant in any state."""
        return min(min(times) for found in self.seconds.values() for times in found.values())

    def summary(self, state: State, name: str) -> Summary:
        return Summary.of(self.seconds[state][name])

    def ratio(self, state: State, baseline: str, name: str) -> float:
        """How many times faster than the baseline, by medians."""
        return self.summary(state, baseline).median / self.summary(state, name).median


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int | Mapping[str, int],
    probe: Probe,
    clock: Callable[[], float] = perf_counter,
    settle: Callable[[], None] = lambda: sleep(SETTLE_S),
) -> Buckets:
    """`rounds` batches of `calls` calls of every contestant, after one untimed call each time.

    Raises ValueError if rounds or calls is below 1.
    """
    per_batch = {name: calls if isinstance(calls, int) else calls[name] for name in contestants}
    if min(per_batch.values(), default=1) < 1:
        raise ValueError(f"calls must be >= 1, got {per_batch}")
    batches = {name: partial(_batch, call, per_batch[name], clock) for name, call in contestants.items()}
    return take_timed_turns(batches, rounds=rounds, probe=probe, settle=settle)


def take_timed_turns(
    contestants: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    probe: Probe,
    settle: Callable[[], None] = lambda: sleep(SETTLE_S),
) -> Buckets:
    """The same for contestants that do a batch of their own and return its seconds per call."""
    if rounds < 1:
        raise ValueError(f"rounds must be >= 1, got {rounds}")
    names = list(contestants)
    found = Buckets(tuple(names))
    for round_idx in range(rounds):
        for turn in range(len(names)):
            name = names[(round_idx + turn) % len(names)]
            settle()
            before = probe()
            seconds = contestants[name]()
            settle()
            found.add(bucket(before, probe()), name, seconds)
    return found


def _batch(call: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    call()
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def calls_for(
    call: Callable[[], object],
    batch_s: float,
    clock: Callable[[], float] = perf_counter,
    max_calls: int = 10_000,
) -> int:
    """How many calls fill a batch of that length."""
    call()
    calls = 1
    while True:
        start = clock()
        for _ in range(calls):
            call()
        elapsed = clock() - start
        if elapsed >= batch_s / 4 or calls >= max_calls:
            return max(1, min(max_calls, round(calls * batch_s / max(elapsed, 1e-9))))
        calls *= 4
