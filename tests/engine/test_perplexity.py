"""Perplexity on English, through the engine, against plain torch on the dequantised weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics  # text that every Python brings along

import pytest
import torch

from fastserve import LLM, SamplingParams
from fastserve.testing.reference_model import ReferenceModel

NUM_TOKENS = 2000
WINDOW = 500  # tokens, each scored with those before it
TOLERANCE = 0.005
SUBJECTS = ("naming", "exceptions", "objects", "with", "import", "class", "execmodel")


def english() -> str:
    return "\n\n".join(topics[name] for name in SUBJECTS)


def engine_loss(llm: LLM, windows: list[list[int]]) -> float:
    """Mean negative logprob of every token that has one before it."""
    outputs = llm.generate(windows, SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))
    losses = []
    for window, output in zip(windows, outputs, strict=True):
        assert output.prompt_logprobs is not None
        scored = [position.sampled for position in output.prompt_logprobs if position is not None]
        assert [candidate.token_id for candidate in scored] == window[1:]
        losses += [-candidate.logprob for candidate in scored]
    return sum(losses) / len(losses)


def reference_loss(path: Path, windows: list[list[int]]) -> float:
    model = ReferenceModel(path)
    losses = [
        torch.nn.functional.cross_entropy(
            model.logits(window)[:-1], torch.tensor(window[1:]), reduction="none"
        )
        for window in windows
    ]
    return float(torch.cat(losses).mean())


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_torch_threads")
def test_perplexity_is_that_of_the_dequantised_weights(smollm2_path: Path) -> None:
    options = {"max_model_len": 1024, "kv_cache_bytes": 64 << 20}
    with LLM(str(smollm2_path), **options) as llm:
        token_ids = llm.tokenizer.encode(english(), add_special=False)[:NUM_TOKENS]
        assert len(token_ids) == NUM_TOKENS
        windows = [token_ids[begin : begin + WINDOW] for begin in range(0, NUM_TOKENS, WINDOW)]
        ours = math.exp(engine_loss(llm, windows))
    with LLM(str(smollm2_path), devices=2, **options) as llm:
        on_two_devices = math.exp(engine_loss(llm, windows))
    with LLM(str(smollm2_path), kv_dtype="int8", **options) as llm:
        over_int8 = math.exp(engine_loss(llm, windows))
    with LLM(str(smollm2_path), activation_bits=8, **options) as llm:
        of_8_bits = math.exp(engine_loss(llm, windows))

    expected = math.exp(reference_loss(smollm2_path, windows))

    print(
        f"perplexity of {NUM_TOKENS} tokens: {ours:.4f}, on 2 devices {on_two_devices:.4f}, "
        f"over int8 keys and values {over_int8:.4f}, of activations of 8 bits {of_8_bits:.4f}, "
        f"reference {expected:.4f}"
    )
    assert ours == pytest.approx(expected, rel=TOLERANCE)
    assert on_two_devices == pytest.approx(expected, rel=TOLERANCE)
    assert over_int8 == pytest.approx(expected, rel=TOLERANCE)
    assert of_8_bits == pytest.approx(expected, rel=2 * TOLERANCE)
