"""A model whose file says a sliding window, smaller than the context, is answered as the reference answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastserve import _C, LLM, SamplingParams
from fastserve.engine.tokenizer import Tokenizer
from fastserve.testing.convert import convert
from fastserve.testing.reference_model import ReferenceModel

WINDOW = 21  # crosses blocks of 16
TEXT = 6 * "The waves come in, the waves go out, and nobody counts them.\n"
NUM_TOKENS = 24
PARAMS = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
LIMITS: dict[str, Any] = {"max_model_len": 256, "kv_cache_bytes": 16 << 20, "num_threads": 1}


def model_with(window: int | None, source: Path, folder: Path) -> Path:
    path = folder / f"window_{window}.gguf"
    return convert(source, path, "F32", num_layers=2, sliding_window=window)


@pytest.fixture(scope="module")
def windowed(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with(WINDOW, smollm2_path, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def prompt(windowed: Path) -> list[int]:
    token_ids = Tokenizer.from_metadata(_C.GgufFile(str(windowed)).metadata).encode(TEXT, add_special=False)
    assert len(token_ids) > 4 * WINDOW
    return token_ids


@pytest.fixture(scope="module")
def answer(windowed: Path, prompt: list[int]) -> list[int]:
    model, text = ReferenceModel(windowed), list(prompt)
    for _ in range(NUM_TOKENS):
        text.append(int(model.logits(text)[-1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize(
    "options",
    [
        {"speculation": "off"},
        {"speculation": "off", "max_num_tokens": 16, "max_num_seqs": 4},
        {},
    ],
    ids=["prompt at once", "prompt in chunks", "drafts"],
)
def test_the_engine_answers_as_the_reference(
    options: dict[str, Any], windowed: Path, prompt: list[int], answer: list[int]
) -> None:
    with LLM(str(windowed), **LIMITS, **options) as llm:
        (output,) = llm.generate([prompt], PARAMS)
        drafts = llm._engine.metrics.registry.get_sample_value("fastserve_spec_decode_num_draft_tokens_total")
    assert output.outputs[0].token_ids == answer
    assert bool(drafts) == (not options)


def test_what_lies_behind_the_window_is_not_seen(windowed: Path, smollm2_path: Path, tmp_path: Path) -> None:
    token_ids = list(range(100, 180))
    whole = ReferenceModel(model_with(None, smollm2_path, tmp_path)).logits(token_ids)
    within = ReferenceModel(windowed).logits(token_ids)
    torch.testing.assert_close(within[:WINDOW], whole[:WINDOW])
    assert (within[WINDOW:] - whole[WINDOW:]).abs().amax(1).min() > 1e-2
