from __future__ import annotations

import pytest

from fastserve.benchmark.step_theory import StepTheory
from fastserve.models.config import ModelConfig

MODEL = ModelConfig(
    architecture="llama",
    num_layers=2,
    hidden=8,
    intermediate=10,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    rotary_dim=2,
    rope_base=1e4,
    norm_eps=1e-5,
    vocab_size=100,
    context_length=64,
)
# Of a layer: q and out 8 x 8 each, k and v 8 x 4 each, the MLP 3 x 8 x 10.
LAYER_WEIGHTS = 2 * 64 + 2 * 32 + 240
POSITION_BYTES = 2 * 2 * 2 * 2 * 2  # bf16, keys and values, layers, heads, elements


def test_a_decode_step_reads_weights_and_every_key_once() -> None:
    work = StepTheory(MODEL, weight_bytes=1000, num_gpus=1).step(
        "decode", "", num_streams=3, rows=1, context=9
    )
    assert work.memory_bytes == 1000 + 3 * 10 * POSITION_BYTES
    assert work.flops == 3 * (2 * (2 * LAYER_WEIGHTS + 100 * 8) + 4 * 2 * 8 * 10)


def test_a_prompt_attends_to_what_comes_before_and_draws_once() -> None:
    work = StepTheory(MODEL, weight_bytes=1000, num_gpus=1).step(
        "prefill", "", num_streams=1, rows=5, context=0
    )
    assert work.memory_bytes == 1000 + 5 * POSITION_BYTES
    assert work.flops == 2 * (5 * 2 * LAYER_WEIGHTS + 100 * 8) + 4 * 2 * 8 * (1 + 2 + 3 + 4 + 5)


def test_gpus_share_keys_and_products() -> None:
    one, four = (
        StepTheory(MODEL, weight_bytes=0, num_gpus=count).step("decode", "", num_streams=1, rows=1, context=7)
        for count in (1, 4)
    )
    assert four.memory_bytes == pytest.approx(one.memory_bytes / 4)
    assert four.flops == pytest.approx(one.flops / 4)
