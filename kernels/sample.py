"""sample: the token of largest logit / temperature + Gumbel noise among those that the filters leave, for each row.

Layout: logits [S, V], fp32, bf16 or fp16. The noise of a token is a function of (seed, output index, token id) alone:
Philox in the layout of csrc/cpu/philox.h, so a draw is the CPU's draw.

Strategy. A row of 128k logits is 512 KB, and an SM reads some 50 KB a microsecond: the vocabulary is split over
programs, and a program for each row picks among their winners.

1. With filters, find_cuts finds where a row's order is cut; rows that need none return at once.
2. draw, over splits: the best score, the highest logit and the sum of e^(logit - highest).
3. pick, over rows: the token and its logprob.
4. count_larger, over splits: the rank, which needs the token. From L2, if the S V logits fit.

About 100 operations a token, half of them the noise: 8.4 M tokens (S = 64) take an H100 30 us, and their 33 MB 10 us.

Exact draws. Noise is -ln(-ln u) in fp64 in the reference: two logarithms in fp64 for each token would take a hundred
operations of the slowest kind. Instead scores are first made in fp32, to within 1e-4 (of u near 1, where winners are,
1 - u is what enters the logarithm), and only tokens within a margin of the best, one or two in a split, get the exact
score, rounded to fp32 once as the reference rounds it. What fp32 logarithms would change without that: who wins when
two scores are within 1e-6 of each other, one draw in a million.

Same bits. Splits depend on V alone. Sums that a logprob sees are of integers (units of 2^-42 of the split's largest
term), so no order of addition is part of it: layouts follow the alignment of a row, which may differ in a batch.
Tokens and ranks are maxima and counts.

Where all logits of a row are -inf, the token is 0 and the logprob NaN.

Source: Gumbel-max, e.g. Maddison et al. 2014; Philox, Salmon et al. 2011.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = tl.constexpr(64)  # tokens: token 64 g + 16 w + j takes word w of counter 16 g + j
LANES = tl.constexpr(16)  # counters of a group
UNIT = tl.constexpr(2.0**-32)
FAR = tl.constexpr(0x7FFFFFFF)  # beyond any token
MAX_SPLIT = 4096  # tokens: 32 for each thread of 4 warps, in registers
MIN_SPLIT = 1024  # less would not pay for a program
GREEDY_BELOW = tl.constexpr(1e-5)  # temperature, as in fastserve/ops/sample.py
NOTHING = tl.constexpr(float("-inf"))  # the logit of a token that is banned, or none
NO_KEY = tl.constexpr(-2139095042)  # one less than the key of -inf
ONE = tl.constexpr(float(1 << 42))  # the likeliest token's weight: 2^20 of them are far from overflowing
NUM_LEVELS = tl.constexpr(8)  # of `_level`
LIST_SIZE = 8192  # tokens, of 12 bytes: a list stays in L2, 256 of them too
PIECE = tl.constexpr(1024)  # of a list: 2 tokens for each thread of 16 warps
ROW_BLOCK = 4096  # tokens of a row looked at together: 8 for each thread of 16 warps, two blocks under way


def choose_split(vocab_size: int) -> int:
    """Tokens of a program: about 64 programs a row, two rows fill a GPU. Of V alone: it is part of a logprob's bits."""
    split: int = triton.next_power_of_2(triton.cdiv(vocab_size, 64))
    return min(MAX_SPLIT, max(MIN_SPLIT, split))


# --- the order of a row's tokens, as integers, and their weights ---


@triton.jit
def as_tensor(number):  # type: ignore[no-untyped-def]
    """Of a constant; Triton 3.6 has no tl.to_tensor."""
    return number + tl.zeros([], tl.int32)


@triton.jit
def option(pointer, row, default):  # type: ignore[no-untyped-def]
    if pointer is None:
        return as_tensor(default)
    else:
        return tl.load(pointer + row)


@triton.jit
def without_minus_zero(x):  # type: ignore[no-untyped-def]
    return tl.where(x == 0.0, 0.0, x)


@triton.jit
def scaled(logits, temperature):  # type: ignore[no-untyped-def]
    """logit / temperature as the reference rounds it, without -0: it would have a key of its own."""
    return without_minus_zero(tl.div_rn(logits, temperature))


@triton.jit
def key_of(x):  # type: ignore[no-untyped-def]
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def float_of(key):  # type: ignore[no-untyped-def]
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def probability(x, highest):  # type: ignore[no-untyped-def]
    """Relative to the likeliest token."""
    return tl.exp(x.to(tl.float64) - highest.to(tl.float64))


@triton.jit
def weight_of(x, highest):  # type: ignore[no-untyped-def]
    return tl.floor(probability(x, highest) * ONE + 0.5).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def load_scaled(logits, ids, temperature, V: tl.constexpr):  # type: ignore[no-untyped-def]
    return scaled(tl.load(logits + ids, ids < V, NOTHING).to(tl.float32), temperature)


# --- filters: where top-k, top-p and min-p cut the order of a row's tokens ---
#
# Tokens are ordered by x = logit / temperature, ties by the lower id first; each filter keeps a beginning of that order
# (fastserve/ops/sample.py, `_truncate`). A *cut* is (key, end): tokens with a larger key stay, and those with this key
# and an id below `end`. A key is the bits of x as an integer of the same order.
#
# Nothing is sorted. A token's weight is e^(x - highest) as an integer, in units of 2^-42 of the likeliest token's:
# sums of integers don't depend on their order, so each thread may add what it has, and the cut is that of exact sums
# unless these are within sqrt(V) 2^-42 of the target. Weights are made in fp64, of which these GPUs have enough: 2048
# tokens of some 50 operations take an SM that does 32 a clock 2 us.
#
# 1. find_highest and weigh_levels, over splits of the vocabulary: how many tokens are within 1, 2, 4, ... of the
#    highest, and what they weigh together. A target is reached between two of these levels.
# 2. find_cut, over rows: copies the keys and weights between the two levels to a list (hundreds of tokens, in a
#    language model's row) and bisects the keys: 20 to 31 sums of the list, each as short as a barrier. While more than
#    LIST_SIZE tokens are left, in flat rows, it bisects over the row itself, 128k logits in some 20 us.
#
# A row without top-k and top-p returns at once from weigh_levels, and from find_cut after bisecting min_p's bound,
# which depends on the highest x alone: the least float x with e^(x - highest) >= min_p.


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


# --- drawing ---


@triton.jit
def _rough_noise(word):  # type: ignore[no-untyped-def]
    """-ln(-ln u) to within 1e-4, u = (word + 1/2) / 2^32. Near 1: -ln(1 - r) = r + r^2/2 + r^3/3 + r^4/4 + ..."""
    r = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * UNIT
    series = r * (1.0 + r * (0.5 + r * (1.0 / 3 + r * 0.25)))
    u = tl.minimum((word.to(tl.float32) + 0.5) * UNIT, 0.99)
    return -tl.log(tl.where(r < 0.015625, series, -tl.log(u)))


@triton.jit
def _exact_noise(seed, output_idx, token):  # type: ignore[no-untyped-def]
    w0, w1, w2, w3 = tl.philox(seed, token // GROUP * LANES + token % LANES, output_idx, 0, 0)
    which = token % GROUP // LANES
    word = tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))
    return -tl.log(-tl.log((word.to(tl.float64) + 0.5) * UNIT))


@triton.jit  # type: ignore[untyped-decorator]
def _rough_score(logit, ids, word, degrees, cut_key, cut_end, CUT: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """-inf where a token is cut off. Greedy: the logit, exactly."""
    if degrees < GREEDY_BELOW:
        score = without_minus_zero(logit)
    else:
        x = scaled(logit, degrees)
        score = x + _rough_noise(word)
        if CUT:
            stays = (key_of(x) > cut_key) | ((key_of(x) == cut_key) & (ids < cut_end))
            score = tl.where(stays, score, NOTHING)
    return score


@triton.jit
def _next(token, limit, ids, s0, s1, s2, s3):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """The lowest id beyond `token` whose score reaches the limit, else FAR. ids: of s0; the others lie 16 apart."""
    id1, id2, id3 = ids + LANES, ids + 2 * LANES, ids + 3 * LANES
    low = tl.minimum(
        tl.where((s0 >= limit) & (ids > token), ids, FAR), tl.where((s1 >= limit) & (id1 > token), id1, FAR)
    )
    high = tl.minimum(
        tl.where((s2 >= limit) & (id2 > token), id2, FAR), tl.where((s3 >= limit) & (id3 > token), id3, FAR)
    )
    return tl.min(tl.minimum(low, high))


@triton.jit
def _term(logit, highest):  # type: ignore[no-untyped-def]
    return tl.floor(tl.exp(logit - highest) * ONE + 0.5).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def draw(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    logits, temperature, seed, output_idx, cut_keys, cut_ends, scores, tokens, highests, sums, ld,
    V: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """scores, tokens, highests, sums [S, splits]: the winner, the highest logit and the sum of a split's terms."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    logits += row * ld
    degrees, key, idx = tl.load(temperature + row), tl.load(seed + row), tl.load(output_idx + row)
    CUT: tl.constexpr = cut_keys is not None
    cut_key, cut_end = option(cut_keys, row, 0), option(cut_ends, row, 0)
    groups = split * (SPLIT // GROUP) + tl.arange(0, SPLIT // GROUP)[:, None]
    lanes = tl.arange(0, LANES)[None, :]
    ids = groups * GROUP + lanes
    id1, id2, id3 = ids + LANES, ids + 2 * LANES, ids + 3 * LANES
    x0 = tl.load(logits + ids, ids < V, NOTHING).to(tl.float32)
    x1 = tl.load(logits + id1, id1 < V, NOTHING).to(tl.float32)
    x2 = tl.load(logits + id2, id2 < V, NOTHING).to(tl.float32)
    x3 = tl.load(logits + id3, id3 < V, NOTHING).to(tl.float32)
    highest = tl.max(tl.maximum(tl.maximum(x0, x1), tl.maximum(x2, x3)))
    shift = tl.where(highest == NOTHING, 0.0, highest)
    total = tl.sum((_term(x0, shift) + _term(x1, shift)) + (_term(x2, shift) + _term(x3, shift)))
    w0, w1, w2, w3 = tl.philox(key, groups * LANES + lanes, idx, 0, 0)
    s0 = _rough_score(x0, ids, w0, degrees, cut_key, cut_end, CUT)
    s1 = _rough_score(x1, id1, w1, degrees, cut_key, cut_end, CUT)
    s2 = _rough_score(x2, id2, w2, degrees, cut_key, cut_end, CUT)
    s3 = _rough_score(x3, id3, w3, degrees, cut_key, cut_end, CUT)
    best = tl.max(tl.maximum(tl.maximum(s0, s1), tl.maximum(s2, s3)))
    winner = split * SPLIT
    if (best > NOTHING) & (degrees < GREEDY_BELOW):
        winner = _next(-1, best, ids, s0, s1, s2, s3)
    elif best > NOTHING:
        # two scores are 1e-4 and 2 ulp off at the most, each; this is 4 times as much
        limit = best - (1e-3 + tl.abs(best) * 2.0**-21)
        best = tl.full((), NOTHING, tl.float32)
        token = _next(-1, limit, ids, s0, s1, s2, s3)
        while token < FAR:
            x = scaled(tl.load(logits + token).to(tl.float32), degrees)
            score = (x.to(tl.float64) + _exact_noise(key, idx, token)).to(tl.float32)
            if score > best:
                best = score
                winner = token
            token = _next(token, limit, ids, s0, s1, s2, s3)
    at = row * tl.num_programs(1) + split
    tl.store(scores + at, best)
    tl.store(tokens + at, winner)
    tl.store(highests + at, highest)
    tl.store(sums + at, total)


@triton.jit  # type: ignore[untyped-decorator]
def pick(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    logits, scores, tokens, highests, sums, token_ids, logprobs, ranks, ld,
    NUM_SPLITS: tl.constexpr, PADDED_SPLITS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, PADDED_SPLITS)
    at, inside = row * NUM_SPLITS + splits, splits < NUM_SPLITS
    score = tl.load(scores + at, inside, NOTHING)
    winners = inside & (score == tl.max(score))
    token = tl.min(tl.where(winners, tl.load(tokens + at, inside, 0), FAR))
    highest = tl.load(highests + at, inside, NOTHING).to(tl.float64)
    top = tl.max(highest)
    terms = tl.load(sums + at, inside, 0).to(tl.float64) * tl.exp(highest - top)
    logit = tl.load(logits + row * ld + token).to(tl.float64)
    tl.store(token_ids + row, token)
    tl.store(logprobs + row, (logit - top - tl.log(tl.sum(terms) / ONE)).to(tl.float32))
    tl.store(ranks + row, 1)


@triton.jit  # type: ignore[untyped-decorator]
def count_larger(logits, token_ids, ranks, ld, V: tl.constexpr, SPLIT: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    logits += row * ld
    ids = split * SPLIT + tl.arange(0, SPLIT)
    x = tl.load(logits + ids, ids < V, NOTHING).to(tl.float32)
    larger = x > tl.load(logits + tl.load(token_ids + row)).to(tl.float32)
    count = tl.sum(larger.to(tl.int32))
    if count > 0:
        tl.atomic_add(ranks + row, count, sem="relaxed")  # of integers: in any order


# --- launcher ---


def sample(
    logits: Tensor,
    temperature: Tensor,
    seed: Tensor,
    output_idx: Tensor,
    *,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    token_ids: Tensor,
    logprobs: Tensor,
    ranks: Tensor,
) -> None:
    """logits [S, V], rows contiguous, fp32, bf16 or fp16; the rest [S], contiguous.

    temperature, top_p, min_p fp32; seed int64; output_idx, top_k int32, as in fastserve/ops/sample.py. token_ids and
    ranks int32, logprobs fp32: written.
    """
    num_rows, vocab_size = logits.shape
    if num_rows == 0:
        return
    split = choose_split(vocab_size)
    num_splits = triton.cdiv(vocab_size, split)
    cut_keys = cut_ends = None
    if top_k is not None or top_p is not None or min_p is not None:
        cut_keys, cut_ends = find_cuts(
            logits, temperature, top_k=top_k, top_p=top_p, min_p=min_p, split=split
        )
    scores = torch.empty((num_rows, num_splits), dtype=torch.float32, device=logits.device)
    tokens, highests = torch.empty_like(scores, dtype=torch.int32), torch.empty_like(scores)
    sums = torch.empty_like(scores, dtype=torch.int64)
    ld, grid = logits.stride(0), (num_rows, num_splits)
    draw[grid](
        logits, temperature, seed, output_idx, cut_keys, cut_ends, scores, tokens, highests, sums, ld,
        V=vocab_size, SPLIT=split,
    )  # fmt: skip
    pick[(num_rows,)](
        logits, scores, tokens, highests, sums, token_ids, logprobs, ranks, ld,
        NUM_SPLITS=num_splits, PADDED_SPLITS=triton.next_power_of_2(num_splits), num_warps=1,
    )  # fmt: skip
    count_larger[grid](logits, token_ids, ranks, ld, V=vocab_size, SPLIT=split)
