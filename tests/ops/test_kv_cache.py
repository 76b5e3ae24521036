from __future__ import annotations

import pytest
import torch

from fastserve import _C
from fastserve.ops import KvCache
from fastserve.ops.kv_cache import BLOCK_SIZE, KV_TYPES
from fastserve.ops.kv_codes import mix


def test_the_block_size_is_the_kernels() -> None:
    assert BLOCK_SIZE == _C.BLOCK_SIZE


def test_an_empty_cache_has_the_layouts_of_the_op_table() -> None:
    plain = KvCache.empty(3, 2, 8)
    assert plain.k.shape == (3, 2, 8, 16)
    assert plain.v.shape == (3, 2, 16, 8)
    pairs = KvCache.empty(3, 2, 8, torch.bfloat16)
    assert pairs.k.shape == (3, 2, 4, 16, 2)
    assert pairs.v.shape == (3, 2, 16, 8)
    codes = KvCache.empty(3, 2, 8, torch.uint8)
    assert codes.k.shape == (3, 2, 16 * 8 + 64)
    assert codes.v.shape == (3, 2, 4, 8, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_a_block_takes_the_bytes_that_the_kernels_count(dtype: torch.dtype) -> None:
    cache = KvCache.empty(1, 2, 8, dtype)
    assert cache.k.nbytes + cache.v.nbytes == _C.kv_block_bytes(KV_TYPES[dtype], 2, 8)


def test_keys_and_values_come_back_within_half_a_code(generator: torch.Generator) -> None:
    cache = KvCache.empty(3, 2, 24, torch.uint8)
    block, lane = torch.tensor([2, 0]), torch.tensor([5, 15])
    keys, values = (torch.randn(2, 2, 24, generator=generator) for _ in range(2))
    cache.set_keys(block, lane, keys)
    cache.set_values(block, lane, values)
    for got, given in ((mix(cache.keys(block, lane)), mix(keys)), (cache.values(block, lane), values)):
        largest = given.abs().amax(-1, keepdim=True)
        assert ((got - given).abs() <= 0.51 * largest / 127).all()


def test_a_dimension_that_is_far_larger_leaves_the_others_of_a_key_their_codes(
    generator: torch.Generator,
) -> None:
    keys = torch.randn(1, 1, 64, generator=generator)
    keys[..., 3] = 100.0
    cache = KvCache.empty(1, 1, 64, torch.uint8)
    first = torch.zeros(1, dtype=torch.long)
    cache.set_keys(first, first, keys)
    error = (cache.keys(first, first) - keys).abs().max()
    assert error < 100.0 / 127 / 2 / 2  # half of what the largest code alone would allow


def test_a_key_that_is_not_finite_comes_back_as_nan() -> None:
    cache = KvCache.empty(1, 1, 4, torch.uint8)
    first = torch.zeros(1, dtype=torch.long)
    cache.set_keys(first, first, torch.tensor([[[1.0, torch.inf, 2.0, 3.0]]]))
    assert cache.keys(first, first).isnan().all()


@pytest.mark.parametrize(
    ("head_dim", "dtype", "message"),
    [
        (8, torch.float16, "dtype must be"),
        (7, torch.bfloat16, "head_dim must be even"),
        (6, torch.uint8, "head_dim must be a multiple of 4"),
    ],
)
def test_what_no_kernel_reads_is_refused(head_dim: int, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KvCache.empty(3, 2, head_dim, dtype)
