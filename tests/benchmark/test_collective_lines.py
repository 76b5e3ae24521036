"""Lines of collectives compare with the last contestant, whatever the states hold."""

from __future__ import annotations

from fastserve.benchmark.collective_cases import AllReduce
from fastserve.benchmark.collective_lines import lines
from fastserve.benchmark.machine import Machine
from fastserve.benchmark.turns import Buckets

MACHINE = Machine("Zen 4", 2, "avx512", "abc1234")


def test_baseline_is_the_last_contestant_though_the_first_state_saw_others_first() -> None:
    buckets = Buckets(("fastserve", "other", "gloo"))
    buckets.add("near", "gloo", 9e-6)
    buckets.add("near", "other", 2e-6)
    for name, seconds in (("gloo", 8e-6), ("other", 1e-6), ("fastserve", 4e-6)):
        buckets.add("far", name, seconds)
    found = lines(AllReduce(4096, "f32"), buckets, MACHINE, num_ranks=2)
    assert [(line.backend, line.state, line.baseline, line.ratio) for line in found] == [
        ("fastserve avx512 2 ranks", "far", "gloo (8 us)", 2.0),
        ("other avx512 2 ranks", "far", "gloo (8 us)", 8.0),
    ]
