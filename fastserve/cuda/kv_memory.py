"""The KV blocks of all layers of a rank, in one piece, so that a block of all layers moves in one launch."""

from __future__ import annotations

import math

import torch

from fastserve.cuda.runtime import Runtime
from fastserve.ops import KvCache
from fastserve.ops.kv_cache import shapes


class KvMemory:
    """pieces [2 L, B, elements of a block]: the keys of layer 0, its values, the keys of layer 1, ...

    A block is 2 L pieces, one in each. Zeroed.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
    ) -> None:
        k_shape, v_shape = shapes(num_blocks, num_kv_heads, head_dim, dtype, runtime.device)
        self.num_blocks = num_blocks
        self.pieces = torch.zeros(
            (2 * num_layers, num_blocks, math.prod(v_shape[1:])), dtype=dtype, device=runtime.device
        )
        self.caches = tuple(
            KvCache(self.pieces[2 * layer].view(k_shape), self.pieces[2 * layer + 1].view(v_shape))
            for layer in range(num_layers)
        )
