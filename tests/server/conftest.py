"""A fake service behind real sockets, in the test's own event loop: events, not sleeps, give the order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from fastserve.server.app import create_app
from fastserve.server.lifecycle import Lifecycle
from fastserve.server.protocol import JsonErrorProtocol
from fastserve.server.run import bind, url
from fastserve.testing.fake_service import FakeService

MODEL = "fake-model"
Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def lifecycle() -> Lifecycle:
    return Lifecycle()


@pytest.fixture
def serve(service: FakeService, lifecycle: Lifecycle) -> Serve:
    @asynccontextmanager
    async def serving(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(service, model_name=MODEL, lifecycle=lifecycle, **options)
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False)
        config.load()
        state = ServerState()
        sock = bind("127.0.0.1", 0)
        server = await asyncio.get_running_loop().create_server(
            lambda: JsonErrorProtocol(config, state, {}), sock=sock
        )
        try:
            async with httpx.AsyncClient(base_url=url(sock), timeout=30, trust_env=False) as client:
                yield client
        finally:
            server.close()
            for connection in list(state.connections):
                connection.transport.abort()
            await asyncio.gather(*state.tasks, return_exceptions=True)

    return serving


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    async with serve() as connected:
        yield connected
