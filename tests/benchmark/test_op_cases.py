"""A baseline does the work that its case does, or the ratio of their times would mean nothing."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from fastserve.benchmark import op_cases
from fastserve.benchmark.op_cases import (
    MATMUL_KINDS,
    NORMS,
    SMOLLM2,
    MatmulWeights,
    attention_case,
    matmul_case,
    norm_case,
)
from fastserve.ops.packed_weight import WeightType

# Of the largest element: what rounding weights and activations to so many bits may cost at K = 96.
TOLERANCE = {"f32": 1e-5, "bf16": 2e-2, "q8": 5e-2, "q4": 0.3, "q4m": 0.3}


@pytest.fixture(autouse=True)
def small_working_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_cases, "WORKING_SET_BYTES", 1 << 16)
    torch.manual_seed(3)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("weight_type", "activation_bits"), MATMUL_KINDS)
def test_matmul_baseline_multiplies_the_same_matrix(
    weight_type: WeightType, activation_bits: int, rows: int
) -> None:
    case = matmul_case(MatmulWeights.make((64, 96), weight_type), rows, activation_bits)
    ours = cast(Tensor, case.ours())
    baseline = cast(Tensor, case.baseline()).float()
    assert ours.shape == baseline.shape == (rows, 64)
    assert (ours - baseline).abs().max() < TOLERANCE[weight_type] * ours.abs().max()
    assert case.work.num_operations == 2 * rows * 64 * 96


def test_copies_fill_the_working_set(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = MatmulWeights.make((64, 96), "q8")
    assert sum(copy.data.numel() for copy in weights.packed) >= 1 << 16
    assert len({copy.data.data_ptr() for copy in weights.packed}) == len(weights.packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decode", [True, False])
def test_attention_baseline_has_the_same_shape_of_work(decode: bool, dtype: torch.dtype) -> None:
    case = attention_case(SMOLLM2, dtype, num_requests=2, context=24, decode=decode)
    ours, baseline = cast(Tensor, case.ours()), cast(Tensor, case.baseline())
    assert ours.shape == (2 * (1 if decode else 24), 9 * 64)
    assert baseline.numel() == ours.numel()
    keys_seen = 24 if decode else 24 * 25 / 2
    assert case.work.num_operations == 2 * keys_seen * 9 * 64 * 4


@pytest.mark.parametrize("name", NORMS)
def test_norm_baseline_computes_the_same(name: str) -> None:
    torch.manual_seed(5)
    ours = cast(Tensor, norm_case(name, 3, 32).ours())
    torch.manual_seed(5)
    baseline = cast(Tensor, norm_case(name, 3, 32).baseline())
    torch.testing.assert_close(ours, baseline, rtol=1e-4, atol=1e-5)
