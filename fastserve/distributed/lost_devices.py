"""Devices of a shrunken group that have no rank: each is tried again by starting a process on it."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Collection

from fastserve.distributed.rank_process import RankProcess

RETURN_DELAY_S = 2.0  # until a lost device is tried; doubles with each failure
MAX_RETURN_DELAY_S = 300.0
ANSWER_TIMEOUT_S = 60.0  # of an interpreter that starts on a busy machine


class LostDevices:
    """start: a process on the device of that number."""

    def __init__(self, start: Callable[[int], RankProcess]) -> None:
        self._start = start
        self._devices: list[int] = []
        self._candidates: list[RankProcess] = []
        self._delay_s = RETURN_DELAY_S
        self._next_s = float("inf")  # when they are tried, or given up
        self._are_back = False

    def set_lost(self, devices: Collection[int], now_s: float) -> None:
        """From now on these have no rank."""
        self._devices = sorted(devices)
        self._delay_s = RETURN_DELAY_S
        self._next_s = now_s + self._delay_s if self._devices else float("inf")

    def are_back(self, now_s: float) -> bool:
        """True once a process answers on each of them; to be asked now and then."""
        if not self._candidates:
            if now_s >= self._next_s:
                self._candidates = [self._start(device) for device in self._devices]
                self._next_s = now_s + ANSWER_TIMEOUT_S
            return False
        with selectors.DefaultSelector() as selector:
            for process in self._candidates:
                selector.register(process.channel, selectors.EVENT_READ)
            all_said_something = len(selector.select(0)) == len(self._candidates)
        self._are_back = all_said_something and all(process.lives() for process in self._candidates)
        if not self._are_back and (all_said_something or now_s >= self._next_s):
            self.close()
            self._delay_s = min(2 * self._delay_s, MAX_RETURN_DELAY_S)
            self._next_s = now_s + self._delay_s
        return self._are_back

    def take(self) -> list[RankProcess]:
        """The processes on devices that are back; they are the caller's now. None if not all are."""
        if not self._are_back:
            self.close()
            return []
        taken, self._candidates, self._are_back = self._candidates, [], False
        return taken

    def close(self) -> None:
        for process in self._candidates:
            process.kill()
        self._candidates = []
