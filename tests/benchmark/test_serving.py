"""Figures come from arrival times alone; loops are closed: a client has one request on its way."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from fastserve.benchmark.serving import ServingFigures, Trace, closed_loops, poisson_arrivals, read_event


def test_figures_of_two_requests() -> None:
    traces = [Trace(10.0, (10.5, 10.6, 10.8), 3), Trace(10.2, (11.2, 12.0), 2)]
    figures = ServingFigures.of(traces)
    assert figures.num_requests == 2
    assert figures.tokens_per_s == pytest.approx(5 / 2.0)
    assert figures.ttft_p50_s == pytest.approx(0.75)
    assert figures.ttft_p99_s == pytest.approx(0.995)
    assert figures.inter_token_p50_s == pytest.approx(0.2)
    assert figures.inter_token_p99_s == pytest.approx(0.788)


def test_figures_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="traces must hold at least one"):
        ServingFigures.of([])


def test_events_tell_pieces_from_usage() -> None:
    assert read_event(b'data: {"choices": [{"text": "a"}]}') == (None, True)
    assert read_event(b'data: {"choices": [], "usage": {"completion_tokens": 7}}') == (7, False)
    with pytest.raises(RuntimeError, match="broke off: lost"):
        read_event(b'data: {"error": "lost"}')


class Server:
    """Streams two pieces and the usage; counts how many requests are open at once."""

    def __init__(self, status: int = 200) -> None:
        self.open, self.most_open, self.prompts = 0, 0, []
        self._status = status

    async def complete(self, request: web.Request) -> web.Response:
        self.prompts.append((await request.json())["prompt"])
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(0)
        self.open -= 1
        pieces = [{"choices": [{"text": "x"}]}] * 2 + [{"choices": [], "usage": {"completion_tokens": 5}}]
        text = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
        return web.Response(status=self._status, text=text)


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    application = web.Application()
    application.router.add_post("/v1/completions", server.complete)
    async with (
        TestServer(application) as served,
        aiohttp.ClientSession(base_url=served.make_url("/")) as client,
    ):
        yield client


def run(server: Server, prompts: list[list[int]], num_clients: int) -> list[Trace]:
    async def measured() -> list[Trace]:
        async with client_of(server) as client:
            return await closed_loops(client, prompts, model="m", num_clients=num_clients, max_tokens=5)

    return asyncio.run(measured())


def test_every_prompt_is_sent_once_and_no_client_sends_two_at_a_time() -> None:
    server = Server()
    prompts = [[number] for number in range(7)]
    traces = run(server, prompts, num_clients=3)
    assert sorted(server.prompts) == prompts
    assert 1 <= server.most_open <= 3
    assert [(len(trace.arrivals_s), trace.num_tokens) for trace in traces] == [(2, 5)] * 7


def test_poisson_arrivals_do_not_wait_for_answers() -> None:
    server = Server()
    prompts = [[number] for number in range(40)]

    async def measured() -> list[Trace]:
        async with client_of(server) as client:
            return await poisson_arrivals(
                client, prompts, model="m", rate=200, gaps=random.Random(1), max_tokens=5
            )

    traces = asyncio.run(measured())
    assert server.prompts == prompts
    sent = [trace.sent_s for trace in traces]
    assert sent == sorted(sent)
    assert sent[-1] - sent[0] == pytest.approx(39 / 200, rel=0.5)


def test_refusal_ends_the_run_with_the_servers_words() -> None:
    with pytest.raises(RuntimeError, match="HTTP 503: data"):
        run(Server(503), [[1]], num_clients=1)
