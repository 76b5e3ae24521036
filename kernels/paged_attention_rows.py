"""Rows that share their keys with no other row of the call, as in decode: spread over programs by partitions.

A program has one row, the query heads of one KV head, and every num_splits-th partition. What it finds in a partition
goes to memory, E + 2 floats for each head and 256 keys (1 % of the 128 KB read at 4 heads, E = 128 and bf16), and
merge_partitions, one warp for each row and head, ends it. The merges of a row depend on each other, their loads do
not: the loop is unrolled so that 8 are under way.

Without part_values a program merges what it finds by itself: num_splits is 1, or there is one partition.
"""

from __future__ import annotations

import triton
import triton.language as tl
from fastserve.kernels.paged_attention_strip import (
    attend_strip,
    attended,
    heads_of,
    load_queries,
    merge,
    no_keys,
    store_values,
)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def find_lone_rows(row_slot, lone, num_rows, SCAN: tl.constexpr):  # type: ignore[no-untyped-def]
    """lone[slot]: the row of a slot that has one row in this call, else -1."""
    slot = tl.program_id(0)
    count = 0
    found = -1
    for begin in range(0, num_rows, SCAN):
        rows = begin + tl.arange(0, SCAN)
        mine = tl.load(row_slot + rows, rows < num_rows, -1) == slot
        count += tl.sum(mine.to(tl.int32))
        found = tl.maximum(found, tl.max(tl.where(mine, rows, -1)))
    tl.store(lone + slot, tl.where(count == 1, found, -1))


@triton.jit
def _row(item, lone):  # type: ignore[no-untyped-def]
    """Items are rows, or slots whose lone row is meant; -1: it has none."""
    if lone is None:
        return item
    else:
        return tl.load(lone + item)


@triton.jit(do_not_specialize=["window", "num_splits", "num_partitions"])  # type: ignore[untyped-decorator]
def attend_rows(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    q, k_cache, v_cache, row_slot, positions, tables, kv_of_head, lone, out, part_stats, part_values,
    ldq, ldo, max_blocks, scale, window, num_splits, num_partitions,
    NUM_HEADS: tl.constexpr, PADDED_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, VALUES: tl.constexpr, WINDOWED: tl.constexpr,
    PARTITION: tl.constexpr, LEVELS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    row = _row(item, lone)
    if row < 0:
        return
    NUM_VALUES: tl.constexpr = (HEAD_DIM + VALUES - 1) // VALUES
    kv_head = tl.program_id(1) % NUM_KV_HEADS
    first_value = tl.program_id(1) // NUM_KV_HEADS % NUM_VALUES * VALUES
    first_query = tl.program_id(1) // (NUM_KV_HEADS * NUM_VALUES) * QUERIES
    first_head, num_heads = heads_of(kv_of_head, kv_head, NUM_HEADS, PADDED_HEADS)
    end = tl.load(positions + row) + 1
    begin = tl.maximum(end - window, 0) if WINDOWED else 0
    first_part, end_part = begin // PARTITION, tl.cdiv(end, PARTITION)
    if (first_query >= num_heads) | (first_part + tl.program_id(2) >= end_part):
        return
    first_head += first_query
    valid = tl.arange(0, QUERIES) < num_heads - first_query
    columns = tl.arange(0, QUERIES) * HEAD_DIM  # from first_head on
    pointers = q + row.to(tl.int64) * ldq + first_head * HEAD_DIM + columns
    queries = load_queries(pointers, valid, k_cache.dtype.element_ty, HEAD_DIM, DIMS)
    table = tables + tl.load(row_slot + row).to(tl.int64) * max_blocks
    k_head = k_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
    v_head = v_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
    begins, ends = tl.full((QUERIES,), begin, tl.int32), tl.full((QUERIES,), end, tl.int32)
    STRIPS: tl.constexpr = PARTITION >> LEVELS
    whole = no_keys(QUERIES, VALUES)
    for part in range(first_part + tl.program_id(2), end_part, num_splits):
        state = no_keys(QUERIES, VALUES)
        first_strip = tl.maximum(part * STRIPS, begin >> LEVELS)
        for strip in range(first_strip, tl.minimum((part + 1) * STRIPS, tl.cdiv(end, 1 << LEVELS))):
            state = attend_strip(
                state, queries, k_head, v_head, first_value, table, strip, begin, end, begins, ends, scale,
                NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM, WINDOWED, LEVELS,
            )  # fmt: skip
        if part_values is None:
            whole = merge(whole, state)
        else:
            highest, total, values = state
            first = (item.to(tl.int64) * num_partitions + part - first_part) * NUM_HEADS + first_head
            stats = part_stats + 2 * first + 2 * tl.arange(0, QUERIES)
            tl.store(stats, highest, valid)  # by each of the NUM_VALUES programs: the same
            tl.store(stats + 1, total, valid)
            store_values(part_values + first * HEAD_DIM + columns, valid, values, first_value, HEAD_DIM)
    if part_values is None:
        pointers = out + row.to(tl.int64) * ldo + first_head * HEAD_DIM + columns
        store_values(pointers, valid, attended(whole), first_value, HEAD_DIM)


@triton.jit(do_not_specialize=["window", "num_partitions"])  # type: ignore[untyped-decorator]
def merge_partitions(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    part_stats, part_values, positions, lone, out, ldo, window, num_partitions,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, WINDOWED: tl.constexpr,
    PARTITION: tl.constexpr,
):  # fmt: skip
    item, head = tl.program_id(0), tl.program_id(1)
    row = _row(item, lone)
    if row < 0:
        return
    end = tl.load(positions + row) + 1
    begin = tl.maximum(end - window, 0) if WINDOWED else 0
    first = item.to(tl.int64) * num_partitions * NUM_HEADS + head
    dims = tl.arange(0, DIMS)[None, :]
    whole = no_keys(1, DIMS)
    for part in tl.range(tl.cdiv(end, PARTITION) - begin // PARTITION, loop_unroll_factor=8):
        stats = part_stats + 2 * (first + part * NUM_HEADS) + tl.arange(0, 1)
        values = tl.load(part_values + (first + part * NUM_HEADS) * HEAD_DIM + dims, dims < HEAD_DIM, 0.0)
        whole = merge(whole, (tl.load(stats), tl.load(stats + 1), values))
    pointers = out + row.to(tl.int64) * ldo + head * HEAD_DIM + tl.arange(0, 1)
    store_values(pointers, tl.full((1,), True, tl.int1), attended(whole), 0, HEAD_DIM)
