"""The program's logits against plain torch on the dequantised weights, for every weight type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastserve.testing.convert import convert
from fastserve.testing.rank_logits import rank_logits
from fastserve.testing.reference_model import ReferenceModel

TOKENS = [
    1,
    4093,
    198,
    1780,
    314,
    260,
    3575,
    282,
    4649,
    47,
    2,
    198,
    1,
    520,
    9531,
    198,
    504,
    3575,
    282,
    4649,
] * 2
NUM_LAYERS = 6  # of SmolLM2's 30, where the type is not the file's own: errors grow slowly with depth

# Relative L2 error of a position's logits, the largest over positions.
LIMITS = {"F32": 1e-3, "F16": 3e-2, "BF16": 3e-2, "Q8_0": 3e-2, "Q4_0": 6e-2, "Q4_1": 6e-2}

INT8_LIMIT = 7e-2  # over all layers: measured 4.4e-2, with weights of other types 2.8e-2 to 5.3e-2


def largest_error(path: Path, kv_type: str) -> float:
    expected = ReferenceModel(path).logits(TOKENS)
    got = rank_logits(path, TOKENS, kv_type=kv_type)
    return float(((got - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize("type_name", LIMITS)
def test_logits_are_those_of_the_dequantised_weights(
    type_name: str, smollm2_path: Path, tmp_path: Path
) -> None:
    path = convert(smollm2_path, tmp_path / f"{type_name}.gguf", type_name, num_layers=NUM_LAYERS)
    error = largest_error(path, "f32" if type_name == "F32" else "bf16")
    print(f"{type_name}: {error:.2e}")
    assert error <= LIMITS[type_name]


def test_logits_of_the_whole_model(smollm2_path: Path) -> None:
    expected = ReferenceModel(smollm2_path).logits(TOKENS)
    got = rank_logits(smollm2_path, TOKENS, kv_type="bf16")
    errors = (got - expected).norm(dim=1) / expected.norm(dim=1)
    print(f"SmolLM2-135M-Instruct Q4_1: median {errors.median():.2e}, largest {errors.max():.2e}")
    assert errors.max() <= LIMITS["Q4_1"]


def test_logits_over_keys_and_values_of_8_bits(smollm2_path: Path) -> None:
    error = largest_error(smollm2_path, "int8")
    print(f"int8: {error:.2e}")
    assert error <= INT8_LIMIT


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "Q4_1"])
def test_activations_of_8_bits_are_coarser_and_no_more(
    type_name: str, smollm2_path: Path, tmp_path: Path
) -> None:
    path = convert(smollm2_path, tmp_path / f"{type_name}.gguf", type_name, num_layers=NUM_LAYERS)
    expected = ReferenceModel(path).logits(TOKENS)
    errors = [
        float(
            (rank_logits(path, TOKENS, kv_type="bf16", activation_bits=bits) - expected).norm()
            / expected.norm()
        )
        for bits in (14, 8)
    ]
    print(f"{type_name}, over all positions: 14 bits {errors[0]:.2e}, 8 bits {errors[1]:.2e}")
    assert 2 * errors[0] < errors[1] <= 0.1


def test_one_thread_and_two_give_the_same_bits(smollm2_path: Path) -> None:
    one = rank_logits(smollm2_path, TOKENS, kv_type="bf16", num_threads=1)
    two = rank_logits(smollm2_path, TOKENS, kv_type="bf16", num_threads=2)
    assert torch.equal(one, two)
