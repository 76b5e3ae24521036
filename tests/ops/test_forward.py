"""A model's forward, written once, runs on `fastserve.ops` as on `fastserve.ops.reference`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastserve.ops
from fastserve.models.config import ModelConfig
from fastserve.models.llama import LayerWeights, LlamaInputs, LlamaWeights, Shard, forward
from fastserve.ops import KvCache, KvIndex, PackedWeight, pack, reference, unpack
from fastserve.ops.packed_weight import WeightType

CONFIG = ModelConfig(
    architecture="llama",
    num_layers=2,
    hidden=64,
    intermediate=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rotary_dim=16,
    rope_base=10000.0,
    norm_eps=1e-5,
    vocab_size=100,
    context_length=64,
)
SHARD = Shard((0, 4), (0, 2), (0, 96), (0, 100), (0, 0, 1, 1))
NUM_TOKENS = 20
TOLERANCE: dict[WeightType, float] = {"f32": 1e-5, "bf16": 3e-2, "q8": 3e-2, "q4": 6e-2}


def random_weights(generator: torch.Generator, type: WeightType) -> LlamaWeights[PackedWeight, torch.Tensor]:
    def weight(n: int, k: int) -> PackedWeight:
        return pack(torch.randn(n, k, generator=generator) * k**-0.5, type)

    layers = tuple(
        LayerWeights(
            torch.ones(64), weight(128, 64), weight(64, 64), torch.ones(64), weight(192, 64), weight(64, 96)
        )
        for _ in range(CONFIG.num_layers)
    )
    embedding = torch.randn(100, 64, generator=generator)
    return LlamaWeights(embedding, layers, torch.ones(64), weight(100, 64), torch.tensor(CONFIG.inv_freq()))


def unpacked(weights: LlamaWeights[PackedWeight, torch.Tensor]) -> LlamaWeights[torch.Tensor, torch.Tensor]:
    layers = tuple(
        LayerWeights(
            layer.attention_norm,
            unpack(layer.qkv),
            unpack(layer.attention_out),
            layer.mlp_norm,
            unpack(layer.gate_up),
            unpack(layer.down),
        )
        for layer in weights.layers
    )
    return LlamaWeights(weights.embedding, layers, weights.norm, unpack(weights.logits), weights.inv_freq)


def inputs(caches: tuple[KvCache, ...], rows: slice) -> LlamaInputs:
    positions = torch.arange(NUM_TOKENS, dtype=torch.int32)[rows]
    return LlamaInputs(
        token_ids=positions * 7 % 100,
        positions=positions,
        caches=caches,
        index=KvIndex(torch.zeros_like(positions), positions, torch.tensor([[1, 0]], dtype=torch.int32)),
        kv_of_head=torch.tensor(SHARD.kv_of_head, dtype=torch.int32),
        sample_rows=torch.arange(len(positions), dtype=torch.int32),
        group=None,
    )


def logits(ops: Any, weights: LlamaWeights[Any, Any], *, chunk: int = NUM_TOKENS) -> torch.Tensor:
    caches = tuple(KvCache.empty(2, 2, 16) for _ in range(CONFIG.num_layers))
    parts = [
        forward(ops, CONFIG, SHARD, weights, inputs(caches, slice(begin, begin + chunk)))
        for begin in range(0, NUM_TOKENS, chunk)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("type", TOLERANCE)
def test_fast_equals_slow(isa: str, generator: torch.Generator, type: WeightType) -> None:
    weights = random_weights(generator, type)
    fast, slow = logits(fastserve.ops, weights), logits(reference, unpacked(weights))
    assert (fast - slow).norm() <= TOLERANCE[type] * slow.norm()


@pytest.mark.parametrize("type", TOLERANCE)
@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_give_the_same_bits_as_the_whole(
    isa: str, generator: torch.Generator, type: WeightType, chunk: int
) -> None:
    weights = random_weights(generator, type)
    assert torch.equal(logits(fastserve.ops, weights, chunk=chunk), logits(fastserve.ops, weights))
