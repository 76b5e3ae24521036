"""What a scheduling policy is: an order of requests. The scheduler does the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from fastserve.scheduler.request_state import RequestState


class Policy(Protocol):
    def order(self, requests: Iterable[RequestState], now_s: float) -> list[RequestState]:
        """The most urgent first. The first runs first and waits least; the last is preempted first."""
        ...
