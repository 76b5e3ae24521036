"""Prompts are fresh for every call; a step's least work comes from the file; engines of other makes run apart."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from fastserve.benchmark.peer_engine import Drawn
from fastserve.benchmark.peers import FIRST_ORDINARY_ID, PeerProcess, model_work, random_prompt


def test_prompts_differ_and_repeat_with_the_seed() -> None:
    first = random.Random(7)
    prompts = [random_prompt(first, 64, 1000) for _ in range(2)]
    assert prompts[0] != prompts[1]
    assert prompts[0] == random_prompt(random.Random(7), 64, 1000)
    assert all(FIRST_ORDINARY_ID <= token_id < 1000 for prompt in prompts for token_id in prompt)


def test_a_step_reads_the_file_once_and_multiplies_every_row(smollm2_path: Path) -> None:
    one, many = (model_work(smollm2_path, num_tokens=num_tokens) for num_tokens in (1, 512))
    assert one.num_bytes == many.num_bytes == pytest.approx(smollm2_path.stat().st_size, rel=0.05)
    # 30 layers of q, k, v, o and the MLP
    assert one.num_operations == 2 * 30 * 576 * (576 * 2 + 192 * 2 + 1536 * 3)
    assert many.num_operations == 512 * one.num_operations
    assert one.arithmetic == "int8"


FAKE_OPENVINO = """
import time
from types import SimpleNamespace as SchedulerConfig, SimpleNamespace as GenerationConfig

class Handle:
    def __init__(self, count):
        self.left, self.new = count, 0

    def can_read(self):
        return self.new > 0

    def read(self):
        self.new -= 1
        return {0: SchedulerConfig(generated_ids=[7])}

class ContinuousBatchingPipeline:
    def __init__(self, path, scheduler, device, properties):
        assert (path, device, properties) == ("model.gguf", "CPU", {"INFERENCE_NUM_THREADS": 2})
        print("noise on stdout")
        self.handles = []

    def add_request(self, number, ids, config):
        assert ids.shape == (1, 3)
        self.handles.append(Handle(config.max_new_tokens))
        return self.handles[-1]

    def has_non_finished_requests(self):
        return any(handle.left for handle in self.handles)

    def step(self):
        time.sleep(0.02)
        for handle in self.handles:
            if handle.left:
                handle.left, handle.new = handle.left - 1, 1
"""


@pytest.fixture
def fake_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino_genai.py").write_text(FAKE_OPENVINO)
    (tmp_path / "openvino.py").write_text("from numpy import array as Tensor")
    info = tmp_path / "openvino_genai-7.8.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: openvino-genai\nVersion: 7.8\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("fake_openvino")
def test_an_engine_of_another_interpreter_is_timed_through_its_process() -> None:
    peer = PeerProcess(sys.executable, "openvino", Path("model.gguf"), num_threads=2, max_model_len=64)
    try:
        assert peer.name == "openvino 7.8 2t"
        assert peer.seconds_to_first([1, 2, 3]) >= 0.02
        assert peer.seconds_per_token([[1, 2, 3], [4, 5, 6]], 10) == pytest.approx(0.01, rel=0.3)
    finally:
        peer.close()


def test_a_rate_counts_the_steps_in_which_all_draw() -> None:
    drawn = Drawn.of(
        [(1.0, [1, 0]), (1.1, [2, 0]), (2.0, [3, 1]), (2.5, [4, 2]), (3.0, [5, 3]), (9.0, [5, 5])]
    )
    assert drawn.seconds == 9.0
    assert drawn.seconds_per_token == 0.25
    for steps in ([(1.0, [1, 1])], [(1.0, [1, 0]), (2.0, [2, 0]), (3.0, [2, 1])], [(1.0, [0, 0])]):
        with pytest.raises(ValueError, match="all sequences must draw several tokens together"):
            assert Drawn.of(steps).seconds_per_token


def test_an_engine_that_does_not_start_is_said_to_have_ended() -> None:
    with pytest.raises(RuntimeError, match="the engine ended with exit code 1"):
        PeerProcess(sys.executable, "vllm", Path("none.gguf"), num_threads=2, max_model_len=64)
