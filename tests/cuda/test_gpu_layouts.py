"""The same steps over a GPU's own layouts of weights and KV, by the kernels that run there, interpreted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastserve import _C
from fastserve.config import EngineConfig
from fastserve.cuda.device_program import DeviceModel, DeviceProgram
from fastserve.cuda.device_weights import choose_activation_dtype, load_on_device
from fastserve.distributed.rank_program import load_shard, open_model
from fastserve.step import GREEDY, BlockGrant, Chunk, SlotOpening, Step
from fastserve.testing.convert import convert
from fastserve.testing.fake_cuda import FakeRuntime
from fastserve.worker.sizing import plan_execution
from fastserve.worker.step_codec import StepEncoder, decode_result

PROMPT = (5, 17)
# A rank's shard of a larger group: the interpreter takes its time for more.
PARTS = {
    "heads": (0, 3),
    "kv_heads": (0, 1),
    "kv_of_head": (0, 0, 0),
    "intermediate": (0, 64),
    "vocab": (0, 128),
}


def program_of(path: Path) -> DeviceProgram:
    config = EngineConfig(model=str(path), kv_dtype="f32", max_num_seqs=1, max_num_tokens=2, max_model_len=32)
    execution = plan_execution(config, path)
    shard = replace(execution.division.plan.shards[0], **PARTS)
    loaded, runtime = load_shard(execution.model, shard, num_threads=1), FakeRuntime()
    dtype = choose_activation_dtype(loaded.weights, runtime.device)
    weights = load_on_device(loaded.weights, execution.model.file, runtime.device, dtype)
    exchange = _C.Exchange(_C.SharedRegion.create(1, 1 << 20), 0)
    model = DeviceModel(execution.model.config, shard, weights, loaded.packed_bytes)
    program = DeviceProgram(runtime, model, execution.settings, exchange=exchange, group=None)
    program.prepare()
    return program


def run(program: DeviceProgram) -> tuple[list[int], Tensor]:
    """What a prompt and two steps behind it drew, and the last step's logits."""
    encoder, drawn = StepEncoder(), []
    first = Step(
        1,
        opened=(SlotOpening(0, len(PROMPT), GREEDY),),
        blocks=(BlockGrant(0, 0, 1),),
        chunks=(Chunk(0, PROMPT, sample=True),),
    )
    for step in (first, Step(2, decodes=(0,)), Step(3, decodes=(0,))):
        result = decode_result(program.run(encoder.encode(step)))
        drawn += [sample.token_id for sample in result.samples]
    return drawn, program.logits_of_graph(1)[0].float()


@pytest.fixture(scope="module")
def one_layer(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(smollm2_path, tmp_path_factory.mktemp("models") / "one.gguf", "F16", num_layers=1)


def test_the_gpus_kernels_and_layouts_give_the_cpus_logits(
    one_layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, logits = run(program_of(one_layer))
    monkeypatch.setenv("FASTSERVE_BACKEND", "triton")
    drawn, ours = run(program_of(one_layer))
    assert drawn == expected
    torch.testing.assert_close(ours, logits, rtol=2e-2, atol=2e-2 * float(logits.abs().max()))


def check_activations(path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(str(path))
    shard = replace(plan_execution(EngineConfig(model=str(path)), path).division.plan.shards[0], **PARTS)
    weights = load_shard(model, shard, num_threads=2).weights
    assert choose_activation_dtype(weights, torch.device("cpu")) == torch.float32
    monkeypatch.setenv("FASTSERVE_BACKEND", "triton")  # a GPU's layouts, on the CPU
    assert choose_activation_dtype(weights, torch.device("cpu")) == dtype
    assert load_on_device(weights, model.file, torch.device("cpu"), dtype).embedding.dtype == dtype


def test_activations_have_the_type_of_plain_weights(
    one_layer: Path, smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_activations(one_layer, torch.float16, monkeypatch)
    monkeypatch.delenv("FASTSERVE_BACKEND")
    full = convert(smollm2_path, tmp_path / "full.gguf", "F32", num_layers=1)
    check_activations(full, torch.float32, monkeypatch)


def test_activations_of_quantised_weights_are_bf16(
    short_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_activations(short_model, torch.bfloat16, monkeypatch)
