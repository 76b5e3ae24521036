"""Each rank of equals holds its part of the weights and little more: what no cut divides is a head or an MLP block."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve import LLM
from fastserve.distributed.rank_program import open_model
from fastserve.distributed.shard_plan import MLP_UNIT
from fastserve.models.config import ModelConfig

MAX_MODEL_LEN = 256
KV_CACHE_BYTES = 64 << 20


def packed_bytes(path: Path, devices: int) -> list[int]:
    limits = {"max_model_len": MAX_MODEL_LEN, "kv_cache_bytes": KV_CACHE_BYTES}
    with LLM(str(path), devices=devices, shares="equal", **limits) as llm:
        return list(llm._engine.executor.packed_bytes)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def whole(smollm2_path: Path) -> int:
    (num_bytes,) = packed_bytes(smollm2_path, 1)
    return num_bytes


def indivisible_bytes(config: ModelConfig, bytes_per_weight: float) -> float:
    """One query head with a KV head of its own, and one MLP block, in every layer; and the norms in fp32."""
    head = config.hidden * config.head_dim * 4  # its columns of q, k and v, its rows of the output
    mlp_block = 3 * config.hidden * MLP_UNIT
    norms = (2 * config.num_layers + 1) * config.hidden * 4
    return config.num_layers * (head + mlp_block) * bytes_per_weight + norms


@pytest.mark.parametrize("devices", [2, 3, 4, 9])
def test_a_rank_holds_its_share_and_at_most_a_head_a_block_and_the_norms_more(
    devices: int, smollm2_path: Path, whole: int
) -> None:
    _, config = open_model(str(smollm2_path))
    num_weights = config.vocab_size * config.hidden + config.num_layers * config.hidden * (
        2 * config.num_heads * config.head_dim
        + 2 * config.num_kv_heads * config.head_dim
        + 3 * config.intermediate
    )
    limit = whole / devices + indivisible_bytes(config, whole / num_weights)

    ranks = packed_bytes(smollm2_path, devices)

    print(
        f"{devices} devices: {[f'{r / 1e6:.1f}' for r in ranks]} MB of {whole / 1e6:.1f}, limit {limit / 1e6:.1f}"
    )
    assert len(ranks) == devices
    assert max(ranks) <= limit
    assert sum(ranks) >= whole  # nothing is missing: KV heads are doubled where a cut goes through them
