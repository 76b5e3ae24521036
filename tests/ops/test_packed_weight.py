from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from fastserve import _C
from fastserve.ops import PackedWeight, pack, unpack
from fastserve.ops.packed_weight import WeightType
from fastserve.ops.weight_rows import QUANT_BLOCK

ROUNDING: dict[WeightType, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SHAPES = [(1, 32), (16, 64), (37, 96)]


def weight(generator: torch.Generator, n: int, k: int) -> torch.Tensor:
    return torch.randn(n, k, generator=generator)


@pytest.mark.parametrize("type", ROUNDING)
@pytest.mark.parametrize(("n", "k"), [*SHAPES, (1, 1), (17, 33)])
def test_a_float_weight_comes_back_rounded_to_its_type(
    generator: torch.Generator, type: WeightType, n: int, k: int
) -> None:
    w = weight(generator, n, k)
    assert torch.equal(unpack(pack(w, type)), w.to(ROUNDING[type]).float())


@pytest.mark.parametrize(("type", "num_codes"), [("q8", 254), ("q4", 16), ("q4m", 15)])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_a_quantised_weight_comes_back_within_its_step(
    generator: torch.Generator, type: WeightType, num_codes: int, n: int, k: int
) -> None:
    w = weight(generator, n, k)
    blocks = w.reshape(n, -1, QUANT_BLOCK)
    low, high = blocks.amin(-1), blocks.amax(-1)
    span = high - low if type == "q4m" else 2 * blocks.abs().amax(-1)
    # Half a step, one where the 16 codes of q4 lack the extreme's opposite; the scale is a half (2^-11).
    allowed = span / num_codes * (1.0 if type == "q4" else 0.5) + span * 2**-10
    error = (unpack(pack(w, type)) - w).reshape(n, -1, QUANT_BLOCK).abs().amax(-1)
    assert (error <= allowed).all()


@pytest.mark.parametrize("type", get_args(WeightType))
def test_torch_and_the_engine_read_a_packed_weight_alike(
    generator: torch.Generator, type: WeightType
) -> None:
    w = weight(generator, 37, 96)
    native = _C.PackedWeight(type, 37, 96)
    native.pack_f32(w.data_ptr(), 96)
    oracle = np.frombuffer(native.dequantise(), dtype=np.float32).reshape(37, 96)
    np.testing.assert_array_equal(unpack(pack(w, type)).numpy(), oracle)


def test_a_strided_bf16_weight_is_packed_as_its_values(generator: torch.Generator) -> None:
    w = weight(generator, 64, 40).T[:, ::2].bfloat16()
    assert torch.equal(unpack(pack(w)), w.float())


@pytest.mark.parametrize(
    ("w", "type", "message"),
    [
        (torch.zeros(4), "f32", "weight must be"),
        (torch.zeros(4, 0), "f32", "weight must be"),
        (torch.zeros(4, 32, dtype=torch.int32), "f32", "weight must be"),
        (torch.zeros(4, 33), "q8", "k must be a multiple of 32 for q8, got 33"),
        (torch.zeros(4, 32), "q3", "type must be one of f32"),
    ],
)
def test_a_bad_argument_is_named(w: torch.Tensor, type: WeightType, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(w, type)


def test_data_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data must be contiguous uint8 \[2048\]"):
        PackedWeight(torch.zeros(2047, dtype=torch.uint8), "f32", 3, 32)
