from __future__ import annotations

import gc

import pytest
import torch

from fastserve import _C
from fastserve.distributed.group import Group
from fastserve.errors import BackendError
from fastserve.ops import backend, registry
from fastserve.ops.group import device_exchange_of, group_of, handle_of, host_reducer_of


def rank_0_of_2(*, spans_hosts: bool = False) -> Group:
    exchange = _C.Exchange(_C.SharedRegion.create(2, 4096, _C.peer_memory_bytes(2)), 0)
    return Group(_C.PeerGroup(exchange), exchange, [], spans_hosts=spans_hosts)


def test_a_handle_leads_to_its_group_as_long_as_that_lives() -> None:
    group = rank_0_of_2()
    handle = handle_of(group)
    assert group_of(handle) is group
    del group
    gc.collect()
    with pytest.raises(ValueError, match="exchange must be the handle of a living group"):
        group_of(handle)


def test_tiles_go_through_memory_within_a_host_and_rows_between_hosts() -> None:
    near, far = rank_0_of_2(), rank_0_of_2(spans_hosts=True)
    assert host_reducer_of(handle_of(near)) is near.exchange
    assert host_reducer_of(handle_of(far)) is far.peers


def test_alone_there_is_no_exchange() -> None:
    handle = handle_of(None)
    assert group_of(handle) is host_reducer_of(handle) is device_exchange_of(handle) is None


def test_a_gpus_collective_without_the_cuda_ops_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there to run it is asked before the group's memory on GPUs is."""
    monkeypatch.setattr(backend, "cuda_ops", lambda: None)
    on_gpu = registry._chosen("all_reduce", registry._implemented["all_reduce"], "cuda")
    with pytest.raises(BackendError, match=r"all_reduce cannot run on cuda tensors: .* without its CUDA ops"):
        on_gpu(torch.ones(2, 4), handle_of(rank_0_of_2()))
