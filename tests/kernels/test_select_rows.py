from __future__ import annotations

import pytest
import torch
from fastserve.kernels.select_rows import Piece, choose_piece, select_rows

from fastserve.ops import reference


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20243)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_samples", "d"), [(1, 1), (7, 33), (5, 576), (3, 4099)])
def test_fast_equals_slow(generator: torch.Generator, dtype: torch.dtype, num_samples: int, d: int) -> None:
    x = torch.randn(9, d, generator=generator).to(dtype)
    sample_rows = torch.randint(9, (num_samples,), generator=generator, dtype=torch.int32)
    out = torch.empty(num_samples, d, dtype=dtype)
    select_rows(x, sample_rows, out=out)
    assert torch.equal(out, reference.select_rows(x, sample_rows))


def test_reads_and_writes_columns_of_wider_matrices(generator: torch.Generator) -> None:
    x = torch.randn(6, 50, generator=generator)
    sample_rows = torch.tensor([5, 0, 5], dtype=torch.int32)
    wide = torch.full((3, 60), torch.nan)
    select_rows(x[:, 7:40], sample_rows, out=wide[:, 5:38])
    assert torch.equal(wide[:, 5:38], x[[5, 0, 5], 7:40])
    assert wide[:, :5].isnan().all()
    assert wide[:, 38:].isnan().all()


def test_no_rows_give_no_rows() -> None:
    select_rows(torch.empty(3, 8), torch.empty(0, dtype=torch.int32), out=torch.empty(0, 8))
    select_rows(torch.empty(3, 0), torch.zeros(2, dtype=torch.int32), out=torch.empty(2, 0))


def test_a_piece_has_enough_elements_for_its_threads() -> None:
    assert choose_piece(1) == Piece(block=1, num_warps=1)
    assert choose_piece(576) == Piece(block=1024, num_warps=2)
    assert choose_piece(4096) == Piece(block=2048, num_warps=4)
