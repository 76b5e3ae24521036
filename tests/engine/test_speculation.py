"""An engine whose ranks draft: fewer steps, the same answers (fastserve.testing.fake_executor makes the drafts up)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fastserve.config import EngineConfig
from fastserve.engine.engine import Engine
from fastserve.engine.outputs import OutputBuilder
from fastserve.request import RequestOutput, SamplingParams
from fastserve.testing.fake_executor import FakeExecutor, FakeTokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)


def make_engine(*, makes_drafts: bool = True, speculation: str = "auto", **executor: Any) -> Engine:
    ranks = FakeExecutor(makes_drafts=makes_drafts, **executor)
    config = EngineConfig(
        max_num_tokens=ranks.max_num_tokens, max_num_seqs=ranks.max_slots, speculation=speculation, seed=0
    )  # type: ignore[arg-type]
    return Engine(ranks, FakeTokenizer(ranks.vocab_size), config)


def fake(engine: Engine) -> FakeExecutor:
    assert isinstance(engine.executor, FakeExecutor)
    return engine.executor


def run(
    engine: Engine, params: SamplingParams, prompts: Sequence[Sequence[int]] = ([1, 2, 3],)
) -> list[RequestOutput]:
    builders = {}
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params)
        builders[str(i)] = OutputBuilder.start(str(i), list(prompt), params.n)
    while engine.has_work:
        for delta in engine.step():
            builders[delta.request_id].apply(delta)
    return [builder.output for builder in builders.values()]


def test_drafts_that_are_right_save_steps() -> None:
    plain, drafts = make_engine(makes_drafts=False), make_engine()
    assert run(drafts, GREEDY) == run(plain, GREEDY)
    assert len(fake(drafts).steps) < 0.8 * len(fake(plain).steps)


def test_off_makes_no_drafts() -> None:
    engine = make_engine(speculation="off")
    run(engine, GREEDY)
    assert not fake(engine).drafted
    assert not any(opening.speculates for step in fake(engine).steps for opening in step.opened)


def test_ranks_that_cannot_draft_are_not_asked_to() -> None:
    engine = make_engine(makes_drafts=False)
    run(engine, GREEDY)
    assert not any(step.budgets for step in fake(engine).steps)


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_an_answer_ends_with_its_last_token_however_many_drafts_were_right(max_tokens: int) -> None:
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    (output,) = run(make_engine(), params)
    assert output.outputs[0].token_ids == run(make_engine(makes_drafts=False), params)[0].outputs[0].token_ids


@pytest.mark.parametrize("stop_at", range(2, 40, 3))
def test_what_was_accepted_behind_a_stop_is_dropped(stop_at: int) -> None:
    stop = run(make_engine(makes_drafts=False), GREEDY)[0].outputs[0].token_ids[stop_at]
    params = SamplingParams(temperature=0, max_tokens=60, stop_token_ids=[stop], logprobs=1)
    engine = make_engine()
    assert run(engine, params) == run(make_engine(makes_drafts=False), params)
    assert engine.num_free_blocks == fake(engine).num_blocks[0]


def test_a_request_that_fills_the_cache_drafts_to_its_end() -> None:
    engine = make_engine(num_blocks=(4,))
    params = SamplingParams(temperature=0, max_tokens=62, ignore_eos=True)
    assert len(run(engine, params)[0].outputs[0].token_ids) == 62
    assert fake(engine).drafted


def test_drafts_take_the_rows_that_others_leave() -> None:
    engine = make_engine(max_samples=3, max_slots=3, max_num_tokens=64)
    prompts = [[i, i + 1] for i in range(1, 3)]
    plain = make_engine(max_samples=3, max_slots=3, max_num_tokens=64, makes_drafts=False)
    assert run(engine, GREEDY, prompts) == run(plain, GREEDY, prompts)
    assert fake(engine).drafted  # of the one row that is left of three


def test_metrics_count_drafts_and_how_many_were_right() -> None:
    engine = make_engine()
    run(engine, GREEDY)
    value = engine.metrics.registry.get_sample_value
    drafted = sum(found.num_drafts for found in fake(engine).drafted)
    accepted = value("fastserve_spec_decode_num_accepted_tokens_total") or 0
    assert 0 < accepted < drafted
    assert 60 - 5 <= len(fake(engine).steps) + accepted <= 60 + 5
    assert (
        value("fastserve_spec_decode_num_draft_tokens_total") or 0
    ) <= drafted  # surplus steps do not count


def test_drafts_do_not_keep_prompts_waiting() -> None:
    def steps_until_all_run(*, makes_drafts: bool) -> int:
        engine = make_engine(makes_drafts=makes_drafts, max_num_tokens=32, max_samples=8, max_slots=8)
        drawn: set[str] = set()
        for i in range(8):
            engine.add_request(str(i), [i] * 30, GREEDY)
        while len(drawn) < 8:
            drawn |= {delta.request_id for delta in engine.step()}
        return len(fake(engine).steps)

    assert steps_until_all_run(makes_drafts=True) <= steps_until_all_run(makes_drafts=False) + 1
