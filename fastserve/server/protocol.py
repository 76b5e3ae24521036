"""HTTP/1.1 on the wire: uvicorn's, except that a request which is no HTTP gets its error as JSON too, and that a
client which does not finish the head of its request is not waited for."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastserve.server.errors import ApiError, bad_request

HEAD_TIMEOUT_S = 60.0  # from the connection, or the first byte after an answer, to the end of the headers


class JsonErrorProtocol(H11Protocol):
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._watch_head()
        else:
            self._forget_head()

    def send_400_response(self, msg: str) -> None:
        self._refuse(bad_request(msg, code="invalid_http"))

    def _watch_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        message = f"the headers did not arrive within {HEAD_TIMEOUT_S:g} s"
        self._refuse(ApiError(408, message, None, "headers_timeout"))

    def _refuse(self, error: ApiError) -> None:
        body = error.body()
        headers = [("content-type", "application/json"), ("connection", "close")]
        try:
            parts = (
                h11.Response(
                    status_code=error.status, headers=[*headers, ("content-length", str(len(body)))]
                ),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for part in parts:
                self.transport.write(self.conn.send(part) or b"")
        except h11.LocalProtocolError:
            pass  # an answer is already on its way; there is no room for another
        self.transport.close()
