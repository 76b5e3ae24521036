"""What a GPU's rank says when it cannot start, and what it keeps from one epoch to the next."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fastserve import _C
from fastserve.config import EngineConfig
from fastserve.cuda import rank as rank_module
from fastserve.cuda.rank import CudaRank
from fastserve.cuda.rank_group import RankGroup
from fastserve.distributed.control import RankReady, StartRank, receive_report
from fastserve.distributed.mailboxes import mailbox_bytes, open_mailboxes
from fastserve.errors import CapacityError, GroupError
from fastserve.step import GREEDY, BlockGrant, Chunk, SlotOpening, Step
from fastserve.testing.fake_cuda import FakeRuntime
from fastserve.worker.sizing import plan_execution
from fastserve.worker.step_codec import StepEncoder, decode_result


@dataclass
class Engine:
    """The other end of a rank's channel and mailboxes, for one epoch."""

    start: StartRank
    region: _C.SharedRegion
    steps: _C.Mailbox
    results: _C.Mailbox
    encoder: StepEncoder = field(default_factory=StepEncoder)


def begin(path: Path, epoch: int = 1) -> Engine:
    config = EngineConfig(model=str(path), max_num_seqs=1, max_num_tokens=4, max_model_len=64)
    execution = plan_execution(config, path)
    capacity = execution.settings.mailbox_capacity
    region = _C.SharedRegion.create(1, 1 << 20, 2 * mailbox_bytes(capacity))
    steps, results = open_mailboxes(region, capacity, 1, create=True)
    start = StartRank(
        epoch=epoch,
        path=str(path),
        rank=0,
        num_ranks=1,
        shard=execution.division.plan.shards[0],
        settings=execution.settings,
        cores=[0],
        gpu=0,
    )
    return Engine(start, region, steps, results)


@pytest.fixture
def channels() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_too_little_memory_is_said_with_what_would_help(
    short_model: Path, channels: tuple[socket.socket, socket.socket]
) -> None:
    engine = begin(short_model)
    rank = CudaRank(channels[1], runtime_of=lambda gpu: FakeRuntime(memory_bytes=1 << 12))
    with pytest.raises(CapacityError, match=r"GPU 0 has too little memory: .* lower max_num_tokens"):
        rank.serve(engine.start, engine.region)


def test_a_rank_answers_its_steps_and_ends_with_the_mailbox(
    short_model: Path, channels: tuple[socket.socket, socket.socket]
) -> None:
    engine = begin(short_model)
    opening = SlotOpening(0, 2, GREEDY)
    step = Step(7, opened=(opening,), blocks=(BlockGrant(0, 0, 0),), chunks=(Chunk(0, (5, 6), True),))
    engine.steps.write(engine.encoder.encode(step), 1000)
    engine.steps.close()
    rank = CudaRank(channels[1], runtime_of=lambda gpu: FakeRuntime())
    assert rank.serve(engine.start, engine.region) == ""
    ready = receive_report(channels[0])
    assert isinstance(ready, RankReady)
    assert ready.packed_bytes > 1 << 20
    message = engine.results.read(0, 0, 1000)
    assert message is not None
    result = decode_result(message)
    assert result.step_id == 7
    assert len(result.samples) == 1
    assert engine.region.times(0)[0] > 0


def test_the_weights_of_the_same_shard_are_loaded_once(
    short_model: Path, channels: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = rank_module.load_shard
    monkeypatch.setattr(
        rank_module,
        "load_shard",
        lambda model, shard, **options: loads.append(shard) or load(model, shard, **options),  # type: ignore[func-returns-value]
    )
    rank = CudaRank(channels[1], runtime_of=lambda gpu: FakeRuntime())
    for epoch in (1, 2):
        engine = begin(short_model, epoch)
        engine.steps.close()
        assert rank.serve(engine.start, engine.region) == ""
    assert len(loads) == 1


def test_an_epoch_that_ends_between_steps_ends_the_loop(
    short_model: Path, channels: tuple[socket.socket, socket.socket]
) -> None:
    engine = begin(short_model)
    engine.region.raise_epoch()
    rank = CudaRank(channels[1], runtime_of=lambda gpu: FakeRuntime())
    assert "waiting for a step" in rank.serve(engine.start, engine.region)


@pytest.mark.parametrize("outlives_loss", [True, False])
def test_a_rank_goes_on_after_a_loss_if_what_it_exchanges_through_does(
    outlives_loss: bool,
    short_model: Path,
    channels: tuple[socket.socket, socket.socket],
) -> None:
    class Group(RankGroup):
        size = 1  # sums are its own

    class Lonely(CudaRank):
        def _group_of(self, start: StartRank, exchange: _C.Exchange) -> RankGroup:
            group = Group(exchange)
            group.__dict__["device_exchange"] = object() if outlives_loss else Mover()
            return group

    class Mover:
        def all_reduce(self, x: object) -> None:
            """NcclExchange has one; this one's sums are of one rank."""

    engine = begin(short_model)
    engine.region.raise_epoch()
    rank = Lonely(channels[1], runtime_of=lambda gpu: FakeRuntime())
    if outlives_loss:
        assert "the group ended" in rank.serve(engine.start, engine.region)
    else:
        with pytest.raises(GroupError, match="ended with the rank that was lost"):
            rank.serve(engine.start, engine.region)
