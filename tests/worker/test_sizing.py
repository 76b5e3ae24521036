"""What will not fit is said before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastserve.config import EngineConfig
from fastserve.distributed.rank_program import open_model
from fastserve.errors import CapacityError
from fastserve.worker import sizing
from fastserve.worker.sizing import plan_execution

MIB = 1 << 20


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "available_bytes", lambda: 1000 * MIB)


def planned(path: Path, **options: Any) -> Any:
    return plan_execution(EngineConfig(model=str(path), **options), path)


@pytest.mark.parametrize("devices", [1, 2])
def test_the_default_limits_fit_a_small_machine(devices: int, smollm2_path: Path) -> None:
    settings = planned(smollm2_path, devices=devices).settings
    assert settings.num_blocks >= settings.max_blocks


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"max_num_tokens": 100_000_000}, "steps of 100000000 tokens"),
        ({"kv_cache_bytes": 2000 * MIB}, "KV cache 2000"),
        ({"max_num_seqs": 8192, "max_num_tokens": 8192}, "steps of 8192 tokens"),
    ],
)
def test_what_does_not_fit_is_named_with_the_numbers(
    options: dict[str, int], part: str, smollm2_path: Path
) -> None:
    with pytest.raises(CapacityError, match=f"{part}.* and 1000 are free; lower max_num_tokens"):
        planned(smollm2_path, **options)


def test_codes_of_8_bits_nearly_double_the_tokens(smollm2_path: Path) -> None:
    options = {"kv_cache_bytes": 300 * MIB, "max_num_seqs": 512}
    bf16, int8 = (planned(smollm2_path, kv_dtype=kind, **options).settings for kind in ("bf16", "int8"))
    assert int8.kv_type == "int8"
    assert 1.9 < int8.num_blocks / bf16.num_blocks < 2


def test_codes_of_8_bits_need_heads_that_they_fit(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(smollm2_path))
    odd = model._replace(config=replace(model.config, head_dim=66, rotary_dim=66))
    monkeypatch.setattr(sizing, "open_model", lambda path: odd)
    with pytest.raises(ValueError, match=r"multiples of 4, the model's is 66: it can be f32 or bf16"):
        planned(smollm2_path, kv_dtype="int8")


def test_weights_that_do_not_fit_are_named(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "available_bytes", lambda: 90 * MIB)
    with pytest.raises(CapacityError, match=r"weights 9[0-9], .* and 90 are free"):
        planned(smollm2_path, kv_cache_bytes=20 * MIB, max_model_len=512)
