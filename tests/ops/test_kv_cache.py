from __future__ import annotations

import pytest
import torch

from fastserve import _C
from fastserve.ops import KvCache
from fastserve.ops.kv_cache import BLOCK_SIZE


def test_the_block_size_is_the_kernels() -> None:
    assert BLOCK_SIZE == _C.BLOCK_SIZE


def test_an_empty_cache_has_the_layouts_of_the_op_table() -> None:
    plain = KvCache.empty(3, 2, 8)
    assert plain.k.shape == (3, 2, 8, 16)
    assert plain.v.shape == (3, 2, 16, 8)
    pairs = KvCache.empty(3, 2, 8, torch.bfloat16)
    assert pairs.k.shape == (3, 2, 4, 16, 2)
    assert pairs.v.shape == (3, 2, 16, 8)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "message"),
    [(8, torch.float16, "dtype must be"), (7, torch.bfloat16, "head_dim must be even")],
)
def test_what_no_kernel_reads_is_refused(head_dim: int, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KvCache.empty(3, 2, head_dim, dtype)
