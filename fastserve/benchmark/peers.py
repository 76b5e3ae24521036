"""Decode and prefill of whole models: ours and other engines', through one interface."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastserve import _C
from fastserve.benchmark import peer_engine
from fastserve.benchmark.peer_engine import Drawn
from fastserve.benchmark.roofs import Work
from fastserve.config import EngineConfig, KvDtype
from fastserve.engine.build import build_engine
from fastserve.request import SamplingParams

FIRST_ORDINARY_ID = 100  # below lie special tokens
MAX_STREAMS = 64
END_TIMEOUT_S = 20


class Peer(ABC):
    """An engine that holds a model. One call at a time; nothing is kept between calls."""

    name: str
    max_streams: int | None = None  # sequences that it runs together; None: as many as are asked for

    @abstractmethod
    def draw(self, prompts: list[list[int]], num_tokens: int) -> Drawn:
        """So many tokens for each of the prompts, all at once."""

    def seconds_to_first(self, prompt: list[int]) -> float:
        return self._draw([prompt], 1).seconds

    def seconds_per_token(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Of the tokens after the first ones. The steps of one call are timed: what a call of first tokens alone
        takes, often longer than all that follow, varies by more than is to be found."""
        return self._draw(prompts, 1 + num_tokens).seconds_per_token

    def _draw(self, prompts: list[list[int]], num_tokens: int) -> Drawn:
        drawn = self.draw(prompts, num_tokens)
        assert drawn.steps[-1][1] == [num_tokens] * len(prompts)
        return drawn

    @abstractmethod
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Precision:
    """What our engine rounds to."""

    activation_bits: int = 14
    kv_dtype: KvDtype = "auto"

    def __str__(self) -> str:
        bits = " 8 bits" if self.activation_bits == 8 else ""
        return bits + ("" if self.kv_dtype == "auto" else f" {self.kv_dtype} KV")


class Ours(Peer):
    """The whole engine on the caller's thread: scheduler, ranks, detokenizer and all."""

    def __init__(
        self,
        path: Path,
        *,
        devices: int,
        num_threads: int,
        max_model_len: int,
        precision: Precision,
    ) -> None:
        self.name = f"fastserve {devices}x{num_threads}t{precision}"
        config = EngineConfig(
            model=str(path),
            devices=devices,
            num_threads=num_threads,
            max_model_len=max_model_len,
            max_num_seqs=MAX_STREAMS,
            activation_bits=precision.activation_bits,
            kv_dtype=precision.kv_dtype,
            max_step_ms=math.inf,
            speculation="off",  # as the peers: a token a step
        )
        self._engine = build_engine(config)

    def draw(self, prompts: list[list[int]], num_tokens: int) -> Drawn:
        drawn = Drawn(len(prompts))
        for i, prompt in enumerate(prompts):
            self._engine.add_request(str(i), prompt, greedy(num_tokens))
        while self._engine.has_work:
            for delta in self._engine.step():
                drawn.add(int(delta.request_id), len(delta.token_ids))
            drawn.end_step()
        return drawn

    def close(self) -> None:
        self._engine.close()


class PeerProcess(Peer):
    """An engine that lives in a process of its own, under an interpreter that has it (peer_engine.py)."""

    def __init__(self, python: str, engine: str, path: Path, *, num_threads: int, max_model_len: int) -> None:
        """Raises RuntimeError if the engine does not start; what it printed went to stderr."""
        command = [python, str(Path(peer_engine.__file__)), engine, str(path)]
        for option, value in (
            ("--threads", num_threads),
            ("--max-model-len", max_model_len),
            ("--max-num-seqs", MAX_STREAMS),
        ):
            command += [option, str(value)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        try:
            self.name = f"{self._answer()['name']} {num_threads}t"
        except BaseException:
            self.close()
            raise

    def draw(self, prompts: list[list[int]], num_tokens: int) -> Drawn:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "num_tokens": num_tokens}) + "\n")
        return Drawn.of(self._answer()["steps"])

    def close(self) -> None:
        try:
            self._process.communicate(timeout=END_TIMEOUT_S)  # nothing more is asked
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class LlamaCpp(Peer):
    """llama-cpp-python's eval and greedy sampling, without text."""

    max_streams = 1

    def __init__(self, path: Path, *, num_threads: int, max_model_len: int, repacking: bool = True) -> None:
        """repacking: weights in layouts for this CPU (AMX and others); some virtual machines announce AMX and
        then fault on its first instruction (`llama_cpp_survives`)."""
        import llama_cpp

        self.name = (
            f"llama.cpp ({llama_cpp.__version__}) {num_threads}t{'' if repacking else ' no repacking'}"
        )
        with _model_params(llama_cpp, use_extra_bufts=repacking):
            self._llama: Any = llama_cpp.Llama(
                str(path),
                n_ctx=max_model_len,
                n_batch=512,
                n_ubatch=512,
                n_threads=num_threads,
                n_threads_batch=num_threads,
                verbose=False,
            )

    def draw(self, prompts: list[list[int]], num_tokens: int) -> Drawn:
        (tokens,) = prompts
        self._llama.reset()
        drawn = Drawn(1)
        for _ in range(num_tokens):
            self._llama.eval(tokens)
            tokens = [self._llama.sample(temp=0.0, repeat_penalty=1.0)]
            drawn.add(0, 1)
            drawn.end_step()
        return drawn

    def close(self) -> None:
        self._llama.close()


@contextmanager
def _model_params(llama_cpp: Any, *, use_extra_bufts: bool) -> Iterator[None]:
    """llama_cpp.Llama has no argument for it, but starts from what this function returns."""
    module = llama_cpp.llama_cpp
    defaults = module.llama_model_default_params

    def changed() -> Any:
        params = defaults()
        params.use_extra_bufts = use_extra_bufts
        return params

    module.llama_model_default_params = changed
    try:
        yield
    finally:
        module.llama_model_default_params = defaults


def llama_cpp_survives(path: Path) -> bool:
    """Whether its fastest kernels run here, tried in a process that may crash."""
    code = (
        "import sys; from pathlib import Path; from fastserve.benchmark.peers import LlamaCpp;"
        "LlamaCpp(Path(sys.argv[1]), num_threads=1, max_model_len=64).seconds_to_first([100] * 32)"
    )
    return (
        subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False).returncode
        == 0
    )


def model_work(path: Path, *, num_tokens: int) -> Work:
    """What a step must do at least: read the file's tensors once, multiply each row by all but the embedding."""
    tensors = _C.GgufFile(str(path)).tensors.values()
    matrices = [tensor for tensor in tensors if len(tensor.shape) == 2 and tensor.name != "token_embd.weight"]
    quantised = any(tensor.type_name.lower().startswith("q") for tensor in matrices)
    return Work(
        num_bytes=sum(tensor.nbytes for tensor in tensors),
        num_operations=2.0 * num_tokens * sum(tensor.n * tensor.k for tensor in matrices),
        arithmetic="int8" if quantised else "bf16",
    )


def random_prompt(random_ids: random.Random, length: int, vocab_size: int) -> list[int]:
    """A fresh one for every call, so that nobody's prefix cache helps."""
    return [random_ids.randrange(FIRST_ORDINARY_ID, vocab_size) for _ in range(length)]


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
