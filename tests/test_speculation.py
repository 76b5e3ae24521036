"""Drafts change no bit of an answer: the same tokens, logprobs and ends as without, in fewer steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastserve import LLM, RequestOutput, SamplingParams
from fastserve.scheduler import speculation
from fastserve.testing.faults import Fault, committing

LIMITS: dict[str, Any] = {"max_model_len": 512, "kv_cache_bytes": 64 << 20, "shares": "equal"}
# 10 to 14 blocks of 16 tokens, where the requests that run at a time would like 50.
TIGHT_LIMITS: dict[str, Any] = {
    "max_model_len": 160,
    "kv_cache_bytes": 5 << 20,
    "max_num_tokens": 24,
    "max_num_seqs": 8,
    "shares": "equal",
}
LINE = "The waves come in, the waves go out, and nobody counts them.\n"
CODE = "def area(w, h):\n    return w * h\n\n\ndef volume(w, h, d):\n    return w * h * d\n\n\ndef "
GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, logprobs=3)
SEEDED = SamplingParams(
    temperature=0.7,
    top_p=0.95,
    top_k=40,
    min_p=0.01,
    repetition_penalty=1.05,
    presence_penalty=0.1,
    frequency_penalty=0.05,
    seed=11,
    max_tokens=48,
    ignore_eos=True,
    logprobs=2,
)
REQUESTS: list[tuple[str, SamplingParams]] = [
    (4 * LINE, GREEDY),
    (4 * LINE, SEEDED),
    (CODE, GREEDY),
    (CODE, SamplingParams(temperature=0.5, seed=3, n=3, max_tokens=32, ignore_eos=True)),
    (4 * LINE, SamplingParams(temperature=0, max_tokens=60, stop=["nobody"], min_tokens=20)),
    (4 * LINE, SamplingParams(temperature=0, max_tokens=60, stop=["out, and"])),
    ("1, 2, 3, 1, 2, 3, 1, 2, 3,", SamplingParams(temperature=0, max_tokens=40, min_tokens=30, logprobs=0)),
    (
        "one two one two one two",
        SamplingParams(temperature=0, max_tokens=24, presence_penalty=0.6, frequency_penalty=0.4, logprobs=1),
    ),
    (
        "yes no yes no yes no yes",
        SamplingParams(
            temperature=0.3, seed=5, max_tokens=24, logit_bias={28: 3.0, 198: -2.0}, prompt_logprobs=1
        ),
    ),
    (2 * LINE, SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)),
]


def answers(llm: LLM, requests: list[tuple[str, SamplingParams]]) -> list[RequestOutput]:
    """Without the requests' names, which count up."""
    outputs = llm.generate([prompt for prompt, _ in requests], [params for _, params in requests])
    return [replace(output, request_id="") for output in outputs]


def metric(llm: LLM, name: str) -> float:
    return llm._engine.metrics.registry.get_sample_value(f"fastserve_{name}") or 0.0


class House:
    """An engine of `devices` that drafts, and what one that does not answered to all requests at once."""

    def __init__(self, path: Path, devices: int) -> None:
        self.path = path
        self.devices = devices
        with LLM(str(path), devices=devices, speculation="off", **LIMITS) as plain:
            self.plain = answers(plain, REQUESTS)
            assert not metric(plain, "spec_decode_num_draft_tokens_total")
        self.llm = LLM(str(path), devices=devices, **LIMITS)


@pytest.fixture(scope="module", params=[1, 2], ids=lambda devices: f"{devices} devices")
def house(request: pytest.FixtureRequest, smollm2_path: Path) -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculation, "MAX_REQUESTS", 16)  # drafts beside others, though they would not pay
        house = House(smollm2_path, request.param)
        yield house
        house.llm.close()


def test_a_batch_is_answered_as_without_drafts(house: House) -> None:
    assert answers(house.llm, REQUESTS) == house.plain


def test_each_request_alone_is_answered_as_without_drafts(house: House) -> None:
    before = metric(house.llm, "spec_decode_num_accepted_tokens_total")
    for request, plain in zip(REQUESTS, house.plain, strict=True):
        assert answers(house.llm, [request]) == [plain]
    assert metric(house.llm, "spec_decode_num_accepted_tokens_total") > before + 40


def test_few_blocks_and_small_steps_change_nothing(house: House) -> None:
    with LLM(str(house.path), devices=house.devices, **TIGHT_LIMITS) as llm:
        assert answers(llm, REQUESTS) == house.plain
        assert metric(llm, "num_preemptions_total")
        assert metric(llm, "spec_decode_num_draft_tokens_total")


def test_a_request_that_runs_alone_by_the_limits_has_rows_for_drafts(house: House) -> None:
    with LLM(str(house.path), devices=house.devices, **{**LIMITS, "max_num_seqs": 1}) as llm:
        assert answers(llm, REQUESTS[:1]) == house.plain[:1]
        assert metric(llm, "spec_decode_num_accepted_tokens_total")


def test_repeated_text_takes_few_steps(smollm2_path: Path) -> None:
    with LLM(str(smollm2_path), **LIMITS) as llm:
        num_steps = 0
        submit = llm._engine.executor.submit

        def count(step: Any) -> None:
            nonlocal num_steps
            num_steps += 1
            submit(step)

        llm._engine.executor.submit = count  # type: ignore[method-assign]
        llm.generate(4 * LINE, SamplingParams(temperature=0, max_tokens=64, ignore_eos=True))
        assert num_steps < 64 / 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault(rank=1, action="kill", op="matmul_all_reduce", call=700, segment=2),
        Fault(rank=0, action="kill", op="sample", call=9),
    ],
    ids=["in the middle of a ring", "while it samples"],
)
def test_a_lost_rank_changes_nothing_with_drafts_under_way(fault: Fault, smollm2_path: Path) -> None:
    pair = REQUESTS[:2]  # more at a time would not draft
    with LLM(str(smollm2_path), devices=2, speculation="off", **LIMITS) as plain:
        undisturbed = answers(plain, pair)
    with committing(fault), LLM(str(smollm2_path), devices=2, **LIMITS) as llm:
        assert answers(llm, pair) == undisturbed
        assert metric(llm, "recoveries_total") == 1
        assert metric(llm, "spec_decode_num_accepted_tokens_total")
