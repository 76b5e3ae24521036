"""Where one layer keeps its keys and values, and which of them a row sees. Layouts as in csrc/ops.h."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastserve.ops import arguments

BLOCK_SIZE = 16  # P: keys per block = lanes of one vector of scores (csrc/ops.h, kBlockSize)
MAX_HEAD_DIM = 256  # kMaxHeadDim of csrc/cpu/paged_attention.cpp


@dataclass(frozen=True, slots=True)
class KvCache:
    """KV blocks of one layer: a key is a lane, so that one vector holds the scores of a block.

    k fp32 [B, K, E, P], bf16 [B, K, E / 2, P, 2]
    v      [B, K, P, E], the same dtype
    """

    k: Tensor
    v: Tensor

    @classmethod
    def empty(
        cls, num_blocks: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32
    ) -> KvCache:
        """Zeroed blocks. Raises ValueError for a dtype other than fp32 and bf16, or an odd bf16 head_dim."""
        arguments.require("dtype", dtype in (torch.float32, torch.bfloat16), "be float32 or bfloat16", dtype)
        k_shape: tuple[int, ...] = (num_blocks, num_kv_heads, head_dim, BLOCK_SIZE)
        if dtype == torch.bfloat16:
            arguments.require("head_dim", head_dim % 2 == 0, "be even for bfloat16", head_dim)
            k_shape = (num_blocks, num_kv_heads, head_dim // 2, BLOCK_SIZE, 2)
        v_shape = (num_blocks, num_kv_heads, BLOCK_SIZE, head_dim)
        return cls(torch.zeros(k_shape, dtype=dtype), torch.zeros(v_shape, dtype=dtype))


@dataclass(frozen=True, slots=True)
class KvIndex:
    """Position p of row t lies in block tables[row_slot[t], p // P], lane p % P.

    row_slot  [T] int32
    positions [T] int32, of the rows themselves: a row sees the keys 0..positions[t] of its slot
    tables    [num_slots, max_blocks] int32; entries beyond a slot's last position are not read
    """

    row_slot: Tensor
    positions: Tensor
    tables: Tensor


def check_cache(k: Tensor, v: Tensor) -> None:
    """Raises ValueError naming cache.k or cache.v."""
    good = (
        v.dim() == 4
        and v.is_contiguous()
        and v.dtype in (torch.float32, torch.bfloat16)
        and v.shape[2] == BLOCK_SIZE
    )
    arguments.require(
        "cache.v", good, f"be contiguous fp32 or bf16 [B, K, {BLOCK_SIZE}, E]", arguments.describe(v)
    )
    num_blocks, num_kv_heads, _, head_dim = v.shape
    arguments.require("cache.v", head_dim <= MAX_HEAD_DIM, f"have head_dim <= {MAX_HEAD_DIM}", head_dim)
    wanted = [num_blocks, num_kv_heads, head_dim, BLOCK_SIZE]
    if v.dtype == torch.bfloat16:
        wanted = [num_blocks, num_kv_heads, head_dim // 2, BLOCK_SIZE, 2]
        arguments.require("cache.v", head_dim % 2 == 0, "have an even head_dim for bf16", head_dim)
    good = k.dtype == v.dtype and list(k.shape) == wanted and k.is_contiguous()
    arguments.require("cache.k", good, f"be contiguous {v.dtype} {wanted}", arguments.describe(k))


def check_index(row_slot: Tensor, positions: Tensor, tables: Tensor, num_rows: int) -> None:
    """Raises ValueError naming index.row_slot, index.positions or index.tables."""
    arguments.vector("index.row_slot", row_slot, dtype=torch.int32, size=num_rows)
    arguments.vector("index.positions", positions, dtype=torch.int32, size=num_rows)
    good = tables.dim() == 2 and tables.dtype == torch.int32 and tables.is_contiguous()
    arguments.require(
        "index.tables", good, "be contiguous int32 [num_slots, max_blocks]", arguments.describe(tables)
    )
