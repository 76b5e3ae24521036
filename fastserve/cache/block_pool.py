"""The free list of one layer group's KV blocks."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Hands out ids 0..num_blocks-1, the last freed first: its memory is the likeliest to be in a cache."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be >= 1, got {num_blocks}")
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = bytearray(b"\x01") * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free block. Asserts that there is one: callers ask `num_free` first."""
        assert self._free, "no free block is left"
        block_id = self._free.pop()
        self._is_free[block_id] = 0
        return block_id

    def give_back(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            assert not self._is_free[block_id], f"block {block_id} is freed twice"
            self._is_free[block_id] = 1
            self._free.append(block_id)
