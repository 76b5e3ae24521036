from __future__ import annotations

import pytest

from fastserve.cache.block_manager import BlockManager


def test_a_slot_gets_a_block_in_every_group_for_each_16_positions() -> None:
    blocks = BlockManager((4, 3), 16)
    assert blocks.blocks_needed(7, 17) == 2
    grants = blocks.grant(7, 17)
    assert [(grant.slot, grant.group) for grant in grants] == [(7, 0), (7, 0), (7, 1), (7, 1)]
    assert blocks.grant(7, 32) == []
    assert blocks.num_free == 1


def test_the_poorest_group_decides_what_fits() -> None:
    blocks = BlockManager((8, 2), 16)
    assert blocks.capacity_tokens == 32
    assert blocks.can_grant(0, 32)
    assert not blocks.can_grant(0, 33)
    blocks.grant(0, 16)
    assert blocks.usage == 0.5


def test_freed_blocks_are_granted_again() -> None:
    blocks = BlockManager((2,), 16)
    first = {grant.block_id for grant in blocks.grant(0, 32)}
    assert not blocks.can_grant(1, 1)
    blocks.free(0)
    assert {grant.block_id for grant in blocks.grant(1, 32)} == first
    assert blocks.blocks_needed(0, 1) == 1


def test_freeing_a_slot_without_blocks_is_harmless() -> None:
    blocks = BlockManager((2,), 16)
    blocks.free(3)
    assert blocks.num_free == 2


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="at least one layer group"):
        BlockManager((), 16)
    with pytest.raises(ValueError, match="block_size must be >= 1, got 0"):
        BlockManager((4,), 0)
