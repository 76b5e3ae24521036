"""Alone; several ranks are in test_matmul_all_reduce.py, which starts them, GPUs' kernels in tests/cuda_host."""

from __future__ import annotations

import pytest
import torch

import fastserve.ops
from fastserve.ops import reference


@pytest.mark.parametrize(("num_rows", "d"), [(0, 4), (1, 20), (130, 64)])
def test_alone_it_is_add_rms_norm(isa: str, generator: torch.Generator, num_rows: int, d: int) -> None:
    x, residual = (torch.randn(num_rows, d, generator=generator) for _ in range(2))
    weight = torch.randn(d, generator=generator)
    fused, halves, slow, kept = residual.clone(), residual.clone(), residual.clone(), x.clone()
    out = fastserve.ops.all_reduce_add_rms_norm(x, None, fused, weight, 1e-5)
    assert torch.equal(out, fastserve.ops.add_rms_norm(x, halves, weight, 1e-5))
    assert torch.equal(fused, halves)
    assert torch.equal(x, kept)
    torch.testing.assert_close(out, reference.all_reduce_add_rms_norm(x, None, slow, weight, 1e-5))
    torch.testing.assert_close(fused, slow)


def test_passes_opcheck(generator: torch.Generator) -> None:
    x, residual = (torch.randn(3, 20, generator=generator) for _ in range(2))
    args = (x, 0, residual, torch.ones(20), 1e-5)
    torch.library.opcheck(torch.ops.fastserve.all_reduce_add_rms_norm.default, args)


def test_a_bad_argument_is_named() -> None:
    with pytest.raises(ValueError, match=r"residual must be float32 \[2, 20\]"):
        fastserve.ops.all_reduce_add_rms_norm(
            torch.zeros(2, 20), None, torch.zeros(3, 20), torch.ones(20), 1e-5
        )
