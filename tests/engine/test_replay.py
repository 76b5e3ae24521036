"""A rank lost at any point costs time and nothing else: every answer is what it would have been."""

from __future__ import annotations

from typing import Any

import pytest

from fastserve.config import EngineConfig
from fastserve.engine.engine import Engine
from fastserve.engine.outputs import OutputBuilder
from fastserve.errors import RankLostError
from fastserve.request import RequestOutput, SamplingParams
from fastserve.testing.fake_executor import FakeExecutor, FakeTokenizer

REQUESTS: dict[str, tuple[list[int], SamplingParams]] = {
    "long": (list(range(1, 100)), SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)),
    "scored": (
        list(range(1, 60)),
        SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, prompt_logprobs=1, logprobs=2),
    ),
    "many": ([5, 6, 7], SamplingParams(temperature=1, seed=3, n=3, max_tokens=12, ignore_eos=True)),
    "one": ([9] * 20, SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)),
    "stopped": ([8, 8], SamplingParams(temperature=1, seed=8, max_tokens=40)),
}
OPTIONS = {"max_num_tokens": 32, "max_num_seqs": 6}


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.25
        return self.now_s


def make_engine(
    losses: set[tuple[str, int]], *, num_blocks: int = 14, makes_drafts: bool = False, **options: Any
) -> Engine:
    executor = FakeExecutor(
        num_blocks=(num_blocks,), max_num_tokens=32, max_samples=8, makes_drafts=makes_drafts
    )
    executor.losses = set(losses)
    config = EngineConfig(**{**OPTIONS, "seed": 0, **options})
    return Engine(executor, FakeTokenizer(executor.vocab_size), config, clock=Clock())


def fake(engine: Engine) -> FakeExecutor:
    assert isinstance(engine.executor, FakeExecutor)
    return engine.executor


def answers(
    engine: Engine, requests: dict[str, tuple[list[int], SamplingParams]] = REQUESTS
) -> dict[str, RequestOutput]:
    builders = {}
    for name, (prompt, params) in requests.items():
        engine.add_request(name, prompt, params)
        builders[name] = OutputBuilder.start(name, prompt, params.n)
    for _ in range(1000):
        if not engine.has_work:
            break
        for delta in engine.step():
            builders[delta.request_id].apply(delta)
    assert not engine.has_work
    assert engine.num_free_blocks == fake(engine).num_blocks[0]
    return {name: builder.output for name, builder in builders.items()}


UNDISTURBED = answers(make_engine(set()))
NUM_STEPS = 55


@pytest.mark.parametrize("at", ["submit", "collect"])
@pytest.mark.parametrize("step", range(NUM_STEPS))
def test_answers_are_the_same_whenever_a_rank_is_lost(at: str, step: int) -> None:
    engine = make_engine({(at, step)})
    assert answers(engine) == UNDISTURBED
    assert fake(engine).num_recoveries == (not fake(engine).losses)


@pytest.mark.parametrize("at", ["submit", "collect"])
@pytest.mark.parametrize("step", range(30))  # drafts save the others
def test_answers_are_the_same_whenever_a_rank_is_lost_with_drafts_under_way(at: str, step: int) -> None:
    engine = make_engine({(at, step)}, makes_drafts=True)
    assert answers(engine) == UNDISTURBED
    assert fake(engine).num_recoveries == 1
    assert fake(engine).drafted


def test_most_steps_of_these_tests_do_lose_a_rank() -> None:
    engine = make_engine(set())
    answers(engine)
    assert 50 <= len(fake(engine).steps) <= NUM_STEPS


def test_a_rank_lost_again_and_again() -> None:
    engine = make_engine({(at, step) for at in ("submit", "collect") for step in range(3, 200, 5)})
    assert answers(engine) == UNDISTURBED
    assert fake(engine).num_recoveries > 10


def test_a_second_loss_before_anything_ran_again() -> None:
    engine = make_engine({("collect", 5), ("submit", 7), ("submit", 8), ("collect", 9)})
    assert answers(engine) == UNDISTURBED
    assert fake(engine).num_recoveries == 4


def test_the_shortest_are_computed_again_first() -> None:
    engine = make_engine({("collect", 8)}, max_num_seqs=4)
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    for name, length in (("a", 40), ("b", 5), ("c", 20)):
        engine.add_request(name, [1] * length, params)
    before = 0
    while not fake(engine).num_recoveries:
        before = len(fake(engine).steps)
        engine.step()
    engine.step()
    chunks = [chunk for step in fake(engine).steps[before:] for chunk in step.chunks]
    lengths = [sum(len(chunk.token_ids) for chunk in chunks if chunk.slot == slot) for slot in (0, 1, 2)]
    assert [chunk.slot for chunk in chunks][:2] == [0, 1]
    assert lengths[0] < lengths[1]  # b, then c, then what fits of a


def test_a_request_aborted_while_its_draw_is_lost_stays_ended() -> None:
    engine = make_engine({("collect", 3)})
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    engine.add_request("stays", [1, 2], params)
    engine.add_request("goes", [3, 4], params)
    engine.step()
    engine.abort("goes")
    seen = set()
    while engine.has_work:
        seen |= {delta.request_id for delta in engine.step()}
    assert seen == {"stays"}
    assert fake(engine).num_recoveries == 1


def test_what_was_preempted_is_not_forgotten() -> None:
    growing = {
        f"r{i}": ([i], SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)) for i in range(5)
    }
    engine = make_engine({("collect", step) for step in range(20, 400, 37)}, num_blocks=8)
    assert answers(engine, growing) == answers(make_engine(set()), growing)
    assert fake(engine).num_recoveries > 2
    assert (engine.metrics.registry.get_sample_value("fastserve_num_preemptions_total") or 0) > 0
    assert (engine.metrics.registry.get_sample_value("fastserve_num_preemptions_total") or 0) > 0


def test_a_group_that_cannot_go_on_fails_the_engine() -> None:
    engine = make_engine(set())
    engine.add_request("r", [1], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    engine.step()
    fake(engine).lost = "rank 1 was lost for good"
    with pytest.raises(RankLostError, match="for good"):
        engine.step()


def test_losses_are_counted_and_timed() -> None:
    engine = make_engine({("collect", 5)})
    answers(engine)
    value = engine.metrics.registry.get_sample_value
    assert value("fastserve_recoveries_total") == 1
    assert (value("fastserve_requests_replayed_total") or 0) >= 2
    assert (value("fastserve_recovery_seconds_sum") or 0) > 0
