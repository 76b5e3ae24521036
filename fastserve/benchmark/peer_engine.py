"""An engine of another make, behind lines of JSON: run by an interpreter that has it, and need not have FastServe.

    python peer_engine.py openvino MODEL.gguf --threads 2 --max-model-len 4096 --max-num-seqs 64

The first line out is {"name": ...}, when the engine is ready. Then {"prompts": [[id, ...], ...], "num_tokens": n}, the
likeliest tokens for each prompt, all at once, is answered by {"steps": [[seconds, [tokens of each]], ...]}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

MAX_NUM_BATCHED_TOKENS = 2048


class Drawn:
    """How many tokens of each sequence were drawn when; seconds count from the moment that this is made."""

    def __init__(self, num_sequences: int) -> None:
        self._start = perf_counter()
        self._counts = [0] * num_sequences
        self.steps: list[tuple[float, list[int]]] = []  # after each its time and all counts

    @classmethod
    def of(cls, steps: list[tuple[float, list[int]]]) -> Drawn:
        """What another process has seen."""
        drawn = cls(0)
        drawn.steps = steps
        return drawn

    def add(self, sequence: int, num_tokens: int) -> None:
        self._counts[sequence] += num_tokens

    def end_step(self) -> None:
        self.steps.append((perf_counter() - self._start, list(self._counts)))

    @property
    def seconds(self) -> float:
        return self.steps[-1][0]

    @property
    def seconds_per_token(self) -> float:
        """While all sequences drew: from the last one's first token to the end of the first that ended.

        Raises ValueError if they never did.
        """
        last = self.steps[-1][1]
        begin = sum(min(counts) < 1 for _, counts in self.steps)
        end = sum(max(counts) < max(last) for _, counts in self.steps)
        if begin >= end:
            raise ValueError(f"all sequences must draw several tokens together, got {last}")
        (begin_s, before), (end_s, after) = self.steps[begin], self.steps[end]
        return (end_s - begin_s) / (sum(after) - sum(before))


Generate = Callable[[list[list[int]], int], Drawn]


def openvino(arguments: argparse.Namespace) -> Generate:
    """Reads the GGUF file itself; codes of 8 bits for activations are its default on CPUs."""
    import numpy as np
    import openvino as ov
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = MAX_NUM_BATCHED_TOKENS
    scheduler.max_num_seqs = arguments.max_num_seqs
    scheduler.enable_prefix_caching = False
    scheduler.cache_size = 2  # GiB
    pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
        arguments.model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": arguments.threads}
    )
    config = openvino_genai.GenerationConfig(do_sample=False, ignore_eos=True)

    def generate(prompts: list[list[int]], num_tokens: int) -> Drawn:
        config.max_new_tokens = num_tokens
        drawn = Drawn(len(prompts))
        handles = [
            pipeline.add_request(i, ov.Tensor(np.array([ids], np.int64)), config)
            for i, ids in enumerate(prompts)
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for i, handle in enumerate(handles):
                while handle.can_read():
                    drawn.add(i, sum(len(output.generated_ids) for output in handle.read().values()))
            drawn.end_step()
        return drawn

    return generate


def vllm(arguments: argparse.Namespace) -> Generate:
    """In bfloat16, compiled: the file's weights, dequantised."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{arguments.threads - 1}")
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    llm: Any = LLM(
        as_checkpoint(arguments.model),
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=arguments.max_model_len,
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=max(MAX_NUM_BATCHED_TOKENS, arguments.max_model_len),
        enable_prefix_caching=False,
    )

    engine = llm.llm_engine

    def generate(prompts: list[list[int]], num_tokens: int) -> Drawn:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=num_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        drawn = Drawn(len(prompts))
        for i, prompt in enumerate(prompts):
            engine.add_request(str(i), {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                drawn.add(int(output.request_id), len(output.outputs[0].token_ids))
            drawn.end_step()
        return drawn

    return generate


def as_checkpoint(model: str) -> str:
    """The folder of a bfloat16 checkpoint with the weights of a GGUF file; other paths are what they are."""
    if not model.endswith(".gguf"):
        return model
    import torch
    import transformers

    source = Path(model)
    target = Path(tempfile.gettempdir()) / f"{source.stem}-bf16"
    if not (target / "config.json").exists():
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        loaded.save_pretrained(target)
        transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(
            target
        )
    return str(target)


ENGINES: dict[str, tuple[str, Callable[[argparse.Namespace], Generate]]] = {
    "openvino": ("openvino-genai", openvino),
    "vllm": ("vllm-cpu", vllm),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", choices=tuple(ENGINES))
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--max-num-seqs", type=int, required=True)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # engines print
    package, start = ENGINES[arguments.engine]
    generate = start(arguments)
    answers.write(json.dumps({"name": f"{arguments.engine} {metadata.version(package)}"}) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        drawn = generate(asked["prompts"], asked["num_tokens"])
        answers.write(json.dumps({"steps": drawn.steps}) + "\n")


if __name__ == "__main__":
    main()
