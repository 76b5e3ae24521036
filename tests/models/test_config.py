from __future__ import annotations

import re
from typing import Any

import pytest

from fastserve.errors import ModelConfigError
from fastserve.models.config import read_config

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def test_what_the_file_leaves_out_follows_from_the_rest() -> None:
    config = read_config(METADATA, vocab_rows=32)
    assert (config.head_dim, config.rotary_dim, config.rope_base) == (16, 16, 10000.0)
    assert config.inv_freq()[0] == 1.0
    assert config.sliding_window == 0


def test_a_sliding_window_is_that_of_all_layers() -> None:
    windowed = {**METADATA, "llama.attention.sliding_window": 48}
    assert read_config(windowed, vocab_rows=32).sliding_window == 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba' is not supported; supported: llama"),
        ({"llama.block_count": 0}, "block_count must be an integer"),
        ({"llama.block_count": 1 << 40}, "block_count must be an integer"),
        ({"llama.attention.head_count": None}, "head_count must be an integer"),
        ({"llama.attention.head_count_kv": 3}, "4 query heads must be a multiple of 3 KV heads"),
        ({"llama.rope.dimension_count": 17}, "rotary dim must be even"),
        (
            {"llama.attention.sliding_window": -1},
            "sliding_window must be an integer in [0, 16777216], got -1",
        ),
        ({"llama.attention.sliding_window_pattern": 6}, "sliding_window_pattern is not supported"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn' is not supported"),
        ({"llama.attention.layer_norm_rms_epsilon": "x"}, "layer_norm_rms_epsilon must be a positive number"),
    ],
)
def test_a_contradiction_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=re.escape(message)):
        read_config({**METADATA, **changes}, vocab_rows=32)
