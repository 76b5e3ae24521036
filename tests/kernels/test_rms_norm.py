from __future__ import annotations

import pytest
import torch
from fastserve.kernels.rms_norm import MAX_BLOCK, Tile, choose_tile, rms_norm

from fastserve.ops import reference

# bf16: one unit in the last place, for Triton's interpreter truncates where the GPU rounds to nearest
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7}
EPS = 1e-5


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20241)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    rms_norm(x, weight, EPS, out=out)
    return out


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("num_rows", "d"), [(1, 1), (3, 7), (33, 64), (7, 576), (2, 1025), (1, 4096), (2, MAX_BLOCK + 33)]
)
def test_fast_equals_slow(generator: torch.Generator, dtype: torch.dtype, num_rows: int, d: int) -> None:
    x = (3 * torch.randn(num_rows, d, generator=generator)).to(dtype)
    weight = torch.randn(d, generator=generator)
    slow = reference.rms_norm(x.float(), weight, EPS)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(normed(x, weight).float(), slow, rtol=tolerance, atol=tolerance / 16)


def test_reads_and_writes_columns_of_wider_matrices(generator: torch.Generator) -> None:
    x = torch.randn(5, 96, generator=generator)
    weight = torch.randn(33, generator=generator)
    wide = torch.full((5, 50), torch.nan)
    rms_norm(x[:, 31:64], weight, EPS, out=wide[:, 8:41])
    torch.testing.assert_close(wide[:, 8:41], reference.rms_norm(x[:, 31:64], weight, EPS))
    assert wide[:, :8].isnan().all()
    assert wide[:, 41:].isnan().all()


@pytest.mark.parametrize("d", [33, 576, MAX_BLOCK + 1])
def test_a_row_does_not_depend_on_the_others(generator: torch.Generator, d: int) -> None:
    x = torch.randn(5, d, generator=generator)
    weight = torch.randn(d, generator=generator)
    together = normed(x, weight)
    for row in range(5):
        assert torch.equal(normed(x[row : row + 1], weight), together[row : row + 1])


@pytest.mark.parametrize("d", [40, 700, 2 * MAX_BLOCK - 3])
def test_squares_are_summed_in_a_balanced_tree_over_the_columns(generator: torch.Generator, d: int) -> None:
    x = torch.randn(8, d, generator=generator)  # 8 rows: a sum's last bit often drowns in the root's rounding
    block = choose_tile(d).block
    sums = torch.nn.functional.pad(x.square(), (0, -d % block)).reshape(8, -1, block).sum(1)
    while sums.shape[1] > 1:
        sums = sums[:, 0::2] + sums[:, 1::2]
    root = (sums / d + EPS).double().sqrt().float()  # torch's fp32 root is not always rounded correctly
    assert torch.equal(normed(x, torch.ones(d)), x * (1 / root))


def test_out_may_be_x(generator: torch.Generator) -> None:
    for d in (33, MAX_BLOCK + 33):
        x, weight = torch.randn(3, d, generator=generator), torch.randn(d, generator=generator)
        apart = normed(x, weight)
        rms_norm(x, weight, EPS, out=x)
        assert torch.equal(x, apart)


def test_no_rows_give_no_rows() -> None:
    assert normed(torch.empty(0, 8), torch.ones(8)).shape == (0, 8)
    assert normed(torch.empty(3, 0), torch.ones(0)).shape == (3, 0)


def test_a_tile_has_enough_elements_for_its_threads() -> None:
    assert choose_tile(1) == Tile(num_rows=128, block=16, num_warps=4)
    assert choose_tile(128) == Tile(num_rows=16, block=128, num_warps=4)
    assert choose_tile(576) == Tile(num_rows=1, block=1024, num_warps=2)
    assert choose_tile(4096) == Tile(num_rows=1, block=4096, num_warps=8)
    assert choose_tile(16384) == Tile(num_rows=1, block=8192, num_warps=16)
