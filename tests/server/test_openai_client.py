"""The official client takes what we send."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import httpx
import openai
import pytest

from fastserve.errors import OverloadedError, RankLostError
from fastserve.testing.fake_service import FakeService

pytestmark = pytest.mark.anyio
Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
MODEL = "fake-model"


@pytest.fixture
async def api(serve: Serve) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serve(api_keys=["secret"]) as client,
        openai.AsyncOpenAI(
            base_url=f"{client.base_url}/v1", api_key="secret", max_retries=0, http_client=httpx.AsyncClient()
        ) as api,
    ):
        yield api


async def test_models(api: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in api.models.list()] == [MODEL]
    assert (await api.models.retrieve(MODEL)).owned_by == "fastserve"


async def test_chat_whole_and_streamed(api: openai.AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "w1 w2"}]
    whole = await api.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=3, logprobs=True, top_logprobs=1
    )
    assert whole.choices[0].message.content == "w1 w2 w1 "
    assert whole.choices[0].logprobs is not None
    assert whole.usage is not None
    assert whole.usage.total_tokens == 5
    text, usage = "", None
    stream = await api.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=3, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage == whole.usage


async def test_completion_whole_and_streamed_with_extra_fields(
    api: openai.AsyncOpenAI, service: FakeService
) -> None:
    extra = {"top_k": 3, "ignore_eos": True}
    whole = await api.completions.create(
        model=MODEL, prompt="w1 w2", max_tokens=3, logprobs=2, n=2, extra_body=extra
    )
    assert [choice.text for choice in whole.choices] == ["w1 w2 w1 ", "w2 w3 w2 "]
    assert service.asked[0][1].top_k == 3
    text = ""
    async for chunk in await api.completions.create(model=MODEL, prompt="w1 w2", max_tokens=3, stream=True):
        text += chunk.choices[0].text
    assert text == whole.choices[0].text


async def test_errors_become_the_clients_own_types(api: openai.AsyncOpenAI, service: FakeService) -> None:
    with pytest.raises(openai.BadRequestError, match="n must be in") as bad:
        await api.completions.create(model=MODEL, prompt="w1", n=1000)
    assert bad.value.param == "n"
    with pytest.raises(openai.NotFoundError):
        await api.completions.create(model="other", prompt="w1")
    with pytest.raises(openai.AuthenticationError):
        await api.with_options(api_key="wrong").models.list()
    service.refuse = OverloadedError("full", retry_after_s=1)
    with pytest.raises(openai.RateLimitError):
        await api.completions.create(model=MODEL, prompt="w1")


async def test_a_failure_inside_a_stream_raises(api: openai.AsyncOpenAI, service: FakeService) -> None:
    service.fail_after = (1, RankLostError("rank 1 died"))
    with pytest.raises(openai.APIError, match="rank 1 died"):
        async for _ in await api.completions.create(model=MODEL, prompt="w1", stream=True):
            pass
