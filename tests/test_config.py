from __future__ import annotations

from typing import Any

import pytest

from fastserve.config import EngineConfig


def test_defaults_are_valid() -> None:
    assert EngineConfig().max_num_tokens == 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "devices must be >= 1, got 0"),
        ({"max_num_seqs": -3}, "max_num_seqs must be >= 1, got -3"),
        ({"kv_cache_bytes": 0}, "kv_cache_bytes must be >= 1, got 0"),
        ({"max_num_tokens": 8, "max_num_seqs": 16}, r"max_num_tokens must be >= max_num_seqs \(16\), got 8"),
        ({"max_step_ms": 0}, "max_step_ms must be > 0, got 0"),
        ({"max_step_ms": float("nan")}, "max_step_ms must be > 0, got nan"),
        ({"activation_bits": 4}, "activation_bits must be 14 or 8, got 4"),
        ({"kv_dtype": "fp8"}, "kv_dtype must be one of auto, f32, bf16, int8, got 'fp8'"),
        ({"policy": "lifo"}, "policy must be one of fcfs, got 'lifo'"),
        ({"on_loss": "pray"}, "on_loss must be one of respawn, shrink, got 'pray'"),
        ({"heartbeat_s": 0.5}, r"heartbeat_s must be in \[1, 3600\], got 0.5"),
        ({"heartbeat_s": float("nan")}, r"heartbeat_s must be in \[1, 3600\], got nan"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"model": ""}, "model must name a model"),
    ],
)
def test_a_wrong_option_is_named_with_rule_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**options)
