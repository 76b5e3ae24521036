"""The one place that turns an error into an HTTP answer."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from fastserve.errors import CapacityError, FastServeError, GroupError, OverloadedError
from fastserve.request import SamplingParams

log = logging.getLogger("fastserve.server")

DRAIN_RETRY_AFTER_S = 30  # a restarted server is usually back by then
SAMPLING_PARAMS = frozenset(f.name for f in dataclasses.fields(SamplingParams))

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "internal_server_error",
    503: "service_unavailable_error",
}


@dataclass(slots=True)
class ApiError(Exception):
    """A failure as the client will see it."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> bytes:
        kind = _TYPES.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers, "application/json")


class ClientGoneError(Exception):
    """The client closed the connection: nobody is left to answer."""


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param, code)


def shutting_down() -> ApiError:
    headers = {"Retry-After": str(DRAIN_RETRY_AFTER_S)}
    return ApiError(503, "the server is shutting down", None, "shutting_down", headers)


def to_api_error(error: BaseException) -> ApiError:
    """The HTTP face of any error. What is neither the caller's nor the world's fault is logged, and a 500."""
    match error:
        case ApiError():
            return error
        case HTTPException():
            return _routing_error(error)
        case OverloadedError():
            retry_after_s = max(1, math.ceil(error.retry_after_s))
            return ApiError(429, str(error), None, "overloaded", {"Retry-After": str(retry_after_s)})
        case CapacityError():
            return bad_request(str(error), code="context_length_exceeded")
        case GroupError():
            return ApiError(503, str(error), None, "engine_unavailable")
        case FastServeError():
            log.error("%s: %s", type(error).__name__, error)
            return ApiError(500, str(error), None, "internal_error")
        case ValueError():
            return bad_request(str(error), param=_named_param(str(error)))
    log.error("a request failed", exc_info=error)
    return ApiError(500, "internal error; the server's log says more", None, "internal_error")


def _routing_error(error: HTTPException) -> ApiError:
    headers = error.headers or {}
    match error.status_code:
        case 404:
            return ApiError(404, "no such route", None, "not_found", headers)
        case 405:
            allowed = headers.get("Allow", "another method")
            return ApiError(405, f"this route takes {allowed}", None, "method_not_allowed", headers)
    return ApiError(error.status_code, error.detail, None, None, headers)


def _named_param(message: str) -> str | None:
    """SamplingParams' messages open with the name of the argument that is wrong."""
    word = re.match(r"\w+", message)
    return word[0] if word and word[0] in SAMPLING_PARAMS else None
