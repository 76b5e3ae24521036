"""The whole engine over ranks on GPUs: what it answers, whatever its steps hold and whoever is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest

from fastserve import LLM, SamplingParams
from fastserve.request import RequestOutput, TokenLogprobs

from .engines import Site, fake_site, real_site

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a little girl who lived near the forest, where nobody ever went, until",
    "def f(x):",
    "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen,",
]
TEXT = (
    "The capital of France is Paris, which lies on the Seine. Water boils at one hundred degrees and freezes at "
    "zero. Once upon a time there was a little girl who lived near the forest, where nobody ever went. One day she "
    "met a wolf, who asked her where she was going, and she told him that she was on her way to her grandmother."
)
SEEDED = SamplingParams(max_tokens=12, temperature=0.8, seed=11, top_p=0.9, logprobs=1, ignore_eos=True)
SCORED = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
LIMITS = {"max_num_seqs": 4, "max_num_tokens": 256, "max_model_len": 256}
# Graphs hold up to max_num_seqs rows: prompts run beside them, in chunks beside them, and in chunks inside them.
STEPS = {
    "chunks that no graph holds": {**LIMITS, "max_num_tokens": 13},
    "chunks in graphs": {**LIMITS, "max_num_seqs": 12, "max_num_tokens": 12},
}

# The GPU computes on bf16 where the CPU engine computes on fp32 and int8. On a CPU, the reference ops on bf16 differ
# from the CPU engine by 0.029 on average and by 0.12 at most over such a text, and agree on every likeliest token.
MEAN_TOLERANCE, MAX_TOLERANCE, MIN_AGREEING = 0.08, 0.4, 0.9

ON_GPUS = pytest.param("cuda", marks=pytest.mark.cuda)
on_gpus = pytest.mark.parametrize("site", [ON_GPUS], indirect=True)
also_on_fakes = pytest.mark.parametrize("site", ["fake", ON_GPUS], indirect=True)


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param == "cuda":
        yield real_site(request.getfixturevalue("smollm2_path"))
        return
    with fake_site(request.getfixturevalue("short_model")) as found:
        yield found


@pytest.fixture(scope="module")
def llm(site: Site) -> Iterator[LLM]:
    with site.open(**LIMITS) as llm:
        yield llm


@dataclass(frozen=True, slots=True)
class Answer:
    """logprobs tell more than tokens whether bits are the same."""

    token_ids: list[int]
    logprobs: list[float]

    @classmethod
    def of(cls, output: RequestOutput) -> Answer:
        (answer,) = output.outputs
        assert answer.logprobs is not None
        return cls(list(answer.token_ids), [entry.sampled.logprob for entry in answer.logprobs])


def answers(llm: LLM, prompts: Sequence[str] = PROMPTS, params: SamplingParams = SEEDED) -> list[Answer]:
    return [Answer.of(output) for output in llm.generate(list(prompts), params)]


def scores(llm: LLM) -> list[TokenLogprobs]:
    """Of TEXT's own tokens, but for the first."""
    (output,) = llm.generate([TEXT], SCORED)
    assert output.prompt_logprobs is not None
    found = [entry for entry in output.prompt_logprobs if entry is not None]
    assert len(found) > 60
    return found


def skip_without(num_gpus: int, site: Site) -> None:
    if site.num_gpus < num_gpus:
        pytest.skip(f"{site.num_gpus} GPU")


@on_gpus
def test_a_chat_knows_the_capital(llm: LLM) -> None:
    (output,) = llm.chat(QUESTION, SamplingParams(max_tokens=24, temperature=0.0))
    assert "Paris" in output.outputs[0].text


@also_on_fakes
def test_an_answer_is_the_same_alone_and_among_others(llm: LLM) -> None:
    together = answers(llm)
    assert [answers(llm, [prompt])[0] for prompt in PROMPTS] == together


@on_gpus
@pytest.mark.parametrize("steps", STEPS)
def test_an_answer_is_the_same_however_its_prompt_is_cut(site: Site, llm: LLM, steps: str) -> None:
    with site.open(**STEPS[steps]) as other:
        assert answers(other) == answers(llm)


@on_gpus
def test_a_seed_repeats_its_answer_and_another_gives_another(llm: LLM) -> None:
    assert answers(llm) == answers(llm)
    assert answers(llm) != answers(llm, params=replace(SEEDED, seed=12))


@also_on_fakes
def test_scores_of_a_text_are_near_the_cpu_engines(site: Site, llm: LLM) -> None:
    check_scores(llm, site)


@on_gpus
def test_two_gpus_score_and_answer_as_one_does(site: Site) -> None:
    skip_without(2, site)
    with site.open(2, **LIMITS) as llm:
        check_scores(llm, site)
        (output,) = llm.chat(QUESTION, SamplingParams(max_tokens=24, temperature=0.0))
    assert "Paris" in output.outputs[0].text


def check_scores(llm: LLM, site: Site) -> None:
    with LLM(str(site.model), **LIMITS) as cpu:
        expected = scores(cpu)
    pairs = list(zip(scores(llm), expected, strict=True))
    errors = [abs(mine.sampled.logprob - theirs.sampled.logprob) for mine, theirs in pairs]
    agreeing = sum(mine.top[0].token_id == theirs.top[0].token_id for mine, theirs in pairs)
    assert sum(errors) / len(errors) < MEAN_TOLERANCE
    assert max(errors) < MAX_TOLERANCE
    assert agreeing >= MIN_AGREEING * len(pairs)


@on_gpus
@pytest.mark.parametrize("num_gpus", [1, 2])
def test_a_killed_rank_is_replaced_and_the_answer_goes_on(site: Site, num_gpus: int) -> None:
    skip_without(num_gpus, site)
    with site.open(num_gpus, **LIMITS) as llm:
        (expected,) = answers(llm, PROMPTS[:1])
        stream = llm.stream(PROMPTS[0], SEEDED)
        next(stream)
        os.kill(llm._engine.executor.pids[-1], signal.SIGKILL)  # type: ignore[attr-defined]
        *_, last = stream
        assert Answer.of(last) == expected
