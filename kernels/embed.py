"""embed: out[t] = table[token_ids[t]], rows of the embedding table, dequantised and rounded to out's dtype.

The table is a plain matrix, or lies as in a GGUF file: rows of blocks of 32 weights, each block its fp16 scale
(Q4_1: and minimum) and then its codes, so that nothing in it is aligned to more than two bytes:

    Q4_0  18 bytes: scale, 16 bytes of codes             w = scale * (code - 8)
    Q4_1  20 bytes: scale, minimum, 16 bytes of codes    w = scale * code + minimum
    Q8_0  34 bytes: scale, 32 signed codes               w = scale * code

Byte j of a Q4 block holds weight j in its low and weight j + 16 in its high nibble. A product of fp16 and a code
is exact in fp32, so only Q4_1's sum and out's dtype round.

Bytes a row, of bf16 out: 4 D from a plain bf16 table, 2 D + 0.56 D from Q4_0. Writing is the larger part of it
and is done 16 bytes at a time; quantised rows are read as wide as their blocks are aligned: 2 bytes at a time, 4
for Q4_1, and scales byte by byte, which needs no alignment at all. A program makes one piece of one row, so that
even a single token keeps several SMs reading.
Source: the block layouts of ggml-common.h.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30  # the ids of these types in a GGUF file
PLAIN = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}

MAX_BLOCK = 2048  # columns of a piece: two 16-byte stores of bf16 in each thread of 4 warps
ELEMENTS_PER_THREAD = 16
QUANT_BLOCK = 32  # weights that share a scale


@dataclass(frozen=True, slots=True)
class Piece:
    block: int
    num_warps: int


def choose_piece(d: int) -> Piece:
    block = min(MAX_BLOCK, max(QUANT_BLOCK, triton.next_power_of_2(d)))
    return Piece(block, num_warps=max(1, block // (32 * ELEMENTS_PER_THREAD)))


@triton.jit
def _half(bytes_, inside):  # type: ignore[no-untyped-def]
    """The fp16 at each pointer, which may be odd."""
    low = tl.load(bytes_, inside, 0).to(tl.uint16)
    high = tl.load(bytes_ + 1, inside, 0).to(tl.uint16)
    return (high << 8 | low).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def embed_plain(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    token_ids, table, out, ldt, ldo, D: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    row = tl.load(token_ids + token).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < D
    value = tl.load(table + row * ldt + columns, inside)
    tl.store(out + token.to(tl.int64) * ldo + columns, value.to(out.dtype.element_ty), inside)


@triton.jit  # type: ignore[untyped-decorator]
def embed_q8(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    token_ids, table, out, ldo, D: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0)
    row = tl.load(token_ids + token).to(tl.int64)
    blocks = tl.program_id(1) * (BLOCK // 32) + tl.arange(0, BLOCK // 32)[:, None]
    lanes = tl.arange(0, 32)[None, :]
    inside = blocks < D // 32
    source = table + row * (D // 32 * 34) + blocks * 34
    scale = _half(source, inside)
    codes = tl.load(source + 2 + lanes, inside, 0).to(tl.int8, bitcast=True)
    target = out + token.to(tl.int64) * ldo + blocks * 32 + lanes
    tl.store(target, (codes.to(tl.float32) * scale).to(out.dtype.element_ty), inside)


@triton.jit  # type: ignore[untyped-decorator]
def embed_q4(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    token_ids, table, out, ldo, D: tl.constexpr, HAS_MINIMUM: tl.constexpr, BLOCK: tl.constexpr
):
    BLOCK_BYTES: tl.constexpr = 20 if HAS_MINIMUM else 18
    token = tl.program_id(0)
    row = tl.load(token_ids + token).to(tl.int64)
    blocks = tl.program_id(1) * (BLOCK // 32) + tl.arange(0, BLOCK // 32)[:, None]
    lanes = tl.arange(0, 16)[None, :]
    inside = blocks < D // 32
    source = table + row * (D // 32 * BLOCK_BYTES) + blocks * BLOCK_BYTES
    scale = _half(source, inside)
    codes = tl.load(source + (BLOCK_BYTES - 16) + lanes, inside, 0)
    low = (codes & 15).to(tl.float32)
    high = (codes >> 4).to(tl.float32)
    if HAS_MINIMUM:
        minimum = _half(source + 2, inside)
        low = low * scale + minimum
        high = high * scale + minimum
    else:
        low = (low - 8.0) * scale
        high = (high - 8.0) * scale
    target = out + token.to(tl.int64) * ldo + blocks * 32 + lanes
    tl.store(target, low.to(out.dtype.element_ty), inside)
    tl.store(target + 16, high.to(out.dtype.element_ty), inside)


def embed(token_ids: Tensor, table: Tensor, *, gguf_type: int | None = None, out: Tensor) -> None:
    """token_ids [T] int32, each in [0, V); out [T, D] bf16, fp16 or fp32, rows contiguous.

    table [V, D] bf16, fp16 or fp32, rows contiguous; or with gguf_type (F32, F16, BF16, Q4_0, Q4_1 or Q8_0)
    uint8 [V, row_bytes] contiguous, of which a plain type's must be aligned to its elements.
    """
    num_tokens, d = out.shape
    if num_tokens == 0 or d == 0:
        return
    if gguf_type in PLAIN and table.dtype == torch.uint8:
        table = table.view(PLAIN[gguf_type])
    piece = choose_piece(d)
    grid = (num_tokens, triton.cdiv(d, piece.block))
    options = {"num_warps": piece.num_warps, "enable_fp_fusion": False}
    if gguf_type is None or gguf_type in PLAIN:
        embed_plain[grid](token_ids, table, out, table.stride(0), out.stride(0), d, piece.block, **options)
    elif gguf_type == Q8_0:
        embed_q8[grid](token_ids, table, out, out.stride(0), d, piece.block, **options)
    else:
        embed_q4[grid](token_ids, table, out, out.stride(0), d, gguf_type == Q4_1, piece.block, **options)
