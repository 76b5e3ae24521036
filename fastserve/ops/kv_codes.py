"""Keys and values in codes of 8 bits, as csrc/cpu/store_kv.cpp writes them: the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_CODE = 127
OFFSET = 128  # codes are stored as u8


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes u8 like x [..., E] fp32 and scales bf16 [..., 1]: x is about (code - 128) * scale.

    A scale is NaN where x holds NaN or infinity.
    """
    largest = x.abs().amax(-1, keepdim=True)
    scale = (largest / MAX_CODE).bfloat16()
    divisor = torch.where(scale == 0, 1.0, scale.float())
    codes = (x / divisor).round().clamp(-MAX_CODE, MAX_CODE) + OFFSET
    lost = ~largest.isfinite()
    return torch.where(lost, 0, codes).to(torch.uint8), torch.where(lost, torch.nan, scale)


def dequantise(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes u8 [..., E] and scales [..., 1] as fp32."""
    return (codes.float() - OFFSET) * scale.float()


def num_mixed(head_dim: int) -> int:
    """Dimensions of a key that are mixed with each other: the largest power of two that divides head_dim."""
    return head_dim & -head_dim


def mix(x: Tensor) -> Tensor:
    """x [..., E] times a Hadamard matrix of 1 and -1 for every num_mixed(E) dimensions.

    What was mixed twice is num_mixed(E) times what it was.
    Source: Ashkboos et al. 2024, "QuaRot"; csrc/cpu/hadamard.h says what for.
    """
    size = num_mixed(x.shape[-1])
    parts = x.reshape(*x.shape[:-1], -1, size)
    for _ in range(size.bit_length() - 1):
        even, odd = parts[..., 0::2], parts[..., 1::2]
        parts = torch.cat([even + odd, even - odd], dim=-1)
    return parts.reshape(x.shape)
