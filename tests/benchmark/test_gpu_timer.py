from __future__ import annotations

from collections.abc import Callable

import pytest

from fastserve.benchmark import gpu_timer
from fastserve.benchmark.gpu_timer import MAX_COPIES, MIN_COPIES, Contestant, WallClock, measure, num_copies

from .fake_gpu import FakeClock


def taking(clock: FakeClock, seconds: float) -> Callable[[], None]:
    def call() -> None:
        clock.now += seconds

    return call


def fail() -> None:
    raise RuntimeError("out of memory\nand more of it")


def test_seconds_are_those_of_one_call_among_all_copies() -> None:
    clock = FakeClock(per_run_s=0.0)
    contestants = {
        "ours": Contestant([taking(clock, 1.0), taking(clock, 3.0)]),
        "theirs": Contestant([taking(clock, 8.0)] * 5),
    }
    buckets, errors = measure(contestants, clock, rounds=3)
    assert errors == {}
    assert buckets.seconds == {"single": {"ours": [2.0] * 3, "theirs": [8.0] * 3}}
    assert buckets.ratio("single", "theirs", "ours") == 4.0


def test_what_waits_for_the_gpu_is_not_recorded() -> None:
    clock = FakeClock()
    measure(
        {"a": Contestant([lambda: None]), "b": Contestant([lambda: None], capturable=False)}, clock, rounds=1
    )
    assert clock.num_recorded == 1


def test_a_call_is_compiled_before_it_is_recorded() -> None:
    clock = FakeClock()
    seen: list[bool] = []
    Contestant([lambda: seen.append(clock.recording)]).batch(clock)
    assert seen == [False, True, False]


def test_what_cannot_run_is_named_and_the_others_are_measured() -> None:
    clock = FakeClock()
    buckets, errors = measure(
        {"ours": Contestant([fail]), "theirs": Contestant([lambda: None])}, clock, rounds=2
    )
    assert errors == {"ours": "RuntimeError: out of memory"}
    assert buckets.contestants == ("theirs",)
    assert buckets.seconds == {"single": {"theirs": [1.0, 1.0]}}


def test_the_walls_clock_runs_what_it_is_given_and_says_how_long_it_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock(per_run_s=0.0)
    monkeypatch.setattr(gpu_timer, "perf_counter", lambda: clock.now)
    wall = WallClock()
    assert wall.seconds(wall.recorded(taking(clock, 2.5))) == 2.5


@pytest.mark.parametrize(("num_bytes", "copies"), [(1, MAX_COPIES), (30, 10), (31, 10), (1000, MIN_COPIES)])
def test_copies_are_larger_than_the_l2_together(num_bytes: int, copies: int) -> None:
    assert num_copies(num_bytes, l2_bytes=100) == copies
