from __future__ import annotations

import pytest
import torch

import fastserve.ops
from fastserve.ops import reference


@pytest.mark.parametrize(("num_rows", "f"), [(1, 1), (3, 17), (130, 64), (7, 1536)])
def test_fast_equals_slow(isa: str, generator: torch.Generator, num_rows: int, f: int) -> None:
    gate_up = 4 * torch.randn(num_rows, 2 * f, generator=generator)
    torch.testing.assert_close(
        fastserve.ops.silu_mul(gate_up), reference.silu_mul(gate_up), rtol=1e-5, atol=1e-6
    )


def test_extreme_gates_neither_overflow_nor_turn_into_nan(isa: str) -> None:
    gate_up = torch.tensor([[-1e30, -200.0, 0.0, 200.0, 1e30, 1.0, 1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(fastserve.ops.silu_mul(gate_up), reference.silu_mul(gate_up))


def test_passes_opcheck(generator: torch.Generator) -> None:
    torch.library.opcheck(torch.ops.fastserve.silu_mul.default, (torch.randn(3, 8, generator=generator),))


@pytest.mark.parametrize("gate_up", [torch.zeros(2, 7), torch.zeros(8), torch.zeros(2, 8).bfloat16()])
def test_a_bad_argument_is_named(gate_up: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="gate_up must"):
        fastserve.ops.silu_mul(gate_up)
