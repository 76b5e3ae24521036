"""What clients of an OpenAI-compatible server see: streams in closed loops or by chance, in order statistics."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Self

from fastserve.benchmark.summary import percentile

if TYPE_CHECKING:
    import aiohttp

DATA = b"data: "
DONE = b"data: [DONE]"
REQUEST_TIMEOUT_S = 600
VOCAB_SIZE = 30_000  # ids below it are words in any model's vocabulary


@dataclass(frozen=True, slots=True)
class Trace:
    """One request: when it was sent, and when each piece of its answer came."""

    sent_s: float
    arrivals_s: tuple[float, ...]
    num_tokens: int  # as the server counts them

    @property
    def ttft_s(self) -> float:
        return self.arrivals_s[0] - self.sent_s

    @property
    def gaps_s(self) -> list[float]:
        return [later - sooner for sooner, later in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class ServingFigures:
    num_requests: int
    tokens_per_s: float  # generated, from the first request sent to the last piece received
    ttft_p50_s: float
    ttft_p99_s: float
    inter_token_p50_s: float
    inter_token_p99_s: float

    @classmethod
    def of(cls, traces: Sequence[Trace]) -> Self:
        """Raises ValueError without traces, or if no answer came in more than one piece."""
        if not traces:
            raise ValueError("traces must hold at least one, got none")
        ttfts = [trace.ttft_s for trace in traces]
        gaps = [gap for trace in traces for gap in trace.gaps_s]
        seconds = max(trace.arrivals_s[-1] for trace in traces) - min(trace.sent_s for trace in traces)
        return cls(
            num_requests=len(traces),
            tokens_per_s=sum(trace.num_tokens for trace in traces) / seconds,
            ttft_p50_s=percentile(ttfts, 50),
            ttft_p99_s=percentile(ttfts, 99),
            inter_token_p50_s=percentile(gaps, 50),
            inter_token_p99_s=percentile(gaps, 99),
        )

    def __str__(self) -> str:
        ttft = f"p50 {self.ttft_p50_s * 1e3:.0f} ms p99 {self.ttft_p99_s * 1e3:.0f} ms"
        gaps = f"p50 {self.inter_token_p50_s * 1e3:.1f} ms p99 {self.inter_token_p99_s * 1e3:.1f} ms"
        rate = f"{self.tokens_per_s:.1f} tokens/s"
        return f"{rate} | TTFT {ttft} | inter-token {gaps} | {self.num_requests} requests"


async def closed_loops(
    client: aiohttp.ClientSession,
    prompts: Sequence[list[int]],
    *,
    model: str,
    num_clients: int,
    max_tokens: int,
) -> list[Trace]:
    """Every client sends its next request when its last one is answered, until the prompts are used up."""
    left = iter(prompts)
    traces: list[Trace] = []

    async def loop() -> None:
        for prompt in left:  # one iterator: each prompt goes to whoever is free
            traces.append(await stream(client, prompt, model=model, max_tokens=max_tokens))

    await asyncio.gather(*(loop() for _ in range(num_clients)))
    return traces


async def poisson_arrivals(
    client: aiohttp.ClientSession,
    prompts: Sequence[list[int]],
    *,
    model: str,
    rate: float,
    gaps: random.Random,
    max_tokens: int,
) -> list[Trace]:
    """Prompts arrive on their own, `rate` a second on average, whether those before them are answered or not."""

    async def arrive(at_s: float, prompt: list[int]) -> Trace:
        await asyncio.sleep(at_s)
        return await stream(client, prompt, model=model, max_tokens=max_tokens)

    arrivals, at_s = [], 0.0
    for prompt in prompts:
        arrivals.append(arrive(at_s, prompt))
        at_s += gaps.expovariate(rate)
    return await asyncio.gather(*arrivals)


def run_closed_loops(
    url: str, prompts: Sequence[list[int]], *, num_clients: int, max_tokens: int
) -> list[Trace]:
    """Against a server, over connections of their own."""

    async def run() -> list[Trace]:
        async with connect(url, num_clients) as (client, model):
            return await closed_loops(
                client, prompts, model=model, num_clients=num_clients, max_tokens=max_tokens
            )

    return asyncio.run(run())


def run_poisson_arrivals(
    url: str, prompts: Sequence[list[int]], *, rate: float, gaps: random.Random, max_tokens: int
) -> list[Trace]:
    """Against a server, over connections of their own."""

    async def run() -> list[Trace]:
        async with connect(url, len(prompts)) as (client, model):
            return await poisson_arrivals(
                client, prompts, model=model, rate=rate, gaps=gaps, max_tokens=max_tokens
            )

    return asyncio.run(run())


@asynccontextmanager
async def connect(url: str, max_connections: int) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A client of the server, and what its model is called.

    It shares cores with the server: aiohttp takes 75 us for a piece of an answer, httpx 200.
    """
    import aiohttp  # not of the core installation

    connector = aiohttp.TCPConnector(limit=max_connections)
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(base_url=url, connector=connector, timeout=timeout) as client:
        async with client.get("/v1/models") as answer:
            models = await answer.json()
        yield client, models["data"][0]["id"]


async def stream(client: aiohttp.ClientSession, prompt: list[int], *, model: str, max_tokens: int) -> Trace:
    """One completion of exactly max_tokens. Raises RuntimeError with the server's words if it refuses."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    arrivals: list[float] = []
    num_tokens = 0
    sent = perf_counter()
    async with client.post("/v1/completions", json=body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"HTTP {answer.status}: {await answer.text()}")
        async for line in answer.content:
            if line.startswith(DONE):
                break
            if not line.startswith(DATA):
                continue
            now = perf_counter()
            usage, has_choice = read_event(line)
            num_tokens = usage or num_tokens
            if has_choice:
                arrivals.append(now)
    if not arrivals:
        raise RuntimeError("the server ended the stream without an answer")
    return Trace(sent, tuple(arrivals), num_tokens or len(arrivals))


def read_event(line: bytes) -> tuple[int | None, bool]:
    """(completion tokens if the event tells them, whether it brings a piece of an answer)."""
    event = json.loads(line.removeprefix(DATA))
    if "error" in event:
        raise RuntimeError(f"the server broke off: {event['error']}")
    usage = event.get("usage")
    return (usage["completion_tokens"] if usage else None), bool(event.get("choices"))
