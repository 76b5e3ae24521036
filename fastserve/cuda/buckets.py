"""How many rows a step runs with: CUDA graphs have fixed ones, and kernels are compiled before the first request.

A step runs in the smallest graph that holds it, a larger one with a multiple of 16 rows, of which Triton makes the same
kernels; the rest is padding.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

MAX_GRAPH = 512  # rows; above it a step takes so long that launches hide behind it
ALIGNMENT = 16  # rows: what Triton compiles kernels of their own for, if a number is a multiple of it
STEP = 8  # rows between buckets: what a tile of 16 rows pays for a few more is less than a launch


def choose_buckets(max_rows: int) -> tuple[int, ...]:
    """Ascending: 1, 2, 4, then every 8 rows up to 64, every 16 up to 128, and so on; the last is max_rows."""
    buckets = [rows for rows in (1, 2, 4) if rows < max_rows]
    rows = STEP
    while rows < max_rows:
        buckets.append(rows)
        rows += max(STEP, (1 << rows.bit_length() - 1) // 8)
    return (*buckets, max_rows)


def choose_bucket(buckets: Sequence[int], num_rows: int) -> int | None:
    """The smallest that holds so many rows; None: none does."""
    at = bisect_left(buckets, num_rows)
    return buckets[at] if at < len(buckets) else None


def aligned_rows(num_rows: int, max_rows: int) -> int:
    """With how many rows a step runs that has no graph."""
    return min(-(-num_rows // ALIGNMENT) * ALIGNMENT, max_rows)
