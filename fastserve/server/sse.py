"""Server-sent events: framing, and sending them for as long as somebody reads."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.types import Receive, Send

from fastserve.server.errors import ClientGoneError, to_api_error
from fastserve.server.lifecycle import Lifecycle

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back otherwise
]


def event(payload: bytes) -> bytes:
    """One event. JSON holds no line break, so one data line is always enough."""
    return b"data: " + payload + b"\n\n"


async def send_events(
    events: AsyncGenerator[bytes, None], *, lifecycle: Lifecycle, receive: Receive, send: Send
) -> None:
    """Sends the events. What fails before the first one is raised, to get a status of its own; later it
    becomes an event. When the client leaves, `events` is closed and ClientGoneError raised."""
    started = False

    async def forward() -> None:
        nonlocal started
        async with aclosing(events):
            async for framed in events:
                if not started:
                    started = True
                    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await send({"type": "http.response.body", "body": framed, "more_body": True})

    try:
        await lifecycle.while_wanted(forward(), receive)
    except ClientGoneError:
        raise
    except Exception as error:
        if not started:
            raise
        framed = event(to_api_error(error).body()) + DONE
        await send({"type": "http.response.body", "body": framed, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
