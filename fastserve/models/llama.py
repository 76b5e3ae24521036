"""The llama family: RMSNorm, grouped-query attention with rotary positions, over a sliding window or all, SwiGLU.

`forward` is written against the op table and runs on whatever `ops` is: the torch reference, the eager kernels, or a
recorder. It sees one rank's shard; the two `matmul_all_reduce` of a layer merge the parts.
Source: Touvron et al. 2023, "LLaMA"; Ainslie et al. 2023, "GQA"; Jiang et al. 2023, "Mistral 7B" (sliding window).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastserve.models.config import ModelConfig

W = TypeVar("W")  # a weight, as `ops` understands it
V = TypeVar("V")  # a vector of floats, as `ops` understands it


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of every layer that one rank computes: half-open ranges of heads, MLP columns and vocabulary."""

    heads: tuple[int, int]
    kv_heads: tuple[int, int]
    intermediate: tuple[int, int]
    vocab: tuple[int, int]
    kv_of_head: tuple[int, ...]  # local KV head that each local query head reads

    @property
    def num_heads(self) -> int:
        return self.heads[1] - self.heads[0]

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads[1] - self.kv_heads[0]

    @property
    def max_group(self) -> int:
        """Query heads of one KV head, at most."""
        return max(map(self.kv_of_head.count, self.kv_of_head))


@dataclass(frozen=True, slots=True)
class LayerWeights(Generic[W, V]):
    attention_norm: V  # [D]
    qkv: W  # [(H + 2 K) E, D] of the shard
    attention_out: W  # [D, H E]
    mlp_norm: V  # [D]
    gate_up: W  # [2 F, D]
    down: W  # [D, F]


@dataclass(frozen=True, slots=True)
class LlamaWeights(Generic[W, V]):
    embedding: Any  # [V, D], whole on every rank: rows are read from the mapped file
    layers: tuple[LayerWeights[W, V], ...]
    norm: V
    logits: W  # [V of the shard, D]
    inv_freq: V


@dataclass(frozen=True, slots=True)
class LlamaInputs:
    token_ids: Any  # [T]
    positions: Any  # [T]
    caches: tuple[Any, ...]  # per layer
    index: Any  # which blocks a row reads
    kv_of_head: Any  # [H of the shard]
    sample_rows: Any  # [S] rows whose logits are wanted
    group: Any


def forward(
    ops: Any, config: ModelConfig, shard: Shard, weights: LlamaWeights[Any, Any], inputs: LlamaInputs
) -> Any:
    """Logits [S, V of the shard] of the rows `inputs.sample_rows`."""
    head_dim, eps = config.head_dim, config.norm_eps
    q_size, kv_size = shard.num_heads * head_dim, shard.num_kv_heads * head_dim
    next_norms = [layer.attention_norm for layer in weights.layers[1:]] + [weights.norm]

    residual = ops.embed(inputs.token_ids, weights.embedding)
    hidden = ops.rms_norm(residual, weights.layers[0].attention_norm, eps)
    for layer, cache, next_norm in zip(weights.layers, inputs.caches, next_norms, strict=True):
        q, k, v = ops.split(ops.matmul(hidden, layer.qkv), (q_size, kv_size, kv_size))
        ops.rotary(q, k, inputs.positions, weights.inv_freq, head_dim=head_dim)
        ops.store_kv(k, v, cache, inputs.index)
        attention = ops.paged_attention(
            q,
            cache,
            inputs.index,
            inputs.kv_of_head,
            scale=head_dim**-0.5,
            window=config.sliding_window,
            max_group=shard.max_group,
        )
        if layer is weights.layers[-1]:  # behind its keys and values rows matter no more to each other
            attention = ops.select_rows(attention, inputs.sample_rows)
            residual = ops.select_rows(residual, inputs.sample_rows)
        hidden = ops.matmul_all_reduce_add_rms_norm(
            attention, layer.attention_out, inputs.group, residual, layer.mlp_norm, eps
        )
        activated = ops.matmul(hidden, layer.gate_up, epilogue="silu_mul")
        hidden = ops.matmul_all_reduce_add_rms_norm(
            activated, layer.down, inputs.group, residual, next_norm, eps
        )
    return ops.matmul(hidden, weights.logits)
