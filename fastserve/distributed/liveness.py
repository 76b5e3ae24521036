"""Signs of life of ranks: heartbeats in shared memory, and whether a process was stopped."""

from __future__ import annotations

from collections.abc import Iterable

from fastserve import _C
from fastserve.distributed.rank_process import RankProcess


class Heartbeats:
    """How long each rank of a region has stood still."""

    def __init__(self, region: _C.SharedRegion, limit_s: float) -> None:
        self._region = region
        self._limit_s = limit_s
        self._seen: dict[int, tuple[int, float]] = {}  # rank: (beats, since when)

    def standing_still(self, now_s: float) -> list[int]:
        """Ranks whose count has not changed for longer than the limit."""
        for rank in range(self._region.num_ranks):
            beats = self._region.beats(rank)
            if rank not in self._seen or self._seen[rank][0] != beats:
                self._seen[rank] = (beats, now_s)
        return [rank for rank, (_, since_s) in self._seen.items() if now_s - since_s > self._limit_s]


class Stops:
    """How long processes have been stopped, for the times when a rank has no heartbeat (it loads its shard)."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since_s: dict[RankProcess, float] = {}

    def too_long(self, processes: Iterable[RankProcess], now_s: float) -> list[RankProcess]:
        """Those that have been stopped for longer than the limit."""
        self._since_s = {
            process: self._since_s.get(process, now_s) for process in processes if process.is_stopped()
        }
        return [process for process, since_s in self._since_s.items() if now_s - since_s > self._limit_s]
