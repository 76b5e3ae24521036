"""A shard's weights in the memory and the layout of a GPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from fastserve import _C
from fastserve.distributed.shard_loader import fused_weights
from fastserve.models.llama import LayerWeights, LlamaWeights
from fastserve.models.names import EMBEDDING
from fastserve.ops import FileRows, PackedWeight, pack
from fastserve.ops.backend import lays_rows
from fastserve.ops.file_rows import file_type
from fastserve.ops.packed_weight import PLAIN_TYPES, WeightType, rows_of_panels, unpack_panels
from fastserve.ops.weight_rows import PLAIN
from fastserve.program.values import EmbeddingTable, FusedWeight


@dataclass(frozen=True, slots=True)
class DeviceWeight:
    """Weights that read the same input, side by side along N: one where their types agree."""

    parts: tuple[PackedWeight, ...]


def choose_activation_dtype(
    weights: LlamaWeights[FusedWeight, list[float]], device: torch.device
) -> torch.dtype:
    """fp32 on CPUs and where a weight is fp32, fp16 where the plain ones all are, else bf16."""
    if not lays_rows(device):
        return torch.float32
    plain = {part.type for weight in fused_weights(weights) for part in weight.parts if part.type in PLAIN}
    if "f32" in plain:
        return torch.float32
    return torch.float16 if plain == {"f16"} else torch.bfloat16


def load_on_device(
    weights: LlamaWeights[FusedWeight, list[float]],
    file: _C.GgufFile,
    device: torch.device,
    dtype: torch.dtype,
) -> LlamaWeights[DeviceWeight, Tensor]:
    """dtype: of activations, and so of plain weights, which are rounded to it."""

    def fused(weight: FusedWeight) -> DeviceWeight:
        return DeviceWeight(tuple(_to_device(part, device, dtype) for part in weight.parts))

    def vector(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    layers = tuple(
        LayerWeights(
            attention_norm=vector(layer.attention_norm),
            qkv=fused(layer.qkv),
            attention_out=fused(layer.attention_out),
            mlp_norm=vector(layer.mlp_norm),
            gate_up=fused(layer.gate_up),
            down=fused(layer.down),
        )
        for layer in weights.layers
    )
    return LlamaWeights(
        embedding=_embedding(weights.embedding, file, device, dtype),
        layers=layers,
        norm=vector(weights.norm),
        logits=fused(weights.logits),
        inv_freq=vector(weights.inv_freq),
    )


def _bytes_at(address: int, num_bytes: int) -> Tensor:
    """A view of memory that somebody else keeps."""
    return torch.frombuffer((ctypes.c_uint8 * num_bytes).from_address(address), dtype=torch.uint8)


def _to_device(packed: _C.PackedWeight, device: torch.device, dtype: torch.dtype) -> PackedWeight:
    panels = _bytes_at(packed.address, packed.nbytes)
    weight_type: WeightType = packed.type  # type: ignore[assignment]
    if not lays_rows(device):
        return PackedWeight(panels.clone(), weight_type, packed.n, packed.k)
    if PLAIN.get(weight_type, dtype) == dtype:
        rows = rows_of_panels(panels, weight_type, packed.n, packed.k)
        return PackedWeight(rows.to(device), weight_type, packed.n, packed.k)
    values = unpack_panels(panels, weight_type, packed.n, packed.k)
    return pack(values.to(device, dtype), PLAIN_TYPES[dtype])


def _embedding(
    table: EmbeddingTable, file: _C.GgufFile, device: torch.device, dtype: torch.dtype
) -> FileRows:
    num_rows = file.tensors[EMBEDDING].shape[0]
    data = _bytes_at(table.address, num_rows * table.row_bytes).view(num_rows, table.row_bytes)
    return FileRows(data.to(device, copy=True), file_type(table.gguf_type), table.width, dtype)
