"""What torch has for x w^T with a weight of each of our types: the named baselines."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastserve.ops.packed_weight import WeightType
from fastserve.ops.weight_rows import QUANT_BLOCK

TorchCall = Callable[[Tensor], object]
# (weight, type, copies of a size) -> (name, a call per copy)
MatmulPeer = Callable[[Tensor, WeightType, Callable[[int], int]], tuple[str, list[TorchCall]]]
FP32_PEERS = ("torch f32", "torch int8 (fbgemm)")  # that take x in fp32; the others take bf16


class UnfitPeerError(Exception):
    """A peer lacks this product, or gets it wrong: there is nothing to compare with."""


def torch_matmul(
    weight: Tensor, weight_type: WeightType, num_copies: Callable[[int], int]
) -> tuple[str, list[TorchCall]]:
    """(name, a call per copy of the weight). num_copies: how many, of a size in bytes.

    Not what we do bit by bit: torch's int8 has a scale per matrix.
    """
    if weight_type == "q8":
        return "torch int8 (fbgemm)", _int8(weight, num_copies)
    if weight_type in ("q4", "q4m"):
        return "torch int4 (weight only)", _int4(weight, num_copies)
    plain = weight if weight_type == "f32" else weight.bfloat16()
    copies = [plain.clone() for _ in range(num_copies(plain.nbytes))]
    return f"torch {'f32' if weight_type == 'f32' else 'bf16'}", [_linear(copy) for copy in copies]


def _linear(weight: Tensor) -> TorchCall:
    return lambda x: functional.linear(x, weight)


def _int8(weight: Tensor, num_copies: Callable[[int], int]) -> list[TorchCall]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated; nothing else calls fbgemm
        quantised = torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127, 0, torch.qint8)
        packed = [
            torch.ops.quantized.linear_prepack(quantised, None) for _ in range(num_copies(weight.numel()))
        ]

    def call(copy: object) -> TorchCall:
        # Activations in 7 bits: without VNNI, sums of two full products saturate.
        return lambda x: torch.ops.quantized.linear_dynamic(x, copy, True)

    return [call(copy) for copy in packed]


def _int4(weight: Tensor, num_copies: Callable[[int], int]) -> list[TorchCall]:
    n, k = weight.shape
    blocks = weight.view(n, -1, QUANT_BLOCK)
    low, high = blocks.amin(-1), blocks.amax(-1)
    scale = (high - low) / 15
    codes = ((blocks - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32).view(n, k)
    # Its value is (code - 8) * scale + zero.
    scales_and_zeros = torch.stack([scale, low + 8 * scale], -1).transpose(0, 1).contiguous().bfloat16()
    first = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
    copies = [first.clone() for _ in range(num_copies(first.nbytes + scales_and_zeros.nbytes))]

    def call(copy: Tensor) -> TorchCall:
        return lambda x: torch._weight_int4pack_mm_for_cpu(x, copy, QUANT_BLOCK, scales_and_zeros)

    return [call(copy) for copy in copies]
