"""KV blocks fill what weights and steps leave of the poorest GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastserve.config import EngineConfig
from fastserve.distributed import gpus
from fastserve.distributed.gpus import Gpu
from fastserve.distributed.rank_program import kv_block_bytes, open_model
from fastserve.errors import CapacityError
from fastserve.worker.executor import ExecutorConfig
from fastserve.worker.gpu_sizing import MEMORY_SHARE, weight_bytes
from fastserve.worker.sizing import plan_execution

MIB = 1 << 20


def planned(
    monkeypatch: pytest.MonkeyPatch, path: Path, mebibytes: list[int], **options: Any
) -> ExecutorConfig:
    found = tuple(Gpu(index, "H100", size * MIB) for index, size in enumerate(mebibytes))
    monkeypatch.setattr(gpus, "list_gpus", lambda: found)
    return plan_execution(EngineConfig(model=str(path), devices="cuda", **options), path)


def test_blocks_weights_and_steps_fit_every_gpu(monkeypatch: pytest.MonkeyPatch, smollm2_path: Path) -> None:
    execution = planned(monkeypatch, smollm2_path, [400, 300], max_num_tokens=256, max_num_seqs=256)
    model, blocks = execution.model, execution.settings.num_blocks
    taken = [
        (weight_bytes(model, shard) + blocks * kv_block_bytes(model.config, shard.num_kv_heads, "bf16")) / MIB
        for shard in execution.division.plan.shards
    ]
    assert taken[0] < MEMORY_SHARE * 400
    assert MEMORY_SHARE * 300 * 0.7 < taken[1] < MEMORY_SHARE * 300  # the rest is for steps


def test_more_memory_is_more_blocks_until_all_slots_have_theirs(
    monkeypatch: pytest.MonkeyPatch, smollm2_path: Path
) -> None:
    counts = [
        planned(monkeypatch, smollm2_path, [size], max_model_len=2048).settings.num_blocks
        for size in (1000, 2000, 80_000, 160_000)
    ]
    assert counts[0] < counts[1] < counts[2] == counts[3] == 64 * 2048 // 16


def test_what_the_user_gives_counts(monkeypatch: pytest.MonkeyPatch, smollm2_path: Path) -> None:
    execution = planned(monkeypatch, smollm2_path, [80_000], kv_cache_bytes=300 * MIB)
    model, shard = execution.model, execution.division.plan.shards[0]
    assert execution.settings.num_blocks == 300 * MIB // kv_block_bytes(
        model.config, shard.num_kv_heads, "bf16"
    )


def test_codes_of_8_bits_are_refused(monkeypatch: pytest.MonkeyPatch, smollm2_path: Path) -> None:
    with pytest.raises(ValueError, match="kv_dtype int8 is for CPUs: GPUs keep f32 or bf16"):
        planned(monkeypatch, smollm2_path, [80_000], kv_dtype="int8")


@pytest.mark.parametrize(
    ("mebibytes", "message"),
    [
        (120, r"cuda:0 \(H100\) has 108 MiB for this model, which needs \d+ for weights and \d+ for steps"),
        (300, "one request of 8192 tokens needs 180 MiB of KV cache, and [0-9]+ MiB are given"),
    ],
)
def test_too_little_is_said_with_the_numbers(
    mebibytes: int, message: str, monkeypatch: pytest.MonkeyPatch, smollm2_path: Path
) -> None:
    with pytest.raises(CapacityError, match=message):
        planned(monkeypatch, smollm2_path, [mebibytes])


def test_the_parts_of_a_model_are_about_the_whole(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(smollm2_path))
    shards = planned(monkeypatch, smollm2_path, [8000, 8000]).division.plan.shards
    whole = planned(monkeypatch, smollm2_path, [8000]).division.plan.shards[0]
    embedding = model.file.tensors["token_embd.weight"].nbytes
    parts = sum(weight_bytes(model, shard) for shard in shards) - embedding  # which each of them holds
    assert parts == pytest.approx(weight_bytes(model, whole), rel=0.1)
