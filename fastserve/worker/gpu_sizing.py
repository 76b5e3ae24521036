"""What fits the memory of each GPU of a group."""

from __future__ import annotations

from collections.abc import Sequence

from fastserve.distributed.gpus import Gpu
from fastserve.distributed.rank_program import OpenModel, kv_block_bytes
from fastserve.distributed.shard_plan import ShardPlan
from fastserve.errors import CapacityError
from fastserve.models import names
from fastserve.models.llama import Shard

MEMORY_SHARE = 0.9  # the rest is CUDA's context, compiled kernels, and what allocators leave unused


def weight_bytes(model: OpenModel, shard: Shard) -> int:
    """About what a shard's weights take on a GPU, which also holds the whole embedding."""
    tensors, config = model.file.tensors, model.config
    embedding = tensors[names.EMBEDDING].nbytes
    logits = tensors[names.LOGITS].nbytes if names.LOGITS in tensors else 0
    layers = sum(tensor.nbytes for tensor in tensors.values()) - embedding - logits
    heads = shard.num_heads / config.num_heads
    columns = (shard.intermediate[1] - shard.intermediate[0]) / config.intermediate
    rows = (shard.vocab[1] - shard.vocab[0]) / config.vocab_size
    return int(embedding + rows * (logits or embedding) + max(heads, columns) * layers)


def blocks_that_fit(
    model: OpenModel, plan: ShardPlan, gpus: Sequence[Gpu], *, step_bytes: int, kv_type: str
) -> int:
    """KV blocks of which every GPU holds its part, beside its weights and step_bytes of activations.

    Raises CapacityError with the numbers where weights and activations alone do not fit one of them.
    """
    fitting = []
    for gpu, shard in zip(gpus, plan.shards, strict=True):
        weights, room = weight_bytes(model, shard), int(MEMORY_SHARE * gpu.total_bytes)
        left = room - weights - step_bytes
        if left < 0:
            raise CapacityError(
                f"cuda:{gpu.index} ({gpu.name}) has {room / 2**20:.0f} MiB for this model, which needs "
                f"{weights / 2**20:.0f} for weights and {step_bytes / 2**20:.0f} for steps; "
                "lower max_num_tokens or max_num_seqs, or use more devices"
            )
        fitting.append(left // kv_block_bytes(model.config, shard.num_kv_heads, kv_type))
    return min(fitting)
