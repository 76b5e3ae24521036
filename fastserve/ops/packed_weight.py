"""A weight matrix in the layout that the matmul kernels stream (csrc/ops.h), and back in plain torch.

Columns of the output are interleaved in panels of 16, one lane per column: the kernel reads a panel strictly
in sequence and broadcasts the activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments

WeightType = Literal["f32", "f16", "bf16", "q8", "q4", "q4m"]

PANEL = 16  # output columns interleaved (kPanel)
QUANT_BLOCK = 32  # weights along K that share a scale (kQuantBlock)
_PLAIN = {"f32": torch.float32, "f16": torch.float16}
_LANE_BLOCK_BYTES = {"q8": 2 + 32, "q4": 2 + 16, "q4m": 2 + 2 + 16}  # of one column's 32 weights


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [N, K] of the given type.

    data [ceil(N / 16) * panel_bytes] uint8, contiguous, its address a multiple of 64
    """

    data: Tensor
    type: WeightType
    n: int
    k: int

    def __post_init__(self) -> None:
        """Raises ValueError naming the field that is wrong."""
        check(self.data, self.type, self.n, self.k)


def check(data: Tensor, weight_type: str, n: int, k: int) -> None:
    """Raises ValueError naming type, n, k or data."""
    types = get_args(WeightType)
    arguments.require("type", weight_type in types, f"be one of {', '.join(types)}", weight_type)
    arguments.require("n", n >= 1, "be >= 1", n)
    arguments.require("k", k >= 1, "be >= 1", k)
    if weight_type in _LANE_BLOCK_BYTES:
        arguments.require("k", k % QUANT_BLOCK == 0, f"be a multiple of {QUANT_BLOCK} for {weight_type}", k)
    arguments.vector("data", data, dtype=torch.uint8, size=-(-n // PANEL) * panel_bytes(weight_type, k))


def panel_bytes(weight_type: str, k: int) -> int:
    if weight_type == "bf16":
        return (k + 1) // 2 * PANEL * 2 * 2
    if weight_type in _PLAIN:
        return k * PANEL * _PLAIN[weight_type].itemsize
    return k // QUANT_BLOCK * PANEL * _LANE_BLOCK_BYTES[weight_type]


def pack(weight: Tensor, type: WeightType = "bf16") -> PackedWeight:
    """Packs a weight, rounding it to bf16 or f16, or quantising every 32 weights with their own scale:
    q8 (symmetric, 8 bits), q4 (symmetric, 4 bits), q4m (4 bits and a minimum).

    weight [N, K] fp32, bf16 or fp16; K a multiple of 32 for q8, q4 and q4m
    Raises ValueError naming the argument whose shape, dtype or value is wrong.
    """
    good = (
        weight.dim() == 2
        and weight.numel() > 0
        and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)
    )
    arguments.require("weight", good, "be fp32, bf16 or fp16 [N, K], not empty", arguments.describe(weight))
    n, k = weight.shape
    size = -(-n // PANEL) * panel_bytes(type, k) if type in get_args(WeightType) else 0
    data = torch.empty(size, dtype=torch.uint8)
    check(data, type, n, k)
    rows = weight.float().contiguous()
    _C.ops.pack(rows.data_ptr(), rows.stride(0), type, n, k, data.data_ptr())
    return PackedWeight(data, type, n, k)


def unpack(weight: PackedWeight) -> Tensor:
    """[N, K] fp32: what the packed weight means."""
    data = weight.data.reshape(-1, panel_bytes(weight.type, weight.k))
    num_panels = data.shape[0]
    if weight.type in _PLAIN:
        lanes = data.view(_PLAIN[weight.type]).reshape(num_panels, weight.k, PANEL).transpose(1, 2)
    elif weight.type == "bf16":
        lanes = data.view(torch.bfloat16).reshape(num_panels, -1, PANEL, 2).transpose(1, 2)
    else:
        lanes = _unpack_quantised(data, weight.type)
    return lanes.reshape(num_panels * PANEL, -1)[: weight.n, : weight.k].float()


def _unpack_quantised(data: Tensor, weight_type: str) -> Tensor:
    """[panels, 16, K]: blocks of 16 scales (q4m: and 16 minima), then codes in groups of 4 along K."""
    num_panels = data.shape[0]
    blocks = data.reshape(num_panels, -1, PANEL * _LANE_BLOCK_BYTES[weight_type])
    num_half_bytes = (4 if weight_type == "q4m" else 2) * PANEL
    halves = blocks[..., :num_half_bytes].contiguous().view(torch.float16).float().transpose(1, 2)
    groups = blocks[..., num_half_bytes:].reshape(num_panels, blocks.shape[1], -1, PANEL, 4)
    if weight_type != "q8":
        groups = torch.cat([groups & 15, groups >> 4], dim=2)
    codes = groups.permute(0, 3, 1, 2, 4).reshape(num_panels, PANEL, -1, QUANT_BLOCK).float()
    scale = halves[:, :PANEL, :, None]
    if weight_type == "q4m":
        return (codes * scale + halves[:, PANEL:, :, None]).reshape(num_panels, PANEL, -1)
    zero_point = 128 if weight_type == "q8" else 8
    return ((codes - zero_point) * scale).reshape(num_panels, PANEL, -1)
