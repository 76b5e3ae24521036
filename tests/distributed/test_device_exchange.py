"""What a group gives its GPUs, told by a stand-in for fastserve._cuda: no GPU is here."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

import fastserve
from fastserve import _C
from fastserve.distributed.group import Group
from fastserve.errors import GroupError


class ExchangeBuffer:
    handle = b"here it lies"

    def __init__(self, rank: int, size: int, epoch_address: int, owner: object) -> None:
        self.epoch = ctypes.c_uint32.from_address(epoch_address)
        self.owner = owner
        self.handles: list[bytes] = []

    def connect(self, handles: Sequence[bytes]) -> None:
        self.handles.extend(handles)


def lonely_group() -> Group:
    exchange = _C.Exchange(_C.SharedRegion.create(1, 4096, _C.peer_memory_bytes(1)), 0)
    return Group(_C.PeerGroup(exchange), exchange, [], spans_hosts=False)


def install(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "fastserve._cuda", module)
    monkeypatch.delattr(fastserve, "_cuda", raising=False)


def test_the_epoch_of_a_group_is_that_of_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("fastserve._cuda")
    module.ExchangeBuffer = ExchangeBuffer  # type: ignore[attr-defined]
    install(monkeypatch, module)
    group = lonely_group()
    buffer = group.device_exchange
    assert group.device_exchange is buffer
    assert buffer.handles == [ExchangeBuffer.handle]
    assert buffer.owner is group.exchange  # whose memory the GPU looks at
    assert buffer.epoch.value == 0
    group.raise_epoch()
    assert buffer.epoch.value != 0


def test_without_the_cuda_ops_a_group_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    with pytest.raises(GroupError, match="built without its CUDA ops"):
        _ = lonely_group().device_exchange
