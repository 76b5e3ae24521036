"""rms_norm: out = x / sqrt(mean(x^2) + eps) * weight, row by row.

A row is read once and written once: 4 D bytes of bf16 move, and D multiplications can't be seen behind them. The
D fp32 weights (4 D bytes more) come from L1 for all rows but an SM's first: x is loaded evict-first so that it
does not push them out.

A program holds whole rows in registers, so x is read once: one row, or several where a row is so short that it
would leave threads idle (the norm of a head: D = 128). Rows of more than MAX_BLOCK columns are read twice, the
second time from L1 or L2, in blocks.

Same bits: the sum of squares is a balanced tree over the columns, written as reductions of two elements each.
a + b has one rounding whichever thread holds a, so neither Triton's layout (which follows the alignment of the
pointers it is given), nor the number of warps, nor the rows beside it can change a row; fusing x * x into an
addition could, for fp32, and is switched off at the launch. tl.sum would add in the layout's order.

Accuracy: the mean's division and the reciprocal root are the GPU's approximate ones, each within 2 ulp of fp32
(CUDA C++ Programming Guide, tables of __fdividef and rsqrtf).
Source: Zhang & Sennrich 2019, eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

ELEMENTS_PER_THREAD = 16  # two 16-byte loads of bf16; twice as many would halve the warps of an SM
MAX_BLOCK = 8192  # columns held at once: 16 warps
MIN_TILE = 2048  # elements of a program with short rows: 4 warps, one for each scheduler of an SM


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program holds: num_rows x block elements of `num_rows` whole rows, or a block of one wide row."""

    num_rows: int
    block: int
    num_warps: int


def choose_tile(d: int) -> Tile:
    """Depends on the row's length alone: a wide row's bits depend on the block."""
    block = min(MAX_BLOCK, max(16, triton.next_power_of_2(d)))
    num_rows = MIN_TILE // block if block <= MIN_TILE // 4 else 1
    return Tile(num_rows, block, num_warps=max(1, num_rows * block // (32 * ELEMENTS_PER_THREAD)))


@triton.jit  # type: ignore[untyped-decorator]
def _sum_of_rows(values, ROWS: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """[ROWS, BLOCK = 2^LEVELS] -> [ROWS, 1]: neighbours are added, then neighbouring sums, and so on."""
    for level in tl.static_range(LEVELS):
        values = tl.sum(tl.reshape(values, (ROWS, BLOCK >> (level + 1), 2)), axis=2)
    return values


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def norm_whole_rows(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x, weight, out, ldx, ldo, eps, num_rows,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (rows < num_rows) & (columns < D)
    value = tl.load(x + rows * ldx + columns, inside, 0.0, eviction_policy="evict_first").to(tl.float32)
    scale = tl.load(weight + columns, columns < D, 0.0, eviction_policy="evict_last")  # before it is needed
    mean = _sum_of_rows(value * value, ROWS, BLOCK, LEVELS) / D
    normed = value * tl.rsqrt(mean + eps) * scale
    tl.store(out + rows * ldo + columns, normed.to(out.dtype.element_ty), inside)


@triton.jit  # type: ignore[untyped-decorator]
def norm_wide_rows(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    x, weight, out, ldx, ldo, eps, D: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x += row * ldx
    out += row * ldo
    squares = tl.zeros((1, BLOCK), tl.float32)
    for start in range(0, D, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        value = tl.load(x + columns, columns < D, 0.0).to(tl.float32)
        squares += value * value
    root = tl.rsqrt(_sum_of_rows(squares, 1, BLOCK, LEVELS) / D + eps)
    for start in range(0, D, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        inside = columns < D
        value = tl.load(x + columns, inside, 0.0, eviction_policy="evict_first").to(tl.float32)
        scale = tl.load(weight + columns, inside, 0.0, eviction_policy="evict_last")
        tl.store(out + columns, (value * root * scale).to(out.dtype.element_ty), inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    """x and out [T, D], rows contiguous, of one dtype: bf16, fp16 or fp32; weight [D] fp32. out may be x."""
    num_rows, d = x.shape
    if num_rows == 0 or d == 0:
        return
    tile = choose_tile(d)
    levels = tile.block.bit_length() - 1
    options = {"num_warps": tile.num_warps, "num_stages": 1, "enable_fp_fusion": False}
    args = (x, weight, out, x.stride(0), out.stride(0), eps)
    if d <= tile.block:
        grid = (triton.cdiv(num_rows, tile.num_rows),)
        norm_whole_rows[grid](*args, num_rows, d, tile.num_rows, tile.block, levels, **options)
    else:
        norm_wide_rows[(num_rows,)](*args, d, tile.block, levels, **options)
