"""What ranks did is told when somebody asks, by rank; how uneven their shares are, in one number."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import generate_latest

from fastserve import LLM, SamplingParams
from fastserve.engine.metrics import EngineMetrics, imbalance
from fastserve.worker.protocol import RankTimes


def test_times_are_told_by_rank() -> None:
    metrics = EngineMetrics()
    times: list[RankTimes] = []
    metrics.watch_ranks(lambda: times)
    assert "fastserve_rank_imbalance 0.0" in generate_latest(metrics.registry).decode()
    times += [RankTimes(1.0, 2.0), RankTimes(3.0, 0.0)]
    text = generate_latest(metrics.registry).decode()
    assert 'fastserve_rank_busy_seconds_total{rank="1"} 3.0' in text
    assert 'fastserve_rank_waiting_seconds_total{rank="0"} 2.0' in text
    assert "fastserve_rank_imbalance 0.5" in text


def test_imbalance_is_how_much_longer_the_busiest_computes() -> None:
    assert imbalance([]) == imbalance([RankTimes(0.0, 0.0)]) == 0.0
    assert imbalance([RankTimes(2.0, 0.0), RankTimes(2.0, 9.0)]) == 0.0
    assert imbalance([RankTimes(1.0, 2.0), RankTimes(3.0, 0.0)]) == pytest.approx(0.5)


def test_uneven_shares_show(smollm2_path: Path) -> None:
    limits = {"max_model_len": 256, "kv_cache_bytes": 64 << 20, "num_threads": 1}
    with LLM(str(smollm2_path), devices=2, shares="7,1", **limits) as llm:
        llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=30))
        busy_0, busy_1 = (times.busy_s for times in llm._engine.executor.rank_times)
        waiting_0, waiting_1 = (times.waiting_s for times in llm._engine.executor.rank_times)
    assert busy_0 > busy_1 > 0
    assert waiting_1 > waiting_0


def test_prometheus_reads_what_was_counted_before_anyone_asked() -> None:
    metrics = EngineMetrics()
    metrics.generation_tokens.inc(3)
    metrics.ended("length", 0.3)
    for seconds in (0.001, 0.02, 0.021, 1000.0):
        metrics.time_to_first_token.observe(seconds)
    value = metrics.registry.get_sample_value
    name = "fastserve_time_to_first_token_seconds"
    assert [value(f"{name}_bucket", {"le": bound}) for bound in ("0.001", "0.02", "0.04", "80.0", "+Inf")] == [
        1, 2, 3, 3, 4,
    ]  # fmt: skip
    assert (value(f"{name}_count"), value(f"{name}_sum")) == (4, pytest.approx(1000.042))
    assert value("fastserve_generation_tokens_total") == 3
    metrics.generation_tokens.inc()
    assert value("fastserve_generation_tokens_total") == 4
    assert value("fastserve_request_success_total", {"finished_reason": "length"}) == 1
    assert value("fastserve_request_success_total", {"finished_reason": "stop"}) == 0
