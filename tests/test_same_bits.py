"""The same request gives the same bits, whatever else runs; across device counts, the same up to near-ties."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastserve import LLM, RequestOutput, SamplingParams
from fastserve.request import TokenLogprobs
from fastserve.testing.convert import convert

SHORT_PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "The three laws of motion are:\n1.",
    "import os\n\nfor name in os.listdir('.'):\n",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: Why is the sky blue?\nA:",
    "SELECT name, age FROM users WHERE",
    "Ingredients: flour, sugar, butter, eggs.\nMethod:",
    "In 1969, Neil Armstrong",
    "{'a': 1, 'b': [2, 3],",
    "The cat sat on the mat. The dog",
    "#include <stdio.h>\n\nint main(void) {",
    "A list of the planets of the solar system, from the sun outwards:",
    "Two plus two is four; three plus three is",
    "She opened the door and saw",
    "# Title\n\nThis report describes",
    "class Stack:\n    def __init__(self):",
)
PROMPTS = (*SHORT_PROMPTS, "\n\n".join(SHORT_PROMPTS))  # the last one is longer than the small steps below
NUM_TOKENS = 64
FEW_TOKENS = 32  # of answers compared with the beginnings of longer ones
NEAR_TIE = 0.1  # of two logits: below it, sums in another order may choose otherwise
LIMITS: dict[str, Any] = {"max_model_len": 512, "kv_cache_bytes": 64 << 20, "shares": "equal"}
# 20 to 36 blocks of 16 tokens, where the requests that run at a time would like 100; prompts in chunks of at most 16.
TIGHT_LIMITS: dict[str, Any] = {
    "max_model_len": 320,
    "kv_cache_bytes": 13 << 20,
    "max_num_tokens": 16,
    "max_num_seqs": 16,
    "shares": "equal",
}

Bits = list[tuple[int, float]]  # of an answer: token ids and their logprobs


def greedy(**options: Any) -> SamplingParams:
    return SamplingParams(
        **{"temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True, "logprobs": 0, **options}
    )


def seeded(seed: int) -> SamplingParams:
    """Every filter and every penalty at once."""
    return SamplingParams(
        temperature=0.8,
        top_p=0.9,
        top_k=50,
        min_p=0.01,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.1,
        seed=seed,
        max_tokens=FEW_TOKENS,
        ignore_eos=True,
        logprobs=0,
    )


def positions(output: RequestOutput) -> list[TokenLogprobs]:
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    return logprobs


def bits(output: RequestOutput) -> Bits:
    found = [(p.sampled.token_id, p.sampled.logprob) for p in positions(output)]
    assert [token_id for token_id, _ in found] == output.outputs[0].token_ids
    return found


def answers(path: Path, devices: int) -> list[RequestOutput]:
    with LLM(str(path), devices=devices, **LIMITS) as llm:
        return llm.generate(PROMPTS, greedy(logprobs=5))


class House:
    """One engine of `devices`, and what it answered to all prompts at once, in full and as far as FEW_TOKENS go."""

    def __init__(self, path: Path, devices: int) -> None:
        self.path = path
        self.devices = devices
        self.llm = LLM(str(path), devices=devices, **LIMITS)
        self.answers = self.llm.generate(PROMPTS, greedy(logprobs=5))
        self.together = [bits(output) for output in self.answers]
        self.beginnings = [answer[:FEW_TOKENS] for answer in self.together]


@pytest.mark.parametrize("devices", [1, 2])
def test_keys_and_values_of_8_bits_change_nothing_of_that(devices: int, short_model: Path) -> None:
    path, int8 = str(short_model), {"devices": devices, "num_threads": 1, "kv_dtype": "int8"}
    prompts, params = (*SHORT_PROMPTS[:12], PROMPTS[-1]), greedy(max_tokens=48)
    with LLM(path, **LIMITS, **int8) as llm:
        together = [bits(output) for output in llm.generate(prompts, params)]
        (alone,) = llm.generate(prompts[-1], params)
    # 20 blocks of two layers with four KV heads: what one request may need.
    with LLM(path, **(TIGHT_LIMITS | {"kv_cache_bytes": 20 * 2 * 4 * 2112}), **int8) as llm:
        tight = [bits(output) for output in llm.generate(prompts, params)]
        preemptions = llm._engine.metrics.registry.get_sample_value("fastserve_num_preemptions_total")
    with LLM(path, speculation="off", **LIMITS, **int8) as llm:
        without_drafts = [bits(output) for output in llm.generate(prompts, params)]

    assert bits(alone) == together[-1]
    assert preemptions  # else nothing was recomputed
    assert tight == together
    assert without_drafts == together


@pytest.fixture(scope="module", params=[1, 2, 3, 4], ids=lambda devices: f"{devices} devices")
def house(request: pytest.FixtureRequest, smollm2_path: Path) -> Iterator[House]:
    house = House(smollm2_path, request.param)
    yield house
    house.llm.close()


def test_one_at_a_time_is_as_all_together(house: House) -> None:
    for index in (0, 2, 7, 13, 19):
        (alone,) = house.llm.generate(PROMPTS[index], greedy(max_tokens=FEW_TOKENS))
        assert bits(alone) == house.beginnings[index]


def test_other_requests_change_nothing(house: House) -> None:
    others = [seeded(seed) for seed in range(len(PROMPTS))]
    short = [greedy(max_tokens=FEW_TOKENS)] * len(PROMPTS)
    mixed = [params for pair in zip(others, short, strict=True) for params in pair]
    prompts = [prompt for pair in zip(reversed(PROMPTS), PROMPTS, strict=True) for prompt in pair]

    outputs = house.llm.generate(prompts, mixed)

    assert [bits(output) for output in outputs[1::2]] == house.beginnings


def test_small_steps_and_few_blocks_change_nothing(house: House) -> None:
    with LLM(str(house.path), devices=house.devices, **TIGHT_LIMITS) as llm:
        outputs = llm.generate(PROMPTS, greedy())
        preemptions = llm._engine.metrics.registry.get_sample_value("fastserve_num_preemptions_total")

    assert preemptions  # else nothing was recomputed
    assert [bits(output) for output in outputs] == house.together


def test_seeded_draws_are_the_same_alone_and_in_a_batch(house: House) -> None:
    params = [seeded(seed) for seed in range(len(PROMPTS))]
    batch = house.llm.generate(PROMPTS, params)
    for index in (1, 6, 11, 19):
        (alone,) = house.llm.generate(PROMPTS[index], params[index])
        assert bits(alone) == bits(batch[index])
    # The seed is heard: with another one, something else is drawn.
    others = house.llm.generate(PROMPTS[:4], [seeded(seed + 1000) for seed in range(4)])
    assert [bits(other) for other in others] != [bits(output) for output in batch[:4]]


def margins_of_divergences(ours: list[RequestOutput], theirs: list[RequestOutput]) -> list[float]:
    """Per pair of answers that differ: how far apart the two tokens' logits were where they first did."""
    margins = []
    for mine, other in zip(ours, theirs, strict=True):
        for p, q in zip(positions(mine), positions(other), strict=True):
            if p.sampled.token_id != q.sampled.token_id:
                margins.append(max(margin(p, q.sampled.token_id), margin(q, p.sampled.token_id)))
                break
    return margins


def margin(position: TokenLogprobs, token_id: int) -> float:
    """By how much the chosen token was ahead of `token_id`; infinite if that is not among the likeliest."""
    logprobs = {candidate.token_id: candidate.logprob for candidate in position.top}
    return position.sampled.logprob - logprobs.get(token_id, -math.inf)


def report(devices: int, margins: list[float]) -> None:
    listed = ", ".join(f"{margin:.3f}" for margin in sorted(margins))
    print(
        f"{devices} devices: {len(margins)} of {len(PROMPTS)} answers diverge from one device's; margins {listed}"
    )


@pytest.fixture(scope="module")
def f32_path(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = convert(smollm2_path, tmp_path_factory.mktemp("f32") / "F32.gguf", "F32")
    yield path
    path.unlink()  # half a gigabyte, which pytest would keep for three runs


@pytest.fixture(scope="module")
def f32_on_one_device(f32_path: Path) -> list[RequestOutput]:
    return answers(f32_path, 1)


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_device_counts_give_the_same_tokens_with_f32_weights(
    devices: int, f32_path: Path, f32_on_one_device: list[RequestOutput]
) -> None:
    margins = margins_of_divergences(f32_on_one_device, answers(f32_path, devices))
    report(devices, margins)
    assert margins == []


@pytest.fixture(scope="module")
def on_one_device(smollm2_path: Path) -> list[RequestOutput]:
    return answers(smollm2_path, 1)


def test_device_counts_differ_at_near_ties_alone(house: House, on_one_device: list[RequestOutput]) -> None:
    margins = margins_of_divergences(on_one_device, house.answers)
    report(house.devices, margins)
    assert all(margin < NEAR_TIE for margin in margins)
    assert house.devices > 1 or margins == []
