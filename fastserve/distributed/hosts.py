"""Which ranks of a group can share memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self


def this_host() -> str:
    """The same in all processes that can share memory: the kernel that runs, and its network namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The ranks of each host, hosts in the order of their first rank."""

    hosts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, host_of: Sequence[str]) -> Self:
        """host_of: this_host() of every rank."""
        ranks: dict[str, list[int]] = {}
        for rank, host in enumerate(host_of):
            ranks.setdefault(host, []).append(rank)
        return cls(tuple(tuple(found) for found in ranks.values()))

    def host_of(self, rank: int) -> int:
        return next(host for host, ranks in enumerate(self.hosts) if rank in ranks)

    def local(self, rank: int) -> tuple[int, ...]:
        """The ranks of this one's host, it among them."""
        return self.hosts[self.host_of(rank)]

    def remote(self, rank: int) -> tuple[int, ...]:
        return tuple(peer for ranks in self.hosts for peer in ranks if peer not in self.local(rank))

    def across(self, rank: int) -> tuple[int, ...]:
        """Of every host the rank with this one's place on its host; empty where sums do not go in levels:

        one host, one rank on each, or hosts with different numbers of ranks.
        """
        sizes = {len(ranks) for ranks in self.hosts}
        if len(self.hosts) == 1 or len(sizes) > 1 or sizes == {1}:
            return ()
        place = self.local(rank).index(rank)
        return tuple(ranks[place] for ranks in self.hosts)
