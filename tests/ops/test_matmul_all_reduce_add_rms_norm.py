"""Alone; several ranks are in test_matmul_all_reduce.py, which starts them."""

from __future__ import annotations

import pytest
import torch

import fastserve.ops
from fastserve.ops import pack, reference


@pytest.mark.parametrize(("num_rows", "n"), [(1, 20), (3, 17), (130, 64)])
def test_alone_it_is_the_two_ops_in_turn(isa: str, generator: torch.Generator, num_rows: int, n: int) -> None:
    x = torch.randn(num_rows, 64, generator=generator)
    w = pack(torch.randn(n, 64, generator=generator), "q8")
    norm_weight, residual = torch.randn(n, generator=generator), torch.randn(num_rows, n, generator=generator)
    fused, halves, slow = residual.clone(), residual.clone(), residual.clone()
    out = fastserve.ops.matmul_all_reduce_add_rms_norm(x, w, None, fused, norm_weight, 1e-5)
    product = fastserve.ops.matmul_all_reduce(x, w, None)
    assert torch.equal(out, fastserve.ops.add_rms_norm(product, halves, norm_weight, 1e-5))
    assert torch.equal(fused, halves)
    expected = reference.matmul_all_reduce_add_rms_norm(x, w, None, slow, norm_weight, 1e-5)
    assert (out - expected).norm() <= 1e-3 * expected.norm()


def test_no_rows_are_no_work() -> None:
    w = pack(torch.zeros(4, 64), "f32")
    out = fastserve.ops.matmul_all_reduce_add_rms_norm(
        torch.zeros(0, 64), w, None, torch.zeros(0, 4), torch.ones(4), 1e-5
    )
    assert out.shape == (0, 4)


def test_passes_opcheck(generator: torch.Generator) -> None:
    w = pack(torch.randn(20, 64, generator=generator), "f32")
    x, residual = torch.randn(3, 64, generator=generator), torch.randn(3, 20, generator=generator)
    args = (x, w.data, w.type, w.n, w.k, 0, residual, torch.ones(20), 1e-5)
    torch.library.opcheck(torch.ops.fastserve.matmul_all_reduce_add_rms_norm.default, args)


@pytest.mark.parametrize(
    ("residual", "norm_weight", "message"),
    [
        (torch.zeros(3, 20), torch.zeros(20), r"residual must be float32 \[2, 20\]"),
        (torch.zeros(2, 20), torch.zeros(19), "norm_weight must be"),
    ],
)
def test_a_bad_argument_is_named(residual: torch.Tensor, norm_weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastserve.ops.matmul_all_reduce_add_rms_norm(
            torch.zeros(2, 64), torch.zeros(20, 64), None, residual, norm_weight, 1e-5
        )
