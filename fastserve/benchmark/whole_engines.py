"""Engines that hold a whole model on GPUs, ours and vLLM, through one interface: token ids in, token ids out."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from fastserve.benchmark.peers import greedy
from fastserve.config import EngineConfig
from fastserve.engine.build import build_engine
from fastserve.llm import LLM
from fastserve.worker.executor import MailboxExecutor

MAX_NUM_SEQS = 64
MAX_NUM_TOKENS = 2048  # the longest prompt that is timed is one step
MAX_MODEL_LEN = MAX_NUM_TOKENS + 128
VLLM_MEMORY_SHARE = 0.4  # both engines hold their KV cache at the same time


class WholeEngine(Protocol):
    """One call at a time; nothing is kept between calls."""

    @property
    def name(self) -> str: ...

    def generate(self, prompts: list[list[int]], num_tokens: int) -> None:
        """The likeliest tokens, exactly so many for each prompt; all prompts at once."""
        ...

    def close(self) -> None: ...


class OwnEngine(WholeEngine, Protocol):
    @property
    def packed_bytes(self) -> Sequence[int]:
        """Of the weights that a step reads, on each GPU."""
        ...


class FastServe:
    """All of the engine, on the caller's thread: scheduler, ranks, detokenizer."""

    name = "fastserve"

    def __init__(self, path: Path, num_gpus: int) -> None:
        config = EngineConfig(
            model=str(path),
            devices=",".join(f"cuda:{number}" for number in range(num_gpus)),
            max_num_seqs=MAX_NUM_SEQS,
            max_num_tokens=MAX_NUM_TOKENS,
            max_model_len=MAX_MODEL_LEN,
            kv_dtype="bf16",
            offline=True,
        )
        engine = build_engine(config)
        self._llm = LLM.from_engine(engine)
        assert isinstance(engine.executor, MailboxExecutor)
        self.packed_bytes = engine.executor.packed_bytes

    def generate(self, prompts: list[list[int]], num_tokens: int) -> None:
        for output in self._llm.generate(prompts, greedy(num_tokens)):
            assert len(output.outputs[0].token_ids) == num_tokens

    def close(self) -> None:
        self._llm.close()


class Vllm:
    """With its own defaults, but for the limits above and for what would answer a prompt from memory."""

    def __init__(self, path: Path, num_gpus: int) -> None:
        import vllm

        self.name = f"vllm {metadata.version('vllm')}"
        self._sampling = vllm.SamplingParams
        self._llm: Any = vllm.LLM(
            str(path),
            skip_tokenizer_init=True,
            tensor_parallel_size=num_gpus,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=MAX_NUM_TOKENS,
            max_model_len=MAX_MODEL_LEN,
            gpu_memory_utilization=VLLM_MEMORY_SHARE,
            enable_prefix_caching=False,
        )

    def generate(self, prompts: list[list[int]], num_tokens: int) -> None:
        params = self._sampling(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        for output in self._llm.generate(given, params, use_tqdm=False):
            assert len(output.outputs[0].token_ids) == num_tokens

    def close(self) -> None:
        del self._llm  # its processes end with it
        gc.collect()
