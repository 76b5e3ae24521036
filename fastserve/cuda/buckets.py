"""For how many rows CUDA graphs are captured: a step runs in the smallest that holds it, the rest is padding."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

MAX_BUCKET = 512  # rows; above it a step takes so long that launches hide behind it
STEP = 8  # rows between buckets: what a tile of 16 rows pays for a few more is less than a launch


def choose_buckets(max_rows: int) -> tuple[int, ...]:
    """Ascending: 1, 2, 4, then every 8 rows up to 64, every 16 up to 128, and so on; the last holds max_rows."""
    limit = min(max_rows, MAX_BUCKET)
    buckets = [rows for rows in (1, 2, 4) if rows < limit]
    rows = STEP
    while rows < limit:
        buckets.append(rows)
        rows += max(STEP, (1 << rows.bit_length() - 1) // 8)
    return (*buckets, limit)


def choose_bucket(buckets: Sequence[int], num_rows: int) -> int | None:
    """The smallest that holds so many rows; None: no graph does."""
    at = bisect_left(buckets, num_rows)
    return buckets[at] if at < len(buckets) else None
