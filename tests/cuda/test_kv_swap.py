"""KV blocks go to the host and back bit for bit, and wait for the steps that wrote or read them, whatever runs late."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastserve.cuda.kv_memory import KvMemory
from fastserve.cuda.kv_swap import KvSwap
from fastserve.testing.fake_cuda import FakeRuntime, FakeStream

NUM_BLOCKS, NUM_HOST_BLOCKS = 6, 4


class Rank:
    def __init__(self) -> None:
        self.runtime = FakeRuntime()
        self.steps: FakeStream = self.runtime.new_stream()
        self.memory = KvMemory(
            self.runtime, num_layers=3, num_blocks=NUM_BLOCKS, num_kv_heads=2, head_dim=4, dtype=torch.float32
        )
        self.swap = KvSwap(
            self.runtime, self.memory, self.steps, num_host_blocks=NUM_HOST_BLOCKS, max_moves=3
        )

    def write(self, seed: int) -> None:
        """A step that writes every block of every layer."""
        with self.steps.run():
            for layer, cache in enumerate(self.memory.caches):
                cache.k.copy_(values(cache.k, seed, 2 * layer))
                cache.v.copy_(values(cache.v, seed, 2 * layer + 1))

    def read(self, block: int) -> list[Tensor]:
        with self.steps.run():
            return [tensor[block].clone() for cache in self.memory.caches for tensor in (cache.k, cache.v)]


def values(like: Tensor, seed: int, piece: int) -> Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(100 * seed + piece))


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_block_comes_back_elsewhere_as_it_went() -> None:
    rank = Rank()
    rank.write(1)
    expected = rank.read(2), rank.read(5)
    rank.steps.wait(rank.swap.swap_out([(2, 3), (5, 0)]))
    rank.write(2)
    assert not same(rank.read(2), expected[0])
    rank.steps.wait(rank.swap.swap_in([(1, 3), (4, 0)]))
    assert same(rank.read(1), expected[0])
    assert same(rank.read(4), expected[1])


def test_swaps_are_done_in_their_order_without_a_wait_of_the_host() -> None:
    """Out and in again before anybody has looked: the way in reads what the way out brought."""
    rank = Rank()
    rank.write(1)
    expected = rank.read(0)
    rank.swap.swap_out([(0, 1)])
    rank.steps.wait(rank.swap.swap_in([(3, 1)]))
    assert same(rank.read(3), expected)


def test_a_step_that_does_not_wait_finds_what_was_there() -> None:
    """The fake stream is late: were steps to wait by themselves, this would see the new block."""
    rank = Rank()
    rank.write(1)
    rank.swap.swap_out([(0, 0)])
    old = rank.read(4)
    done = rank.swap.swap_in([(4, 0)])
    assert same(rank.read(4), old)
    rank.steps.wait(done)
    assert same(rank.read(4), rank.read(0))


def test_many_swaps_under_way_keep_their_own_lists() -> None:
    rank = Rank()
    rank.write(1)
    expected = [rank.read(block) for block in range(4)]
    for block in range(4):
        rank.swap.swap_out([(block, 3 - block)])
    done = [rank.swap.swap_in([(4 + block % 2, 3 - block)]) for block in range(2)]
    for event in done:
        rank.steps.wait(event)
    assert same(rank.read(4), expected[0])
    assert same(rank.read(5), expected[1])


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        ([], "moves must be 1 to 3, got 0"),
        ([(0, 0), (1, 1), (2, 2), (3, 3)], "moves must be 1 to 3, got 4"),
        ([(6, 0)], r"blocks of the device must be in \[0, 6\), got 6"),
        ([(0, -1)], r"blocks of the host must be in \[0, 4\), got -1"),
        ([(0, 1), (1, 1)], "a block of the host is written twice"),
    ],
)
def test_wrong_moves_are_refused(moves: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rank().swap.swap_out(moves)


def test_a_block_of_the_host_may_come_into_two_places() -> None:
    rank = Rank()
    rank.write(1)
    rank.swap.swap_out([(0, 2)])
    rank.steps.wait(rank.swap.swap_in([(4, 2), (5, 2)]))
    assert same(rank.read(4), rank.read(5))
