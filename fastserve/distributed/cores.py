"""Which cores this process may use, and how ranks share them."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
NOT_PINNED = -1


def cgroup_cpus(cpu_max: Path = CGROUP_CPU_MAX) -> float | None:
    """The quota of the control group in CPUs; None without one."""
    try:
        quota, period = cpu_max.read_text().split()[:2]
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def usable_cores() -> list[int]:
    """Cores from the affinity mask, no more of them than the control group's quota pays for."""
    cores = sorted(os.sched_getaffinity(0))
    quota = cgroup_cpus()
    return cores if quota is None else cores[: max(1, int(quota))]


def assign_cores(cores: list[int], num_ranks: int, num_threads: int | None = None) -> list[list[int]]:
    """The core of every thread of every rank: disjoint while they last, not pinned where ranks must share.

    num_threads: threads of each rank; by default the cores are shared out.
    """
    if num_ranks > len(cores):
        return [[NOT_PINNED] * (num_threads or 1) for _ in range(num_ranks)]
    bounds = [len(cores) * rank // num_ranks for rank in range(num_ranks + 1)]
    shares = [cores[bounds[rank] : bounds[rank + 1]] for rank in range(num_ranks)]
    if num_threads is None:
        return shares
    return [
        share[:num_threads] if num_threads <= len(share) else [NOT_PINNED] * num_threads for share in shares
    ]
