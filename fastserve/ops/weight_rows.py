"""A weight matrix in plain rows, as the GPU's kernels read it, in one buffer.

plain (f32, f16, bf16): rows of K elements, each padded to 16 bytes
q8:  codes int8 [N, K], then scales fp16 [N, K / 32];            w = scale * code
q4:  codes uint8 [N, K / 2], two in a byte, the even column in the low half, then scales;  w = scale * (code - 8)
q4m: as q4, then minima fp16 [N, K / 32];                        w = scale * code + minimum
Every part begins at a multiple of 16 bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PLAIN = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
QUANT_BLOCK = 32  # weights along K that share a scale (kQuantBlock)
ALIGNMENT = 16  # bytes that a kernel reads at once


class Parts(NamedTuple):
    """Views of the buffer; a plain weight has values alone, [N, K] with padded rows."""

    values: Tensor
    scales: Tensor | None = None
    minima: Tensor | None = None


def num_bytes(weight_type: str, n: int, k: int) -> int:
    return sum(_part_bytes(weight_type, n, k))


def _part_bytes(weight_type: str, n: int, k: int) -> list[int]:
    if weight_type in PLAIN:
        return [n * _padded(k * PLAIN[weight_type].itemsize)]
    values = _padded(n * k if weight_type == "q8" else n * k // 2)
    scales = _padded(n * k // QUANT_BLOCK * 2)
    return [values, scales, scales] if weight_type == "q4m" else [values, scales]


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def parts(data: Tensor, weight_type: str, n: int, k: int) -> Parts:
    if weight_type in PLAIN:
        return Parts(data.view(PLAIN[weight_type]).view(n, -1)[:, :k])
    pieces = torch.split(data, _part_bytes(weight_type, n, k))
    columns = k if weight_type == "q8" else k // 2
    values = pieces[0][: n * columns].view(n, columns)
    halves = [piece[: n * k // QUANT_BLOCK * 2].view(torch.float16).view(n, -1) for piece in pieces[1:]]
    return Parts(values.view(torch.int8) if weight_type == "q8" else values, *halves)


def empty(weight_type: str, n: int, k: int, device: torch.device) -> Tensor:
    return torch.zeros(num_bytes(weight_type, n, k), dtype=torch.uint8, device=device)


def fill_quantised(
    data: Tensor, weight_type: str, codes: Tensor, scales: Tensor, minima: Tensor | None
) -> None:
    """codes [N, K]: of q8 signed, of q4 and q4m in [0, 16)."""
    target = parts(data, weight_type, *codes.shape)
    if weight_type == "q8":
        target.values.copy_(codes)
    else:
        pairs = codes.to(torch.uint8).view(codes.shape[0], -1, 2)
        target.values.copy_(pairs[..., 0] | pairs[..., 1] << 4)
    assert target.scales is not None
    target.scales.copy_(scales)
    if target.minima is not None:
        assert minima is not None
        target.minima.copy_(minima)


def dequantise(data: Tensor, weight_type: str, n: int, k: int) -> Tensor:
    """[N, K] fp32."""
    values, scales, minima = parts(data, weight_type, n, k)
    if scales is None:
        return values.float()
    if weight_type != "q8":
        values = torch.stack([values & 15, values >> 4], dim=-1).view(n, k)
    codes = values.float().view(n, -1, QUANT_BLOCK)
    if weight_type == "q4":
        codes = codes - 8
    weights = codes * scales.float()[..., None]
    return (weights if minima is None else weights + minima.float()[..., None]).view(n, k)
