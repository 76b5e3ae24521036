from __future__ import annotations

import random

from fastserve.program.arena import ALIGNMENT, BufferLife, plan_offsets


def test_buffers_alive_together_never_overlap() -> None:
    random_source = random.Random(7)
    for _ in range(200):
        lives = []
        for _ in range(random_source.randint(1, 40)):
            first = random_source.randint(0, 30)
            lives.append(
                BufferLife(random_source.randint(1, 5000), first, first + random_source.randint(0, 8))
            )
        offsets, size = plan_offsets(lives)
        for i, a in enumerate(lives):
            assert offsets[i] % ALIGNMENT == 0
            assert offsets[i] + a.num_bytes <= size
            for j, b in enumerate(lives[:i]):
                if a.first <= b.last and b.first <= a.last:
                    assert offsets[i] + a.num_bytes <= offsets[j] or offsets[j] + b.num_bytes <= offsets[i]


def test_a_chain_of_equal_buffers_needs_room_for_two() -> None:
    lives = [BufferLife(1024, op, op + 1) for op in range(100)]
    assert plan_offsets(lives)[1] == 2048
