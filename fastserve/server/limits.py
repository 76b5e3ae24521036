"""What a stranger may ask for: caps that hold by default, and the key that opens the door."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.types import Receive, Scope

from fastserve.server.errors import ApiError, ClientGoneError, bad_request

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sampling's own ranges (n, stop, logprobs, logit_bias) are SamplingParams'; these come on top."""

    max_body_bytes: int = 4 * MIB  # a prompt of 128k tokens as text is under 1 MiB
    max_header_bytes: int = 32 * 1024  # all header lines together
    max_prompts: int = 128  # prompts of one /v1/completions
    max_choices: int = 256  # prompts times n: what one request may occupy
    body_timeout_s: float = 60.0  # from the headers to the last byte of the body

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_header_bytes", "max_prompts", "max_choices", "body_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")


def check_headers(scope: Scope, limits: Limits) -> None:
    size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size > limits.max_header_bytes:
        raise bad_request(
            f"the headers take {size} bytes, at most {limits.max_header_bytes} are read",
            code="headers_too_large",
        )


def header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def check_api_key(scope: Scope, api_keys: Sequence[bytes]) -> None:
    """Raises 401 unless the request bears one of the keys. How long it takes says nothing about any key."""
    if not api_keys:
        return
    scheme, _, given = (header(scope, b"authorization") or b"").partition(b" ")
    if not matches_any(given.strip(), api_keys) or scheme.lower() != b"bearer":
        raise ApiError(
            401,
            "wrong or missing API key: send it as 'Authorization: Bearer KEY'",
            None,
            "invalid_api_key",
            {"WWW-Authenticate": "Bearer"},
        )


def matches_any(given: bytes, api_keys: Iterable[bytes]) -> bool:
    found = False
    for key in api_keys:  # no early exit: which key matched must not show in the time either
        found |= hmac.compare_digest(given, key)
    return found


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the body exceeds {limits.max_body_bytes} bytes", None, "body_too_large")


async def read_body(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    """The whole body. Raises 413 as soon as it is known to be too large and 408 when it does not end.

    Raises ClientGoneError if the client leaves first.
    """
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared[:20]) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            return await _read_all(receive, limits)
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_timeout_s:g} s"
        raise ApiError(408, message, None, "body_timeout") from None


async def _read_all(receive: Receive, limits: Limits) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > limits.max_body_bytes:
            raise _too_large(limits)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
