"""A weight matrix in the layout that the matmul kernels of its device read, and back in plain torch.

For CPUs (csrc/ops.h) columns of the output are interleaved in panels of 16, one lane per column: the kernel reads a
panel strictly in sequence and broadcasts the activations. For GPUs rows stay rows (weight_rows.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, weight_rows
from fastserve.ops.backend import lays_rows
from fastserve.ops.weight_rows import QUANT_BLOCK

WeightType = Literal["f32", "f16", "bf16", "q8", "q4", "q4m"]
WEIGHT_TYPES: tuple[str, ...] = get_args(WeightType)

PLAIN_TYPES: dict[torch.dtype, WeightType] = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
}

PANEL = 16  # output columns interleaved (kPanel)
_PLAIN = {"f32": torch.float32, "f16": torch.float16}
_LANE_BLOCK_BYTES = {"q8": 2 + 32, "q4": 2 + 16, "q4m": 2 + 2 + 16}  # of one column's 32 weights


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [N, K] of the given type.

    data uint8, contiguous, its address a multiple of 64; on the CPU [ceil(N / 16) * panel_bytes], on GPUs as
         weight_rows.py says
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
    check_layout(data, weight_type, n, k, in_rows=lays_rows(data.device))


def check_layout(data: Tensor, weight_type: str, n: int, k: int, *, in_rows: bool) -> None:
    """The same, of a weight in plain rows or in panels."""
    check_shape(weight_type, n, k)
    size = weight_rows.num_bytes(weight_type, n, k) if in_rows else panels_bytes(weight_type, n, k)
    arguments.vector("data", data, dtype=torch.uint8, size=size)


def check_shape(weight_type: str, n: int, k: int) -> None:
    """Raises ValueError naming type, n or k."""
    if weight_type not in WEIGHT_TYPES:
        arguments.require("type", False, f"be one of {', '.join(WEIGHT_TYPES)}", weight_type)
    arguments.require("n", n >= 1, "be >= 1", n)
    arguments.require("k", k >= 1, "be >= 1", k)
    if k % QUANT_BLOCK and weight_type in _LANE_BLOCK_BYTES:
        arguments.require("k", False, f"be a multiple of {QUANT_BLOCK} for {weight_type}", k)


def panels_bytes(weight_type: str, n: int, k: int) -> int:
    return -(-n // PANEL) * panel_bytes(weight_type, k)


def panel_bytes(weight_type: str, k: int) -> int:
    if weight_type == "bf16":
        return (k + 1) // 2 * PANEL * 2 * 2
    if weight_type in _PLAIN:
        return k * PANEL * _PLAIN[weight_type].itemsize
    return k // QUANT_BLOCK * PANEL * _LANE_BLOCK_BYTES[weight_type]


def pack(weight: Tensor, type: WeightType = "bf16") -> PackedWeight:
    """Packs a weight for its device, rounding it to bf16 or f16, or quantising every 32 weights with their own scale:
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
    check_shape(type, n, k)
    panels = torch.empty(panels_bytes(type, n, k), dtype=torch.uint8)
    rows = weight.cpu().float().contiguous()
    _C.ops.pack(rows.data_ptr(), rows.stride(0), type, n, k, panels.data_ptr())
    if lays_rows(weight.device):
        return PackedWeight(rows_of_panels(panels, type, n, k).to(weight.device), type, n, k)
    return PackedWeight(panels, type, n, k)


def unpack(weight: PackedWeight) -> Tensor:
    """[N, K] fp32: what the packed weight means."""
    if lays_rows(weight.data.device):
        return weight_rows.dequantise(weight.data, weight.type, weight.n, weight.k)
    return unpack_panels(weight.data, weight.type, weight.n, weight.k)


def unpack_panels(data: Tensor, weight_type: str, n: int, k: int) -> Tensor:
    """[N, K] fp32."""
    if weight_type in weight_rows.PLAIN:
        return _plain_of_panels(data, weight_type, n, k).float()
    codes, scales, minima = _codes_of_panels(data, weight_type, n, k)
    blocks = codes.float().view(n, -1, QUANT_BLOCK) * scales.float()[..., None]
    return (blocks if minima is None else blocks + minima.float()[..., None]).view(n, k)


def rows_of_panels(data: Tensor, weight_type: str, n: int, k: int) -> Tensor:
    """The same weight as weight_rows.py lays it out, bit for bit."""
    rows = weight_rows.empty(weight_type, n, k, data.device)
    if weight_type in weight_rows.PLAIN:
        weight_rows.parts(rows, weight_type, n, k).values.copy_(_plain_of_panels(data, weight_type, n, k))
        return rows
    codes, scales, minima = _codes_of_panels(data, weight_type, n, k)
    weight_rows.fill_quantised(rows, weight_type, codes + 8 if weight_type == "q4" else codes, scales, minima)
    return rows


def _plain_of_panels(data: Tensor, weight_type: str, n: int, k: int) -> Tensor:
    num_panels = -(-n // PANEL)
    if weight_type == "bf16":
        lanes = data.view(torch.bfloat16).reshape(num_panels, -1, PANEL, 2).transpose(1, 2)
    else:
        lanes = data.view(_PLAIN[weight_type]).reshape(num_panels, k, PANEL).transpose(1, 2)
    return lanes.reshape(num_panels * PANEL, -1)[:n, :k]


def _codes_of_panels(data: Tensor, weight_type: str, n: int, k: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes int16 [N, K], without their zero point, scales and minima fp16 [N, K / 32].

    A block is 16 scales (q4m: and 16 minima), then codes in groups of 4 along K.
    """
    num_panels = -(-n // PANEL)
    blocks = data.reshape(num_panels, -1, PANEL * _LANE_BLOCK_BYTES[weight_type])
    num_half_bytes = (4 if weight_type == "q4m" else 2) * PANEL
    halves = blocks[..., :num_half_bytes].contiguous().view(torch.float16).transpose(1, 2)
    groups = blocks[..., num_half_bytes:].reshape(num_panels, blocks.shape[1], -1, PANEL, 4)
    if weight_type != "q8":
        groups = torch.cat([groups & 15, groups >> 4], dim=2)
    codes = groups.permute(0, 3, 1, 2, 4).reshape(num_panels * PANEL, k)[:n].to(torch.int16)
    scales = halves[:, :PANEL].reshape(num_panels * PANEL, -1)[:n]
    if weight_type == "q4m":
        return codes, scales, halves[:, PANEL:].reshape(num_panels * PANEL, -1)[:n]
    return codes - (128 if weight_type == "q8" else 8), scales, None
