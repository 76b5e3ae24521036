"""The engine on a thread of its own, and an asyncio front.

Both sides talk through two queues. Commands (add, abort, ...) go to the thread, which sleeps on that queue
while it has nothing to run. What a step gave goes to each event loop in one call, however many requests ran.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from prometheus_client import CollectorRegistry

from fastserve.engine.engine import Engine
from fastserve.engine.outputs import ChoiceDelta, OutputBuilder
from fastserve.errors import GroupError
from fastserve.request import RequestOutput, SamplingParams

ABORT_TIMEOUT_S = 5.0  # for answers to aborts: one step
JOIN_TIMEOUT_S = 5.0  # for the thread to end: one step, unless a rank hangs


@dataclass(slots=True, eq=False)
class _Stream:
    """One request, between the engine's thread (which fills `arrived`) and its event loop."""

    request_id: str
    loop: asyncio.AbstractEventLoop
    arrived: deque[ChoiceDelta | Exception] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class AsyncEngine:
    """Owns `engine`: nobody else may call it from now on, and `close` closes it."""

    def __init__(self, engine: Engine) -> None:
        self.max_model_len = engine.max_model_len
        self.tokenizer = engine.tokenizer
        self.chat_template = engine.chat_template
        self._engine = engine
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._streams: dict[str, _Stream] = {}  # the thread's: requests that the engine has
        self._active: set[_Stream] = set()  # the loop's: iterators that have not ended
        self._none_active = asyncio.Event()
        self._none_active.set()
        self._failure: GroupError | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="fastserve-engine", daemon=True)
        self._thread.start()

    @property
    def metrics(self) -> CollectorRegistry:
        return self._engine.metrics.registry

    @property
    def healthy(self) -> bool:
        return self.failure is None

    @property
    def failure(self) -> GroupError | None:
        """Why no request will be answered any more; known while idle too."""
        return self._failure or self._engine.executor.failure

    async def deltas(
        self, prompt_token_ids: list[int], params: SamplingParams, request_id: str
    ) -> AsyncGenerator[list[ChoiceDelta], None]:
        """What is new of the request, step by step (several steps at once to a slow reader).

        Ending the iterator early aborts the request within a step. Raises what Engine.add_request raises, and
        GroupError (RankLostError) if the executor fails.
        """
        stream = _Stream(request_id, asyncio.get_running_loop())
        self._active.add(stream)
        self._none_active.clear()
        num_unfinished = params.n
        try:
            self._commands.put(lambda: self._add(stream, prompt_token_ids, params))
            if self.failure is not None:  # looked at after the put: the thread may have gone before it
                raise self.failure
            while num_unfinished:
                if not stream.arrived:
                    await stream.news.wait()
                stream.news.clear()
                deltas = _take(stream.arrived)
                num_unfinished -= sum(delta.finish_reason is not None for delta in deltas)
                if deltas:
                    yield deltas
        finally:
            if num_unfinished:
                self._commands.put(lambda: self._abort(stream))
            self._active.discard(stream)
            if not self._active:
                self._none_active.set()

    async def generate(
        self, prompt_token_ids: list[int], params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        """Like `deltas`, but each output is the whole answer so far: one object, which grows."""
        builder = OutputBuilder.start(request_id, prompt_token_ids, params.n)
        stream = self.deltas(prompt_token_ids, params, request_id)
        try:
            async for deltas in stream:
                for delta in deltas:
                    builder.apply(delta)
                yield builder.output
        finally:
            await stream.aclose()

    async def drain(self, timeout_s: float) -> bool:
        """Waits for running requests to end; aborts those that have not after timeout_s (then False).

        Callers stop sending requests first. To be called on the loop that iterates.
        """
        try:
            await asyncio.wait_for(self._none_active.wait(), timeout_s)
        except TimeoutError:
            self._commands.put(self._abort_all)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._none_active.wait(), ABORT_TIMEOUT_S)
            return False
        return True

    def close(self) -> None:
        """Ends the thread and the executor; what still runs fails with GroupError. Again is harmless."""
        self._commands.put(self._stop)
        self._thread.join(JOIN_TIMEOUT_S)
        self._engine.close()  # wakes a thread that waits for ranks which will never answer
        self._thread.join(JOIN_TIMEOUT_S)

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        while not self._closing:
            self._obey(wait=self._failure is not None or not self._engine.has_work)
            if self._failure is None and not self._closing:
                self._step()
        self._fail(self._failure or GroupError("the engine is closed"))
        self._obey(wait=False)  # refuses what was put before the failure could be seen

    def _obey(self, *, wait: bool) -> None:
        if wait:
            self._commands.get()()
        while True:
            try:
                command = self._commands.get_nowait()
            except Empty:
                return
            command()

    def _step(self) -> None:
        try:
            deltas = self._engine.step()
        except GroupError as error:
            self._fail(error)
        except Exception as error:  # ours: it must not leave clients waiting
            failure = GroupError(f"the engine failed: {error!r}")
            failure.__cause__ = error
            self._fail(failure)
        else:
            self._deliver(deltas)

    def _add(self, stream: _Stream, prompt_token_ids: list[int], params: SamplingParams) -> None:
        if self._failure is not None:
            _post(stream.loop, [(stream, self._failure)])
            return
        try:
            self._engine.add_request(stream.request_id, prompt_token_ids, params)
        except Exception as error:  # the caller's or the world's: it goes to whoever asked
            _post(stream.loop, [(stream, error)])
        else:
            self._streams[stream.request_id] = stream

    def _abort(self, stream: _Stream) -> None:
        if self._streams.get(stream.request_id) is stream:  # else it was refused, or it has ended
            del self._streams[stream.request_id]
            self._engine.abort(stream.request_id)

    def _abort_all(self) -> None:
        self._deliver(
            [delta for request_id in list(self._streams) for delta in self._engine.abort(request_id)]
        )

    def _stop(self) -> None:
        self._closing = True

    def _deliver(self, deltas: list[ChoiceDelta]) -> None:
        news: defaultdict[asyncio.AbstractEventLoop, list[_Item]] = defaultdict(list)
        for delta in deltas:
            stream = self._streams[delta.request_id]
            news[stream.loop].append((stream, delta))
        for loop, items in news.items():
            if not _post(loop, items):
                for stream, _ in items:
                    self._abort(stream)
        for delta in deltas:
            if delta.finish_reason is not None and not self._engine.has_request(delta.request_id):
                self._streams.pop(delta.request_id, None)

    def _fail(self, error: GroupError) -> None:
        self._failure = error
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            _post(stream.loop, [(stream, error)])


_Item = tuple[_Stream, ChoiceDelta | Exception]


def _post(loop: asyncio.AbstractEventLoop, items: list[_Item]) -> bool:
    """False if the loop is closed: nobody listens any more."""
    try:
        loop.call_soon_threadsafe(_receive, items)
    except RuntimeError:
        return False
    return True


def _receive(items: list[_Item]) -> None:
    for stream, item in items:
        stream.arrived.append(item)
        stream.news.set()


def _take(arrived: deque[ChoiceDelta | Exception]) -> list[ChoiceDelta]:
    """All deltas up to an error; raises the error once it comes first."""
    deltas: list[ChoiceDelta] = []
    while arrived:
        if isinstance(arrived[0], Exception):
            if deltas:
                break
            raise arrived[0]
        deltas.append(arrived.popleft())  # type: ignore[arg-type]
    return deltas
