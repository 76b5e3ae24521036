"""store_kv: writes new keys and values into the blocks of the cache.

Row t goes to lane positions[t] % 16 of block tables[row_slot[t], positions[t] // 16], in k and v alike: both are
[B, K, P, E], so a head's E elements stay together, 256 bytes of bf16 at E = 128, and heads lie P * E apart.

A row moves 8 K E bytes of bf16: k and v read once, written once, in one launch. A program takes a piece of the
columns of one row, of k and of v; it asks for them before the table says where they go, so the three loads
that depend on each other (slot, table, then the store's address) hide behind those of the data. No two rows share
a slot and a position, so no two programs write the same place.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 1024  # columns of a piece: a 16-byte load of bf16 of k and one of v in each thread of 4 warps
ELEMENTS_PER_THREAD = 8


@dataclass(frozen=True, slots=True)
class Piece:
    block: int
    num_warps: int


def choose_piece(num_columns: int) -> Piece:
    block = min(MAX_BLOCK, triton.next_power_of_2(num_columns))
    return Piece(block, num_warps=max(1, block // (32 * ELEMENTS_PER_THREAD)))


@triton.jit  # type: ignore[untyped-decorator]
def store_piece(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    k, v, k_cache, v_cache, row_slot, positions, tables, ldk, ldv, max_blocks,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < NUM_KV_HEADS * HEAD_DIM
    keys = tl.load(k + row * ldk + columns, inside).to(k_cache.dtype.element_ty)
    values = tl.load(v + row * ldv + columns, inside).to(v_cache.dtype.element_ty)
    position = tl.load(positions + row)
    slot = tl.load(row_slot + row).to(tl.int64)
    block = tl.load(tables + slot * max_blocks + position // BLOCK_SIZE).to(tl.int64)
    first = (block * (NUM_KV_HEADS * BLOCK_SIZE) + position % BLOCK_SIZE) * HEAD_DIM  # head 0 of the lane
    offsets = first + columns // HEAD_DIM * (BLOCK_SIZE * HEAD_DIM) + columns % HEAD_DIM
    tl.store(k_cache + offsets, keys, inside)
    tl.store(v_cache + offsets, values, inside)


def store_kv(
    k: Tensor,
    v: Tensor,
    *,
    k_cache: Tensor,
    v_cache: Tensor,
    row_slot: Tensor,
    positions: Tensor,
    tables: Tensor,
) -> None:
    """k and v [T, K * E], rows contiguous; k_cache and v_cache [B, K, P, E] contiguous; any of bf16, fp16, fp32.

    row_slot and positions are [T] int32, tables [num_slots, max_blocks] contiguous int32.
    """
    num_rows, num_columns = k.shape
    if num_rows == 0 or num_columns == 0:
        return
    _, num_kv_heads, block_size, head_dim = k_cache.shape
    piece = choose_piece(num_columns)
    grid = (num_rows, triton.cdiv(num_columns, piece.block))
    store_piece[grid](
        k, v, k_cache, v_cache, row_slot, positions, tables, k.stride(0), v.stride(0), tables.shape[1],
        num_kv_heads, head_dim, block_size, piece.block, num_warps=piece.num_warps,
    )  # fmt: skip
