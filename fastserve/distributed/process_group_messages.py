"""Messages of a process group: a thread for each peer and direction, so that none waits for another's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from fastserve import _C
from fastserve.distributed.process_group_work import FutureWork, Lane
from fastserve.distributed.tensor_buffer import Buffer

FIRST_PAUSE_S, LONGEST_PAUSE_S = 20e-6, 1e-3  # between looks for a message of anybody


class Messages:
    """send and recv of torch.distributed; a tensor each, in order between two ranks of one tag."""

    def __init__(
        self,
        peers: _C.PeerGroup,
        explain: Callable[[Exception], Exception],
        check_open: Callable[[], None],
    ) -> None:
        """explain: as in Lane. check_open: raises once the group is closed, which ends the wait for anybody."""
        self._peers = peers
        self._explain = explain
        self._check_open = check_open
        self._sends: dict[int, Lane] = {}
        self._receives: dict[int, Lane] = {}
        self._anybody = Lane("fastserve-from-anybody", explain)
        self._making_lanes = threading.Lock()

    def lanes(self) -> list[Lane]:
        with self._making_lanes:
            return [self._anybody, *self._sends.values(), *self._receives.values()]

    def send(self, tensors: Sequence[Tensor], destination: int, tag: int) -> FutureWork:
        (tensor,) = tensors
        work = FutureWork([tensor])

        def run() -> None:
            with Buffer(tensor, writes=False) as buffer:
                self._peers.send(destination, tag, buffer.address, buffer.num_bytes)

        self._lane(self._sends, "to", destination).queue(work, run)
        return work

    def receive(self, tensors: Sequence[Tensor], source: int, tag: int) -> FutureWork:
        (tensor,) = tensors
        work = FutureWork([tensor])
        work.source = source

        def run() -> None:
            with Buffer(tensor) as buffer:
                self._peers.receive(source, tag, buffer.address, buffer.num_bytes)

        self._receive_lane(source).queue(work, run)
        return work

    def receive_from_anybody(self, tensors: Sequence[Tensor], tag: int) -> FutureWork:
        (tensor,) = tensors
        work = FutureWork([tensor])

        def receive(buffer: Buffer, source: int) -> bool:
            if not self._peers.takes_in(source, tag):
                return False
            self._peers.receive(source, tag, buffer.address, buffer.num_bytes)
            return True

        def run() -> None:
            others = [rank for rank in range(self._peers.size) if rank != self._peers.rank]
            pause_s = FIRST_PAUSE_S
            with Buffer(tensor) as buffer:
                while True:
                    for source in others:
                        if self._receive_lane(source).attempt(partial(receive, buffer, source)):
                            work.source = source
                            return
                    self._check_open()
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

        self._anybody.queue(work, run)
        return work

    def _receive_lane(self, source: int) -> Lane:
        return self._lane(self._receives, "from", source)

    def _lane(self, lanes: dict[int, Lane], direction: str, peer: int) -> Lane:
        with self._making_lanes:
            if peer not in lanes:
                lanes[peer] = Lane(f"fastserve-{direction}-{peer}", self._explain)
            return lanes[peer]
