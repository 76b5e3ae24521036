"""Who is being served, who has left, and whether new requests are still let in."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.types import Receive

from fastserve.server.errors import ClientGoneError, shutting_down

T = TypeVar("T")


class Lifecycle:
    """Open, then draining (running requests finish), then ended (what still runs is cancelled)."""

    def __init__(self) -> None:
        self.draining = False
        self.num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = asyncio.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """A request's stay. Raises 503 once the server drains."""
        if self.draining:
            raise shutting_down()
        self.num_running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_running -= 1
            if self.num_running == 0:
                self._idle.set()

    def drain(self) -> None:
        self.draining = True

    def end(self) -> None:
        """Cancels what runs: each client is told that the server shuts down."""
        self.draining = True
        self._ended.set()

    async def idle(self) -> None:
        await self._idle.wait()

    async def while_wanted(self, work: Coroutine[Any, Any, T], receive: Receive) -> T:
        """The work's result. It is cancelled if its client leaves first (ClientGoneError is raised) or if the
        server ends first (a 503). The request's body must have been read."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(receive))
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({task, gone, ended}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ClientGoneError if gone.done() else shutting_down()
        finally:
            await _cancel(task, gone, ended)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
