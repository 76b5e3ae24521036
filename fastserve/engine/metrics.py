"""What an engine tells Prometheus, under vLLM's names with the prefix `fastserve_`.

The engine's thread counts in plain numbers, without locks; whoever asks reads them. prometheus_client is loaded then:
an engine that nobody asks starts without.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, get_args

from fastserve.request import FinishReason
from fastserve.worker.protocol import RankTimes

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

PREFIX = "fastserve_"
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_RECOVERY_S = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 40, 80, 160, 320)
_REQUEST_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)


class Count:
    """A sum that only grows."""

    def __init__(self, meaning: str) -> None:
        self.meaning = meaning
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class Distribution:
    """How many observations were at most each of the bounds."""

    def __init__(self, meaning: str, bounds: tuple[float, ...]) -> None:
        self.meaning = meaning
        self.sum = 0.0
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, amount: float) -> None:
        self.sum += amount
        self._counts[bisect_left(self._bounds, amount)] += 1

    def buckets(self) -> list[tuple[str, int]]:
        """(bound, observations up to it), as Prometheus writes them."""
        names = (*(str(float(bound)) for bound in self._bounds), "+Inf")
        return list(zip(names, accumulate(self._counts), strict=True))


class EngineMetrics:
    """Counted on the engine's thread, read from any."""

    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}
        self._distributions: dict[str, Distribution] = {}
        count, distribution = self._count, self._distribution
        self.prompt_tokens = count("prompt_tokens", "Prompt tokens of requests that drew their first token.")
        self.generation_tokens = count("generation_tokens", "Tokens generated.")
        self.draft_tokens = count("spec_decode_num_draft_tokens", "Tokens that speculation drafted.")
        self.accepted_tokens = count("spec_decode_num_accepted_tokens", "Drafted tokens that were right.")
        self.steps = count("steps", "Forward passes that were scheduled.")
        self.scheduling = count("scheduling_seconds", "Seconds spent on choosing and writing steps.")
        self.preemptions = count("num_preemptions", "Requests that lost their turn and were recomputed.")
        self.recoveries = count("recoveries", "Times that a rank was lost and the group went on.")
        self.replayed = count("requests_replayed", "Requests recomputed because a rank was lost.")
        self.time_to_first_token = distribution("time_to_first_token_seconds", "From arrival.", _TTFT_S)
        self.inter_token = distribution("inter_token_latency_seconds", "Between a choice's tokens.", _TOKEN_S)
        self.recovery = distribution("recovery_seconds", "From a loss to a whole group.", _RECOVERY_S)
        self.request_latency = distribution("e2e_request_latency_seconds", "From arrival to end.", _REQUEST_S)
        self._finished: dict[FinishReason, int] = dict.fromkeys(get_args(FinishReason), 0)
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._rank_times: Callable[[], Sequence[RankTimes]] = list

    @cached_property
    def registry(self) -> CollectorRegistry:
        """This engine's own: it holds what was counted so far, whenever it is asked."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.registry import Collector

        metrics = self

        class Reader(Collector):
            def collect(self) -> Iterator[Metric]:
                yield from metrics._families()

        registry = CollectorRegistry()
        registry.register(Reader())
        return registry

    def watch(
        self, *, running: Callable[[], float], waiting: Callable[[], float], kv_usage: Callable[[], float]
    ) -> None:
        """Where the gauges read their values; called from any thread."""
        self._gauges = {
            "num_requests_running": ("Requests that hold a slot.", running),
            "num_requests_waiting": ("Requests that wait for a slot.", waiting),
            "kv_cache_usage_perc": ("Share of KV blocks in use, 0 to 1.", kv_usage),
        }

    def watch_ranks(self, times: Callable[[], Sequence[RankTimes]]) -> None:
        """Where each rank's times are read: ranks come and go. None for a single device."""
        self._rank_times = times

    def ended(self, reason: FinishReason, latency_s: float) -> None:
        self._finished[reason] += 1
        self.request_latency.observe(latency_s)

    def drafted(self, num_drafts: int, num_accepted: int) -> None:
        self.draft_tokens.inc(num_drafts)
        self.accepted_tokens.inc(num_accepted)

    def recovered(self, num_requests: int, seconds: float) -> None:
        self.recoveries.inc()
        self.replayed.inc(num_requests)
        self.recovery.observe(seconds)

    def _families(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for name, count in self._counts.items():
            yield CounterMetricFamily(PREFIX + name, count.meaning, value=count.value)
        ended = CounterMetricFamily(
            PREFIX + "request_success",
            "Choices of requests that ended, by reason.",
            labels=["finished_reason"],
        )
        for reason, number in self._finished.items():
            ended.add_metric([reason], number)
        yield ended
        for name, distribution in self._distributions.items():
            yield HistogramMetricFamily(
                PREFIX + name, distribution.meaning, distribution.buckets(), distribution.sum
            )
        for name, (meaning, read) in self._gauges.items():
            yield GaugeMetricFamily(PREFIX + name, meaning, value=read())
        yield from self._rank_families(self._rank_times())

    def _count(self, name: str, meaning: str) -> Count:
        return self._counts.setdefault(name, Count(meaning))

    def _distribution(self, name: str, meaning: str, bounds: tuple[float, ...]) -> Distribution:
        return self._distributions.setdefault(name, Distribution(meaning, bounds))

    @staticmethod
    def _rank_families(times: Sequence[RankTimes]) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        busy = CounterMetricFamily(
            PREFIX + "rank_busy_seconds", "What a rank computed, in this epoch.", labels=["rank"]
        )
        waiting = CounterMetricFamily(
            PREFIX + "rank_waiting_seconds", "What a rank waited for others, in this epoch.", labels=["rank"]
        )
        for rank, of_rank in enumerate(times):
            busy.add_metric([str(rank)], of_rank.busy_s)
            waiting.add_metric([str(rank)], of_rank.waiting_s)
        yield busy
        yield waiting
        yield GaugeMetricFamily(
            PREFIX + "rank_imbalance",
            "How much longer than the mean the busiest rank computed, in this epoch: 0 is even shares.",
            value=imbalance(times),
        )


def imbalance(times: Sequence[RankTimes]) -> float:
    mean_s = sum(of_rank.busy_s for of_rank in times) / max(len(times), 1)
    return max(of_rank.busy_s for of_rank in times) / mean_s - 1 if mean_s > 0 else 0.0
