"""An epoch of a group: from the moment its ranks are ready until one of them is lost.

Every epoch has shared memory of its own, so nothing that an earlier rank might still write reaches a later one.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fastserve import _C
from fastserve.distributed.control import RankFailed, RankIdle, RankReady, StartRank
from fastserve.distributed.liveness import Stops
from fastserve.distributed.mailboxes import mailbox_bytes, open_mailboxes
from fastserve.distributed.rank_process import CPU_RANK, RankProcess, error_of
from fastserve.distributed.rank_program import RankSettings
from fastserve.distributed.shard_plan import ShardPlan
from fastserve.errors import FastServeError, GroupError

START_TIMEOUT_S = 600.0  # reading and packing a large shard from a cold disk
MIN_EXCHANGE_BYTES = 1 << 20  # several rows of a shard's logits at once
LOOK_S = 0.05  # how often a wait looks up


def exchange_bytes(max_tokens: int, hidden: int) -> int:
    """What one collective must hold: the fp32 partial sums of the largest step."""
    return max(max_tokens * hidden * 4, MIN_EXCHANGE_BYTES)


@dataclass(frozen=True, slots=True)
class GroupModel:
    """What every epoch of a group runs."""

    path: str
    hidden: int
    settings: RankSettings
    cores: Sequence[Sequence[int]]  # of every device, a core per thread
    gpus: Sequence[int] = ()  # of every device, its GPU; none: the devices are the cores
    rank_module: str = CPU_RANK


@dataclass(frozen=True, slots=True)
class Epoch:
    number: int  # from 1
    plan: ShardPlan
    ranks: tuple[RankProcess, ...]  # rank r of the plan is ranks[r]
    region: _C.SharedRegion
    steps: _C.Mailbox
    results: _C.Mailbox
    packed_bytes: tuple[int, ...] = ()

    def end(self) -> None:
        """Raises the epoch: ends every wait in it, of ranks and of the engine."""
        self.region.raise_epoch()
        self.steps.close()
        self.results.close()


class RanksFailedError(FastServeError):
    """An epoch could not begin: who failed, and how."""

    def __init__(self, failed: dict[RankProcess, FastServeError]) -> None:
        super().__init__("; ".join(map(str, failed.values())))
        self.failed = failed


def begin_epoch(
    model: GroupModel,
    plan: ShardPlan,
    ranks: Sequence[RankProcess],
    number: int,
    *,
    stop: Callable[[], bool],
    stop_limit_s: float,
) -> Epoch:
    """Tells every process what it is and returns when all are ready.

    Raises RanksFailedError if a rank dies, fails, is stopped for stop_limit_s or takes START_TIMEOUT_S, and
    GroupError once `stop` says so; then the epoch is over.
    """
    size, capacity = plan.num_ranks, model.settings.mailbox_capacity
    assert len(ranks) == size
    symmetric = exchange_bytes(model.settings.max_tokens, model.hidden)
    region = _C.SharedRegion.create(
        size, symmetric, 2 * mailbox_bytes(capacity), max(len(cores) for cores in model.cores)
    )
    steps, results = open_mailboxes(region, capacity, size, create=True)
    epoch = Epoch(number, plan, tuple(ranks), region, steps, results)
    try:
        _order(epoch, model)
        packed = _wait_until_ready(epoch, stop, stop_limit_s)
    except BaseException:
        epoch.end()
        raise
    return replace(epoch, packed_bytes=tuple(packed[process] for process in epoch.ranks))


def _order(epoch: Epoch, model: GroupModel) -> None:
    """Every process is told, also after one has failed, so that all that live end up in the same state."""
    failed: dict[RankProcess, FastServeError] = {}
    for rank, process in enumerate(epoch.ranks):
        order = StartRank(
            epoch=epoch.number,
            path=model.path,
            rank=rank,
            num_ranks=len(epoch.ranks),
            shard=epoch.plan.shards[rank],
            settings=model.settings,
            cores=list(model.cores[process.device]),
            gpu=model.gpus[process.device] if model.gpus else None,
        )
        try:
            process.start(order, epoch.region.fd)
        except OSError:
            how = process.how_it_ended()
            failed[process] = GroupError(f"rank {rank} {how} before it was told what to load")
    if failed:
        raise RanksFailedError(failed)


def _wait_until_ready(epoch: Epoch, stop: Callable[[], bool], stop_limit_s: float) -> dict[RankProcess, int]:
    """Packed bytes of every rank."""
    packed: dict[RankProcess, int] = {}
    failed: dict[RankProcess, FastServeError] = {}
    stops, deadline_s = Stops(stop_limit_s), time.monotonic() + START_TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        for rank, process in enumerate(epoch.ranks):
            selector.register(process.channel, selectors.EVENT_READ, rank)
        while len(packed) < len(epoch.ranks):
            if stop():
                raise GroupError("the group is closed")
            for key, _ in selector.select(LOOK_S):
                process = epoch.ranks[key.data]
                try:
                    report = process.report()
                except (EOFError, ValueError):
                    failed[process] = GroupError(f"rank {key.data} {process.how_it_ended()} while loading")
                    continue
                if isinstance(report, RankReady):
                    packed[process] = report.packed_bytes
                elif isinstance(report, RankFailed):
                    failed[process] = error_of(report)
            now_s = time.monotonic()
            for process in stops.too_long(epoch.ranks, now_s):
                failed[process] = GroupError(f"rank {epoch.ranks.index(process)} was stopped while loading")
            for rank, process in enumerate(epoch.ranks):
                if now_s > deadline_s and process not in packed:
                    failed[process] = GroupError(f"rank {rank} did not load in {START_TIMEOUT_S:g} s")
            if failed:
                raise RanksFailedError(failed)
    return packed


def leave_epoch(
    ranks: Sequence[RankProcess], number: int, *, timeout_s: float, stop_limit_s: float
) -> list[RankProcess]:
    """Waits until `ranks` are out of an epoch that is over; those that do not come are killed and left out."""
    out: set[RankProcess] = set()
    gone: set[RankProcess] = set()
    stops, deadline_s = Stops(stop_limit_s), time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for process in ranks:
            selector.register(process.channel, selectors.EVENT_READ, process)
        while len(out) + len(gone) < len(ranks):
            ended = {key.data: _left(key.data, number) for key, _ in selector.select(LOOK_S)}
            now_s = time.monotonic()
            inside = [process for process in ranks if process not in out | gone]
            late = inside if now_s > deadline_s else stops.too_long(inside, now_s)
            ended |= dict.fromkeys(late, False)
            for process, lives in ended.items():
                if lives is not None:
                    selector.unregister(process.channel)
                    (out if lives else gone).add(process)
    for process in gone:
        process.kill()
    return [process for process in ranks if process in out]


def _left(process: RankProcess, number: int) -> bool | None:
    """True: it is out of the epoch; False: it is gone; None: it has said something else."""
    try:
        report = process.report()
    except (EOFError, ValueError):
        return False
    if isinstance(report, RankIdle) and report.epoch == number:
        return True
    return False if isinstance(report, RankFailed) else None
