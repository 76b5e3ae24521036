"""Which KV blocks each slot holds, in every layer group.

A group is a set of layers with one block table (full attention; sliding windows later). Position p of a slot
lies in its block p // block_size, in every group.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastserve.cache.block_pool import BlockPool
from fastserve.step import BlockGrant


class BlockManager:
    def __init__(self, num_blocks: Sequence[int], block_size: int) -> None:
        """num_blocks: per layer group."""
        if not num_blocks:
            raise ValueError("num_blocks must name at least one layer group, got none")
        if block_size < 1:
            raise ValueError(f"block_size must be >= 1, got {block_size}")
        self.block_size = block_size
        self._pools = [BlockPool(count) for count in num_blocks]
        self._tables: dict[int, list[list[int]]] = {}  # slot -> group -> block ids

    @property
    def capacity_tokens(self) -> int:
        """Positions that one request alone could use."""
        return min(pool.num_blocks for pool in self._pools) * self.block_size

    @property
    def num_free(self) -> int:
        """Blocks left in the fullest group."""
        return min(pool.num_free for pool in self._pools)

    @property
    def usage(self) -> float:
        """Share of blocks in use in the fullest group, in [0, 1]."""
        return max(1 - pool.num_free / pool.num_blocks for pool in self._pools)

    def blocks_needed(self, slot: int, num_tokens: int) -> int:
        """Further blocks, in each group, before `slot` (open or not) can hold num_tokens positions."""
        tables = self._tables.get(slot)
        held = len(tables[0]) if tables else 0
        return max(-(-num_tokens // self.block_size) - held, 0)

    def can_grant(self, slot: int, num_tokens: int) -> bool:
        needed = self.blocks_needed(slot, num_tokens)
        return not needed or needed <= self.num_free

    def grant(self, slot: int, num_tokens: int) -> list[BlockGrant]:
        """Gives `slot` the blocks it needs to hold num_tokens positions; asserts that can_grant said yes."""
        needed = self.blocks_needed(slot, num_tokens)
        if not needed:
            return []
        tables = self._tables.setdefault(slot, [[] for _ in self._pools])
        grants = []
        for group, (pool, table) in enumerate(zip(self._pools, tables, strict=True)):
            for _ in range(needed):
                table.append(pool.take())
                grants.append(BlockGrant(slot, group, table[-1]))
        return grants

    def free(self, slot: int) -> None:
        """Takes all of a slot's blocks back, the last positions first."""
        for pool, table in zip(self._pools, self._tables.pop(slot, []), strict=False):
            pool.give_back(reversed(table))
