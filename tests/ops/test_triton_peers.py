"""The Triton backend of the fused sums: through the ops in several processes, and where its memory comes from."""

from __future__ import annotations

import pytest
import torch

import fastserve.ops
from fastserve import _C
from fastserve.distributed.group import Group
from fastserve.errors import BackendError, CapacityError
from fastserve.ops import triton_peers
from fastserve.ops.group import handle_of
from fastserve.ops.triton_peers import peers_of

from .torchrun import run_ranks

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def rank_0_of_2(heap_bytes: int) -> Group:
    region = _C.SharedRegion.create(2, 4096, _C.peer_memory_bytes(2, heap_bytes))
    exchange = _C.Exchange(region, 0)
    return Group(_C.PeerGroup(exchange), exchange, [], spans_hosts=False)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_as_processes_sum_through_the_ops(num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    passed = [f"rank {rank} of {num_ranks}: passed" for rank in range(num_ranks)]
    assert run_ranks("triton_collectives_script.py", num_ranks) == ["noticed"] * (num_ranks - 1) + passed


def test_areas_are_made_once_per_group_at_the_same_place_of_every_heap() -> None:
    group = rank_0_of_2(32 << 20)
    peers = peers_of(handle_of(group), CPU)
    assert peers is not None
    assert peers is peers_of(handle_of(group), CPU)
    offsets = [int(area) - group.peers.heap_address_of(rank) for rank, area in enumerate(peers.areas)]
    assert offsets == [offsets[0]] * 2
    assert peers.epoch == group.exchange.epoch_address
    assert peers.half_bytes >= 8 << 20


def test_too_small_a_heap_says_what_to_raise() -> None:
    group = rank_0_of_2(1 << 20)
    with pytest.raises(CapacityError, match="raise heap_bytes of init_group"):
        peers_of(handle_of(group), CPU)


def test_without_the_cuda_ops_gpus_have_no_memory_to_exchange_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_peers, "cuda_ops", lambda: None)
    group = rank_0_of_2(0)
    with pytest.raises(
        BackendError, match=r"fastserve\._cuda makes: fastserve was built without its CUDA ops"
    ):
        peers_of(handle_of(group), GPU)


def test_alone_there_are_no_peers() -> None:
    assert peers_of(handle_of(None), GPU) is None


def test_an_op_without_the_backend_says_so_before_the_group_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSERVE_BACKEND", "triton")
    with pytest.raises(ValueError, match="all_reduce has no backend triton"):
        fastserve.ops.all_reduce(torch.ones(2, 4), rank_0_of_2(0))
