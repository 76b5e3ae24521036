from __future__ import annotations

import pytest
import torch

import fastserve.ops


def test_parts_are_views_from_left_to_right() -> None:
    x = torch.arange(12.0).reshape(2, 6)
    a, b, c = fastserve.ops.split(x, (3, 1, 2))
    assert torch.equal(torch.cat([a, b, c], dim=1), x)
    b.fill_(-1)
    assert (x[:, 3] == -1).all()


def test_sizes_that_do_not_sum_up_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes must sum to x's 6 columns"):
        fastserve.ops.split(torch.zeros(2, 6), (3, 2))
