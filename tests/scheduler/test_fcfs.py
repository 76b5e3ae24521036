from __future__ import annotations

from fastserve.engine.choice import slot_sampling
from fastserve.request import SamplingParams
from fastserve.scheduler.fcfs import Fcfs
from fastserve.scheduler.request_state import RequestState


def test_the_earliest_arrival_comes_first() -> None:
    sampling = slot_sampling(SamplingParams(), seed=0, stop_ids=())
    requests = [RequestState(str(i), 0, [1], 1, sampling, arrival_idx=i) for i in (2, 0, 1)]
    assert [request.request_id for request in Fcfs().order(requests, 0.0)] == ["0", "1", "2"]
