"""Sequences of one layer whose blocks lie scattered over the cache; tests store and attend to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastserve.ops import KvCache, KvIndex
from fastserve.ops.kv_cache import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class KvCase:
    """All tokens of `lengths` sequences, in order; q, k and v [T, heads * head_dim]."""

    q: Tensor
    k: Tensor
    v: Tensor
    cache: KvCache
    index: KvIndex
    kv_of_head: Tensor


def make_case(
    generator: torch.Generator,
    lengths: tuple[int, ...],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
) -> KvCase:
    """Every slot's blocks are drawn at random; the cache holds NaN where nothing was stored.

    dtype: of the cache
    """
    num_rows = sum(lengths)
    max_blocks = -(-max(lengths) // BLOCK_SIZE)
    num_blocks = len(lengths) * max_blocks + 1
    order = torch.randperm(num_blocks, generator=generator, dtype=torch.int32)
    cache = KvCache.empty(num_blocks, num_kv_heads, head_dim, dtype)
    erase(cache)
    return KvCase(
        q=torch.randn(num_rows, num_heads * head_dim, generator=generator),
        k=torch.randn(num_rows, num_kv_heads * head_dim, generator=generator),
        v=torch.randn(num_rows, num_kv_heads * head_dim, generator=generator),
        cache=cache,
        index=KvIndex(
            torch.cat(
                [torch.full((length,), slot, dtype=torch.int32) for slot, length in enumerate(lengths)]
            ),
            torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths]),
            order[: len(lengths) * max_blocks].reshape(len(lengths), max_blocks),
        ),
        kv_of_head=torch.arange(num_heads, dtype=torch.int32) * num_kv_heads // num_heads,
    )


def erase(cache: KvCache) -> None:
    """Fills it with NaN: in codes, the scales."""
    for tensor in (cache.k, cache.v):
        tensor.fill_(0xFF if tensor.dtype == torch.uint8 else torch.nan)


def moved(case: KvCase, device: torch.device, dtype: torch.dtype) -> KvCase:
    """The same case on a device, in the layout that keys have there, all of it of one dtype; its cache is all NaN."""
    q, k, v = (tensor.to(device, dtype) for tensor in (case.q, case.k, case.v))
    num_blocks, num_kv_heads, _, head_dim = case.cache.v.shape
    cache = KvCache.empty(num_blocks, num_kv_heads, head_dim, dtype, device)
    erase(cache)
    index = KvIndex(*(t.to(device) for t in (case.index.row_slot, case.index.positions, case.index.tables)))
    return KvCase(q, k, v, cache, index, case.kv_of_head.to(device))


def rows_of(case: KvCase, rows: slice | Tensor) -> KvIndex:
    """The index of some of the case's rows."""
    return KvIndex(
        case.index.row_slot[rows].contiguous(), case.index.positions[rows].contiguous(), case.index.tables
    )
