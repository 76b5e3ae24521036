"""Request bombs bounce, and nobody enters without the key."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from fastserve.server import limits as limits_module
from fastserve.server.limits import Limits, matches_any
from fastserve.testing.fake_service import FakeService

Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
COMPLETIONS = "/v1/completions"
JSON = {"Content-Type": "application/json"}
ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/fake-model"),
    ("POST", COMPLETIONS),
    ("POST", "/v1/chat/completions"),
    ("GET", "/metrics"),
    ("GET", "/no-such-route"),
    ("GET", "/health/"),
    ("GET", "//health"),
]


@pytest.mark.anyio
@pytest.mark.parametrize("declared", [True, False])
async def test_a_huge_body_is_a_413_whether_declared_or_not(
    serve: Serve, service: FakeService, declared: bool
) -> None:
    async def parts() -> Any:
        for _ in range(20):
            yield b" " * 100

    content = b" " * 2000 if declared else parts()
    async with serve(limits=Limits(max_body_bytes=1000)) as client:
        response = await client.post(COMPLETIONS, content=content, headers=JSON)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        fits = json.dumps({"prompt": "w1"}).encode().ljust(1000)
        assert (await client.post(COMPLETIONS, content=fits, headers=JSON)).status_code == 200


@pytest.mark.anyio
async def test_a_body_cap_holds_by_default(client: httpx.AsyncClient) -> None:
    content = b" " * (Limits().max_body_bytes + 1)
    response = await client.post(COMPLETIONS, content=content, headers=JSON)
    assert response.status_code == 413


@pytest.mark.anyio
async def test_a_body_that_never_ends_is_a_408(serve: Serve) -> None:
    async with serve(limits=Limits(body_timeout_s=0.05)) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Content-Length: 100\r\n\r\n{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()


@pytest.mark.anyio
async def test_big_headers_are_refused(client: httpx.AsyncClient) -> None:
    response = await client.get("/health", headers={"X-Long": "a" * 40_000})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "headers_too_large"
    response = await client.get("/health", headers={"X-Longer": "a" * 200_000})
    assert response.status_code == 400


@pytest.mark.anyio
async def test_prompts_and_choices_are_capped(serve: Serve, service: FakeService) -> None:
    async with serve(limits=Limits(max_prompts=3, max_choices=4)) as client:
        for prompt, n, param in ((["w1"] * 4, 1, "prompt"), (["w1"] * 3, 2, "n"), ("w1", 5, "n")):
            response = await client.post(COMPLETIONS, json={"prompt": prompt, "n": n})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == param
        assert service.asked == []
        assert (await client.post(COMPLETIONS, json={"prompt": ["w1"] * 2, "n": 2})).status_code == 200


@pytest.mark.parametrize("name", ["max_body_bytes", "max_header_bytes", "max_prompts", "max_choices"])
def test_a_limit_of_nothing_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be > 0, got 0"):
        Limits(**{name: 0})


@pytest.mark.anyio
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", "Bearer secret2", "Basic secret", "secret", "Bearer sécret"],
)
async def test_every_route_but_health_needs_the_key(
    serve: Serve, service: FakeService, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    async with serve(api_keys=["secret"]) as client:
        for method, path in ROUTES:
            response = await client.request(method, path, headers=headers)
            assert response.status_code == 401, path
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/health", headers=headers)).status_code == 200
    assert service.asked == []


@pytest.mark.anyio
async def test_any_of_several_keys_opens(serve: Serve) -> None:
    async with serve(api_keys=["first", "sécond"]) as client:
        for key in ("first", "sécond"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert (await client.get("/v1/models", headers=headers)).status_code == 200


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return hmac.compare_digest(given, key)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(limits_module, "hmac", Watched)
    assert matches_any(b"a", [b"a", b"b"])
    assert compared == [(b"a", b"a"), (b"a", b"b")]
    assert not matches_any(b"c", [b"a", b"b"])
    assert not matches_any(b"", [b"a"])
