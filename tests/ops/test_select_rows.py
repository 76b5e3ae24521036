from __future__ import annotations

import pytest
import torch

import fastserve.ops
from fastserve.ops import reference


@pytest.mark.parametrize(("num_rows", "d"), [(1, 1), (3, 17), (130, 64)])
def test_fast_equals_slow(isa: str, generator: torch.Generator, num_rows: int, d: int) -> None:
    x = torch.randn(num_rows, d, generator=generator)
    rows = torch.randint(num_rows, (9,), generator=generator, dtype=torch.int32)
    assert torch.equal(fastserve.ops.select_rows(x, rows), reference.select_rows(x, rows))


def test_passes_opcheck(generator: torch.Generator) -> None:
    args = (torch.randn(3, 8, generator=generator), torch.tensor([2, 0], dtype=torch.int32))
    torch.library.opcheck(torch.ops.fastserve.select_rows.default, args)


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_out_of_range_is_refused(row: int) -> None:
    with pytest.raises(ValueError, match=rf"sample_rows must be in \[0, 3\), got {row}"):
        fastserve.ops.select_rows(torch.zeros(3, 8), torch.tensor([0, row], dtype=torch.int32))


def test_a_bad_argument_is_named() -> None:
    with pytest.raises(ValueError, match="sample_rows must be contiguous int32"):
        fastserve.ops.select_rows(torch.zeros(3, 8), torch.tensor([0, 1]))
