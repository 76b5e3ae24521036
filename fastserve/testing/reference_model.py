"""A whole model in plain torch, on dequantised weights: what every fast answer is compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastserve import _C
from fastserve.distributed.rank_program import open_model
from fastserve.distributed.shard_plan import make_plan
from fastserve.models import names
from fastserve.models.llama import LayerWeights, LlamaInputs, LlamaWeights, forward
from fastserve.ops import reference
from fastserve.ops.file_rows import GGUF_TYPES, FileRows, dequantise
from fastserve.ops.kv_cache import BLOCK_SIZE, KvCache, KvIndex


class ReferenceModel:
    """One device, fp32, no batching: logits of every position of one sequence."""

    def __init__(self, path: Path) -> None:
        self._file, self.config = open_model(str(path))
        self._shard = make_plan(self.config, 1).shards[0]
        self._weights = self._load()

    def logits(self, token_ids: list[int]) -> Tensor:
        """[T, V] fp32: row t is the distribution of what follows token t."""
        config, num_tokens = self.config, len(token_ids)
        num_blocks = -(-num_tokens // BLOCK_SIZE)
        positions = torch.arange(num_tokens, dtype=torch.int32)
        inputs = LlamaInputs(
            token_ids=torch.tensor(token_ids, dtype=torch.int32),
            positions=positions,
            caches=tuple(
                KvCache.empty(num_blocks, config.num_kv_heads, config.head_dim)
                for _ in range(config.num_layers)
            ),
            index=KvIndex(
                torch.zeros_like(positions), positions, torch.arange(num_blocks, dtype=torch.int32)[None]
            ),
            kv_of_head=torch.tensor(self._shard.kv_of_head, dtype=torch.int32),
            sample_rows=positions,
            group=None,
        )
        with torch.inference_mode():
            logits = forward(reference, config, self._shard, self._weights, inputs)
        assert isinstance(logits, Tensor)
        return logits

    def _load(self) -> LlamaWeights[Tensor, Tensor]:
        embedding = self._tensor(names.EMBEDDING)
        has_logits = names.LOGITS in self._file.tensors
        return LlamaWeights(
            embedding=embedding,
            layers=tuple(self._layer(layer) for layer in range(self.config.num_layers)),
            norm=self._tensor(names.NORM),
            logits=self._tensor(names.LOGITS) if has_logits else embedding,
            inv_freq=torch.tensor(self.config.inv_freq()),
        )

    def _layer(self, layer: int) -> LayerWeights[Tensor, Tensor]:
        def tensor(name: str) -> Tensor:
            return self._tensor(names.layer_tensor(layer, name))

        return LayerWeights(
            attention_norm=tensor("attn_norm"),
            qkv=torch.cat([tensor("attn_q"), tensor("attn_k"), tensor("attn_v")]),
            attention_out=tensor("attn_output"),
            mlp_norm=tensor("ffn_norm"),
            gate_up=torch.cat([tensor("ffn_gate"), tensor("ffn_up")]),
            down=tensor("ffn_down"),
        )

    def _tensor(self, name: str) -> Tensor:
        return read_tensor(self._file, name)


def read_tensor(file: _C.GgufFile, name: str) -> Tensor:
    """A tensor of the file, dequantised: [N, K] or [D] fp32."""
    info = file.tensors[name]
    data = torch.frombuffer(bytearray(file.read(name)), dtype=torch.uint8)
    rows, width = (1, info.shape[0]) if len(info.shape) == 1 else info.shape
    file_type = next(key for key, value in GGUF_TYPES.items() if value == info.type)
    matrix = dequantise(FileRows(data.view(rows, -1), file_type, width))
    return matrix[0] if len(info.shape) == 1 else matrix
