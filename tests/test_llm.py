"""The offline entry over ranks without a model."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from fastserve import LLM, RequestOutput, SamplingParams
from fastserve.config import EngineConfig
from fastserve.engine.engine import Engine
from fastserve.errors import CapacityError
from fastserve.step import StepResult
from fastserve.testing.fake_executor import FakeExecutor, FakeTokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


class FakeTemplate:
    def render_ids(self, messages: list[dict[str, str]], tokenizer: FakeTokenizer) -> list[int]:
        return tokenizer.encode("".join(f"{m['role']}:{m['content']};" for m in messages), add_special=False)


def make_llm(*, template: FakeTemplate | None = None, **options: Any) -> LLM:
    config = EngineConfig(**{"seed": 0, **options})
    return LLM.from_engine(Engine(FakeExecutor(), FakeTokenizer(), config, chat_template=template))


@pytest.fixture
def llm() -> Iterator[LLM]:
    with make_llm(template=FakeTemplate()) as llm:
        yield llm


def tokens(output: RequestOutput) -> list[int]:
    return output.outputs[0].token_ids


def test_answers_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = ["one", "two", "three"]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in outputs] == prompts
    assert all(output.finished for output in outputs)
    assert [tokens(output) for output in outputs] == [tokens(llm.generate(p, GREEDY)[0]) for p in prompts]


def test_token_ids_are_a_prompt_too(llm: LLM) -> None:
    text = llm.generate("one", GREEDY)[0]
    for prompts in ([text.prompt_token_ids], text.prompt_token_ids):
        (output,) = llm.generate(prompts, GREEDY)
        assert (output.prompt, tokens(output)) == (None, tokens(text))


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    outputs = llm.generate(["a", "b"], [GREEDY, SamplingParams(max_tokens=2, ignore_eos=True)])
    assert [len(tokens(output)) for output in outputs] == [6, 2]
    with pytest.raises(ValueError, match="one for each of 2 prompts, got 1"):
        llm.generate(["a", "b"], [GREEDY])


def test_more_prompts_than_the_queue_holds_are_fed_as_it_empties() -> None:
    with make_llm(max_waiting=2, max_num_seqs=2) as llm:
        outputs = llm.generate([f"prompt {i}" for i in range(20)], GREEDY)
    assert [output.prompt for output in outputs] == [f"prompt {i}" for i in range(20)]


def test_a_refused_prompt_refuses_all_and_leaves_nothing_behind(llm: LLM) -> None:
    with pytest.raises(CapacityError):
        llm.generate(["fine", "x" * 5000], GREEDY)
    assert llm.generate("fine", GREEDY)[0].finished


def test_no_prompts_no_answers(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_stream_shows_the_answer_so_far_and_ends_as_generate_does(llm: LLM) -> None:
    outputs = list(llm.stream("hello", GREEDY))
    assert [len(tokens(output)) for output in outputs] == [1, 2, 3, 4, 5, 6]
    assert [output.finished for output in outputs] == [False] * 5 + [True]
    assert tokens(outputs[-1]) == tokens(llm.generate("hello", GREEDY)[0])


def test_closing_a_stream_aborts_it(llm: LLM) -> None:
    stream = llm.stream("hello", SamplingParams(max_tokens=500, ignore_eos=True))
    next(stream)
    stream.close()
    assert llm._engine.num_requests == 0
    assert llm._engine.num_free_blocks == 64


def test_streams_and_other_calls_may_take_turns(llm: LLM) -> None:
    first, second = llm.stream("one", GREEDY), llm.stream("two", GREEDY)
    next(first), next(second)
    between = llm.generate("three", GREEDY)[0]
    ends = [list(first)[-1], list(second)[-1]]
    assert [tokens(end) for end in (*ends, between)] == [
        tokens(output) for output in llm.generate(["one", "two", "three"], GREEDY)
    ]


def test_chat_takes_one_conversation_or_several(llm: LLM) -> None:
    hi, bye = ([{"role": "user", "content": text}] for text in ("hi", "bye"))
    (one,) = llm.chat(hi, GREEDY)
    assert one.prompt_token_ids == list(b"user:hi;")
    assert tokens(llm.chat([bye, hi], GREEDY)[1]) == tokens(one)
    assert tokens(list(llm.stream(hi, GREEDY))[-1]) == tokens(one)


def test_a_base_model_cannot_chat() -> None:
    with make_llm() as llm, pytest.raises(ValueError, match="base model"):
        llm.chat([{"role": "user", "content": "hi"}])


def test_with_ends_the_ranks() -> None:
    with make_llm() as llm:
        pass
    assert isinstance(llm._engine.executor, FakeExecutor)
    assert llm._engine.executor.closed


def test_after_an_interrupt_the_next_answer_is_whole(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = llm._engine.executor
    assert isinstance(executor, FakeExecutor)
    collect = executor.collect

    def interrupted() -> StepResult:
        result = collect()
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)  # as if it came while the ranks ran
        return result

    expected = llm.generate("hello", GREEDY)
    stream = llm.stream("hello", GREEDY)
    next(stream)
    monkeypatch.setattr(executor, "collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert llm._engine.num_requests == 0
    assert tokens(llm.generate("hello", GREEDY)[0]) == tokens(expected[0])
