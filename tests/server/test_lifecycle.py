"""Clients that leave free what they held; a draining server finishes what runs and lets nobody in."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import httpx
import pytest

from fastserve.server.errors import ApiError
from fastserve.server.lifecycle import Lifecycle
from fastserve.testing.fake_service import FakeService

pytestmark = pytest.mark.anyio
COMPLETIONS = "/v1/completions"
SOON_S = 10  # an event that should come at once; only a failure waits so long


async def soon(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), SOON_S)


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_its_request(
    client: httpx.AsyncClient, service: FakeService, lifecycle: Lifecycle, path: str, stream: bool
) -> None:
    service.hold_after = 2
    body: dict[str, Any] = {"stream": stream, "prompt": "w1"}
    body["messages"] = [{"role": "user", "content": "w1"}]
    request = asyncio.create_task(client.post(path, json=body))
    await soon(service.on_running)
    assert len(service.running) == 1
    request.cancel()
    await soon(service.on_aborted)
    assert service.running == set()
    await asyncio.wait_for(lifecycle.idle(), SOON_S)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_all_its_prompts(
    client: httpx.AsyncClient, service: FakeService, lifecycle: Lifecycle, stream: bool
) -> None:
    service.hold_after = 1
    body = {"stream": stream, "prompt": ["w1", "w2", "w3"]}
    request = asyncio.create_task(client.post(COMPLETIONS, json=body))
    await soon(service.on_running)
    request.cancel()
    await asyncio.wait_for(lifecycle.idle(), SOON_S)
    assert service.running == set()
    assert len(service.aborted) == len(service.asked) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_one_prompt_that_fails_ends_the_others(
    client: httpx.AsyncClient, service: FakeService, stream: bool
) -> None:
    service.fail_after = (3, RuntimeError("broken"))
    await client.post(COMPLETIONS, json={"stream": stream, "prompt": ["w1", "w2", "w3"]})
    assert service.running == set()


async def test_while_draining_new_requests_get_503_and_running_ones_finish(
    client: httpx.AsyncClient, service: FakeService, lifecycle: Lifecycle
) -> None:
    service.hold_after = 1
    running = asyncio.create_task(client.post(COMPLETIONS, json={"prompt": "w1", "max_tokens": 4}))
    await soon(service.on_running)
    lifecycle.drain()

    refused = await client.post(COMPLETIONS, json={"prompt": "w1"})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    assert int(refused.headers["retry-after"]) > 0
    health = await client.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "draining"})

    service.release.set()
    assert (await running).json()["choices"][0]["text"] == "w1 w1 w1 w1 "
    await asyncio.wait_for(lifecycle.idle(), SOON_S)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_outlives_the_drain_is_cancelled_and_told_so(
    client: httpx.AsyncClient, service: FakeService, lifecycle: Lifecycle, stream: bool
) -> None:
    service.hold_after = 1
    running = asyncio.create_task(client.post(COMPLETIONS, json={"prompt": "w1", "stream": stream}))
    await soon(service.on_running)
    lifecycle.end()
    response = await asyncio.wait_for(running, SOON_S)
    assert response.status_code == (200 if stream else 503)
    assert "shutting_down" in response.text
    assert service.running == set()


async def test_num_running_counts_stays_also_when_they_fail() -> None:
    lifecycle = Lifecycle()
    with suppress(KeyError), lifecycle.running():
        assert lifecycle.num_running == 1
        raise KeyError
    assert lifecycle.num_running == 0
    lifecycle.drain()
    with pytest.raises(ApiError), lifecycle.running():
        pass
