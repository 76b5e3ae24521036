from __future__ import annotations

import pytest
import torch
from fastserve.kernels.rotary import Tile, choose_tile, rotary

from fastserve.ops import reference, split

# Of values of about 1. bf16: one unit in the last place, for Triton's interpreter truncates where the GPU rounds
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20246)


def frequencies(num_pairs: int) -> torch.Tensor:
    return 10000.0 ** -(torch.arange(num_pairs, dtype=torch.float32) / num_pairs)


# rows, heads, KV heads, head dim, pairs that turn
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 2, 1), (3, 5, 2, 18, 9), (7, 9, 3, 64, 32), (4, 2, 1, 34, 9), (2, 40, 8, 128, 64)],
    ids=str,
)
def test_fast_equals_slow_in_place_on_views(
    generator: torch.Generator, dtype: torch.dtype, shape: tuple[int, int, int, int, int]
) -> None:
    num_rows, num_heads, num_kv_heads, head_dim, num_pairs = shape
    sizes = (num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim)
    qkv = torch.randn(num_rows, sum(sizes), generator=generator).to(dtype)
    positions = torch.randint(131_072, (num_rows,), generator=generator, dtype=torch.int32)
    heads, still = (num_rows, -1, head_dim), slice(2 * num_pairs, None)
    qkv.view(heads)[..., still] = torch.inf  # would become NaN if it were turned, even by nothing
    before, slow = qkv.clone(), qkv.float()
    q, k, v = split(qkv, sizes)
    rotary(q, k, positions, frequencies(num_pairs), head_dim=head_dim)
    slow_q, slow_k, _ = split(slow, sizes)
    reference.rotary(slow_q, slow_k, positions, frequencies(num_pairs), head_dim=head_dim)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(qkv.float(), slow, rtol=tolerance, atol=tolerance)
    assert qkv.view(heads)[..., still].isinf().all()
    assert torch.equal(v, split(before, sizes)[2])


def test_sine_and_cosine_are_exact_to_1e_7_up_to_a_million_positions(generator: torch.Generator) -> None:
    num_rows, num_pairs = 32, 32
    positions = torch.randint(2**20, (num_rows,), generator=generator, dtype=torch.int32)
    positions[:2] = torch.tensor([131_071, 2**20])
    q = torch.tensor([1.0, 0.0]).repeat(num_rows, num_pairs)
    k = torch.zeros(num_rows, 2 * num_pairs)
    rotary(q, k, positions, frequencies(num_pairs), head_dim=2 * num_pairs)
    angles = positions.double()[:, None] * frequencies(num_pairs).double()
    for component, exact in enumerate((angles.cos(), angles.sin())):
        assert (q[:, component::2].double() - exact).abs().max() < 1e-7


def test_position_zero_turns_nothing(generator: torch.Generator) -> None:
    q, k = torch.randn(1, 64, generator=generator), torch.randn(1, 32, generator=generator)
    q_before, k_before = q.clone(), k.clone()
    rotary(q, k, torch.zeros(1, dtype=torch.int32), frequencies(16), head_dim=32)
    assert torch.equal(q, q_before)
    assert torch.equal(k, k_before)


def test_a_row_does_not_depend_on_the_others(generator: torch.Generator) -> None:
    q, k = torch.randn(5, 96, generator=generator), torch.randn(5, 32, generator=generator)
    positions = torch.tensor([0, 7, 100_000, 7, 33], dtype=torch.int32)
    alone = [(q[row : row + 1].clone(), k[row : row + 1].clone()) for row in range(5)]
    rotary(q, k, positions, frequencies(12), head_dim=32)
    for row, (one_q, one_k) in enumerate(alone):
        rotary(one_q, one_k, positions[row : row + 1], frequencies(12), head_dim=32)
        assert torch.equal(one_q, q[row : row + 1])
        assert torch.equal(one_k, k[row : row + 1])


def test_no_rows_turn_nothing() -> None:
    none = torch.empty(0, dtype=torch.int32)
    rotary(torch.empty(0, 64), torch.empty(0, 32), none, frequencies(16), head_dim=32)


def test_a_tile_has_enough_elements_for_its_threads() -> None:
    assert choose_tile(1, 2) == Tile(num_heads=1, num_pairs=1, num_warps=1)
    assert choose_tile(9, 64) == Tile(num_heads=16, num_pairs=32, num_warps=2)
    assert choose_tile(40, 128) == Tile(num_heads=16, num_pairs=64, num_warps=4)
    assert choose_tile(32, 80) == Tile(num_heads=16, num_pairs=64, num_warps=4)
