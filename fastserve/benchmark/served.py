"""A `fastserve serve` of one's own, and what it holds."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import psutil

END_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    ready_s: float  # from its start to its ready line
    process: subprocess.Popen[str]

    @property
    def resident_mib(self) -> int:
        """Proportional share of memory of the server and its ranks: what they share counts once."""
        root = psutil.Process(self.process.pid)
        members = [root, *root.children(recursive=True)]
        return int(sum(member.memory_full_info().pss for member in members)) >> 20

    @property
    def ranks(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    @property
    def holdings(self) -> str:
        num_descriptors = psutil.Process(self.process.pid).num_fds()
        return f"{self.resident_mib} MiB, {len(self.ranks)} ranks, {num_descriptors} descriptors"


@contextmanager
def running_server(model: str, options: Sequence[str]) -> Iterator[Served]:
    """On a free port; it is ended afterwards. Raises RuntimeError if it does not start; it has said why."""
    command = [sys.executable, "-m", "fastserve", "serve", model, "--port", "0", *options]
    start = perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise RuntimeError(f"the server did not start (exit code {process.wait()})")
        yield Served(found[0], perf_counter() - start, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
