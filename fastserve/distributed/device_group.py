"""The ranks of one group: started by exec, watched, and made whole again when one is lost.

A thread watches them: the kernel closes a dead rank's socket, and every op advances the heartbeat of a living one.
A lost rank is killed and reaped before the epoch is raised. That ends every wait of the others; each comes out of its
step, says so and keeps its packed weights. Then the next epoch begins, in fresh shared memory:

    respawn  a new process takes the lost rank's shard: the same plan, hence the same bits
    shrink   the others share out what it held; when its device answers again, the group grows back

Whoever submits steps sees an epoch end by its closed mailboxes, and waits for the next one (`next_epoch`).
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable

from fastserve.config import OnLoss
from fastserve.distributed.epoch import (
    START_TIMEOUT_S,
    Epoch,
    GroupModel,
    RanksFailedError,
    begin_epoch,
    leave_epoch,
)
from fastserve.distributed.liveness import Heartbeats
from fastserve.distributed.lost_devices import LostDevices
from fastserve.distributed.rank_process import RankProcess
from fastserve.distributed.shard_plan import ShardPlan
from fastserve.errors import GroupError, RankLostError

STOP_TIMEOUT_S = 5.0  # a rank ends after the step in hand; longer is a fault
LOOKS_PER_HEARTBEAT = 10
MAX_ATTEMPTS = 3  # to begin an epoch: what fails thrice in a row fails for ever
log = logging.getLogger("fastserve.group")


class DeviceGroup:
    """Starts a rank on every device of `plan`; `plan_for(devices)` is the plan of a part of them."""

    def __init__(
        self,
        model: GroupModel,
        plan: ShardPlan,
        *,
        on_loss: OnLoss,
        heartbeat_s: float,
        plan_for: Callable[[Collection[int]], ShardPlan],
    ) -> None:
        self._model = model
        self._plan = plan
        self._plan_for = plan_for
        self._on_loss = on_loss
        self._heartbeat_s = heartbeat_s
        self._changed = threading.Condition()  # of what follows
        self._closing = False
        self._epoch: Epoch | None = None  # None while the group is not whole
        self._failure: RankLostError | None = None
        self._last_loss = ""
        self._lost_devices = LostDevices(self._start)
        ranks = [self._start(device) for device in range(plan.num_ranks)]
        try:
            self._epoch = self._begin(plan, ranks, 1)
        except RanksFailedError as error:
            _kill(ranks)
            raise next(iter(error.failed.values())) from None
        except BaseException:
            _kill(ranks)
            raise
        self._wake, self._woken = socket.socketpair()
        self._monitor = threading.Thread(target=self._run, name="rank-monitor", daemon=True)
        self._monitor.start()

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def failure(self) -> RankLostError | None:
        """Why there will be no further epoch; None while there may be one, and after `close`."""
        return self._failure

    @property
    def last_loss(self) -> str:
        """Who was lost last, and how."""
        return self._last_loss

    @property
    def epoch(self) -> Epoch | None:
        """None while the group is not whole."""
        return self._epoch

    def next_epoch(self, after: int) -> Epoch:
        """The first epoch with a number above `after`; waits for it. Raises GroupError if none comes."""
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._closing:
                    raise GroupError("the executor is closed")
                if self._epoch is not None and self._epoch.number > after:
                    return self._epoch
                self._changed.wait()

    def close(self) -> None:
        """Ends the ranks after the step in hand; kills what does not end in time. Idempotent."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._wake.send(b"!")
        self._monitor.join()
        if self._epoch is not None:
            self._epoch.steps.close()
            deadline_s = time.monotonic() + STOP_TIMEOUT_S
            for process in self._epoch.ranks:
                process.wait(deadline_s - time.monotonic())
            self._epoch.end()
            _kill(self._epoch.ranks)
        self._lost_devices.close()
        self._wake.close()
        self._woken.close()

    def _start(self, device: int) -> RankProcess:
        return RankProcess(device, self._model.rank_module)

    def _begin(self, plan: ShardPlan, ranks: list[RankProcess], number: int) -> Epoch:
        return begin_epoch(
            self._model,
            plan,
            ranks,
            number,
            stop=lambda: self._closing,
            stop_limit_s=self._heartbeat_s,
        )

    # What follows runs on the monitor's thread.

    def _run(self) -> None:
        epoch = self._epoch
        while epoch is not None:
            lost = self._watch(epoch)
            if self._closing:
                return
            epoch = self._recover(epoch, lost)

    def _watch(self, epoch: Epoch) -> dict[int, str]:
        """The ranks that were lost, and how; none of them when the group closes or can grow."""
        heartbeats = Heartbeats(epoch.region, self._heartbeat_s)
        with selectors.DefaultSelector() as selector:
            for rank, process in enumerate(epoch.ranks):
                selector.register(process.channel, selectors.EVENT_READ, rank)
            selector.register(self._woken, selectors.EVENT_READ, None)
            while not self._closing:
                said_something = selector.select(self._heartbeat_s / LOOKS_PER_HEARTBEAT)
                lost = {
                    key.data: epoch.ranks[key.data].how_it_was_lost()
                    for key, _ in said_something
                    if key.data is not None and not epoch.ranks[key.data].lives()
                }
                now_s = time.monotonic()
                for rank in heartbeats.standing_still(now_s):
                    lost.setdefault(rank, f"did not go on for {self._heartbeat_s:g} s")
                if lost or self._lost_devices.are_back(now_s):
                    return lost
        return {}

    def _recover(self, epoch: Epoch, lost: dict[int, str]) -> Epoch | None:
        """Ends `epoch` and begins the next one without the lost ranks; None when that fails."""
        start_s = time.monotonic()
        _kill(epoch.ranks[rank] for rank in lost)  # and reaped: only now may the epoch be raised
        size = len(epoch.ranks)
        if lost:
            losses = [f"rank {rank} of {size} was lost ({how})" for rank, how in lost.items()]
            self._last_loss = ", ".join(losses)
            log.warning("%s", self._last_loss)
        with self._changed:
            self._epoch = None
        epoch.end()
        following = self._begin_after(
            epoch.number, [rank for i, rank in enumerate(epoch.ranks) if i not in lost]
        )
        with self._changed:
            self._epoch = following
            self._changed.notify_all()
        if following is not None:
            self._note_lost_devices(following)
            elapsed_s = time.monotonic() - start_s
            log.warning(
                "%d of %d ranks run after %.2f s", len(following.ranks), self._plan.num_ranks, elapsed_s
            )
        return following

    def _begin_after(self, number: int, ranks: list[RankProcess]) -> Epoch | None:
        """The epoch that follows number `number`, of which `ranks` are left."""
        leave_timeout_s = self._heartbeat_s  # as long as an op may last
        why = ""
        for _ in range(MAX_ATTEMPTS):
            ranks = leave_epoch(ranks, number, timeout_s=leave_timeout_s, stop_limit_s=self._heartbeat_s)
            plan, ranks = self._next_ranks(ranks)
            number += 1
            try:
                return self._begin(plan, ranks, number)
            except RanksFailedError as error:
                why = str(error)
                _kill(error.failed)
                ranks = [process for process in ranks if process not in error.failed]
            except GroupError:  # closed
                _kill(ranks)
                return None
            leave_timeout_s = START_TIMEOUT_S  # the others may be loading
        _kill(ranks)
        self._failure = RankLostError(f"{self._last_loss}, and the group could not go on: {why}")
        return None

    def _next_ranks(self, ranks: list[RankProcess]) -> tuple[ShardPlan, list[RankProcess]]:
        """The plan of the next epoch and a process for each of its ranks, given those that live."""
        returned = self._lost_devices.take()
        by_device = {process.device: process for process in (*ranks, *returned)}
        if self._on_loss == "shrink" and by_device and not returned:
            devices = sorted(by_device)
            return self._plan_for(devices), [by_device[device] for device in devices]
        every = range(self._plan.num_ranks)
        return self._plan, [by_device.get(device) or self._start(device) for device in every]

    def _note_lost_devices(self, epoch: Epoch) -> None:
        held = {process.device for process in epoch.ranks}
        self._lost_devices.set_lost(set(range(self._plan.num_ranks)) - held, time.monotonic())


def _kill(processes: Iterable[RankProcess]) -> None:
    for process in processes:
        process.kill()
