"""What an engine tells Prometheus, under vLLM's names with the prefix `fastserve_`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fastserve.request import FinishReason
from fastserve.worker.protocol import RankTimes

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_RECOVERY_S = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 40, 80, 160, 320)
_REQUEST_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)


class _RankCollector(Collector):
    """Reads when somebody asks: ranks come and go."""

    def __init__(self, times: Callable[[], Sequence[RankTimes]]) -> None:
        self._times = times

    def collect(self) -> Iterator[Metric]:
        times = self._times()
        busy = CounterMetricFamily(
            "fastserve_rank_busy_seconds", "What a rank computed, in this epoch.", labels=["rank"]
        )
        waiting = CounterMetricFamily(
            "fastserve_rank_waiting_seconds", "What a rank waited for others, in this epoch.", labels=["rank"]
        )
        for rank, of_rank in enumerate(times):
            busy.add_metric([str(rank)], of_rank.busy_s)
            waiting.add_metric([str(rank)], of_rank.waiting_s)
        yield busy
        yield waiting
        yield GaugeMetricFamily(
            "fastserve_rank_imbalance",
            "How much longer than the mean the busiest rank computed, in this epoch: 0 is even shares.",
            value=imbalance(times),
        )


def imbalance(times: Sequence[RankTimes]) -> float:
    mean_s = sum(of_rank.busy_s for of_rank in times) / max(len(times), 1)
    return max(of_rank.busy_s for of_rank in times) / mean_s - 1 if mean_s > 0 else 0.0


class EngineMetrics:
    """Counts on the engine's thread; gauges are read when somebody asks. Each engine has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, histogram = self._counter, self._histogram
        self.prompt_tokens = counter(
            "prompt_tokens", "Prompt tokens of requests that drew their first token."
        )
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.draft_tokens = counter("spec_decode_num_draft_tokens", "Tokens that speculation drafted.")
        self.accepted_tokens = counter("spec_decode_num_accepted_tokens", "Drafted tokens that were right.")
        self.steps = counter("steps", "Forward passes that were scheduled.")
        self.scheduling = counter("scheduling_seconds", "Spent on choosing and writing steps.")
        self.preemptions = counter("num_preemptions", "Requests that lost their turn and were recomputed.")
        self.recoveries = counter("recoveries", "Times that a rank was lost and the group went on.")
        self.replayed = counter("requests_replayed", "Requests recomputed because a rank was lost.")
        self.finished = Counter(
            "fastserve_request_success",
            "Choices of requests that ended, by reason.",
            ["finished_reason"],
            registry=self.registry,
        )
        self.time_to_first_token = histogram("time_to_first_token_seconds", "From arrival.", _TTFT_S)
        self.inter_token = histogram("inter_token_latency_seconds", "Between a choice's tokens.", _TOKEN_S)
        self.recovery = histogram("recovery_seconds", "From a loss to a whole group.", _RECOVERY_S)
        self.request_latency = histogram("e2e_request_latency_seconds", "From arrival to end.", _REQUEST_S)

    def watch(
        self, *, running: Callable[[], float], waiting: Callable[[], float], kv_usage: Callable[[], float]
    ) -> None:
        """Where the gauges read their values; called from any thread."""
        self._gauge("num_requests_running", "Requests that hold a slot.", running)
        self._gauge("num_requests_waiting", "Requests that wait for a slot.", waiting)
        self._gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", kv_usage)

    def watch_ranks(self, times: Callable[[], Sequence[RankTimes]]) -> None:
        """Where each rank's times are read; none for a single device."""
        self.registry.register(_RankCollector(times))

    def ended(self, reason: FinishReason, latency_s: float) -> None:
        self.finished.labels(reason).inc()
        self.request_latency.observe(latency_s)

    def drafted(self, num_drafts: int, num_accepted: int) -> None:
        self.draft_tokens.inc(num_drafts)
        self.accepted_tokens.inc(num_accepted)

    def recovered(self, num_requests: int, seconds: float) -> None:
        self.recoveries.inc()
        self.replayed.inc(num_requests)
        self.recovery.observe(seconds)

    def _counter(self, name: str, meaning: str) -> Counter:
        return Counter(f"fastserve_{name}", meaning, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"fastserve_{name}", meaning, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        Gauge(f"fastserve_{name}", meaning, registry=self.registry).set_function(read)
