"""What a model file must hold before a rank is built from it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from fastserve.distributed.rank_program import RankSettings, build_rank_program, open_model
from fastserve.distributed.shard_loader import ShardLoader
from fastserve.distributed.shard_plan import make_plan
from fastserve.errors import ModelConfigError, WeightFileError
from fastserve.models.names import expected_shapes
from fastserve.testing.convert import convert


def tiny_file(path: Path, *, architecture: str = "llama", parts: int = 1) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_uint16("split.count", parts)
    writer.add_tensor("token_embd.weight", np.zeros((32, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path: Path) -> None:
    file, config = open_model(str(path))
    ShardLoader(file, config, make_plan(config, 1).shards[0], num_threads=1).load()


def test_a_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match="one part of a split model"):
        open_model(str(tiny_file(tmp_path / "part.gguf", parts=3)))


def test_an_unknown_architecture_names_itself_and_what_is_supported(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match="architecture 'mamba' is not supported; supported: llama"):
        open_model(str(tiny_file(tmp_path / "mamba.gguf", architecture="mamba")))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match=r"tensor output_norm\.weight is missing"):
        load(tiny_file(tmp_path / "holes.gguf"))


def test_every_tensor_of_a_real_model_is_expected(smollm2_path: Path, tmp_path: Path) -> None:
    file, config = open_model(str(convert(smollm2_path, tmp_path / "one.gguf", "Q4_0", num_layers=1)))
    assert config.num_layers == 1
    assert set(file.tensors) == {name for name, _ in expected_shapes(config)}


def test_a_program_that_nobody_needs_is_gone_at_once(smollm2_path: Path) -> None:
    """With its KV blocks: survivors of a loss record a new one, and there may be no room for two."""
    model = open_model(str(smollm2_path))
    settings = RankSettings(
        max_tokens=16,
        max_samples=4,
        num_slots=4,
        max_blocks=8,
        num_blocks=16,
        kv_type="bf16",
        mailbox_capacity=1 << 16,
    )
    gc.collect()
    gc.disable()
    try:
        shard = make_plan(model.config, 9).shards[8]
        built = build_rank_program(model, shard, settings, exchange=None, num_threads=1)
        program = weakref.ref(built.program)
        del built
        assert program() is None
    finally:
        gc.enable()
