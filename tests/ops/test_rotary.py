from __future__ import annotations

import pytest
import torch

import fastserve.ops
from fastserve.ops import reference


def frequencies(num_pairs: int) -> torch.Tensor:
    return 10000.0 ** -(torch.arange(num_pairs, dtype=torch.float32) / num_pairs)


# rows, heads, KV heads, head dim, pairs that turn
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 2, 1), (3, 5, 2, 18, 9), (130, 9, 3, 64, 32), (4, 2, 1, 32, 8)], ids=str
)
def test_fast_equals_slow_in_place_on_views(
    isa: str, generator: torch.Generator, shape: tuple[int, int, int, int, int]
) -> None:
    num_rows, num_heads, num_kv_heads, head_dim, num_pairs = shape
    sizes = (num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim)
    qkv = torch.randn(num_rows, sum(sizes), generator=generator)
    positions = torch.randint(100_000, (num_rows,), generator=generator, dtype=torch.int32)
    slow = qkv.clone()
    for ops, x in ((fastserve.ops, qkv), (reference, slow)):
        q, k, _ = ops.split(x, sizes)
        ops.rotary(q, k, positions, frequencies(num_pairs), head_dim=head_dim)
    torch.testing.assert_close(qkv, slow, rtol=1e-5, atol=1e-5)


def test_position_zero_turns_nothing(isa: str, generator: torch.Generator) -> None:
    q, k = torch.randn(1, 64, generator=generator), torch.randn(1, 32, generator=generator)
    q_before, k_before = q.clone(), k.clone()
    fastserve.ops.rotary(q, k, torch.zeros(1, dtype=torch.int32), frequencies(16), head_dim=32)
    assert torch.equal(q, q_before)
    assert torch.equal(k, k_before)


def test_passes_opcheck(generator: torch.Generator) -> None:
    args = (
        torch.randn(3, 16, generator=generator),
        torch.randn(3, 8, generator=generator),
        torch.arange(3, dtype=torch.int32),
        frequencies(4),
    )
    torch.library.opcheck(torch.ops.fastserve.rotary.default, args, {"head_dim": 8})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.zeros(2, 15)}, "q must hold heads of 8"),
        ({"k": torch.zeros(3, 8)}, "k must be float32 \\[2, D\\]"),
        ({"positions": torch.zeros(2, dtype=torch.int64)}, "positions must be contiguous int32 \\[2\\]"),
        ({"inv_freq": torch.zeros(5)}, "inv_freq must hold at most"),
        ({"inv_freq": torch.zeros(4).double()}, "inv_freq must be contiguous float32"),
        ({"head_dim": 0}, "head_dim must be >= 1"),
    ],
)
def test_a_bad_argument_is_named(changed: dict[str, object], message: str) -> None:
    good = {
        "q": torch.zeros(2, 16),
        "k": torch.zeros(2, 8),
        "positions": torch.zeros(2, dtype=torch.int32),
        "inv_freq": torch.zeros(4),
        "head_dim": 8,
    }
    with pytest.raises(ValueError, match=message):
        fastserve.ops.rotary(**{**good, **changed})  # type: ignore[arg-type]
