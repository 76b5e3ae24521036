"""Where one layer keeps its keys and values, and which of them a row sees. Layouts as in csrc/ops.h."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastserve.ops import arguments
from fastserve.ops.backend import lays_rows
from fastserve.ops.kv_codes import dequantise, mix, num_mixed, quantise

BLOCK_SIZE = 16  # P: keys per block = lanes of one vector of scores (csrc/ops.h, kBlockSize)
MAX_HEAD_DIM = 256  # csrc/ops.h, kMaxHeadDim
NUM_TOGETHER = 4  # codes of a key, or keys of a value's codes, that one instruction of a CPU multiplies
SCALE_BYTES = 2  # bf16
KV_TYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.uint8: "int8"}  # of CPUs


@dataclass(frozen=True, slots=True)
class KvCache:
    """KV blocks of one layer.

    CPUs: a key is a lane, so that one vector holds the scores of a block
    k fp32 [B, K, E, P], bf16 [B, K, E / 2, P, 2]
    v      [B, K, P, E], the same dtype
    in codes of 8 bits, E a multiple of 4:
    k uint8 [B, K, P * E + 4 * P]: [E / 4, P, 4] codes, then [2, P] bf16 scales of the keys and of the values
    v uint8 [B, K, P / 4, E, 4] codes
    GPUs: a key is a row
    k, v   [B, K, P, E] bf16, fp16 or fp32
    """

    k: Tensor
    v: Tensor

    @classmethod
    def empty(
        cls,
        num_blocks: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> KvCache:
        """Zeroed blocks; torch.uint8 is what EngineConfig calls int8.

        Raises ValueError for a dtype that the device does not keep, or a head_dim that is odd for bf16, no multiple of
        4 for uint8.
        """
        device = torch.device(device)
        dtypes = kept_dtypes(device)
        arguments.require("dtype", dtype in dtypes, f"be {arguments.names(*dtypes)}", dtype)
        k_shape, v_shape = shapes(num_blocks, num_kv_heads, head_dim, dtype, device)
        return cls(
            torch.zeros(k_shape, dtype=dtype, device=device), torch.zeros(v_shape, dtype=dtype, device=device)
        )

    def keys(self, block: Tensor, lane: Tensor) -> Tensor:
        """[n, K, E] fp32: the keys at (block[i], lane[i])."""
        if lays_rows(self.k.device):
            return self.k[block, :, lane].float()
        if self.k.dtype == torch.uint8:
            codes = self._key_codes()[block, :, :, lane].flatten(2)
            mixed = dequantise(codes, self._scales()[block, :, 0, lane, None])
            return mix(mixed) / num_mixed(mixed.shape[-1])
        keys = self.k[block, :, :, lane]  # [n, K, E] or [n, K, E / 2, 2]
        return keys.reshape(len(block), -1, self.v.shape[3]).float()

    def set_keys(self, block: Tensor, lane: Tensor, keys: Tensor) -> None:
        """keys [n, K, E] fp32"""
        if self.k.dtype == torch.uint8:
            codes, scales = quantise(mix(keys.float()))
            self._key_codes()[block, :, :, lane] = codes.view(*codes.shape[:2], -1, NUM_TOGETHER)
            self._scales()[block, :, 0, lane] = scales.squeeze(-1)
            return
        keys = keys.to(self.k.dtype)
        if lays_rows(self.k.device):
            self.k[block, :, lane] = keys
        elif self.k.dtype == torch.bfloat16:
            self.k[block, :, :, lane] = keys.reshape(*keys.shape[:2], -1, 2)
        else:
            self.k[block, :, :, lane] = keys

    def values(self, block: Tensor, lane: Tensor) -> Tensor:
        """[n, K, E] fp32: the values at (block[i], lane[i])."""
        if self.v.dtype != torch.uint8:
            return self.v[block, :, lane].float()
        codes = self.v[block, :, lane // NUM_TOGETHER, :, lane % NUM_TOGETHER]
        return dequantise(codes, self._scales()[block, :, 1, lane, None])

    def set_values(self, block: Tensor, lane: Tensor, values: Tensor) -> None:
        """values [n, K, E] fp32"""
        if self.v.dtype != torch.uint8:
            self.v[block, :, lane] = values.to(self.v.dtype)
            return
        codes, scales = quantise(values.float())
        self.v[block, :, lane // NUM_TOGETHER, :, lane % NUM_TOGETHER] = codes
        self._scales()[block, :, 1, lane] = scales.squeeze(-1)

    def _key_codes(self) -> Tensor:
        """[B, K, E / 4, P, 4], a view"""
        num_codes = BLOCK_SIZE * self.v.shape[3]
        return self.k[..., :num_codes].view(*self.k.shape[:2], -1, BLOCK_SIZE, NUM_TOGETHER)

    def _scales(self) -> Tensor:
        """[B, K, 2, P] bf16, a view"""
        num_codes = BLOCK_SIZE * self.v.shape[3]
        return self.k[..., num_codes:].view(torch.bfloat16).view(*self.k.shape[:2], 2, BLOCK_SIZE)


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


def kept_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    return (torch.float32, torch.bfloat16, torch.float16) if lays_rows(device) else tuple(KV_TYPES)


def shapes(
    num_blocks: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[int], list[int]]:
    """Of k and of v. Raises ValueError for a head_dim that the CPU's bf16 or uint8 cannot have."""
    rows = [num_blocks, num_kv_heads, BLOCK_SIZE, head_dim]
    if lays_rows(device):
        return rows, rows
    if dtype == torch.bfloat16:
        arguments.require("head_dim", head_dim % 2 == 0, "be even for bfloat16", head_dim)
        return [num_blocks, num_kv_heads, head_dim // 2, BLOCK_SIZE, 2], rows
    if dtype == torch.uint8:
        fits = head_dim % NUM_TOGETHER == 0
        arguments.require("head_dim", fits, f"be a multiple of {NUM_TOGETHER} for uint8", head_dim)
        key_bytes = BLOCK_SIZE * (head_dim + 2 * SCALE_BYTES)
        groups = [num_blocks, num_kv_heads, BLOCK_SIZE // NUM_TOGETHER, head_dim, NUM_TOGETHER]
        return [num_blocks, num_kv_heads, key_bytes], groups
    return [num_blocks, num_kv_heads, head_dim, BLOCK_SIZE], rows


def check_cache(k: Tensor, v: Tensor) -> None:
    """Raises ValueError naming cache.k or cache.v."""
    dtypes = kept_dtypes(v.device)
    num_dims = 5 if v.dtype == torch.uint8 else 4
    good = v.dim() == num_dims and v.is_contiguous() and v.dtype in dtypes
    wanted = f"be contiguous {arguments.names(*dtypes)} [B, K, {BLOCK_SIZE}, E]"
    arguments.require("cache.v", good, wanted, arguments.describe(v))
    num_blocks, num_kv_heads, _, head_dim = v.shape[:4]
    arguments.require("cache.v", head_dim <= MAX_HEAD_DIM, f"have head_dim <= {MAX_HEAD_DIM}", head_dim)
    k_shape, v_shape = shapes(num_blocks, num_kv_heads, head_dim, v.dtype, v.device)
    arguments.require("cache.v", list(v.shape) == v_shape, f"be contiguous {v_shape}", arguments.describe(v))
    good = k.dtype == v.dtype and list(k.shape) == k_shape and k.is_contiguous()
    arguments.require("cache.k", good, f"be contiguous {v.dtype} {k_shape}", arguments.describe(k))


def check_index(row_slot: Tensor, positions: Tensor, tables: Tensor, num_rows: int) -> None:
    """Raises ValueError naming index.row_slot, index.positions or index.tables."""
    arguments.vector("index.row_slot", row_slot, dtype=torch.int32, size=num_rows)
    arguments.vector("index.positions", positions, dtype=torch.int32, size=num_rows)
    good = tables.dim() == 2 and tables.dtype == torch.int32 and tables.is_contiguous()
    arguments.require(
        "index.tables", good, "be contiguous int32 [num_slots, max_blocks]", arguments.describe(tables)
    )
