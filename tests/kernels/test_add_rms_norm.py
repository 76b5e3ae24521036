from __future__ import annotations

import pytest
import torch
from fastserve.kernels.add_rms_norm import MAX_BLOCK, Tile, add_rms_norm, choose_tile

from fastserve.ops import reference

# bf16: one unit in the last place, for Triton's interpreter truncates where the GPU rounds to nearest
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7}
EPS = 1e-5


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20242)


def operands(generator: torch.Generator, num_rows: int, d: int) -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(num_rows, d, generator=generator),
        torch.randn(num_rows, d, generator=generator),
        torch.randn(d, generator=generator),
    )


def run(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The new residual and the normed rows."""
    residual, out = residual.clone(), torch.empty(x.shape, dtype=x.dtype)
    add_rms_norm(x, residual, weight, EPS, out=out)
    return residual, out


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("num_rows", "d"), [(1, 1), (3, 7), (33, 64), (7, 576), (2, 1025), (1, 4096), (2, MAX_BLOCK + 33)]
)
def test_fast_equals_slow(generator: torch.Generator, dtype: torch.dtype, num_rows: int, d: int) -> None:
    x, residual, weight = operands(generator, num_rows, d)
    x, residual = x.to(dtype), residual.to(dtype)
    new_residual, out = run(x, residual, weight)
    tolerance = TOLERANCES[dtype]
    slow = x.float() + residual.float()
    torch.testing.assert_close(new_residual.float(), slow, rtol=tolerance, atol=tolerance / 16)
    zero = torch.zeros(num_rows, d)
    slow = reference.add_rms_norm(
        zero, new_residual.float(), weight, EPS
    )  # of the residual as it was rounded
    torch.testing.assert_close(out.float(), slow, rtol=tolerance, atol=tolerance / 16)


@pytest.mark.parametrize("d", [64, MAX_BLOCK + 64])
def test_it_is_the_rounded_residual_that_is_normed(d: int) -> None:
    residual = torch.ones(1, d, dtype=torch.float16)
    x = torch.zeros(1, d, dtype=torch.float16)
    x[:, ::2] = 2**-12  # a quarter of the last place of 1: lost; kept, it would show as 1000.12 beside 999.88
    out = torch.empty(1, d)
    add_rms_norm(x, residual, torch.full((d,), 1000.0), 1e-12, out=out)
    assert torch.equal(residual, torch.ones(1, d, dtype=torch.float16))
    assert torch.equal(out, torch.full((1, d), 1000.0))


def test_reads_and_writes_columns_of_wider_matrices(generator: torch.Generator) -> None:
    x, residual, weight = operands(generator, 5, 96)
    slow_residual = residual[:, 3:36].clone()
    slow = reference.add_rms_norm(x[:, 31:64], slow_residual, weight[:33], EPS)
    wide, before = torch.full((5, 50), torch.nan), residual.clone()
    add_rms_norm(x[:, 31:64], residual[:, 3:36], weight[:33], EPS, out=wide[:, 8:41])
    torch.testing.assert_close(wide[:, 8:41], slow)
    assert torch.equal(residual[:, 3:36], slow_residual)
    for columns in (slice(3), slice(36, None)):
        assert torch.equal(residual[:, columns], before[:, columns])
    for columns in (slice(8), slice(41, None)):
        assert wide[:, columns].isnan().all()


@pytest.mark.parametrize("d", [33, 576, MAX_BLOCK + 1])
def test_a_row_does_not_depend_on_the_others(generator: torch.Generator, d: int) -> None:
    x, residual, weight = operands(generator, 5, d)
    together = run(x, residual, weight)
    for row in range(5):
        alone = run(x[row : row + 1], residual[row : row + 1], weight)
        for mine, theirs in zip(alone, together, strict=True):
            assert torch.equal(mine, theirs[row : row + 1])


@pytest.mark.parametrize("d", [40, 700, 2 * MAX_BLOCK - 3])
def test_squares_are_summed_in_a_balanced_tree_over_the_columns(generator: torch.Generator, d: int) -> None:
    x, residual, _ = operands(generator, 8, d)  # 8 rows: a sum's last bit often drowns in the root's rounding
    block = choose_tile(d).block
    total = x + residual
    sums = torch.nn.functional.pad(total.square(), (0, -d % block)).reshape(8, -1, block).sum(1)
    while sums.shape[1] > 1:
        sums = sums[:, 0::2] + sums[:, 1::2]
    root = (sums / d + EPS).double().sqrt().float()  # torch's fp32 root is not always rounded correctly
    _, out = run(x, residual, torch.ones(d))
    assert torch.equal(out, total * (1 / root))


def test_out_may_be_x(generator: torch.Generator) -> None:
    for d in (33, MAX_BLOCK + 33):
        x, residual, weight = operands(generator, 3, d)
        new_residual, apart = run(x, residual, weight)
        add_rms_norm(x, residual, weight, EPS, out=x)
        assert torch.equal(x, apart)
        assert torch.equal(residual, new_residual)


def test_no_rows_give_no_rows() -> None:
    assert run(torch.empty(0, 8), torch.empty(0, 8), torch.ones(8))[1].shape == (0, 8)
    assert run(torch.empty(3, 0), torch.empty(3, 0), torch.ones(0))[1].shape == (3, 0)


def test_a_tile_has_enough_elements_for_its_threads() -> None:
    assert choose_tile(1) == Tile(num_rows=128, block=16, num_warps=4)
    assert choose_tile(576) == Tile(num_rows=1, block=1024, num_warps=2)
    assert choose_tile(4096) == Tile(num_rows=1, block=4096, num_warps=8)
    assert choose_tile(16384) == Tile(num_rows=1, block=8192, num_warps=16)
