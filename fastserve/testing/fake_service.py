"""A service without a model: it answers with the prompt's words, one token a step, and keeps a diary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from fastserve.errors import ModelConfigError
from fastserve.request import (
    CompletionOutput,
    FinishReason,
    Logprob,
    RequestOutput,
    SamplingParams,
    TokenLogprobs,
)

WORDS = [f"w{idx} " for idx in range(100)]


class FakeTokenizer:
    vocab_size = len(WORDS)

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        return [int(word[1:]) if word[1:].isdigit() else len(word) for word in text.split()]

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        return "".join(map(self.token_text, ids))

    def token_text(self, token_id: int) -> str:
        return WORDS[token_id]

    def token_bytes(self, token_id: int) -> bytes:
        return WORDS[token_id].encode()


class FakeTemplate:
    def __init__(self) -> None:
        self.broken = False

    def render_ids(self, messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
        if self.broken:
            raise ModelConfigError("this model has no chat template")
        if messages[0]["role"] == "assistant":
            raise ValueError("the conversation must not open with the assistant")
        text = " ".join(message["content"] for message in messages)
        return list(tokenizer.encode(text, add_special=False))


def logprobs_of(token_id: int, num_top: int) -> TokenLogprobs:
    top = [Logprob((token_id + rank) % 100, -0.5 - rank, rank + 1) for rank in range(num_top)]
    named = [Logprob(item.token_id, item.logprob, item.rank, WORDS[item.token_id]) for item in top]
    return TokenLogprobs(Logprob(token_id, -0.5, 1, WORDS[token_id]), tuple(named))


class FakeService:
    """`hold` makes every request stop after `hold_after` tokens until `release` is set."""

    def __init__(self) -> None:
        self.tokenizer = FakeTokenizer()
        self.chat_template = FakeTemplate()
        self.metrics = CollectorRegistry()
        Counter("fastserve_fake", "a counter to be seen", registry=self.metrics).inc()
        self.healthy = True
        self.failure: BaseException | None = None
        self.max_model_len = 64
        self.asked: list[tuple[list[int], SamplingParams, str]] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.on_running = asyncio.Event()
        self.on_aborted = asyncio.Event()
        self.hold_after: int | None = None
        self.release = asyncio.Event()
        self.refuse: Exception | None = None
        self.fail_after: tuple[int, Exception] | None = None

    async def generate(
        self, prompt_token_ids: list[int], params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        self.asked.append((prompt_token_ids, params, request_id))
        if self.refuse is not None:
            raise self.refuse
        self.running.add(request_id)
        finished = False
        try:
            num_tokens = params.max_tokens or 8
            for count in range(1, num_tokens + 1):
                if self.fail_after is not None and count > self.fail_after[0]:
                    raise self.fail_after[1]
                if self.hold_after is not None and count > self.hold_after:
                    self.on_running.set()
                    await self.release.wait()
                await asyncio.sleep(0)
                finished = count == num_tokens
                yield self._output(prompt_token_ids, params, request_id, count, finished)
        finally:
            self.running.discard(request_id)
            if not finished:
                self.aborted.append(request_id)
                self.on_aborted.set()

    def _output(
        self, prompt: list[int], params: SamplingParams, request_id: str, count: int, finished: bool
    ) -> RequestOutput:
        prompt_logprobs: list[TokenLogprobs | None] | None = None
        if params.prompt_logprobs is not None:
            num_top = params.prompt_logprobs
            prompt_logprobs = [None, *(logprobs_of(token, num_top) for token in prompt[1:])]
        outputs = []
        for index in range(params.n):
            ids = [(prompt[pos % len(prompt)] + index) % 100 for pos in range(count)]
            logprobs = None
            if params.logprobs is not None:
                logprobs = [logprobs_of(token, params.logprobs) for token in ids]
            reason: FinishReason | None = "length" if finished else None
            outputs.append(
                CompletionOutput(index, self.tokenizer.decode(ids, skip_special=True), ids, logprobs, reason)
            )
        return RequestOutput(request_id, None, prompt, outputs, finished, prompt_logprobs)
