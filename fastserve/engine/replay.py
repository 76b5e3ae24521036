"""After a loss: what ran is queued again, to be computed from its tokens.

A draw depends on seed and position alone, and so does every score, so what follows is what would have followed; draws
that were under way are made again. The shortest go first: their streams go on soonest.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastserve.scheduler.request_state import RequestState
from fastserve.scheduler.scheduler import Scheduler
from fastserve.scheduler.step_draft import RowKind, SampledRow, ScheduledStep


def replay(scheduler: Scheduler, lost_steps: Iterable[ScheduledStep]) -> list[RequestState]:
    """Restarts what ran; `lost_steps` were submitted and give no results. Returns the requests, in order."""
    requests = dict.fromkeys(scheduler.started)
    for row in (row for scheduled in lost_steps for row in scheduled.rows):
        _take_back(row)
        if not row.request.finished:
            requests[row.request] = (
                None  # also one whose last draw was under way, which holds no slot any more
            )
    shortest_first = sorted(requests, key=lambda request: (request.num_known, request.arrival_idx))
    scheduler.restart(shortest_first)
    return shortest_first


def _take_back(row: SampledRow) -> None:
    if row.kind is RowKind.DRAW:
        row.request.num_under_way -= 1
        row.request.num_drafts_under_way -= row.max_drafts
    elif row.kind is RowKind.SCORE:
        row.request.num_scored -= 1
