from __future__ import annotations

import pytest

from fastserve.cache.block_pool import BlockPool


def test_every_block_is_handed_out_once() -> None:
    pool = BlockPool(5)
    assert sorted(pool.take() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert pool.num_free == 0
    with pytest.raises(AssertionError, match="no free block"):
        pool.take()


def test_the_last_freed_block_is_taken_first() -> None:
    pool = BlockPool(4)
    taken = [pool.take() for _ in range(4)]
    pool.give_back([taken[1], taken[3]])
    assert pool.take() == taken[3]


def test_freeing_twice_is_caught() -> None:
    pool = BlockPool(2)
    block_id = pool.take()
    pool.give_back([block_id])
    with pytest.raises(AssertionError, match="freed twice"):
        pool.give_back([block_id])


def test_a_pool_has_blocks() -> None:
    with pytest.raises(ValueError, match="num_blocks must be >= 1, got 0"):
        BlockPool(0)
