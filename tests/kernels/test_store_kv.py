from __future__ import annotations

import pytest
import torch
from fastserve.kernels.store_kv import Piece, choose_piece, store_kv

from fastserve.ops import KvCache, KvIndex, reference
from fastserve.ops.kv_cache import BLOCK_SIZE

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20247)


def make_index(generator: torch.Generator, lengths: tuple[int, ...]) -> KvIndex:
    """All positions of some slots, in random order, in blocks scattered over a cache of num_blocks(lengths)."""
    rows = torch.tensor([(slot, p) for slot, length in enumerate(lengths) for p in range(length)])
    rows = rows[torch.randperm(len(rows), generator=generator)].int()
    num_used = num_blocks(lengths) - 1
    tables = torch.randperm(num_used + 1, generator=generator)[:num_used].int()
    return KvIndex(rows[:, 0].contiguous(), rows[:, 1].contiguous(), tables.reshape(len(lengths), -1))


def num_blocks(lengths: tuple[int, ...]) -> int:
    return len(lengths) * -(-max(lengths) // BLOCK_SIZE) + 1


def stored(
    k: torch.Tensor, v: torch.Tensor, index: KvIndex, *, heads: int, blocks: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The caches [B, K, P, E], NaN where nothing came."""
    shape = (blocks, heads, BLOCK_SIZE, k.shape[1] // heads)
    k_cache, v_cache = (torch.full(shape, torch.nan, dtype=dtype) for _ in range(2))
    store_kv(
        k,
        v,
        k_cache=k_cache,
        v_cache=v_cache,
        row_slot=index.row_slot,
        positions=index.positions,
        tables=index.tables,
    )
    return k_cache, v_cache


def reference_stored(
    k: torch.Tensor, v: torch.Tensor, index: KvIndex, *, heads: int, blocks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32; on the CPU a key is a lane: [B, K, E, P]."""
    cache = KvCache.empty(blocks, heads, k.shape[1] // heads)
    cache.k.fill_(torch.nan)
    cache.v.fill_(torch.nan)
    reference.store_kv(k.float(), v.float(), cache, index)
    return cache.k.transpose(2, 3), cache.v


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lengths", "heads", "head_dim"), [((1,), 1, 2), ((5, 33), 2, 18), ((7, 1, 16), 3, 80), ((2,), 17, 128)]
)
def test_fast_equals_slow(
    generator: torch.Generator, lengths: tuple[int, ...], heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    index = make_index(generator, lengths)
    k, v = torch.randn(2, sum(lengths), heads * head_dim, generator=generator).to(dtype)
    sizes = {"heads": heads, "blocks": num_blocks(lengths)}
    slow = reference_stored(k, v, index, **sizes)
    for mine, oracle in zip(stored(k, v, index, dtype=dtype, **sizes), slow, strict=True):
        torch.testing.assert_close(mine.float(), oracle, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_are_rounded_to_the_dtype_of_the_cache(generator: torch.Generator, dtype: torch.dtype) -> None:
    index = make_index(generator, (20,))
    k, v = torch.randn(2, 20, 32, generator=generator)
    slow = reference_stored(k, v, index, heads=2, blocks=3)
    # bf16: one unit in the last place, for Triton's interpreter truncates where the GPU rounds to nearest
    tolerance = 0 if dtype == torch.float16 else 2**-7
    for mine, oracle in zip(stored(k, v, index, heads=2, blocks=3, dtype=dtype), slow, strict=True):
        torch.testing.assert_close(
            mine.float(), oracle.to(dtype).float(), rtol=tolerance, atol=0, equal_nan=True
        )


def test_reads_columns_of_a_wider_matrix(generator: torch.Generator) -> None:
    index = make_index(generator, (20,))
    qkv = torch.randn(20, 64, generator=generator)
    k, v = qkv[:, 7:23], qkv[:, 23:39]
    slow = reference_stored(k, v, index, heads=2, blocks=3)
    for mine, oracle in zip(stored(k, v, index, heads=2, blocks=3, dtype=torch.float32), slow, strict=True):
        torch.testing.assert_close(mine, oracle, rtol=0, atol=0, equal_nan=True)


def test_no_rows_store_nothing() -> None:
    none = torch.empty(0, dtype=torch.int32)
    index = KvIndex(none, none, torch.zeros(1, 1, dtype=torch.int32))
    k_cache, v_cache = stored(
        torch.empty(0, 8), torch.empty(0, 8), index, heads=1, blocks=1, dtype=torch.float32
    )
    assert k_cache.isnan().all()
    assert v_cache.isnan().all()


def test_a_piece_has_enough_elements_for_its_threads() -> None:
    assert choose_piece(1) == Piece(block=1, num_warps=1)
    assert choose_piece(3 * 64) == Piece(block=256, num_warps=1)
    assert choose_piece(8 * 128) == Piece(block=1024, num_warps=4)
