"""Rows that share a slot with others, as in prefill: a tile of rows reads the slot's keys once.

A program has QUERIES // HEADS consecutive rows and HEADS query heads of one KV head, as QUERIES rows of its products.
Its rows may belong to several slots, which only the device knows: it goes through the slots one after another, and
queries of other slots see no key then, which leaves their state as it is.

Programs start in the order of their number: the heads of a tile together (they share nothing but time), and later
rows first, which see more keys.
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

FAR = tl.constexpr(0x7FFFFFFF)  # beyond any slot and any position


@triton.jit(do_not_specialize=["window", "num_rows"])  # type: ignore[untyped-decorator]
def attend_tiles(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    q, k_cache, v_cache, row_slot, positions, tables, kv_of_head, lone, out,
    ldq, ldo, max_blocks, scale, window, num_rows,
    NUM_HEADS: tl.constexpr, PADDED_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, VALUES: tl.constexpr, WINDOWED: tl.constexpr,
    PARTITION: tl.constexpr, LEVELS: tl.constexpr, QUERIES: tl.constexpr, HEADS: tl.constexpr,
    ONE_LOOP: tl.constexpr,
):  # fmt: skip
    NUM_VALUES: tl.constexpr = (HEAD_DIM + VALUES - 1) // VALUES
    ROWS: tl.constexpr = QUERIES // HEADS
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    first_value = tl.program_id(0) // NUM_KV_HEADS % NUM_VALUES * VALUES
    first_head, num_heads = heads_of(kv_of_head, kv_head, NUM_HEADS, PADDED_HEADS)
    lane = tl.arange(0, QUERIES)
    head = tl.program_id(0) // (NUM_KV_HEADS * NUM_VALUES) * HEADS + lane % HEADS
    rows = (tl.num_programs(1) - 1 - tl.program_id(1)) * ROWS + lane // HEADS
    todo = (lane < ROWS * HEADS) & (rows < num_rows) & (head < num_heads)
    slots = tl.load(row_slot + rows, todo, 0)
    todo &= tl.load(lone + slots, todo, 0) != rows  # attend_rows does those
    valid = todo
    ends = tl.load(positions + rows, todo, 0) + 1
    begins = tl.maximum(ends - window, 0) if WINDOWED else tl.zeros((QUERIES,), tl.int32)
    columns = (first_head + head) * HEAD_DIM
    queries = load_queries(
        q + rows.to(tl.int64) * ldq + columns, valid, k_cache.dtype.element_ty, HEAD_DIM, DIMS
    )
    k_head = k_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
    v_head = v_cache + kv_head * (BLOCK_SIZE * HEAD_DIM)
    STRIPS: tl.constexpr = PARTITION >> LEVELS
    whole = no_keys(QUERIES, VALUES)
    while tl.max(todo.to(tl.int32)) > 0:
        slot = tl.min(tl.where(todo, slots, FAR))
        mine = todo & (slots == slot)
        todo &= slots != slot
        table = tables + slot.to(tl.int64) * max_blocks
        my_ends = tl.where(mine, ends, 0)
        end = tl.max(my_ends)
        begin = tl.min(tl.where(mine, begins, FAR)) if WINDOWED else 0
        first_strip, end_strip = begin >> LEVELS, tl.cdiv(end, 1 << LEVELS)
        state = no_keys(QUERIES, VALUES)
        if ONE_LOOP:
            for strip in range(first_strip, end_strip):
                if strip % STRIPS == 0:
                    whole = merge(whole, state)
                    state = no_keys(QUERIES, VALUES)
                state = attend_strip(
                    state, queries, k_head, v_head, first_value, table, strip, begin, end, begins, my_ends, scale,
                    NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM, WINDOWED, LEVELS,
                )  # fmt: skip
            whole = merge(whole, state)
        else:
            for part in range(first_strip // STRIPS, tl.cdiv(end_strip, STRIPS)):
                state = no_keys(QUERIES, VALUES)
                first = tl.maximum(first_strip, part * STRIPS)
                for strip in range(first, tl.minimum(end_strip, (part + 1) * STRIPS)):
                    state = attend_strip(
                        state, queries, k_head, v_head, first_value, table, strip, begin, end, begins, my_ends, scale,
                        NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM, WINDOWED, LEVELS,
                    )  # fmt: skip
                whole = merge(whole, state)
    store_values(out + rows.to(tl.int64) * ldo + columns, valid, attended(whole), first_value, HEAD_DIM)
