"""LLM(devices="cuda:...") over ranks on fake GPUs, which are processes as real ones are."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fastserve import LLM, SamplingParams
from fastserve.distributed import gpus
from fastserve.distributed.gpus import Gpu
from fastserve.worker import group_executor

LIMITS = {"max_num_seqs": 2, "max_num_tokens": 16, "max_model_len": 128}
PROMPTS = ["The capital of France is", "Once upon a time there was a little girl who lived near the forest,"]
PARAMS = SamplingParams(max_tokens=12, temperature=0.8, seed=11, top_p=0.9, logprobs=1)


@pytest.fixture(autouse=True)
def two_fake_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_executor, "GPU_RANK", "fastserve.testing.fake_gpu_rank")
    monkeypatch.setattr(gpus, "list_gpus", lambda: tuple(Gpu(i, f"fake {i}", 8 << 30) for i in range(2)))


def answers(llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, PARAMS)]


@pytest.mark.parametrize(("devices", "num_ranks"), [("cuda:1", 1), ("cuda", 2)])
def test_gpus_answer_as_as_many_cpu_devices_do(devices: str, num_ranks: int, short_model: Path) -> None:
    with LLM(str(short_model), devices=num_ranks, shares="equal", **LIMITS) as llm:
        expected = answers(llm)
    with LLM(str(short_model), devices=devices, **LIMITS) as llm:
        assert answers(llm) == expected


def test_a_killed_rank_is_replaced_and_nobody_notices(short_model: Path) -> None:
    with LLM(str(short_model), devices="cuda:0,1", **LIMITS) as llm:
        expected = answers(llm)
        stream = llm.stream(PROMPTS[0], PARAMS)
        next(stream)
        os.kill(llm._engine.executor.pids[1], signal.SIGKILL)  # type: ignore[attr-defined]
        *_, last = stream
        assert last.outputs[0].token_ids == expected[0]
