"""paged_attention: softmax(q . keys * scale) values over keys in blocks of 16, for decode, prefill and both at once.

Layout: q and out [T, H * E]; k_cache and v_cache [B, K, 16, E], so the 16 keys of a block and KV head are one run of
4 KB (E = 128, bf16). A *query* is one head of one row.

Same bits. Keys are split into partitions of 256 at absolute positions. In a partition a query starts from nothing and
takes *strips* of 16 to 64 keys, at absolute positions too, from left to right: highest score, exponentials, their
sum, weighted values, in fp32. Partitions are merged from left to right. A strip in which a query sees no key leaves
it as it is: the weights are 0, and what was there is multiplied by 2^0. So a query's bits depend on its position,
window and keys, and neither on the kernel that works on it nor on what else is in the call. Three things make that
hold on hardware:
- paged_attention_strip.py is the arithmetic of all kernels, with no sum in a layout's order, and nothing is fused
  but what it fuses;
- products use one instruction per architecture and dtype. For 16-bit caches Triton takes wgmma (sm_90) and
  tcgen05.mma (sm_100) for a multiple of 64 queries, and mma.m16n8k16 otherwise. On sm_90 rows and tiles both have
  multiples of 64 (a tile of 128 is two m64), on sm_100 both have 64, on sm_80 all is m16n8k16. A lane of these is a
  query: other lanes don't enter its sums, and Triton gives the summed dimension to one warp, in ascending order;
- the strip, the one choice that is part of the bits, depends on architecture, head dim and dtype alone.
The instructions are compared in what the compiler makes, and the arithmetic runs in Triton's interpreter; no GPU has
run it yet.

Strategy. A call's rows are done in one of two ways:
- *rows* (paged_attention_rows.py): a row that is alone in its slot, as in decode, is spread over programs by KV heads
  and partitions. A program's products hold the query heads of one KV head and are padding otherwise: 4 of 64 queries
  on sm_90. There the 128 KB of a partition take an SM 5 us to read (3.35 TB/s over 132 SMs), and 64 queries 1.1 us to
  multiply (989 TFLOP/s) and 0.6 us to exponentiate;
- *tiles* (paged_attention_tiles.py): rows that share a slot, as in prefill, are taken together.
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
from fastserve.kernels.architecture import architecture_of
from fastserve.kernels.paged_attention_rows import attend_rows, find_lone_rows, merge_partitions
from fastserve.kernels.paged_attention_tiles import attend_tiles
from torch import Tensor

PARTITION = 256  # keys, as kPartitionSize of csrc/ops.h
MAX_PLAIN_ROWS = 8  # as many readers of the same keys find them in L2
TARGET_PROGRAMS = 4096  # 30 for each SM: those beyond a row's last partition return at once
SCRATCH_BYTES = 256 << 20  # of partitions' results; rather than more, a program does a row's every partition
MAX_VALUES = 128  # value columns of a program: accumulators of 256 don't fit its registers
SCAN = 1024  # rows that find_lone_rows looks at together
NUM_STAGES = 5  # table entry, then keys and values two strips ahead: 64 KB under way at E = 128 on sm_90


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
        architecture=architecture or architecture_of(q),
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
