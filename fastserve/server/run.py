"""Runs the application on a socket until a signal or a fatal error.

The first SIGTERM or Ctrl-C drains: the socket stays open, new requests get 503 and running ones may finish.
The second one ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import uvicorn
from starlette.applications import Starlette

from fastserve.errors import FastServeError
from fastserve.server.lifecycle import Lifecycle
from fastserve.server.protocol import JsonErrorProtocol
from fastserve.server.service import Service

HEALTH_PERIOD_S = 0.2  # how late a fatal error may be noticed when no request meets it
CANCEL_TIMEOUT_S = 2  # for cancelled requests to tell their clients
CLOSE_TIMEOUT_S = 5  # for connections to take their last bytes
MAX_HEAD_BYTES = 64 * 1024  # what h11 buffers of a request's head; Limits.max_header_bytes answers sooner


class AddressError(FastServeError):
    """The address to listen on is taken, unknown or not allowed."""


class Ending(Enum):
    DRAINED = "every running request finished, or had its time"
    FORCED = "a second signal: whatever still ran was dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    drain_timeout_s: float = 30.0
    access_log: bool = False


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: a busy port is known before a model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise AddressError(f"cannot listen on host {host!r}: {error}") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _cannot_listen(host, port, error) from None
    return sock


def url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _cannot_listen(host: str, port: int, error: OSError) -> AddressError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return AddressError(f"cannot listen on {host} port {port}: {reason}")


def run(
    app: Starlette,
    service: Service,
    lifecycle: Lifecycle,
    sock: socket.socket,
    *,
    on_ready: Callable[[], None],
    options: RunOptions,
) -> Ending:
    """Serves until a signal ends it. Raises AddressError, or the engine's failure as a FastServeError.

    Must be called in the main thread. The socket is closed; the service is not.
    """
    return asyncio.run(_run(app, service, lifecycle, sock, on_ready=on_ready, options=options))


async def _run(
    app: Starlette,
    service: Service,
    lifecycle: Lifecycle,
    sock: socket.socket,
    *,
    on_ready: Callable[[], None],
    options: RunOptions,
) -> Ending:
    server = _Server(_config(app, options), on_ready)
    with _signals() as (asked, insisted):
        serving = asyncio.create_task(_serve(server, sock))
        failed = asyncio.create_task(_failed(service))
        insists = asyncio.create_task(insisted.wait())
        try:
            await _first(serving, failed, asyncio.create_task(asked.wait()))
            lifecycle.drain()
            idle = asyncio.create_task(lifecycle.idle())
            if not failed.done() and not serving.done():
                await _first(failed, insists, idle, timeout_s=options.drain_timeout_s)
            if failed.done():  # the engine itself tells running requests what happened
                await _first(insists, idle, timeout_s=CANCEL_TIMEOUT_S)
            lifecycle.end()
            if insists.done():
                # Tasks are cancelled wherever they are: that each of them broke off is no news.
                logging.getLogger("uvicorn.error").disabled = True
                return Ending.FORCED
            await _first(insists, idle, timeout_s=CANCEL_TIMEOUT_S)
            server.should_exit = True
            await _first(serving, insists)
            if serving.done():
                serving.result()
            if not service.healthy:
                raise _fatal(service)
            return Ending.FORCED if insists.done() else Ending.DRAINED
        finally:
            server.force_exit = True
            for task in (serving, failed, insists):
                task.cancel()


class _Server(uvicorn.Server):
    """Signals are ours; when it listens, it says so."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


def _config(app: Starlette, options: RunOptions) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=JsonErrorProtocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=options.access_log,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )


async def _serve(server: _Server, sock: socket.socket) -> None:
    host, port = sock.getsockname()[:2]
    try:
        await server.serve(sockets=[sock])
    except OSError as error:
        raise _cannot_listen(host, port, error) from None


@contextmanager
def _signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Events of the first and of the second SIGTERM or Ctrl-C."""
    loop = asyncio.get_running_loop()
    asked, insisted = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (insisted if asked.is_set() else asked).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        yield asked, insisted
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _failed(service: Service) -> None:
    while service.healthy:
        await asyncio.sleep(HEALTH_PERIOD_S)


def _fatal(service: Service) -> FastServeError:
    failure = service.failure
    if isinstance(failure, FastServeError):
        return failure
    return FastServeError(f"the engine failed: {failure!r}" if failure else "the engine failed")


async def _first(*tasks: asyncio.Task[object], timeout_s: float | None = None) -> None:
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
