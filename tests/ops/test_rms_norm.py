from __future__ import annotations

import pytest
import torch

import fastserve.ops
from fastserve.ops import reference


@pytest.mark.parametrize(("num_rows", "d"), [(1, 1), (3, 17), (130, 64), (7, 576), (2, 1025)])
def test_fast_equals_slow(isa: str, generator: torch.Generator, num_rows: int, d: int) -> None:
    x = torch.randn(num_rows, d, generator=generator)
    weight = torch.randn(d, generator=generator)
    torch.testing.assert_close(fastserve.ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


def test_reads_rows_of_a_wider_matrix(generator: torch.Generator) -> None:
    x = torch.randn(5, 96, generator=generator)[:, 32:64]
    weight = torch.randn(32, generator=generator)
    torch.testing.assert_close(fastserve.ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


def test_no_rows_give_no_rows() -> None:
    assert fastserve.ops.rms_norm(torch.empty(0, 8), torch.ones(8), 1e-5).shape == (0, 8)


def test_passes_opcheck(generator: torch.Generator) -> None:
    args = (torch.randn(3, 8, generator=generator), torch.randn(8, generator=generator), 1e-5)
    torch.library.opcheck(torch.ops.fastserve.rms_norm.default, args)


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(8), torch.zeros(8), "x must be float32"),
        (torch.zeros(2, 8, dtype=torch.float64), torch.zeros(8), "x must be float32"),
        (torch.zeros(8, 2).T, torch.zeros(8), "x must be float32"),
        (torch.zeros(2, 8), torch.zeros(7), "weight must be contiguous float32 \\[8\\]"),
        (torch.zeros(2, 8), torch.zeros(8, dtype=torch.bfloat16), "weight must be"),
        (torch.zeros(2, 8), torch.zeros(16)[::2], "weight must be"),
    ],
)
def test_a_bad_argument_is_named(x: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastserve.ops.rms_norm(x, weight, 1e-5)
