"""The engine's thread and its asyncio front; ranks that run a step only when the test lets them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from fastserve.config import EngineConfig
from fastserve.engine.async_engine import AsyncEngine
from fastserve.engine.engine import Engine
from fastserve.errors import CapacityError, GroupError, OverloadedError, RankLostError
from fastserve.request import RequestOutput, SamplingParams
from fastserve.step import StepResult
from fastserve.testing.fake_executor import FakeExecutor, FakeTokenizer

PARAMS = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
LIMIT_S = 20.0  # for what a test awaits; never waited out


class GatedExecutor(FakeExecutor):
    """Gives each result only after `allow`."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self._allowed = threading.Semaphore(0)
        self._open = False

    def allow(self, num_steps: int) -> None:
        self._allowed.release(num_steps)

    def open(self) -> None:
        self._open = True
        self._allowed.release(1)

    def collect(self) -> StepResult:
        if not self._open:
            assert self._allowed.acquire(timeout=LIMIT_S)
        if self.closed:
            raise GroupError("the group is closed")
        return super().collect()

    def close(self) -> None:
        super().close()
        self.open()


class CountingEngine(Engine):
    """Counts how often the thread looks for work."""

    num_looks = 0

    @property
    def has_work(self) -> bool:
        self.num_looks += 1
        return super().has_work


class House:
    def __init__(self, **options: Any) -> None:
        self.executor = GatedExecutor()
        config = EngineConfig(**{"seed": 0, **options})
        self.engine = CountingEngine(self.executor, FakeTokenizer(), config)
        self.front = AsyncEngine(self.engine)


@pytest.fixture
def make_house() -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def make(**options: Any) -> House:
        houses.append(House(**options))
        return houses[-1]

    yield make
    for house in houses:
        house.executor.open()
        house.front.close()


def in_time(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, LIMIT_S))


async def last_of(front: AsyncEngine, name: str, params: SamplingParams = PARAMS) -> RequestOutput:
    output = None
    async for output in front.generate([1, 2, 3], params, name):  # noqa: B007
        pass
    assert output is not None
    return output


async def on_thread(house: House, look: Callable[[], Any]) -> Any:
    """What `look` sees on the engine's thread once it has obeyed all commands so far."""
    loop = asyncio.get_running_loop()
    seen: asyncio.Future[Any] = loop.create_future()
    house.front._commands.put(lambda: loop.call_soon_threadsafe(seen.set_result, look()))
    return await seen


def test_many_requests_at_once_get_the_answers_they_get_alone(make_house: Callable[..., House]) -> None:
    house = make_house(max_num_seqs=4, max_num_tokens=16)
    house.executor.open()

    async def all_at_once() -> list[RequestOutput]:
        params = [SamplingParams(seed=i, n=1 + i % 2, max_tokens=9, ignore_eos=True) for i in range(12)]
        return await asyncio.gather(*(last_of(house.front, f"r{i}", p) for i, p in enumerate(params)))

    outputs = in_time(all_at_once())
    assert all(output.finished for output in outputs)
    alone = in_time(last_of(house.front, "alone", SamplingParams(seed=7, n=2, max_tokens=9, ignore_eos=True)))
    assert [c.token_ids for c in outputs[7].outputs] == [c.token_ids for c in alone.outputs]


def test_each_output_is_the_answer_so_far(make_house: Callable[..., House]) -> None:
    house = make_house()

    async def read() -> list[int]:
        lengths = []
        house.executor.allow(1)
        async for output in house.front.generate([1], PARAMS, "r"):
            lengths.append(len(output.outputs[0].token_ids))
            house.executor.allow(1)
        return lengths

    assert in_time(read()) == list(range(1, 21))


def test_closing_the_iterator_frees_blocks_within_a_step(make_house: Callable[..., House]) -> None:
    house = make_house()

    async def leave() -> None:
        stream = house.front.generate([1] * 40, PARAMS, "r")
        house.executor.allow(1)
        await anext(stream)
        await stream.aclose()
        house.executor.allow(1)  # the thread waits for the step under way at most
        assert await on_thread(house, lambda: house.engine.num_free_blocks) == 64

    in_time(leave())


def test_cancelling_the_reader_aborts_the_request(make_house: Callable[..., House]) -> None:
    house = make_house()

    async def cancel() -> None:
        reader = asyncio.ensure_future(last_of(house.front, "r"))
        house.executor.allow(1)
        await on_thread(house, lambda: None)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        house.executor.allow(2)
        assert await on_thread(house, lambda: house.engine.num_requests) == 0

    in_time(cancel())


def test_refusals_reach_the_caller_and_leave_others_alone(make_house: Callable[..., House]) -> None:
    house = make_house(max_waiting=2)
    house.executor.open()

    async def ask() -> None:
        with pytest.raises(CapacityError):
            await last_of(house.front, "big", SamplingParams(max_tokens=5000))
        with pytest.raises(ValueError, match="stop_token_ids"):
            await last_of(house.front, "wrong", SamplingParams(stop_token_ids=[5000]))
        with pytest.raises(OverloadedError):
            await last_of(house.front, "many", SamplingParams(n=3))
        assert (await last_of(house.front, "fine")).finished

    in_time(ask())
    assert house.front.healthy


def test_a_taken_id_is_refused_without_ending_its_owner(make_house: Callable[..., House]) -> None:
    house = make_house()

    async def ask() -> None:
        stream = house.front.generate([1], PARAMS, "r")
        house.executor.allow(1)
        await anext(stream)
        house.executor.allow(1)
        with pytest.raises(ValueError, match="request_id must be new"):
            await last_of(house.front, "r")
        house.executor.open()
        async for output in stream:  # noqa: B007
            pass
        assert output.outputs[0].finish_reason == "length"

    in_time(ask())


def test_a_lost_rank_fails_all_requests_and_those_that_come_after(make_house: Callable[..., House]) -> None:
    house = make_house()

    async def lose() -> None:
        readers = [asyncio.ensure_future(last_of(house.front, f"r{i}")) for i in range(3)]
        await asyncio.sleep(0)  # they have asked
        house.executor.lost = "rank 1 was lost: killed by signal 9"
        house.executor.open()
        for reader in readers:
            with pytest.raises(RankLostError, match="killed by signal 9"):
                await reader
        with pytest.raises(RankLostError):
            await last_of(house.front, "late")

    in_time(lose())
    assert not house.front.healthy
    assert isinstance(house.front.failure, RankLostError)


def test_a_bug_in_the_engine_fails_requests_instead_of_hanging_them(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.executor.open()
    house.executor.script = {3: 10**6}  # no such token: the fake ranks refuse it by assertion

    with pytest.raises(GroupError, match="the engine failed: AssertionError"):
        in_time(last_of(house.front, "r"))


def test_drain_waits_for_running_requests(make_house: Callable[..., House]) -> None:
    house = make_house()

    async def drain() -> tuple[bool, RequestOutput]:
        reader = asyncio.ensure_future(last_of(house.front, "r"))
        await asyncio.sleep(0)
        drained = asyncio.ensure_future(house.front.drain(LIMIT_S))
        house.executor.open()
        return await drained, await reader

    drained, output = in_time(drain())
    assert drained
    assert output.outputs[0].finish_reason == "length"


def test_drain_aborts_what_does_not_end_in_time(make_house: Callable[..., House]) -> None:
    house = make_house()

    async def drain() -> tuple[bool, RequestOutput]:
        reader = asyncio.ensure_future(last_of(house.front, "r"))
        house.executor.allow(1)
        await on_thread(house, lambda: None)
        drained = asyncio.ensure_future(house.front.drain(0.0))
        while house.front._commands.empty() and not drained.done():
            await asyncio.sleep(0)  # a turn of the loop: until drain has given up waiting
        house.executor.allow(1)  # of the 20 steps that it would take
        return await drained, await reader

    drained, output = in_time(drain())
    assert not drained
    assert output.outputs[0].finish_reason == "abort"


def test_an_idle_engine_looks_for_work_only_when_told(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.executor.open()

    async def rest() -> None:
        await last_of(house.front, "r")
        before = await on_thread(house, lambda: house.engine.num_looks)
        after = await on_thread(house, lambda: house.engine.num_looks)
        assert after - before <= 3  # once for each command, whatever time passed

    in_time(rest())


def test_closing_fails_running_requests_and_refuses_new_ones(make_house: Callable[..., House]) -> None:
    house = make_house()

    async def close() -> None:
        stream = house.front.generate([1], PARAMS, "r")
        house.executor.allow(1)
        await anext(stream)
        house.front._commands.put(house.front._stop)
        house.executor.allow(1)  # the step under way ends, no other begins
        await asyncio.to_thread(house.front.close)
        with pytest.raises(GroupError):
            async for _ in stream:
                pass
        with pytest.raises(GroupError, match="the engine is closed"):
            await last_of(house.front, "late")

    in_time(close())
    assert house.executor.closed
