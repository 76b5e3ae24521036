"""The ranks of one group: started by exec, watched, and ended together.

A rank's death is seen at once by the monitor (its socket closes). The epoch is raised so that no wait of the others
goes on, every rank is killed and reaped, and whoever waits for a result gets a RankLostError that says who and how.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastserve import _C, errors
from fastserve.distributed.control import RankFailed, RankReady, StartRank, receive_report, send
from fastserve.distributed.mailboxes import mailbox_bytes, open_mailboxes
from fastserve.distributed.rank_program import RankSettings
from fastserve.distributed.shard_plan import ShardPlan
from fastserve.errors import FastServeError, GroupError, RankLostError

STOP_TIMEOUT_S = 5.0  # a rank ends after the step in hand; longer is a fault
MIN_EXCHANGE_BYTES = 1 << 20  # several rows of a shard's logits at once
START_TIMEOUT_S = 600.0  # reading and packing a large shard from a cold disk


@dataclass(slots=True)
class RankHandle:
    rank: int
    process: subprocess.Popen[bytes]
    channel: socket.socket


def exchange_bytes(max_tokens: int, hidden: int) -> int:
    """What one collective must hold: the fp32 partial sums of the largest step."""
    return max(max_tokens * hidden * 4, MIN_EXCHANGE_BYTES)


class DeviceGroup:
    """Starts the ranks of `plan`; `steps` and `results` are their mailboxes."""

    def __init__(
        self,
        path: str,
        plan: ShardPlan,
        settings: RankSettings,
        *,
        hidden: int,
        cores: Sequence[Sequence[int]],
    ) -> None:
        size = plan.num_ranks
        symmetric = exchange_bytes(settings.max_tokens, hidden)
        capacity = settings.mailbox_capacity
        self._region = _C.SharedRegion.create(size, symmetric, 2 * mailbox_bytes(capacity))
        self.steps, self.results = open_mailboxes(self._region, capacity, size, create=True)
        self.packed_bytes: list[int] = []
        self.error: RankLostError | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._ranks: list[RankHandle] = []
        try:
            for rank in range(size):
                self._ranks.append(self._start(rank, path, plan, settings, list(cores[rank])))
            self.packed_bytes = [self._wait_until_ready(handle) for handle in self._ranks]
        except BaseException:
            self._kill_all()
            raise
        self._monitor = threading.Thread(target=self._watch, name="rank-monitor", daemon=True)
        self._monitor.start()

    @property
    def pids(self) -> list[int]:
        return [handle.process.pid for handle in self._ranks]

    def close(self) -> None:
        """Ends the ranks after the step in hand; kills what does not end in time. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self.steps.close()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for handle in self._ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                handle.process.wait(max(deadline - time.monotonic(), 0.01))
        self._kill_all()
        self._monitor.join(STOP_TIMEOUT_S)
        self.results.close()

    def _start(
        self, rank: int, path: str, plan: ShardPlan, settings: RankSettings, cores: list[int]
    ) -> RankHandle:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fastserve.distributed.rank", str(theirs.fileno())],
                pass_fds=(theirs.fileno(), self._region.fd),
                stdin=subprocess.DEVNULL,
                env=_rank_environment(),
            )
        start = StartRank(
            path=path,
            rank=rank,
            num_ranks=plan.num_ranks,
            shard=plan.shards[rank],
            settings=settings,
            cores=cores,
            region_fd=self._region.fd,
        )
        handle = RankHandle(rank, process, ours)
        try:
            send(ours, start)
        except OSError as error:
            process.kill()
            raise GroupError(f"rank {rank} ended before it was told what to load: {error}") from error
        return handle

    @staticmethod
    def _wait_until_ready(handle: RankHandle) -> int:
        handle.channel.settimeout(START_TIMEOUT_S)
        try:
            report = receive_report(handle.channel)
        except EOFError:
            raise GroupError(f"rank {handle.rank} {_how_it_ended(handle.process)} while loading") from None
        except TimeoutError:
            raise GroupError(f"rank {handle.rank} did not load its shard in {START_TIMEOUT_S:g} s") from None
        handle.channel.settimeout(None)
        if isinstance(report, RankReady):
            return report.packed_bytes
        kind = getattr(errors, report.kind, GroupError)
        known = isinstance(kind, type) and issubclass(kind, FastServeError)
        raise (kind if known else GroupError)(report.message)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for handle in self._ranks:
                selector.register(handle.channel, selectors.EVENT_READ, handle)
            while not self._closing:
                for key, _ in selector.select(timeout=1.0):
                    if not self._closing:
                        self._lose(key.data)
                    return

    def _lose(self, handle: RankHandle) -> None:
        reason = ""
        with contextlib.suppress(EOFError, ValueError, OSError):
            report = receive_report(handle.channel)
            reason = f": {report.message}" if isinstance(report, RankFailed) else ""
        if not reason:
            reason = f" ({_how_it_ended(handle.process)})"
        self._region.raise_epoch()
        self._kill_all()
        self.error = RankLostError(f"rank {handle.rank} of {len(self._ranks)} was lost{reason}")
        self.steps.close()
        self.results.close()

    def _kill_all(self) -> None:
        self._region.raise_epoch()
        for handle in self._ranks:
            handle.process.kill()
        for handle in self._ranks:
            handle.process.wait()
            handle.channel.close()


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "closed its channel"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with code {code}"


def _rank_environment() -> dict[str, str]:
    """The rank finds the same packages as this process, however they were found here."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path}
