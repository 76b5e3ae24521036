"""Where the buffers of a program lie: one arena, shared by buffers whose lifetimes do not overlap."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT = 64  # bytes: one cache line, one vector


@dataclass(slots=True)
class BufferLife:
    """A buffer that is written first by op `first` and read last by op `last`."""

    num_bytes: int
    first: int
    last: int


def plan_offsets(lives: list[BufferLife]) -> tuple[list[int], int]:
    """Offsets of the buffers and the arena's size, in bytes: first fit, in the order of first use."""
    offsets = [0] * len(lives)
    placed: list[int] = []
    size = 0
    for idx in sorted(range(len(lives)), key=lambda i: (lives[i].first, i)):
        life = lives[idx]
        num_bytes = -(-life.num_bytes // ALIGNMENT) * ALIGNMENT
        alive = [i for i in placed if lives[i].last >= life.first and lives[i].first <= life.last]
        offset = 0
        for other in sorted(alive, key=lambda i: offsets[i]):
            if offset + num_bytes <= offsets[other]:
                break
            offset = max(offset, offsets[other] + -(-lives[other].num_bytes // ALIGNMENT) * ALIGNMENT)
        offsets[idx] = offset
        placed.append(idx)
        size = max(size, offset + num_bytes)
    return offsets, size
