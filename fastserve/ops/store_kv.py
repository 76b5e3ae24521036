"""Writes new keys and values into the cache."""

from __future__ import annotations

from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, registry
from fastserve.ops.kv_cache import BLOCK_SIZE, KV_TYPES, KvCache, KvIndex, check_cache, check_index


def store_kv(k: Tensor, v: Tensor, cache: KvCache, index: KvIndex) -> None:
    """cache[block of positions[t], lane of positions[t]] = k[t], v[t], rounded to the cache's dtype.

    k, v  [T, K * E] fp32, on GPUs also bf16 or fp16; rows contiguous
    cache KvCache; updated in place
    index KvIndex; no two rows share a slot and a position
    Raises ValueError naming the argument whose shape, dtype or content is wrong.
    """
    _op(k, v, cache.k, cache.v, index.row_slot, index.positions, index.tables)


def reference(k: Tensor, v: Tensor, cache: KvCache, index: KvIndex) -> None:
    positions = index.positions.long()
    block = index.tables[index.row_slot.long(), positions // BLOCK_SIZE].long()
    lane = positions % BLOCK_SIZE
    num_kv_heads, head_dim = cache.v.shape[1], cache.v.shape[3]
    cache.set_keys(block, lane, k.reshape(-1, num_kv_heads, head_dim))
    cache.set_values(block, lane, v.reshape(-1, num_kv_heads, head_dim))


def _check(  # noqa: PLR0917 (the schema's order)
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    row_slot: Tensor,
    positions: Tensor,
    tables: Tensor,
) -> None:
    check_cache(k_cache, v_cache)
    columns = v_cache.shape[1] * v_cache.shape[3]
    arguments.rows("k", k, num_columns=columns)
    arguments.rows("v", v, num_rows=k.shape[0], num_columns=columns, dtype=k.dtype)
    check_index(row_slot, positions, tables, k.shape[0])


def _cpu(  # noqa: PLR0917 (the schema's order)
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    row_slot: Tensor,
    positions: Tensor,
    tables: Tensor,
) -> None:
    _check(k, v, k_cache, v_cache, row_slot, positions, tables)
    num_blocks, num_kv_heads, _, head_dim = v_cache.shape[:4]
    if k.shape[0]:
        _C.ops.store_kv(
            k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0),
            k_cache.data_ptr(), v_cache.data_ptr(), KV_TYPES[v_cache.dtype],
            num_blocks, num_kv_heads, head_dim,
            row_slot.data_ptr(), positions.data_ptr(), tables.data_ptr(), tables.shape[0], tables.shape[1],
            k.shape[0],
        )  # fmt: skip


def _reference(  # noqa: PLR0917 (the schema's order)
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    row_slot: Tensor,
    positions: Tensor,
    tables: Tensor,
) -> None:
    reference(k, v, KvCache(k_cache, v_cache), KvIndex(row_slot, positions, tables))


def _triton(  # noqa: PLR0917 (the schema's order)
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    row_slot: Tensor,
    positions: Tensor,
    tables: Tensor,
) -> None:
    from fastserve.kernels.store_kv import store_kv as kernel

    _check(k, v, k_cache, v_cache, row_slot, positions, tables)
    kernel(k, v, k_cache=k_cache, v_cache=v_cache, row_slot=row_slot, positions=positions, tables=tables)


_op = registry.register(
    "store_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor row_slot, Tensor positions, "
    "Tensor tables) -> ()",
    fake=_check,
    reference=_reference,
    cpu=_cpu,
    triton=_triton,
)
