"""What zentorch, AMD's library for torch on Zen cores, has for x w^T with a weight of each of our types.

It needs the torch of its own version: `pip install zentorch==2.13.*` beside torch 2.13.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from fastserve.benchmark.torch_matmul import TorchCall, UnfitPeerError
from fastserve.ops.packed_weight import WeightType
from fastserve.ops.weight_rows import QUANT_BLOCK

CHECKED_ROWS = 8
MAX_ERROR = 0.2  # of the largest output: 4-bit weights, rounded twice, stay within half of it


def zentorch_matmul(
    weight: Tensor, weight_type: WeightType, num_copies: Callable[[int], int]
) -> tuple[str, list[TorchCall]]:
    """(name, a call per copy of the weight, on x in bf16), as torch_matmul.

    Its int8 has a scale per column and one per row of x, its int4 (weight only) a scale per 32 weights and no minima.
    Raises ModuleNotFoundError without zentorch, UnfitPeerError for what it lacks or gets wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it still uses of torch
        import_module("zentorch")
    makers = {"bf16": _bf16, "q8": _int8, "q4": _int4, "q4m": _int4}
    if weight_type not in makers:
        raise UnfitPeerError(f"zentorch has no product of its own for {weight_type}")
    name, num_bytes, make = makers[weight_type](weight)
    calls = [make() for _ in range(num_copies(num_bytes))]
    x = torch.randn(CHECKED_ROWS, weight.shape[1])
    expected = x @ weight.T
    error = float((calls[0](x.bfloat16()).float() - expected).abs().max() / expected.abs().max())
    if not error <= MAX_ERROR:
        raise UnfitPeerError(f"{name} [{weight.shape[0]}, {weight.shape[1]}] is wrong by {error:.2g}")
    return name, [*calls]


# Of each: its name, the bytes of a copy, and what makes a copy. Packed weights are not cloned: their storage holds
# more than their shapes say.
_Made = tuple[str, int, Callable[[], Callable[[Tensor], Tensor]]]


def _bf16(weight: Tensor) -> _Made:
    plain = weight.bfloat16()

    def make() -> Callable[[Tensor], Tensor]:
        packed = torch.ops.zentorch.zentorch_weight_prepack_for_linear(plain)
        linear = torch.ops.zentorch.zentorch_linear_unary
        return lambda x: linear(x, packed, is_weight_prepacked=True)

    return "zentorch bf16", plain.nbytes, make


def _int8(weight: Tensor) -> _Made:
    scales = weight.abs().amax(1) / 127
    codes = (weight / scales[:, None]).round().to(torch.int8)

    def make() -> Callable[[Tensor], Tensor]:
        packed = torch.ops.zentorch.zentorch_weight_prepack_for_dynamic_qlinear(codes)
        linear = torch.ops.zentorch.zentorch_dynamic_qlinear
        return lambda x: linear(x, packed, scales, is_weight_prepacked=True)

    return "zentorch int8", codes.nbytes, make


def _int4(weight: Tensor) -> _Made:
    blocks = weight.view(weight.shape[0], -1, QUANT_BLOCK)
    scales = blocks.abs().amax(-1) / 7
    codes = (blocks / scales[..., None]).round().to(torch.int8).view_as(weight)
    scales = scales.T.contiguous().bfloat16()

    def make() -> Callable[[Tensor], Tensor]:
        packed = torch.ops.zentorch.zentorch_woq_repack_weight(codes).T
        linear = torch.ops.zentorch.zentorch_woq_linear
        return lambda x: linear(x, packed, scales, None)

    return "zentorch int4 (weight only)", codes.nbytes // 2, make
