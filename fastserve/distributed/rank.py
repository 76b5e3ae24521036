"""The process that drives one device of a group: started by exec, it loads its shard and serves steps.

It outlives epochs: when the epoch is raised because another rank was lost, it says so and waits to be told what it
is in the next one. Its packed weights stay where its shard stays the same.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, NoReturn, TypeVar

from fastserve import _C
from fastserve.distributed.control import (
    RankFailed,
    RankIdle,
    RankReady,
    StartRank,
    receive_start,
    send,
)
from fastserve.distributed.mailboxes import open_mailboxes
from fastserve.distributed.planned_faults import commit_planned
from fastserve.distributed.rank_program import LoadedShard, load_shard, open_model, record_program
from fastserve.errors import FastServeError
from fastserve.models.llama import Shard


class Orders:
    """What the engine says. When its end of the channel closes, this process ends, even in the middle of a step."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._orders: SimpleQueue[tuple[StartRank, int]] = SimpleQueue()
        threading.Thread(target=self._read, name="engine-watch", daemon=True).start()

    def next(self) -> tuple[StartRank, int]:
        return self._orders.get()

    def _read(self) -> None:
        try:
            while True:
                self._orders.put(receive_start(self._channel))
        except (EOFError, OSError):
            os._exit(0)
        except ValueError as error:
            print(f"fastserve: a rank was told what it does not understand: {error}", file=sys.stderr)
            os._exit(1)


Loaded = TypeVar("Loaded")


class Rank(ABC, Generic[Loaded]):
    """What a process makes of one StartRank after the other. Its weights stay where its shard stays the same."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._loaded: Loaded | None = None
        self._loaded_of: tuple[str, Shard] | None = None

    @abstractmethod
    def serve(self, start: StartRank, region: _C.SharedRegion) -> str:
        """Runs one epoch; returns why it ended, in one line, where nobody asked for that.

        Raises FastServeError, ValueError, OSError or RuntimeError where it cannot.
        """

    @abstractmethod
    def _load(self, start: StartRank) -> Loaded: ...

    def _weights(self, start: StartRank) -> Loaded:
        of = (start.path, start.shard)
        if self._loaded is None or self._loaded_of != of:
            self._loaded = None  # two shards at once may not fit
            self._loaded, self._loaded_of = self._load(start), of
        return self._loaded

    def _say_ready(self, num_bytes: int) -> None:
        """num_bytes: of packed weights."""
        send(self._channel, RankReady(packed_bytes=num_bytes))


class CpuRank(Rank[LoadedShard]):
    """Its device is a set of cores: the native loop replays a recorded program."""

    def serve(self, start: StartRank, region: _C.SharedRegion) -> str:
        exchange = _C.Exchange(region, start.rank)
        steps, results = open_mailboxes(
            region, start.settings.mailbox_capacity, start.num_ranks, create=False
        )
        built = record_program(
            self._weights(start), start.settings, exchange=exchange, num_threads=len(start.cores)
        )
        commit_planned(built.program, rank=start.rank, epoch=start.epoch)
        self._say_ready(built.packed_bytes)
        return str(
            _C.run_worker_loop(
                built.program, start.cores, steps, start.rank, results if start.rank == 0 else None
            )
        )

    def _load(self, start: StartRank) -> LoadedShard:
        return load_shard(open_model(start.path), start.shard, num_threads=len(start.cores))


def run(channel: socket.socket, rank: Rank[Any]) -> RankFailed | None:
    """Serves epoch after epoch; returns what went wrong, None after an end in good order."""
    orders = Orders(channel)
    epoch = 0
    while True:
        send(channel, RankIdle(epoch=epoch))
        start, descriptor = orders.next()
        epoch = start.epoch
        try:
            region = _C.SharedRegion.attach(descriptor)
            os.close(descriptor)
            error = rank.serve(start, region)
        except (FastServeError, ValueError, OSError, RuntimeError) as raised:
            return RankFailed(message=str(raised), kind=type(raised).__name__)
        if not region.failed:
            return RankFailed(message=error) if error else None


def main(rank_on: Callable[[socket.socket], Rank[Any]]) -> NoReturn:
    """The whole life of a rank's process, whose argument is the descriptor of its channel."""
    # Ctrl-C goes to the whole terminal; the engine decides when its ranks end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    failed = run(channel, rank_on(channel))
    if failed is not None:
        try:
            send(channel, failed)
        except OSError:
            print(f"fastserve: a rank ended, and so had the engine: {failed.message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(failed is not None)  # no teardown of gigabytes that the kernel frees anyway


if __name__ == "__main__":
    main(CpuRank)
