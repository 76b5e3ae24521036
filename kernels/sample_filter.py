"""Top-k, top-p and min-p for sample: where the order of a row's tokens is cut.

Tokens are ordered by x = logit / temperature, ties by the lower id first; each filter keeps a beginning of that order
(fastserve/ops/sample.py, `_truncate`). A *cut* is (key, end): tokens with a larger key stay, and those with this key
and an id below `end`. A key is the bits of x as an integer of the same order.

Nothing is sorted. A token's weight is e^(x - highest) as an integer, in units of 2^-42 of the likeliest token's: sums
of integers don't depend on their order, so each thread may add what it has, and the cut is that of exact sums unless
these are within sqrt(V) 2^-42 of the target. Weights are made in fp64, of which these GPUs have enough: 2048 tokens of
some 50 operations take an SM that does 32 a clock 2 us.

1. find_highest and weigh_levels, over splits of the vocabulary: how many tokens are within 1, 2, 4, ... of the
   highest, and what they weigh together. A target is reached between two of these levels.
2. find_cut, over rows: copies the keys and weights between the two levels to a list (hundreds of tokens, in a
   language model's row) and bisects the keys: 20 to 31 sums of the list, each as short as a barrier. While more than
   LIST_SIZE tokens are left, in flat rows, it bisects over the row itself, 128k logits in some 20 us.

A row without top-k and top-p returns at once from weigh_levels, and from find_cut after bisecting min_p's bound, which
depends on the highest x alone: the least float x with e^(x - highest) >= min_p.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from fastserve.kernels.sample_order import (
    GREEDY_BELOW,
    NO_KEY,
    NOTHING,
    as_tensor,
    float_of,
    key_of,
    load_scaled,
    option,
    probability,
    scaled,
    weight_of,
)
from torch import Tensor

NUM_LEVELS = tl.constexpr(8)  # of `_level`
LIST_SIZE = 8192  # tokens, of 12 bytes: a list stays in L2, 256 of them too
PIECE = tl.constexpr(1024)  # of a list: 2 tokens for each thread of 16 warps
ROW_BLOCK = 4096  # tokens of a row looked at together: 8 for each thread of 16 warps, two blocks under way


@triton.jit
def _level(highest, level):  # type: ignore[no-untyped-def]
    """Tokens of a level have at least this x: within 1, 2, 4, 8, 16, 32; 128, 512 (of which no weight is left)."""
    return highest - (1 << tl.where(level < 6, level, 2 * level - 5)).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def find_highest(logits, highest, ld, V: tl.constexpr, SPLIT: tl.constexpr):  # type: ignore[no-untyped-def]
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = split * SPLIT + tl.arange(0, SPLIT)
    x = tl.load(logits + row * ld + ids, ids < V, NOTHING).to(tl.float32)
    tl.store(highest + row * tl.num_programs(1) + split, tl.max(x))


@triton.jit  # type: ignore[untyped-decorator]
def _highest_of_row(highest, row, temperature, NUM_SPLITS: tl.constexpr, PADDED_SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    splits = tl.arange(0, PADDED_SPLITS)
    values = tl.load(highest + row * NUM_SPLITS + splits, splits < NUM_SPLITS, NOTHING)
    return scaled(tl.max(values), temperature)


@triton.jit  # type: ignore[untyped-decorator]
def weigh_levels(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    logits, highest, temperature, top_k, top_p, counts, weights, ld,
    V: tl.constexpr, SPLIT: tl.constexpr, NUM_SPLITS: tl.constexpr, PADDED_SPLITS: tl.constexpr,
):  # fmt: skip
    """counts [S, NUM_SPLITS, NUM_LEVELS], weights [S, NUM_SPLITS, NUM_LEVELS + 1]: the last is of all tokens."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    degrees = tl.load(temperature + row)
    by_weight = option(top_p, row, 1.0) < 1.0
    if (degrees < GREEDY_BELOW) | ((option(top_k, row, 0) <= 0) & ~by_weight):
        return
    top = _highest_of_row(highest, row, degrees, NUM_SPLITS, PADDED_SPLITS)
    x = load_scaled(logits + row * ld, split * SPLIT + tl.arange(0, SPLIT), degrees, V)
    at = row * NUM_SPLITS + split
    for level in tl.static_range(NUM_LEVELS):
        count = tl.sum((x >= _level(top, as_tensor(level))).to(tl.int32))
        tl.store(counts + at * NUM_LEVELS + level, count)
    if by_weight:
        weight = weight_of(x, top)
        for level in tl.static_range(NUM_LEVELS):
            reached = tl.where(x >= _level(top, as_tensor(level)), weight, 0)
            tl.store(weights + at * (NUM_LEVELS + 1) + level, tl.sum(reached))
        tl.store(weights + at * (NUM_LEVELS + 1) + NUM_LEVELS, tl.sum(weight))


@triton.jit  # type: ignore[untyped-decorator]
def _sum_row(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    logits, degrees, top, weigh, first, end, V: tl.constexpr, BLOCK: tl.constexpr
):
    """(count, weight) of the row's tokens with keys in [first, end)."""
    count = tl.zeros((BLOCK,), tl.int32)
    weight = tl.zeros((BLOCK,), tl.int64)
    for begin in tl.range(0, V, BLOCK, num_stages=3):
        ids = begin + tl.arange(0, BLOCK)
        x = load_scaled(logits, ids, degrees, V)
        inside = (ids < V) & (key_of(x) >= first) & (key_of(x) < end)
        count += inside.to(tl.int32)
        if weigh:
            weight += tl.where(inside, weight_of(x, top), 0)
    return tl.sum(count), tl.sum(weight)


@triton.jit  # type: ignore[untyped-decorator]
def _list_row(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    logits, degrees, top, weigh, first, end, keys, weights, V: tl.constexpr, BLOCK: tl.constexpr
):
    """Writes keys and weights of these tokens; returns their number."""
    num = 0
    for begin in tl.range(0, V, BLOCK, num_stages=3):
        ids = begin + tl.arange(0, BLOCK)
        key = key_of(load_scaled(logits, ids, degrees, V))
        inside = (ids < V) & (key >= first) & (key < end)
        tl.store(keys + num + tl.cumsum(inside.to(tl.int32)) - 1, key, inside)
        num += tl.sum(inside.to(tl.int32))
    tl.debug_barrier()  # keys are read by other threads than wrote them
    if weigh:
        for begin in range(0, num, PIECE):
            at = begin + tl.arange(0, PIECE)
            tl.store(weights + at, weight_of(float_of(tl.load(keys + at, at < num, 0)), top), at < num)
        tl.debug_barrier()
    return num


@triton.jit
def _sum_list(keys, weights, num, weigh, first, end):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    count = tl.zeros((PIECE,), tl.int32)
    weight = tl.zeros((PIECE,), tl.int64)
    for begin in range(0, num, PIECE):
        at = begin + tl.arange(0, PIECE)
        key = tl.load(keys + at, at < num, NO_KEY)
        inside = (key >= first) & (key < end)
        count += inside.to(tl.int32)
        if weigh:
            weight += tl.load(weights + at, inside, 0)
    return tl.sum(count), tl.sum(weight)


@triton.jit  # type: ignore[untyped-decorator]
def _end_of_ties(logits, degrees, key, num_ties, V: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """One more than the id of the num_ties-th token with this key."""
    found = 0
    end = 0
    for begin in tl.range(0, V, BLOCK, num_stages=3):
        ids = begin + tl.arange(0, BLOCK)
        tied = (ids < V) & (key_of(load_scaled(logits, ids, degrees, V)) == key)
        order = found + tl.cumsum(tied.to(tl.int32))
        end = tl.maximum(end, tl.max(tl.where(tied & (order <= num_ties), ids + 1, 0)))
        found += tl.sum(tied.to(tl.int32))
    return end


@triton.jit  # type: ignore[untyped-decorator]
def _cut(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    logits, degrees, top, counts, weights, target, weigh, keys, list_weights,
    BY_WEIGHT: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr, LIST_SIZE: tl.constexpr,
):  # fmt: skip
    """(key, end, weight of what stays): the shortest beginning whose count, or weight, reaches the target.

    counts, weights [NUM_LEVELS]: of the levels. Bisects [first, end): the tokens from `first` on reach the target,
    those from `end` on (`above`) don't.
    """
    levels = tl.arange(0, NUM_LEVELS)
    running = weights if BY_WEIGHT else counts
    level = tl.min(tl.where(running >= target, levels, NUM_LEVELS))
    above = tl.sum(tl.where(levels == level - 1, counts, 0))
    above_weight = tl.sum(tl.where(levels == level - 1, weights, 0))
    first = key_of(tl.where(level < NUM_LEVELS, _level(top, level), NOTHING))
    end = tl.where(level > 0, key_of(_level(top, tl.maximum(level - 1, 0))), key_of(top) + 1)
    inside = tl.where(level < NUM_LEVELS, tl.sum(tl.where(levels == level, counts, 0)), V) - above
    listed = -1
    while end.to(tl.int64) - first > 1:
        if (listed < 0) & (inside <= LIST_SIZE):
            listed = _list_row(logits, degrees, top, weigh, first, end, keys, list_weights, V, BLOCK)
        middle = ((end.to(tl.int64) + first) >> 1).to(tl.int32)
        if listed >= 0:
            count, weight = _sum_list(keys, list_weights, listed, weigh, middle, end)
        else:
            count, weight = _sum_row(logits, degrees, top, weigh, middle, end, V, BLOCK)
        reached = above_weight + weight >= target if BY_WEIGHT else above + count >= target
        if reached:
            first = middle
            inside = count
        else:
            end = middle
            inside -= count
            above += count
            above_weight += weight
    weight = weight_of(float_of(first), top)
    if BY_WEIGHT:
        kept = tl.minimum(tl.cdiv(target - above_weight, tl.maximum(weight, 1)), inside).to(tl.int32)
    else:
        kept = target - above
    last = V
    if kept < inside:
        last = _end_of_ties(logits, degrees, first, kept, V, BLOCK)
    return first, last, above_weight + kept * weight


@triton.jit
def _least_key(top, min_p):  # type: ignore[no-untyped-def]
    """Of the floats that are at least min_p times as likely as the likeliest."""
    below, key = tl.full((), NO_KEY, tl.int32) + 1, key_of(top)
    while key.to(tl.int64) - below > 1:
        middle = ((key.to(tl.int64) + below) >> 1).to(tl.int32)
        if probability(float_of(middle), top) >= min_p:
            key = middle
        else:
            below = middle
    return key


@triton.jit  # type: ignore[untyped-decorator]
def find_cut(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    logits, highest, temperature, top_k, top_p, min_p, counts, weights, keys, list_weights, cut_keys, cut_ends, ld,
    V: tl.constexpr, NUM_SPLITS: tl.constexpr, PADDED_SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    LIST_SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    degrees = tl.load(temperature + row)
    num_kept, mass, least = option(top_k, row, 0), option(top_p, row, 1.0), option(min_p, row, 0.0)
    tl.store(cut_keys + row, NO_KEY)
    tl.store(cut_ends + row, 0)
    if degrees < GREEDY_BELOW:
        return
    top = _highest_of_row(highest, row, degrees, NUM_SPLITS, PADDED_SPLITS)
    if top == NOTHING:
        return
    by_count, by_weight = (num_kept > 0) & (num_kept < V), mass < 1.0
    key = tl.full((), NO_KEY, tl.int32)
    end = 0
    splits, levels = tl.arange(0, PADDED_SPLITS)[:, None], tl.arange(0, NUM_LEVELS)[None, :]
    at = row * NUM_SPLITS + splits
    counted = splits < tl.where(by_count | by_weight, NUM_SPLITS, 0)
    weighed = splits < tl.where(by_weight, NUM_SPLITS, 0)
    level_counts = tl.sum(tl.load(counts + at * NUM_LEVELS + levels, counted, 0), axis=0)
    level_weights = tl.sum(tl.load(weights + at * (NUM_LEVELS + 1) + levels, weighed, 0), axis=0)
    total = tl.sum(tl.load(weights + at * (NUM_LEVELS + 1) + NUM_LEVELS, weighed, 0))
    logits += row * ld
    keys += row * LIST_SIZE
    list_weights += row * LIST_SIZE
    if by_count:
        key, end, total = _cut(
            logits, degrees, top, level_counts, level_weights, num_kept, by_weight, keys, list_weights,
            False, V, BLOCK, LIST_SIZE,
        )  # fmt: skip
    if by_weight:
        target = tl.ceil(mass.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
        key, end, total = _cut(
            logits, degrees, top, level_counts, level_weights, tl.maximum(target, 1), by_weight, keys, list_weights,
            True, V, BLOCK, LIST_SIZE,
        )  # fmt: skip
    if least > 0.0:
        least_key = _least_key(top, least)
        if least_key > key:
            key = least_key - 1
            end = 0
    tl.store(cut_keys + row, key)
    tl.store(cut_ends + row, end)


def find_cuts(
    logits: Tensor,
    temperature: Tensor,
    *,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    split: int,
) -> tuple[Tensor, Tensor]:
    """(keys, ends) [S] int32 of the rows' cuts. Arguments as of sample; split: tokens of a program."""
    num_rows, vocab_size = logits.shape
    num_splits = triton.cdiv(vocab_size, split)

    def scratch(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty((num_rows, *shape), dtype=dtype, device=logits.device)

    highest = scratch(torch.float32, num_splits)
    counts = scratch(torch.int32, num_splits, NUM_LEVELS.value)
    weights = scratch(torch.int64, num_splits, NUM_LEVELS.value + 1)
    keys, list_weights = scratch(torch.int32, LIST_SIZE), scratch(torch.int64, LIST_SIZE)
    cut_keys, cut_ends = scratch(torch.int32), scratch(torch.int32)
    sizes = {"V": vocab_size, "NUM_SPLITS": num_splits, "PADDED_SPLITS": triton.next_power_of_2(num_splits)}
    ld, grid = logits.stride(0), (num_rows, num_splits)
    find_highest[grid](logits, highest, ld, V=vocab_size, SPLIT=split)
    weigh_levels[grid](logits, highest, temperature, top_k, top_p, counts, weights, ld, SPLIT=split, **sizes)
    find_cut[(num_rows,)](
        logits, highest, temperature, top_k, top_p, min_p, counts, weights, keys, list_weights, cut_keys,
        cut_ends, ld, **sizes, BLOCK=ROW_BLOCK, LIST_SIZE=LIST_SIZE, num_warps=16,
    )  # fmt: skip
    return cut_keys, cut_ends
