from __future__ import annotations

import pytest
import torch

import fastserve.ops
from fastserve.ops import reference


@pytest.mark.parametrize(("num_rows", "d"), [(1, 1), (3, 17), (130, 64), (7, 576)])
def test_fast_equals_slow_and_updates_the_residual(
    isa: str, generator: torch.Generator, num_rows: int, d: int
) -> None:
    x = torch.randn(num_rows, d, generator=generator)
    residual = torch.randn(num_rows, d, generator=generator)
    weight = torch.randn(d, generator=generator)
    before, slow_residual = x.clone(), residual.clone()
    out = fastserve.ops.add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(out, reference.add_rms_norm(x, slow_residual, weight, 1e-5))
    assert torch.equal(residual, slow_residual)
    assert torch.equal(x, before)


def test_passes_opcheck(generator: torch.Generator) -> None:
    args = (
        torch.randn(3, 8, generator=generator),
        torch.randn(3, 8, generator=generator),
        torch.randn(8, generator=generator),
        1e-5,
    )
    torch.library.opcheck(torch.ops.fastserve.add_rms_norm.default, args)


@pytest.mark.parametrize(
    ("residual", "weight", "message"),
    [
        (torch.zeros(3, 8), torch.zeros(8), "residual must be float32 \\[2, 8\\]"),
        (torch.zeros(1, 8).expand(2, 8), torch.zeros(8), "residual must be"),
        (torch.zeros(2, 8), torch.zeros(9), "weight must be"),
    ],
)
def test_a_bad_argument_is_named(residual: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastserve.ops.add_rms_norm(torch.zeros(2, 8), residual, weight, 1e-5)
