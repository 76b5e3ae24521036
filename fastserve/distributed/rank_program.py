"""What one rank needs to run steps: its shard packed, its KV blocks, and the program recorded over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fastserve import _C
from fastserve.distributed.shard_loader import ShardLoader, packed_bytes
from fastserve.errors import WeightFileError
from fastserve.models.config import ModelConfig, read_config
from fastserve.models.llama import LlamaInputs, LlamaWeights, Shard, forward
from fastserve.models.names import EMBEDDING
from fastserve.program.recorder import Recorder
from fastserve.program.values import Address, FusedWeight, LayerCache

KV_GROUP = 0  # every layer of a llama attends to everything: one group


@dataclass(frozen=True, slots=True)
class RankSettings:
    """The limits that all ranks of a group share."""

    max_tokens: int  # rows of a step
    max_samples: int  # sampled rows of a step
    num_slots: int
    max_blocks: int  # of one slot
    num_blocks: int
    kv_type: str  # "f32" | "bf16" | "int8"
    mailbox_capacity: int  # bytes, of steps and of results alike
    activation_bits: int = 14  # of the codes that quantised weights are multiplied with, on CPUs: 14 or 8


class OpenModel(NamedTuple):
    file: _C.GgufFile
    config: ModelConfig


@dataclass(frozen=True, slots=True)
class LoadedShard:
    """Packed weights, which outlive the programs that are recorded over them."""

    model: OpenModel
    shard: Shard
    weights: LlamaWeights[FusedWeight, list[float]]

    @property
    def packed_bytes(self) -> int:
        return packed_bytes(self.weights)


@dataclass(frozen=True, slots=True)
class RankProgram:
    program: _C.Program
    packed_bytes: int
    logits: Address  # [S, V of the shard], readable after a step
    file: _C.GgufFile  # the embedding is read from its mapping


def open_model(path: str) -> OpenModel:
    """Maps the file and reads the model's configuration. Raises WeightFileError, ModelConfigError."""
    file = _C.GgufFile(path)
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise WeightFileError(f"{path}: one part of a split model, which is not supported: merge the parts")
    embedding = file.tensors.get(EMBEDDING)
    if file.metadata.get("general.architecture") == "llama" and embedding is None:
        raise WeightFileError(f"{path}: tensor {EMBEDDING} is missing")
    return OpenModel(file, read_config(file.metadata, vocab_rows=embedding.shape[0] if embedding else 1))


def kv_block_bytes(config: ModelConfig, num_kv_heads: int, kv_type: str) -> int:
    """Bytes of one KV block over all layers, keys and values."""
    return config.num_layers * _C.kv_block_bytes(kv_type, num_kv_heads, config.head_dim)


def build_rank_program(
    model: OpenModel, shard: Shard, settings: RankSettings, *, exchange: _C.Exchange | None, num_threads: int
) -> RankProgram:
    """Packs `shard` of the model and records its forward pass and sampling."""
    return record_program(
        load_shard(model, shard, num_threads=num_threads),
        settings,
        exchange=exchange,
        num_threads=num_threads,
    )


def load_shard(model: OpenModel, shard: Shard, *, num_threads: int) -> LoadedShard:
    """Packs `shard` of the model. Raises WeightFileError."""
    weights = ShardLoader(model.file, model.config, shard, num_threads=num_threads).load()
    model.file.release_pages()
    return LoadedShard(model, shard, weights)


def record_program(
    loaded: LoadedShard, settings: RankSettings, *, exchange: _C.Exchange | None, num_threads: int
) -> RankProgram:
    """The forward pass and sampling over a shard's weights, with KV blocks of its own."""
    config, shard = loaded.model.config, loaded.shard
    program = _C.Program(
        max_tokens=settings.max_tokens,
        max_samples=settings.max_samples,
        num_slots=settings.num_slots,
        max_blocks=settings.max_blocks,
        vocab_size=config.vocab_size,
        num_blocks=[settings.num_blocks],
        exchange=exchange,
        activation_bits=settings.activation_bits,
    )
    caches = tuple(
        LayerCache(
            program.add_kv_cache(settings.kv_type, KV_GROUP, shard.num_kv_heads, config.head_dim), KV_GROUP
        )
        for _ in range(config.num_layers)
    )
    recorder = Recorder(
        program,
        max_tokens=settings.max_tokens,
        max_samples=settings.max_samples,
        num_copies=num_threads if exchange is None or exchange.size == 1 else 0,
    )
    inputs = LlamaInputs(
        token_ids=None,
        positions=None,
        caches=caches,
        index=None,
        kv_of_head=shard.kv_of_head,
        sample_rows=None,
        group=None,
    )
    logits = forward(recorder, config, shard, loaded.weights, inputs)
    scratch = _C.sample_scratch_bytes(num_threads, config.vocab_size)
    recorder.sample(logits, vocab_begin=shard.vocab[0], scratch_bytes=scratch)
    recorder.finish()
    return RankProgram(program, loaded.packed_bytes, recorder.address(logits), loaded.model.file)
