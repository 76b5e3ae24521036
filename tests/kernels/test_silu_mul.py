from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fastserve.kernels.silu_mul import Piece, choose_piece, gelu_tanh_mul, silu_mul
from torch.nn.functional import gelu

from fastserve.ops import reference

# bf16: one unit in the last place, for Triton's interpreter truncates where the GPU rounds to nearest
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7}
Oracle = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20244)


def gelu_reference(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, dim=-1)  # in fp32 its 1 + tanh would cancel
    return (gelu(gate, approximate="tanh") * up).float()


ACTIVATIONS = [
    pytest.param(silu_mul, reference.silu_mul, id="silu"),
    pytest.param(gelu_tanh_mul, gelu_reference, id="gelu_tanh"),
]


@pytest.mark.parametrize(("fast", "slow"), ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (3, 1408)], ids=str)
def test_fast_equals_slow(
    generator: torch.Generator,
    fast: Callable[..., None],
    slow: Oracle,
    dtype: torch.dtype,
    shape: tuple[int, int],
) -> None:
    num_rows, f = shape
    gate_up = (3 * torch.randn(num_rows, 2 * f, generator=generator)).to(dtype)
    out = torch.empty(num_rows, f, dtype=dtype)
    fast(gate_up, out=out)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(out.float(), slow(gate_up.float()), rtol=tolerance, atol=tolerance / 4)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # numpy's, of the interpreter
@pytest.mark.parametrize(("fast", "slow"), ACTIVATIONS)
def test_large_gates_neither_overflow_nor_vanish(fast: Callable[..., None], slow: Oracle) -> None:
    gate = torch.tensor([[-3e38, -1e4, -104.0, -20.0, 0.0, 20.0, 104.0, 1e4, 3e38]])
    gate_up = torch.cat([gate, torch.ones_like(gate)], dim=1)
    out = torch.empty_like(gate)
    fast(gate_up, out=out)
    torch.testing.assert_close(out, slow(gate_up), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(("fast", "slow"), ACTIVATIONS)
def test_reads_and_writes_columns_of_wider_matrices(
    generator: torch.Generator, fast: Callable[..., None], slow: Oracle
) -> None:
    x = torch.randn(5, 80, generator=generator)
    wide = torch.full((5, 50), torch.nan)
    fast(x[:, 7:73], out=wide[:, 5:38])
    torch.testing.assert_close(wide[:, 5:38], slow(x[:, 7:73]))
    assert wide[:, :5].isnan().all()
    assert wide[:, 38:].isnan().all()


def test_no_rows_give_no_rows() -> None:
    silu_mul(torch.empty(0, 8), out=torch.empty(0, 4))
    silu_mul(torch.empty(3, 0), out=torch.empty(3, 0))


def test_a_piece_has_enough_elements_for_its_threads() -> None:
    assert choose_piece(1) == Piece(block=1, num_warps=1)
    assert choose_piece(300) == Piece(block=512, num_warps=2)
    assert choose_piece(14336) == Piece(block=1024, num_warps=4)
