"""First come, first served: the policy that others are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from fastserve.scheduler.request_state import RequestState

_ARRIVAL = attrgetter("arrival_idx")


class Fcfs:
    """A preempted request keeps its place: it is older than all that came after it."""

    def order(self, requests: Iterable[RequestState], now_s: float) -> list[RequestState]:
        return sorted(requests, key=_ARRIVAL)
