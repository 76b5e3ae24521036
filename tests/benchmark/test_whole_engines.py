"""The engines that are timed: ours over a rank on a fake GPU, and vLLM's interface as its documentation has it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastserve.benchmark import whole_engines
from fastserve.benchmark.whole_engines import FastServe, Vllm
from fastserve.distributed import gpus
from fastserve.distributed.gpus import Gpu
from fastserve.worker import group_executor


def test_ours_draws_as_many_tokens_as_asked_for(short_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_executor, "GPU_RANK", "fastserve.testing.fake_gpu_rank")
    monkeypatch.setattr(gpus, "list_gpus", lambda: (Gpu(0, "fake", 8 << 30),))
    for name, value in {"MAX_NUM_SEQS": 2, "MAX_NUM_TOKENS": 16, "MAX_MODEL_LEN": 64}.items():
        monkeypatch.setattr(whole_engines, name, value)
    engine = FastServe(short_model, 1)
    try:
        engine.generate([[100, 101], [102, 103, 104]], 3)
        (packed_bytes,) = engine.packed_bytes
        assert 1 << 20 < packed_bytes < short_model.stat().st_size
        with pytest.raises(ValueError, match="max_tokens"):
            engine.generate([[100]], 0)
    finally:
        engine.close()


class VllmLlm:
    def __init__(self, model: str, **options: Any) -> None:
        self.model, self.options = model, options
        self.num_short = 0

    def generate(self, prompts: list[dict[str, list[int]]], params: Any, *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        assert all(prompt["prompt_token_ids"] for prompt in prompts)
        assert params.ignore_eos
        assert params.temperature == 0.0
        tokens = [1] * (params.max_tokens - self.num_short)
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens)]) for _ in prompts]


def test_vllm_is_given_token_ids_and_keeps_no_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(LLM=VllmLlm, SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(whole_engines.metadata, "version", lambda _: "1.2")
    engine = Vllm(Path("model.gguf"), 2)
    assert engine.name == "vllm 1.2"
    assert engine._llm.model == "model.gguf"
    assert engine._llm.options["tensor_parallel_size"] == 2
    assert engine._llm.options["enable_prefix_caching"] is False
    engine.generate([[100, 101]], 3)
    engine._llm.num_short = 1
    with pytest.raises(AssertionError):
        engine.generate([[100, 101]], 3)
    engine.close()
    assert not hasattr(engine, "_llm")
