from __future__ import annotations

import pytest
import torch

import fastserve.ops
from fastserve.ops import reference


def ids(*blocks: int) -> torch.Tensor:
    return torch.tensor(blocks, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_move_and_others_stay(generator: torch.Generator, dtype: torch.dtype) -> None:
    source, target = (torch.randn(n, 3, 16, 8, generator=generator).to(dtype) for n in (5, 7))
    fast, slow = target.clone(), target.clone()
    fastserve.ops.swap(source, fast, ids(4, 0, 4), ids(6, 2, 0))
    reference.swap(source, slow, ids(4, 0, 4), ids(6, 2, 0))
    assert torch.equal(fast, slow)
    assert torch.equal(fast[6], source[4])
    assert torch.equal(fast[1], target[1])


def test_nothing_to_move_is_no_work() -> None:
    target = torch.ones(2, 4)
    fastserve.ops.swap(torch.zeros(2, 4), target, ids(), ids())
    assert torch.equal(target, torch.ones(2, 4))


def test_passes_opcheck() -> None:
    args = (torch.ones(2, 4), torch.zeros(3, 4), ids(1), ids(2))
    torch.library.opcheck(torch.ops.fastserve.swap.default, args)


@pytest.mark.parametrize(
    ("target", "blocks", "message"),
    [
        (torch.zeros(3, 5), ids(1), "target must be contiguous blocks as source"),
        (torch.zeros(3, 4, dtype=torch.float64), ids(1), "target must be contiguous blocks as source"),
        (torch.zeros(3, 4), ids(1, 2), r"target_blocks must be contiguous int32 \[1\]"),
    ],
)
def test_a_bad_argument_is_named(target: torch.Tensor, blocks: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastserve.ops.swap(torch.zeros(2, 4), target, ids(0), blocks)


def test_a_block_out_of_range_is_refused() -> None:
    with pytest.raises((ValueError, IndexError)):
        fastserve.ops.swap(torch.zeros(2, 4), torch.zeros(2, 4), ids(2), ids(0))
