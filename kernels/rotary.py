"""rotary: turns the pairs (2i, 2i + 1) of every head by the angle position * inv_freq[i], in place.

A row moves 4 (H + K) R bytes of bf16, R = rotary_dim: the turned elements of q and k are read once and written
once, in one launch. A program turns a few heads of one row, of q or of k. Pairs are neighbours, so a thread's
16 bytes hold 4 whole pairs: splitting and joining them moves nothing between threads.

The angle is formed and reduced to [-pi/4, pi/4] in double: an fp32 product is off by 0.004 near an angle of
131072 (half a unit in its last place), which no sine could mend. Sine and cosine of the rest are fp32 polynomials,
as in csrc/cpu/rotary.cpp, within 1e-7 of the true ones at every position (the test asks up to 2^20). What the GPU
offers instead: sin.approx is within 2^-21 in [-pi, pi] only (CUDA C++ Programming Guide, table of __sinf), and
sinf keeps an array in local memory for angles beyond 105615.

A thread computes them once and uses them for all its heads: 8 operations in double and 2 conversions a pair, on
an H100 (64 and 16 of these a clock in an SM) a quarter of the time that the program's 8 KB take, and behind it.

Products are rounded before they are added (no fused multiply-add), so a head's bits do not depend on what the
compiler makes of its neighbours.
Source: Su et al. 2021, eq. 34; the polynomials of Cephes' sinf and cosf.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # elements of a program: two 16-byte loads of bf16 in each thread of 4 warps
ELEMENTS_PER_THREAD = 16

TWO_OVER_PI = tl.constexpr(0.63661977236758134308)
HALF_PI_HIGH = tl.constexpr(1.57079632679489655800)  # pi / 2 in two doubles
HALF_PI_LOW = tl.constexpr(6.12323399573676603587e-17)
ROUND = tl.constexpr(6755399441055744.0)  # 1.5 * 2^52: adding it rounds to an integer, in the low bits


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program turns: num_heads heads of num_pairs pairs, of which those beyond the last are masked."""

    num_heads: int
    num_pairs: int
    num_warps: int


def choose_tile(max_heads: int, rotary_dim: int) -> Tile:
    """max_heads: of q or k, whichever has more."""
    num_pairs = triton.next_power_of_2(rotary_dim // 2)
    num_heads = min(triton.next_power_of_2(max_heads), max(1, TILE // (2 * num_pairs)))
    return Tile(num_heads, num_pairs, max(1, num_heads * 2 * num_pairs // (32 * ELEMENTS_PER_THREAD)))


@triton.jit
def _sin_cos(position, inv_freq):  # type: ignore[no-untyped-def]
    """Within 1e-7, for angles below 2^31: angle = n pi/2 + rest, and n mod 4 says which polynomial and sign."""
    angle = position.to(tl.float64) * inv_freq.to(tl.float64)
    shifted = angle * TWO_OVER_PI + ROUND
    quadrant = shifted.to(tl.int64, bitcast=True).to(tl.int32)
    n = shifted - ROUND  # floor and a conversion to int run at a quarter of an addition's rate
    rest = ((angle - n * HALF_PI_HIGH) - n * HALF_PI_LOW).to(tl.float32)
    z = rest * rest
    s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * rest + rest
    c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    sine = tl.where(quadrant & 1 != 0, c, s)
    cosine = tl.where(quadrant & 1 != 0, s, c)
    return tl.where(quadrant & 2 != 0, -sine, sine), tl.where((quadrant + 1) & 2 != 0, -cosine, cosine)


@triton.jit  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    row, first_head, sine, cosine, NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr,
    HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    heads = first_head + tl.arange(0, HEADS)[:, None]
    columns = tl.arange(0, 2 * PAIRS)[None, :]
    inside = (heads < NUM_HEADS) & (columns < ROTARY_DIM)
    pointers = row + heads * HEAD_DIM + columns
    value = tl.load(pointers, inside, 0.0).to(tl.float32)
    a, b = tl.split(tl.reshape(value, (HEADS, PAIRS, 2)))
    turned = tl.join(a * cosine - b * sine, a * sine + b * cosine)
    tl.store(pointers, tl.reshape(turned, (HEADS, 2 * PAIRS)).to(row.dtype.element_ty), inside)


@triton.jit  # type: ignore[untyped-decorator]
def turn_heads(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    q, k, positions, inv_freq, ldq, ldk,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr,
    HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    pairs = tl.arange(0, PAIRS)[None, :]
    frequency = tl.load(inv_freq + pairs, pairs < ROTARY_DIM // 2, 0.0)
    sine, cosine = _sin_cos(tl.load(positions + row), frequency)
    num_q_tiles: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    if tile < num_q_tiles:
        first = tile * HEADS
        _turn(q + row * ldq, first, sine, cosine, NUM_HEADS, HEAD_DIM, ROTARY_DIM, HEADS, PAIRS)
    else:
        first = (tile - num_q_tiles) * HEADS
        _turn(k + row * ldk, first, sine, cosine, NUM_KV_HEADS, HEAD_DIM, ROTARY_DIM, HEADS, PAIRS)


def rotary(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, *, head_dim: int) -> None:
    """q [T, H * E] and k [T, K * E], rows contiguous, of one dtype: bf16, fp16 or fp32; updated in place.

    positions [T] int32; inv_freq [R / 2] fp32.
    """
    num_rows, rotary_dim = q.shape[0], 2 * inv_freq.shape[0]
    num_heads, num_kv_heads = q.shape[1] // head_dim, k.shape[1] // head_dim
    if num_rows == 0 or rotary_dim == 0 or num_heads + num_kv_heads == 0:
        return
    tile = choose_tile(max(num_heads, num_kv_heads), rotary_dim)
    grid = (num_rows, triton.cdiv(num_heads, tile.num_heads) + triton.cdiv(num_kv_heads, tile.num_heads))
    turn_heads[grid](
        q, k, positions, inv_freq, q.stride(0), k.stride(0), num_heads, num_kv_heads, head_dim, rotary_dim,
        tile.num_heads, tile.num_pairs, num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
