"""Contestants take rotating turns, and a batch counts in the state that held before and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest

from fastserve.benchmark.placement import Placement, Probe, State
from fastserve.benchmark.turns import calls_for, take_turns


class Clock:
    """Seconds that pass only when a contestant runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call


def probing(*states: State) -> Probe:
    sequence: Iterator[State] = chain(states, repeat(states[-1]))
    return lambda: Placement(next(sequence))


def no_settling() -> None:
    pass


def test_seconds_are_per_call() -> None:
    clock = Clock()
    found = take_turns(
        {"ours": clock.taking(0.5), "theirs": clock.taking(2.0)},
        rounds=3,
        calls={"ours": 8, "theirs": 2},
        probe=probing("far"),
        clock=clock,
        settle=no_settling,
    )
    assert found.seconds == {"far": {"ours": [0.5] * 3, "theirs": [2.0] * 3}}
    assert found.ratio("far", "theirs", "ours") == 4.0


def test_order_rotates() -> None:
    order: list[str] = []
    take_turns(
        {name: (lambda name=name: order.append(name)) for name in "abc"},
        rounds=3,
        calls=1,
        probe=probing("near"),
        settle=no_settling,
    )
    assert "".join(order[::2]) == "abcbcacab"  # each call twice: one untimed, one timed


def test_batch_during_which_the_cores_moved_is_compared_with_nothing() -> None:
    clock = Clock()
    found = take_turns(
        {"ours": clock.taking(1.0), "theirs": clock.taking(1.0)},
        rounds=2,
        calls=1,
        probe=probing("near", "far", "far", "far", "far"),
        clock=clock,
        settle=no_settling,
    )
    assert found.seconds["moved"] == {"ours": [1.0]}
    assert found.comparable(("ours", "theirs")) == ["far"]


def test_states_that_one_contestant_never_saw_are_not_comparable() -> None:
    clock = Clock()
    found = take_turns(
        {"ours": clock.taking(1.0), "theirs": clock.taking(1.0)},
        rounds=1,
        calls=1,
        probe=probing("near", "near", "far", "far"),
        clock=clock,
        settle=no_settling,
    )
    assert found.comparable(("ours", "theirs")) == []


@pytest.mark.parametrize(("rounds", "calls", "named"), [(0, 1, "rounds"), (1, 0, "calls")])
def test_empty_measurements_are_refused(rounds: int, calls: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} must be >= 1"):
        take_turns({"ours": no_settling}, rounds=rounds, calls=calls, probe=probing("far"))


def test_calls_fill_a_batch() -> None:
    clock = Clock()
    assert calls_for(clock.taking(0.001), 0.1, clock) == 100
    assert calls_for(clock.taking(1.0), 0.1, clock) == 1
