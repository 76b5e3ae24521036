"""Causal attention over paged keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, registry
from fastserve.ops.kv_cache import BLOCK_SIZE, KV_TYPES, KvCache, KvIndex, check_cache, check_index


def paged_attention(
    q: Tensor,
    cache: KvCache,
    index: KvIndex,
    kv_of_head: Tensor,
    *,
    scale: float,
    window: int = 0,
    max_group: int = 0,
) -> Tensor:
    """out[t, h] = softmax(q[t, h] . keys * scale) values, over the keys 0..positions[t] of the row's slot.

    q          [T, H * E] fp32, on GPUs also bf16 or fp16; rows contiguous
    cache      KvCache, in which the rows' own keys are stored
    index      KvIndex
    kv_of_head [H] int32: query head h reads KV head kv_of_head[h]
    window     keys a row sees, its own included; 0: all
    max_group  no KV head has more query heads than this, 0: any number. Changes no bit: on GPUs rows of a prefill share
               a tile of 64 or 128 queries, max_group of each row, and kv_of_head is not read to find it out
    out        [T, H * E] of q's dtype; bit-identical however rows are grouped into calls
    Raises ValueError naming the argument whose shape, dtype or content is wrong.
    Source: Kwon et al. 2023 (paged KV); Milakov & Gimelshein 2018 (one-pass softmax).
    """
    return _op(
        q,
        cache.k,
        cache.v,
        index.row_slot,
        index.positions,
        index.tables,
        kv_of_head,
        scale=scale,
        window=window,
        max_group=max_group,
    )


def reference(
    q: Tensor,
    cache: KvCache,
    index: KvIndex,
    kv_of_head: Tensor,
    *,
    scale: float,
    window: int = 0,
    max_group: int = 0,
) -> Tensor:
    heads, head_dim = kv_of_head.long(), cache.v.shape[3]
    largest = int(heads.bincount().max())
    arguments.require("max_group", max_group == 0 or max_group >= largest, f"be 0 or >= {largest}", max_group)
    out = torch.empty_like(q)
    for slot in sorted(set(index.row_slot.tolist())):
        rows = (index.row_slot == slot).nonzero().squeeze(1)
        last = index.positions[rows].long()[:, None]  # the key that a row sees last: its own
        begin = max(int(last.min()) - window + 1, 0) if window else 0
        keys, values = _gather(cache, index.tables[slot], begin, int(last.max()) + 1)
        positions = torch.arange(begin, begin + keys.shape[1], device=q.device)
        seen = (positions <= last) & (positions > last - window if window else True)  # [rows, keys]
        queries = q[rows].float().reshape(len(rows), -1, head_dim).transpose(0, 1)
        scores = queries @ keys[heads].transpose(1, 2) * scale  # [H, rows, keys]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[rows] = (weights @ values[heads]).transpose(0, 1).reshape(len(rows), -1).to(q.dtype)
    return out


def _gather(cache: KvCache, table: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """The keys and the values of positions begin..end - 1: [K, end - begin, E] fp32."""
    positions = torch.arange(begin, end, device=table.device)
    block, lane = table[positions // BLOCK_SIZE].long(), positions % BLOCK_SIZE
    return cache.keys(block, lane).transpose(0, 1), cache.values(block, lane).transpose(0, 1)


def _allocate(  # noqa: PLR0917 (the schema's order)
    q: Tensor, k_cache: Tensor, v_cache: Tensor, row_slot: Tensor, positions: Tensor, tables: Tensor,
    kv_of_head: Tensor, *, scale: float, window: int = 0, max_group: int = 0,
) -> Tensor:  # fmt: skip
    check_cache(k_cache, v_cache)
    arguments.vector("kv_of_head", kv_of_head, dtype=torch.int32)
    arguments.rows("q", q, num_columns=kv_of_head.shape[0] * v_cache.shape[3])
    check_index(row_slot, positions, tables, q.shape[0])
    arguments.require("window", window >= 0, "be >= 0", window)
    arguments.require("max_group", max_group >= 0, "be >= 0", max_group)
    return q.new_empty(q.shape)


def _cpu(  # noqa: PLR0917 (the schema's order)
    q: Tensor, k_cache: Tensor, v_cache: Tensor, row_slot: Tensor, positions: Tensor, tables: Tensor,
    kv_of_head: Tensor, *, scale: float, window: int = 0, max_group: int = 0,
) -> Tensor:  # fmt: skip
    out = _allocate(
        q, k_cache, v_cache, row_slot, positions, tables, kv_of_head,
        scale=scale, window=window, max_group=max_group,
    )  # fmt: skip
    num_blocks, num_kv_heads, _, head_dim = v_cache.shape[:4]
    if q.shape[0]:
        _C.ops.paged_attention(
            q.data_ptr(), q.stride(0),
            k_cache.data_ptr(), v_cache.data_ptr(), KV_TYPES[v_cache.dtype],
            num_blocks, num_kv_heads, head_dim,
            row_slot.data_ptr(), positions.data_ptr(), tables.data_ptr(), tables.shape[0], tables.shape[1],
            kv_of_head.data_ptr(), q.shape[0], kv_of_head.shape[0], scale, window,
            out.data_ptr(), out.stride(0),
        )  # fmt: skip
    return out


def _reference(  # noqa: PLR0917 (the schema's order)
    q: Tensor, k_cache: Tensor, v_cache: Tensor, row_slot: Tensor, positions: Tensor, tables: Tensor,
    kv_of_head: Tensor, *, scale: float, window: int = 0, max_group: int = 0,
) -> Tensor:  # fmt: skip
    cache, index = KvCache(k_cache, v_cache), KvIndex(row_slot, positions, tables)
    return reference(q, cache, index, kv_of_head, scale=scale, window=window, max_group=max_group)


def _triton(  # noqa: PLR0917 (the schema's order)
    q: Tensor, k_cache: Tensor, v_cache: Tensor, row_slot: Tensor, positions: Tensor, tables: Tensor,
    kv_of_head: Tensor, *, scale: float, window: int = 0, max_group: int = 0,
) -> Tensor:  # fmt: skip
    from fastserve.kernels.paged_attention import paged_attention as kernel

    out = _allocate(
        q, k_cache, v_cache, row_slot, positions, tables, kv_of_head,
        scale=scale, window=window, max_group=max_group,
    )  # fmt: skip
    kernel(
        q, k_cache, v_cache, row_slot, positions, tables, kv_of_head, out,
        scale=scale, window=window, max_group=max_group or None,
    )  # fmt: skip
    return out


_op = registry.register(
    "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor row_slot, Tensor positions, "
    "Tensor tables, Tensor kv_of_head, *, float scale, int window=0, int max_group=0) -> Tensor",
    fake=_allocate,
    reference=_reference,
    cpu=_cpu,
    triton=_triton,
)
