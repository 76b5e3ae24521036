"""An executor around a DeviceProgram on the fake GPU, so that the whole engine runs over it in one process."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from fastserve import _C, LLM
from fastserve.config import EngineConfig
from fastserve.cuda.device_program import DeviceModel, DeviceProgram
from fastserve.cuda.device_weights import choose_activation_dtype, load_on_device
from fastserve.distributed.rank_program import load_shard
from fastserve.engine.engine import Engine
from fastserve.engine.tokenizer import Tokenizer
from fastserve.errors import GroupError
from fastserve.step import Step, StepResult
from fastserve.testing.fake_cuda import FakeRuntime
from fastserve.worker.executor import ExecutorConfig
from fastserve.worker.sizing import plan_execution
from fastserve.worker.step_codec import StepEncoder, decode_result


def make_program(config: ExecutorConfig, runtime: FakeRuntime) -> DeviceProgram:
    loaded = load_shard(config.model, config.division.plan.shards[0], num_threads=1)
    dtype = choose_activation_dtype(loaded.weights, runtime.device)
    weights = load_on_device(loaded.weights, config.model.file, runtime.device, dtype)
    model = DeviceModel(config.model.config, loaded.shard, weights, loaded.packed_bytes)
    exchange = _C.Exchange(_C.SharedRegion.create(1, 1 << 20), 0)
    return DeviceProgram(runtime, model, config.settings, exchange=exchange, group=None)


class InProcessExecutor:
    rank_times = ()
    failure: GroupError | None = None
    makes_drafts = False

    def __init__(self, config: ExecutorConfig, runtime: FakeRuntime) -> None:
        self.runtime = runtime
        self.program = make_program(config, runtime)
        self.program.prepare()
        self.num_blocks = (config.settings.num_blocks,)
        self.block_size = int(_C.BLOCK_SIZE)
        self.max_samples = config.settings.max_samples
        self.vocab_size = config.model.config.vocab_size
        self.max_model_len = config.max_model_len
        self._encoder = StepEncoder()
        self._results: deque[StepResult] = deque()

    def submit(self, step: Step) -> None:
        self._results.append(decode_result(self.program.run(self._encoder.encode(step))))

    def collect(self) -> StepResult:
        return self._results.popleft()

    def recover(self) -> None:
        raise GroupError("there is one rank, and it is this process")

    def close(self) -> None:
        self._results.clear()


def open_llm(path: Path, runtime: FakeRuntime, **options: Any) -> LLM:
    config = EngineConfig(model=str(path), **options)
    execution = plan_execution(config, path)
    tokenizer = Tokenizer.from_metadata(execution.model.file.metadata)
    return LLM.from_engine(Engine(InProcessExecutor(execution, runtime), tokenizer, config))
