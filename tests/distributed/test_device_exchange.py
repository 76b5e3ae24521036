"""What a group gives its GPUs, told by a stand-in for fastserve._cuda: no GPU is here."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

import fastserve
from fastserve import _C
from fastserve.distributed.device_exchange import reach_each_other
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
    module.bus_id = lambda: "0000:01:00.0"  # type: ignore[attr-defined]
    module.can_reach = lambda bus_id: True  # type: ignore[attr-defined]
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


def verdicts(num_ranks: int, unreachable: set[tuple[int, int]]) -> list[bool]:
    """Of every rank, a thread each; (r, q): rank r's GPU does not reach rank q's."""
    region = _C.SharedRegion.create(num_ranks, 1 << 12)
    exchanges = [_C.Exchange(region, rank) for rank in range(num_ranks)]

    def verdict(rank: int) -> bool:
        cuda = SimpleNamespace(
            bus_id=lambda: f"0000:{rank:02x}:00.0",
            can_reach=lambda bus_id: (rank, int(bus_id[5:7], 16)) not in unreachable,
        )
        return reach_each_other(exchanges[rank], cast(ModuleType, cuda))

    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(verdict, range(num_ranks)))


@pytest.mark.parametrize(
    ("num_ranks", "unreachable", "reach"),
    [
        (2, set(), True),
        (3, {(1, 2)}, False),  # one way is enough
        (8, set(), True),
        (9, set(), False),  # more than our kernels know
    ],
)
def test_every_rank_comes_to_the_same_verdict(
    num_ranks: int, unreachable: set[tuple[int, int]], reach: bool
) -> None:
    assert verdicts(num_ranks, unreachable) == [reach] * num_ranks
