"""HTTP/1.1 on the wire: uvicorn's, except that a request which is no HTTP gets its error as JSON too."""

from __future__ import annotations

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastserve.server.errors import bad_request


class JsonErrorProtocol(H11Protocol):
    def send_400_response(self, msg: str) -> None:
        body = bad_request(msg, code="invalid_http").body()
        headers = [("content-type", "application/json"), ("connection", "close")]
        try:
            parts = (
                h11.Response(status_code=400, headers=[*headers, ("content-length", str(len(body)))]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for part in parts:
                self.transport.write(self.conn.send(part) or b"")
        except h11.LocalProtocolError:
            pass  # an answer is already on its way; there is no room for another
        self.transport.close()
