"""The engine over ranks that check the protocol in every step (fastserve.testing.fake_executor)."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from fastserve.config import EngineConfig
from fastserve.engine.engine import Engine
from fastserve.engine.outputs import OutputBuilder
from fastserve.errors import CapacityError, OverloadedError, RankLostError
from fastserve.request import RequestOutput, SamplingParams
from fastserve.testing.fake_executor import BLOCK_SIZE, FakeExecutor, FakeTokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.25
        return self.now_s


def make_engine(
    executor: FakeExecutor | None = None, *, random: Random | None = None, **options: Any
) -> Engine:
    executor = executor or FakeExecutor()
    config = EngineConfig(**{"max_num_tokens": executor.max_num_tokens, "seed": 0, **options})
    return Engine(executor, FakeTokenizer(executor.vocab_size), config, clock=Clock(), random=random)


def fake(engine: Engine) -> FakeExecutor:
    assert isinstance(engine.executor, FakeExecutor)
    return engine.executor


class Answers:
    """Adds requests to an engine and its deltas up."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.builders: dict[str, OutputBuilder] = {}

    def add(self, name: str, prompt: list[int], params: SamplingParams) -> None:
        self.engine.add_request(name, prompt, params)
        self.builders[name] = OutputBuilder.start(name, prompt, params.n)

    def step(self) -> None:
        for delta in self.engine.step():
            self.builders[delta.request_id].apply(delta)

    def finish(self) -> dict[str, RequestOutput]:
        while self.engine.has_work:
            self.step()
        return {name: builder.output for name, builder in self.builders.items()}


def run(engine: Engine, prompt: list[int], params: SamplingParams) -> RequestOutput:
    answers = Answers(engine)
    answers.add("r", prompt, params)
    return answers.finish()["r"]


def scripted(text: bytes, **options: Any) -> Engine:
    """An engine whose ranks draw the bytes of `text`."""
    executor = FakeExecutor()
    executor.script = dict(enumerate(text))
    return make_engine(executor, **options)


def test_one_step_is_queued_ahead_and_no_more() -> None:
    engine = make_engine()
    run(engine, [1, 2, 3], GREEDY)
    assert fake(engine).max_ahead == 2
    assert len(fake(engine).steps) == 12


def test_max_tokens_ends_with_length_and_no_surplus_step() -> None:
    engine = scripted(b"abcdef")
    choice = run(engine, [1], SamplingParams(max_tokens=4)).outputs[0]
    assert (choice.text, choice.token_ids, choice.finish_reason) == ("abcd", list(b"abcd"), "length")
    assert len(fake(engine).steps) == 4


def test_the_surplus_token_after_eos_is_dropped() -> None:
    engine = scripted(b"ab\0cd")
    choice = run(engine, [1], SamplingParams(max_tokens=9)).outputs[0]
    assert (choice.text, choice.token_ids) == ("ab", [*b"ab", 0])
    assert (choice.finish_reason, choice.stop_reason) == ("stop", None)
    assert len(fake(engine).steps) == 4  # the last one ran for nothing
    assert engine.num_free_blocks == 64


def test_ignore_eos_goes_on() -> None:
    choice = run(scripted(b"ab\0cd"), [1], SamplingParams(max_tokens=5, ignore_eos=True)).outputs[0]
    assert (choice.text, choice.finish_reason) == ("abcd", "length")


def test_a_stop_token_id_ends_and_is_named() -> None:
    choice = run(scripted(b"abcd"), [1], SamplingParams(stop_token_ids=[ord("c")])).outputs[0]
    assert (choice.text, choice.token_ids, choice.stop_reason) == ("ab", list(b"abc"), ord("c"))


@pytest.mark.parametrize(("include", "text"), [(False, "hello"), (True, "hello END")])
def test_a_stop_string_across_tokens_ends_and_no_part_of_it_is_shown(include: bool, text: str) -> None:
    engine = scripted(b"hello END and more")
    params = SamplingParams(max_tokens=18, stop=" END", include_stop_str_in_output=include)
    seen = ""
    engine.add_request("r", [1], params)
    while engine.has_work:
        for delta in engine.step():
            seen += delta.text
            assert text.startswith(seen)
            last = delta
    assert (seen, last.finish_reason, last.stop_reason) == (text, "stop", " END")
    assert engine.num_free_blocks == 64


def test_the_start_of_a_stop_string_is_shown_when_the_text_ends_in_it() -> None:
    choice = run(scripted(b"hello EN"), [1], SamplingParams(max_tokens=8, stop=" END")).outputs[0]
    assert (choice.text, choice.finish_reason) == ("hello EN", "length")


def test_half_a_character_is_shown_only_at_the_end() -> None:
    engine = scripted("aé".encode()[:2])
    texts = []
    engine.add_request("r", [1], SamplingParams(max_tokens=2))
    while engine.has_work:
        texts += [delta.text for delta in engine.step()]
    assert texts == ["a", "\ufffd"]


def test_min_tokens_holds_off_stop_strings_and_tells_ranks_which_ids_are_banned() -> None:
    engine = scripted(b"xxabxx")
    choice = run(
        engine, [1], SamplingParams(max_tokens=6, min_tokens=4, stop=["x"], stop_token_ids=[7])
    ).outputs[0]
    assert choice.text == "xxab"
    sampling = fake(engine).steps[0].opened[0].sampling
    assert (sampling.min_tokens, sampling.stop_ids) == (4, (0, 7))


def test_max_tokens_none_goes_to_the_end_of_the_context() -> None:
    engine = make_engine(FakeExecutor(max_model_len=50))
    params = SamplingParams(max_tokens=None, ignore_eos=True)
    assert len(run(engine, [1] * 20, params).outputs[0].token_ids) == 30


def test_max_tokens_none_goes_no_further_than_the_cache() -> None:
    engine = make_engine(FakeExecutor(num_blocks=(2,)))
    params = SamplingParams(max_tokens=None, ignore_eos=True)
    assert len(run(engine, [1] * 20, params).outputs[0].token_ids) == 2 * BLOCK_SIZE + 1 - 20


def test_choices_of_a_request_draw_with_consecutive_seeds() -> None:
    params = SamplingParams(n=3, seed=40, max_tokens=6, ignore_eos=True)
    output = run(make_engine(), [1, 2], params)
    assert len({tuple(choice.token_ids) for choice in output.outputs}) == 3
    for i, choice in enumerate(output.outputs):
        alone = SamplingParams(seed=40 + i, max_tokens=6, ignore_eos=True)
        assert run(make_engine(), [1, 2], alone).outputs[0].token_ids == choice.token_ids


def test_a_request_without_a_seed_gets_one_from_the_engines_source() -> None:
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    first, again, other = (run(make_engine(random=Random(s)), [1], params).outputs[0] for s in (1, 1, 2))
    assert first.token_ids == again.token_ids != other.token_ids


def test_logprobs_are_cut_to_what_was_asked_and_carry_text() -> None:
    output = run(scripted(b"ab"), [1], SamplingParams(max_tokens=2, logprobs=2, prompt_logprobs=3))
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    assert [entry.sampled.text for entry in logprobs] == ["a", "b"]
    assert [[top.rank for top in entry.top] for entry in logprobs] == [[1, 2], [1, 2]]


@pytest.mark.parametrize("max_num_tokens", [4, 64])
def test_prompt_logprobs_name_every_prompt_token_but_the_first(max_num_tokens: int) -> None:
    executor = FakeExecutor(max_num_tokens=max_num_tokens, max_samples=4)
    engine = make_engine(executor, max_num_seqs=4)
    prompt = list(b"a long enough prompt")
    output = run(engine, prompt, SamplingParams(n=2, max_tokens=2, prompt_logprobs=1))
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    scored = [entry for entry in output.prompt_logprobs if entry is not None]
    assert [entry.sampled.token_id for entry in scored] == prompt[1:]
    assert [entry.sampled.logprob for entry in scored] == [-float(row) for row in range(len(prompt) - 1)]


def test_an_abort_frees_blocks_at_once_and_drops_what_is_under_way() -> None:
    engine = make_engine()
    engine.add_request("r", [1] * 40, SamplingParams(n=2, max_tokens=50, ignore_eos=True))
    engine.step()
    assert engine.num_free_blocks < 64
    assert [delta.finish_reason for delta in engine.abort("r")] == ["abort", "abort"]
    assert engine.num_free_blocks == 64
    assert engine.abort("r") == []
    assert engine.step() == []
    assert not engine.has_work


def test_an_id_may_be_used_again_while_surplus_steps_of_its_first_life_are_under_way() -> None:
    engine = make_engine()
    engine.add_request("r", [1], GREEDY)
    engine.step()
    engine.abort("r")
    assert len(run(engine, [9], GREEDY).outputs[0].token_ids) == 12


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], GREEDY, "prompt_token_ids must hold at least one token"),
        ([256], GREEDY, r"prompt_token_ids must hold token ids in \[0, 256\), got 256"),
        ([1], SamplingParams(stop_token_ids=[300]), "stop_token_ids must hold token ids"),
        ([1], SamplingParams(logit_bias={999: 1.0}), "logit_bias must hold token ids"),
    ],
)
def test_a_wrong_request_is_refused_by_name(prompt: list[int], params: SamplingParams, message: str) -> None:
    engine = make_engine()
    with pytest.raises(ValueError, match=message):
        engine.add_request("r", prompt, params)
    assert not engine.has_work


def test_a_live_request_id_is_refused() -> None:
    engine = make_engine()
    engine.add_request("r", [1], GREEDY)
    with pytest.raises(ValueError, match="request_id must be new, got 'r'"):
        engine.add_request("r", [1], GREEDY)


def test_what_can_never_fit_and_what_is_too_much_are_told_apart() -> None:
    engine = make_engine(max_waiting=2)
    with pytest.raises(CapacityError, match="1100 prompt tokens"):
        engine.add_request("big", [1] * 1100, GREEDY)
    with pytest.raises(OverloadedError):
        engine.add_request("many", [1], SamplingParams(n=3))
    assert engine.room() == 2


def test_a_lost_rank_is_raised() -> None:
    engine = make_engine()
    engine.add_request("r", [1], GREEDY)
    engine.step()
    fake(engine).lost = "rank 1 was lost"
    with pytest.raises(RankLostError, match="rank 1 was lost"):
        engine.step()


def test_metrics_count_tokens_and_times() -> None:
    engine = make_engine()
    run(engine, [1] * 7, GREEDY)
    value = engine.metrics.registry.get_sample_value
    assert value("fastserve_prompt_tokens_total") == 7
    assert value("fastserve_generation_tokens_total") == 12
    assert value("fastserve_request_success_total", {"finished_reason": "length"}) == 1
    assert value("fastserve_time_to_first_token_seconds_count") == 1
    assert value("fastserve_inter_token_latency_seconds_count") == 11
    assert value("fastserve_e2e_request_latency_seconds_sum") == pytest.approx(12 * 0.25 + 13 * 0.25, abs=1)
    assert value("fastserve_num_requests_running") == 0
    assert value("fastserve_kv_cache_usage_perc") == 0


def random_params(random: Random) -> SamplingParams:
    return SamplingParams(
        n=random.choice([1, 1, 1, 3]),
        max_tokens=random.randint(1, 60),
        temperature=random.choice([0.0, 1.0]),
        seed=random.randrange(1000),
        ignore_eos=random.random() < 0.5,
        stop=random.choice([(), ("a",), ("zz", "Q")]),
        min_tokens=0,
        prompt_logprobs=random.choice([None, None, 1]),
    )


@pytest.mark.parametrize("makes_drafts", [False, True], ids=["plain", "drafts"])
@pytest.mark.parametrize("seed", range(12))
def test_batching_preemption_and_drafts_change_no_answer(seed: int, makes_drafts: bool) -> None:
    """Few blocks, small budgets, requests that come and go at random: each answer is as if it ran alone."""
    random = Random(seed)
    executor = FakeExecutor(
        num_blocks=(random.randint(9, 14), random.randint(9, 20)),
        max_num_tokens=random.choice([8, 24, 100]),
        max_samples=8,
        max_slots=8,
        max_model_len=200,
        makes_drafts=makes_drafts,
    )
    engine = make_engine(executor, max_num_seqs=8)
    answers = Answers(engine)
    asked: dict[str, tuple[list[int], SamplingParams]] = {}
    aborted: set[str] = set()
    for i in range(40):
        prompt = [random.randrange(1, 256) for _ in range(random.randint(1, 80))]
        asked[f"r{i}"] = (prompt, random_params(random))
        answers.add(f"r{i}", *asked[f"r{i}"])
        for _ in range(random.randint(0, 6)):
            answers.step()
        if random.random() < 0.2:
            name = random.choice(list(asked))
            if engine.has_request(name):
                engine.abort(name)
                aborted.add(name)
    outputs = answers.finish()
    preemptions = engine.metrics.registry.get_sample_value("fastserve_num_preemptions_total")
    assert makes_drafts or preemptions  # drafts may be done before blocks run out
    assert engine.num_free_blocks == min(executor.num_blocks)
    assert aborted
    assert bool(executor.drafted) == makes_drafts
    for name, (prompt, params) in asked.items():
        if name not in aborted:
            alone = run(make_engine(FakeExecutor(max_num_tokens=1024)), prompt, params)
            assert [(c.token_ids, c.text, c.finish_reason) for c in outputs[name].outputs] == [
                (c.token_ids, c.text, c.finish_reason) for c in alone.outputs
            ]
            assert outputs[name].prompt_logprobs == alone.prompt_logprobs
