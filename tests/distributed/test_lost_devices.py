"""A lost device is tried after a while, again after longer, and counts as back once a process answers on it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
import pytest

from fastserve.distributed.lost_devices import RETURN_DELAY_S, LostDevices
from fastserve.distributed.rank_process import RankProcess


@pytest.fixture
def lost() -> Iterator[LostDevices]:
    lost = LostDevices(RankProcess)
    yield lost
    lost.close()
    assert not psutil.Process().children()


def wait_until_back(lost: LostDevices, now_s: float) -> None:
    while not lost.are_back(now_s):
        os.sched_yield()


def test_devices_are_back_when_a_process_answers_on_each(lost: LostDevices) -> None:
    lost.set_lost({2, 0}, 100.0)
    assert not lost.are_back(100.0)
    assert not psutil.Process().children()  # it is too early to try
    wait_until_back(lost, 100.0 + RETURN_DELAY_S)
    taken = lost.take()
    assert [process.device for process in taken] == [0, 2]
    assert lost.take() == []
    for process in taken:
        process.kill()


def test_a_device_whose_process_dies_is_tried_again_after_twice_the_time(lost: LostDevices) -> None:
    lost.set_lost({1}, 0.0)
    assert not lost.are_back(RETURN_DELAY_S)
    (child,) = psutil.Process().children()
    child.kill()
    while psutil.Process().children():
        assert not lost.are_back(3.0)
    assert not lost.are_back(3.0 + RETURN_DELAY_S)
    assert not psutil.Process().children()
    wait_until_back(lost, 3.0 + 2 * RETURN_DELAY_S)


def test_what_is_not_back_cannot_be_taken(lost: LostDevices) -> None:
    lost.set_lost({1}, 0.0)
    assert not lost.are_back(RETURN_DELAY_S)
    assert lost.take() == []
    assert not psutil.Process().children()


def test_nothing_is_tried_while_nothing_is_lost(lost: LostDevices) -> None:
    lost.set_lost(set(), 0.0)
    assert not lost.are_back(1e9)
    assert not psutil.Process().children()
