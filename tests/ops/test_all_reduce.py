"""Alone; several ranks are in test_matmul_all_reduce.py, which starts them."""

from __future__ import annotations

import pytest
import torch

import fastserve.ops


def test_alone_nothing_changes(generator: torch.Generator) -> None:
    x = torch.randn(5, 64, generator=generator)
    before = x.clone()
    fastserve.ops.all_reduce(x, None)
    assert torch.equal(x, before)


def test_passes_opcheck(generator: torch.Generator) -> None:
    torch.library.opcheck(torch.ops.fastserve.all_reduce.default, (torch.randn(3, 8, generator=generator), 0))


def test_a_bad_argument_is_named() -> None:
    with pytest.raises(ValueError, match="x must be float32"):
        fastserve.ops.all_reduce(torch.zeros(2, 4).double(), None)
    with pytest.raises(ValueError, match="x must be float32"):
        fastserve.ops.all_reduce(torch.zeros(1, 4).expand(2, 4), None)


def test_the_handle_of_a_group_that_is_gone_is_refused() -> None:
    with pytest.raises(ValueError, match="exchange must be the handle of a living group"):
        torch.ops.fastserve.all_reduce(torch.zeros(2, 4), 12345)
