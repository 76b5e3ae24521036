"""sample: the token of largest logit / temperature + Gumbel noise among those that the filters leave, for each row.

Layout: logits [S, V], fp32, bf16 or fp16. The noise of a token is a function of (seed, output index, token id) alone:
Philox in the layout of csrc/cpu/philox.h, so a draw is the CPU's draw.

Strategy. A row of 128k logits is 512 KB, and an SM reads some 50 KB a microsecond: the vocabulary is split over
programs, and a program for each row picks among their winners.

1. With filters, sample_filter.py finds where a row's order is cut; rows that need none return at once.
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
from fastserve.kernels.sample_filter import find_cuts
from fastserve.kernels.sample_order import (
    GREEDY_BELOW,
    NOTHING,
    ONE,
    key_of,
    option,
    scaled,
    without_minus_zero,
)
from torch import Tensor

GROUP = tl.constexpr(64)  # tokens: token 64 g + 16 w + j takes word w of counter 16 g + j
LANES = tl.constexpr(16)  # counters of a group
UNIT = tl.constexpr(2.0**-32)
FAR = tl.constexpr(0x7FFFFFFF)  # beyond any token
MAX_SPLIT = 4096  # tokens: 32 for each thread of 4 warps, in registers
MIN_SPLIT = 1024  # less would not pay for a program


def choose_split(vocab_size: int) -> int:
    """Tokens of a program: about 64 programs a row, two rows fill a GPU. Of V alone: it is part of a logprob's bits."""
    split: int = triton.next_power_of_2(triton.cdiv(vocab_size, 64))
    return min(MAX_SPLIT, max(MIN_SPLIT, split))


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
