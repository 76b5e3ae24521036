"""What paged_attention does to a strip of keys, and how partitions are merged: shared by its kernels.

Everything that rounds is here, once, and in one order. Products that meet a sum are fma, and launches forbid the
compiler to fuse others (enable_fp_fusion=False), which it might do in one kernel and not in another. The sum of a
strip is a tree of pairs, which no layout can reorder. Scores are in units of log2: exp2 is one instruction.

A *state* is (highest score, total of the weights, weighted values) of some keys, for each query.
"""

from __future__ import annotations

import triton
import triton.language as tl

NOTHING = tl.constexpr(float("-inf"))  # the score of a key that is not seen


@triton.jit  # type: ignore[untyped-decorator]
def no_keys(QUERIES: tl.constexpr, VALUES: tl.constexpr):  # type: ignore[no-untyped-def]
    highest = tl.full((QUERIES,), NOTHING, tl.float32)
    return highest, tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES, VALUES), tl.float32)


@triton.jit
def _finite(highest):  # type: ignore[no-untyped-def]
    """The highest score, or 0 where no key was seen: exp2(-inf - 0) is 0, exp2(-inf - -inf) would be NaN."""
    return tl.where(highest == NOTHING, 0.0, highest)


@triton.jit  # type: ignore[untyped-decorator]
def _sum(weights, QUERIES: tl.constexpr, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """[QUERIES, 2^LEVELS] -> [QUERIES]: the upper half of the keys is added to the lower, and so on.

    In this order a tensor core's accumulators (4 threads hold 8 neighbouring keys) meet within a thread first.
    """
    for level in tl.static_range(LEVELS):
        weights = tl.sum(tl.reshape(weights, (QUERIES, 2, 1 << (LEVELS - level - 1))), axis=1)
    return tl.reshape(weights, (QUERIES,))


@triton.jit  # type: ignore[untyped-decorator]
def attend_strip(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    state, q, k_head, v_head, first_value, table, strip, begin, end, begins, ends, scale,
    NUM_KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOWED: tl.constexpr,
    LEVELS: tl.constexpr,
):  # fmt: skip
    """The state with the 2^LEVELS keys of a strip.

    Of these only those at positions in [begin, end) are loaded; query i sees those in [begins[i], ends[i]). The
    state's values are the columns from first_value on. k_head, v_head: the KV head's keys and values in block 0.
    """
    highest, total, values = state
    KEYS: tl.constexpr = 1 << LEVELS
    QUERIES: tl.constexpr = q.shape[0]
    keys = strip * KEYS + tl.arange(0, KEYS)
    stored = keys < end
    seen = keys[None, :] < ends[:, None]
    if WINDOWED:
        stored &= keys >= begin
        seen &= keys[None, :] >= begins[:, None]
    blocks = tl.load(table + keys // BLOCK_SIZE, stored, 0).to(tl.int64)
    rows = (blocks * (NUM_KV_HEADS * BLOCK_SIZE) + keys % BLOCK_SIZE) * HEAD_DIM
    dims = tl.arange(0, q.shape[1])
    k = tl.load(k_head + rows[:, None] + dims[None, :], stored[:, None] & (dims < HEAD_DIM)[None, :], 0.0)
    scores = tl.where(seen, tl.dot(q, tl.trans(k), input_precision="ieee"), NOTHING)
    top = tl.maximum(highest, tl.max(scores, axis=1) * scale)
    keep = tl.exp2(highest - _finite(top))
    weights = tl.exp2(tl.fma(scores, tl.full((QUERIES, KEYS), scale, tl.float32), -_finite(top)[:, None]))
    total = tl.fma(total, keep, _sum(weights, QUERIES, LEVELS))
    dims = first_value + tl.arange(0, values.shape[1])
    v = tl.load(v_head + rows[:, None] + dims[None, :], stored[:, None] & (dims < HEAD_DIM)[None, :], 0.0)
    values = tl.dot(weights.to(v.dtype), v, values * keep[:, None], input_precision="ieee")
    return top, total, values


@triton.jit
def merge(whole, part):  # type: ignore[no-untyped-def]
    """The state of all partitions so far, after one more joined them from the right."""
    highest, total, values = whole
    part_highest, part_total, part_values = part
    top = tl.maximum(highest, part_highest)
    keep, gain = tl.exp2(highest - _finite(top)), tl.exp2(part_highest - _finite(top))
    values = tl.fma(values, tl.broadcast_to(keep[:, None], values.shape), part_values * gain[:, None])
    return top, tl.fma(total, keep, part_total * gain), values


@triton.jit
def attended(state):  # type: ignore[no-untyped-def]
    _, total, values = state
    total = tl.where(total == 0.0, 1.0, total)  # of a lane that is no query: nothing of it is stored
    return values * tl.div_rn(tl.full(total.shape, 1.0, tl.float32), total)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def heads_of(kv_of_head, kv_head, NUM_HEADS: tl.constexpr, PADDED_HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(first, count) of the query heads that read a KV head; they are consecutive."""
    heads = tl.arange(0, PADDED_HEADS)
    reads = tl.load(kv_of_head + heads, heads < NUM_HEADS, -1) == kv_head
    return tl.min(tl.where(reads, heads, NUM_HEADS)), tl.sum(reads.to(tl.int32))


@triton.jit  # type: ignore[untyped-decorator]
def load_queries(pointers, valid, dtype: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr):  # type: ignore[no-untyped-def]
    dims = tl.arange(0, DIMS)
    inside = valid[:, None] & (dims < HEAD_DIM)[None, :]
    return tl.load(pointers[:, None] + dims[None, :], inside, 0.0).to(dtype)


@triton.jit  # type: ignore[untyped-decorator]
def store_values(pointers, valid, values, first_value, HEAD_DIM: tl.constexpr):  # type: ignore[no-untyped-def]
    dims = first_value + tl.arange(0, values.shape[1])
    inside = valid[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(pointers[:, None] + dims[None, :], values.to(pointers.dtype.element_ty), inside)
