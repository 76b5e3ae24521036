"""paged_attention: softmax(q . keys * scale) values over keys in blocks of 16, for decode, prefill and both at once.

Layout: q and out [T, H * E]; k_cache and v_cache [B, K, 16, E], so the 16 keys of a block and KV head are one run of
4 KB (E = 128, bf16). A *query* is one head of one row.

Same bits. Keys are split into partitions of 256 at absolute positions. In a partition a query starts from nothing and
takes *strips* of 16 to 64 keys, at absolute positions too, from left to right: highest score, exponentials, their
sum, weighted values, in fp32. Partitions are merged from left to right. A strip in which a query sees no key leaves
it as it is: the weights are 0, and what was there is multiplied by 2^0. So a query's bits depend on its position,
window and keys, and neither on the kernel that works on it nor on what else is in the call. Three things make that
hold on hardware:
- attend_strip and what is beside it are the arithmetic of all kernels, with no sum in a layout's order, and nothing is
  fused but what they fuse;
- products use one instruction per architecture and dtype. For 16-bit caches Triton takes wgmma (sm_90) and
  tcgen05.mma (sm_100) for a multiple of 64 queries, and mma.m16n8k16 otherwise. On sm_90 rows and tiles both have
  multiples of 64 (a tile of 128 is two m64), on sm_100 both have 64, on sm_80 all is m16n8k16. A lane of these is a
  query: other lanes don't enter its sums, and Triton gives the summed dimension to one warp, in ascending order;
- the strip, the one choice that is part of the bits, depends on architecture, head dim and dtype alone.
The instructions are compared in what the compiler makes, and the arithmetic runs in Triton's interpreter; no GPU has
run it yet.

Strategy. A call's rows are done in one of two ways:
- *rows* (attend_rows): a row that is alone in its slot, as in decode, is spread over programs by KV heads
  and partitions. A program's products hold the query heads of one KV head and are padding otherwise: 4 of 64 queries
  on sm_90. There the 128 KB of a partition take an SM 5 us to read (3.35 TB/s over 132 SMs), and 64 queries 1.1 us to
  multiply (989 TFLOP/s) and 0.6 us to exponentiate;
- *tiles* (attend_tiles): rows that share a slot, as in prefill, are taken together.
The device tells them apart (find_lone_rows), so a decode costs the same in a batch with prefill. Calls of at most
MAX_PLAIN_ROWS rows are all rows, which saves two launches.

kv_of_head stays on the device: heads of one KV head are consecutive, their number may differ between KV heads.
max_group bounds that number; too large costs padding and changes no bit.

Memory beyond a query's keys may hold anything, NaN too: it is not loaded. The rows of a tile and slot see each
other's keys with weights of 0, so a row's NaN values reach earlier rows of its own tile and slot, and no other slot.

Rounding: q and the weights are rounded to the cache's dtype for the products, as usual: relative errors of 2^-9 a key
for bf16, independent of each other. fp32 caches are multiplied in fp32 (no TF32). exp2 is ex2.approx, 2 ulp.

Source: Kwon et al. 2023 (paged KV); Milakov & Gimelshein 2018 (one-pass softmax); Dao et al. 2023, "Flash-Decoding"
(split keys).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTITION = 256  # keys, as kPartitionSize of csrc/ops.h
MAX_PLAIN_ROWS = 8  # as many readers of the same keys find them in L2
TARGET_PROGRAMS = 4096  # 30 for each SM: those beyond a row's last partition return at once
SCRATCH_BYTES = 256 << 20  # of partitions' results; rather than more, a program does a row's every partition
MAX_VALUES = 128  # value columns of a program: accumulators of 256 don't fit its registers
SCAN = 1024  # rows that find_lone_rows looks at together
NUM_STAGES = 5  # table entry, then keys and values two strips ahead: 64 KB under way at E = 128 on sm_90
NOTHING = tl.constexpr(float("-inf"))  # the score of a key that is not seen
FAR = tl.constexpr(0x7FFFFFFF)  # beyond any slot and any position


@dataclass(frozen=True, slots=True)
class Shape:
    """strip_levels is part of the bits: a strip has 2^strip_levels keys."""

    strip_levels: int
    row_queries: int  # of a program of attend_rows
    row_warps: int
    tile_queries: int  # of a program of attend_tiles
    tile_warps: int
    one_loop: bool  # over a tile's strips, else over partitions and their strips


def choose_shape(*, head_dim: int, element_bytes: int, group: int, architecture: int) -> Shape:
    """What compiles without spilling (tests/kernels/test_attention_sample_compile.py).

    element_bytes: of the cache; architecture: 10 * major + minor of the compute capability
    """
    dims = padded(head_dim)
    if element_bytes == 4:
        # no tensor cores: multiply-adds, the summed dimension in ascending order, whatever the shape
        return Shape(5 if dims <= 128 else 4, 16, 4, 16, 4, one_loop=True)
    if 100 <= architecture < 120:
        # in one loop, accumulators would leave tensor memory and come back at every strip, and spill 600 bytes
        return Shape(5, 64, 4 if dims <= 128 else 8, 64, 4 if dims <= 64 else 8, one_loop=False)
    if 90 <= architecture < 100:
        return Shape(6 if dims <= 128 and dims == head_dim else 5, 64, 4, 128, 8, one_loop=True)
    row_queries = min(64, max(16, triton.next_power_of_2(group)))
    return Shape(6 if dims <= 64 else 5, row_queries, 4, 128, 8, one_loop=True)


@dataclass(frozen=True, slots=True)
class Split:
    """num_partitions: of one row, at most; num_splits: programs that share them, 1: it merges them itself."""

    tiled: bool
    num_partitions: int
    num_splits: int


def choose_attention(
    *,
    num_rows: int,
    num_slots: int,
    max_keys: int,
    window: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> Split:
    """Changes who does what, and no bit."""
    tiled = num_rows > MAX_PLAIN_ROWS
    num_items = num_slots if tiled else num_rows
    num_partitions = max(1, triton.cdiv(max_keys, PARTITION))
    if window:
        num_partitions = min(num_partitions, triton.cdiv(window - 1, PARTITION) + 1)
    num_splits: int = min(num_partitions, max(1, TARGET_PROGRAMS // max(1, num_items * num_kv_heads)))
    if 4 * num_items * num_heads * num_partitions * (head_dim + 2) > SCRATCH_BYTES:
        num_splits = 1
    return Split(tiled, num_partitions, num_splits)


def padded(head_dim: int) -> int:
    dims: int = triton.next_power_of_2(head_dim)
    return max(16, dims)


def _architecture_of(tensor: Tensor) -> int:
    """10 * major + minor of its device's compute capability. CPU tensors are the interpreter's: sm_80."""
    if tensor.device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


# --- a strip of keys, and how partitions are merged: shared by all that follows ---
#
# Everything that rounds is here, once, and in one order. Products that meet a sum are fma, and launches forbid the
# compiler to fuse others (enable_fp_fusion=False), which it might do in one kernel and not in another. The sum of a
# strip is a tree of pairs, which no layout can reorder. Scores are in units of log2: exp2 is one instruction.
#
# A *state* is (highest score, total of the weights, weighted values) of some keys, for each query.


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


# --- rows ---
#
# Those that share their keys with no other row of the call, as in decode: spread over programs by partitions.
#
# A program has one row, the query heads of one KV head, and every num_splits-th partition. What it finds in a partition
# goes to memory, E + 2 floats for each head and 256 keys (1 % of the 128 KB read at 4 heads, E = 128 and bf16), and
# merge_partitions, one warp for each row and head, ends it. The merges of a row depend on each other, their loads do
# not: the loop is unrolled so that 8 are under way.
#
# Without part_values a program merges what it finds by itself: num_splits is 1, or there is one partition.


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


# --- tiles ---
#
# Of rows that share a slot with others, as in prefill: a tile of rows reads the slot's keys once.
#
# A program has QUERIES // HEADS consecutive rows and HEADS query heads of one KV head, as QUERIES rows of its products.
# Its rows may belong to several slots, which only the device knows: it goes through the slots one after another, and
# queries of other slots see no key then, which leaves their state as it is.
#
# Programs start in the order of their number: the heads of a tile together (they share nothing but time), and later
# rows first, which see more keys.


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


# --- launcher ---


def paged_attention(  # noqa: PLR0917
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    row_slot: Tensor,
    positions: Tensor,
    tables: Tensor,
    kv_of_head: Tensor,
    out: Tensor,
    *,
    scale: float,
    window: int = 0,
    max_group: int | None = None,
    architecture: int | None = None,
) -> None:
    """q and out [T, H * E], rows contiguous; k_cache and v_cache [B, K, P, E] contiguous; each bf16, fp16 or fp32.

    row_slot, positions [T], tables [num_slots, max_blocks] contiguous and kv_of_head [H] are int32; scale > 0.
    window:       keys a row sees, its own included; 0: all
    max_group:    no KV head has more query heads than this; None: H
    architecture: to compile for; None: that of q's device
    """
    num_rows, num_heads = q.shape[0], kv_of_head.shape[0]
    if num_rows == 0 or num_heads == 0:
        return
    _, num_kv_heads, block_size, head_dim = v_cache.shape
    num_slots, max_blocks = tables.shape
    group = max_group or num_heads
    shape = choose_shape(
        head_dim=head_dim,
        element_bytes=k_cache.element_size(),
        group=group,
        architecture=architecture or _architecture_of(q),
    )
    split = choose_attention(
        num_rows=num_rows, num_slots=num_slots, max_keys=max_blocks * block_size, window=window,
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
    )  # fmt: skip
    values = min(padded(head_dim), MAX_VALUES)
    kv_heads_and_values = num_kv_heads * triton.cdiv(head_dim, values)
    model = {
        "NUM_HEADS": num_heads, "HEAD_DIM": head_dim, "DIMS": padded(head_dim), "WINDOWED": window > 0,
        "PARTITION": PARTITION, "enable_fp_fusion": False,
    }  # fmt: skip
    products = {
        "PADDED_HEADS": triton.next_power_of_2(num_heads), "NUM_KV_HEADS": num_kv_heads, "BLOCK_SIZE": block_size,
        "VALUES": values, "LEVELS": shape.strip_levels, "num_stages": NUM_STAGES,
    }  # fmt: skip
    inputs = (q, k_cache, v_cache, row_slot, positions, tables, kv_of_head)
    numbers = (q.stride(0), out.stride(0), max_blocks, scale * math.log2(math.e), window)
    num_items, lone = num_rows, None
    if split.tiled:
        num_items, lone = num_slots, torch.empty(num_slots, dtype=torch.int32, device=q.device)
        find_lone_rows[(num_slots,)](row_slot, lone, num_rows, SCAN=SCAN)
        heads = min(group, shape.tile_queries)
        num_tiles = triton.cdiv(num_rows, shape.tile_queries // heads)
        attend_tiles[kv_heads_and_values * triton.cdiv(group, heads), num_tiles](
            *inputs, lone, out, *numbers, num_rows, **model, **products,
            QUERIES=shape.tile_queries, HEADS=heads, ONE_LOOP=shape.one_loop, num_warps=shape.tile_warps,
        )  # fmt: skip
    part_stats = part_values = None
    if split.num_splits > 1:
        parts = (num_items, split.num_partitions, num_heads)
        part_stats = torch.empty((*parts, 2), dtype=torch.float32, device=q.device)
        part_values = torch.empty((*parts, head_dim), dtype=torch.float32, device=q.device)
    num_groups = kv_heads_and_values * triton.cdiv(group, shape.row_queries)
    attend_rows[num_items, num_groups, split.num_splits](
        *inputs, lone, out, part_stats, part_values, *numbers, split.num_splits, split.num_partitions,
        **model, **products, QUERIES=shape.row_queries, num_warps=shape.row_warps,
    )  # fmt: skip
    if split.num_splits > 1:
        merge_partitions[num_items, num_heads](
            part_stats, part_values, positions, lone, out, out.stride(0), window, split.num_partitions,
            **model, num_warps=1,
        )  # fmt: skip
