"""Every failure is {"error": {"message", "type", "param", "code"}} with the status that fits."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from fastserve.errors import CapacityError, FastServeError, GroupError, OverloadedError, RankLostError
from fastserve.server.errors import to_api_error
from fastserve.testing.fake_service import FakeService

pytestmark = pytest.mark.anyio
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "w1"}]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


async def test_unknown_route_and_wrong_method_are_json(client: httpx.AsyncClient) -> None:
    assert error_of(await client.get("/v2/nothing"), 404)["code"] == "not_found"
    response = await client.get(COMPLETIONS)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert "POST" in response.headers["allow"]
    assert error_of(await client.post("/v1/models"), 405)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"prompt": "\\ud800"}', b"\xff\xfe", b'{"prompt": "a", "n": 1e999}'],
)
async def test_malformed_json_is_a_400(client: httpx.AsyncClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    error_of(await client.post(COMPLETIONS, content=body, headers=headers), 400)


async def test_deep_nesting_is_a_400(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    for field in ("prompt", "metadata", "response_format", "guided_json"):
        body = f'{{"prompt": "a", "{field}": '.encode() + b"[" * 200_000
        error_of(await client.post(COMPLETIONS, content=body, headers=headers), 400)


async def test_a_body_that_is_not_json_by_name_is_a_415(client: httpx.AsyncClient) -> None:
    response = await client.post(
        COMPLETIONS, content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"}
    )
    assert error_of(response, 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", -1),
        ("n", 129),
        ("n", 2**63),
        ("n", 10**40),
        ("n", "2"),
        ("n", 1.5),
        ("max_tokens", 0),
        ("max_tokens", -5),
        ("max_tokens", 2**64),
        ("min_tokens", 17),
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 2**31),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", ""),
        ("stop", ["a"] * 17),
        ("stop", [1]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [100]),
        ("logit_bias", {"100": 1.0}),
        ("logit_bias", {"-1": 1.0}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {str(idx): 1 for idx in range(1025)}),
        ("logprobs", 21),
        ("logprobs", -1),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("best_of", 2),
        ("suffix", "end"),
        ("response_format", {"type": "json_object"}),
        ("guided_json", {"type": "object"}),
        ("use_beam_search", True),
        ("prompt", ""),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", ["a", 1]),
        ("prompt", [100]),
        ("prompt", [-1]),
        ("prompt", [2**70]),
        ("prompt", [[1], ["a"]]),
        ("prompt", {"a": 1}),
        ("prompt", None),
        ("prompt", [True]),
        ("model", 3),
    ],
)
async def test_a_bad_field_of_a_completion_is_named(
    client: httpx.AsyncClient, service: FakeService, field: str, value: Any
) -> None:
    error = error_of(await client.post(COMPLETIONS, json={"prompt": "w1", field: value}), 400)
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"
    assert service.asked == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", []),
        ("messages", "hello"),
        ("messages", [{"content": "w1"}]),
        ("messages", [{"role": "pirate", "content": "w1"}]),
        ("messages", [{"role": "tool", "content": "w1"}]),
        ("messages", [{"role": "assistant", "content": "w1"}]),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        ),
        ("messages", [{"role": "assistant", "tool_calls": [{"id": "1"}]}]),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("modalities", ["text", "audio"]),
        ("chat_template", "{{ 1 }}"),
        ("top_logprobs", 3),
        ("echo", True),
        ("logprobs", 3),
        ("max_tokens", 0),
    ],
)
async def test_a_bad_field_of_a_chat_is_named(
    client: httpx.AsyncClient, service: FakeService, field: str, value: Any
) -> None:
    error = error_of(await client.post(CHAT, json={"messages": USER, field: value}), 400)
    assert error["param"] == field
    assert service.asked == []


async def test_a_missing_field_is_named(client: httpx.AsyncClient) -> None:
    assert error_of(await client.post(COMPLETIONS, json={}), 400)["param"] == "prompt"
    assert error_of(await client.post(CHAT, json={}), 400)["param"] == "messages"


async def test_unknown_model_is_a_404_that_names_the_one_here(client: httpx.AsyncClient) -> None:
    for response in (
        await client.post(COMPLETIONS, json={"model": "gpt-9", "prompt": "w1"}),
        await client.post(CHAT, json={"model": "gpt-9", "messages": USER}),
        await client.get("/v1/models/gpt-9"),
    ):
        error = error_of(response, 404)
        assert error["code"] == "model_not_found"
        assert "fake-model" in error["message"]


async def test_a_base_model_asked_to_chat_is_a_400(client: httpx.AsyncClient, service: FakeService) -> None:
    service.chat_template.broken = True
    assert error_of(await client.post(CHAT, json={"messages": USER}), 400)["code"] == "cannot_chat"


async def test_overlong_prompts_are_refused_with_the_numbers(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        (COMPLETIONS, {"prompt": [1] * 64, "max_tokens": 1}, "64"),
        (COMPLETIONS, {"prompt": [1] * 60, "max_tokens": 5}, "60"),
        (COMPLETIONS, {"prompt": "x" * (64 * 256 + 1)}, "64"),
        (CHAT, {"messages": [{"role": "user", "content": "w1 " * 64}]}, "64"),
    ]
    for path, body, number in cases:
        error = error_of(await client.post(path, json=body), 400)
        assert error["code"] == "context_length_exceeded"
        assert number in error["message"]
    assert service.asked == []
    fits = await client.post(COMPLETIONS, json={"prompt": [1] * 60, "max_tokens": 4})
    assert fits.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (CapacityError("needs 9 blocks, 4 exist"), 400),
        (ValueError("min_tokens must be small, got 9"), 400),
        (OverloadedError("1024 requests wait", retry_after_s=2.2), 429),
        (RankLostError("rank 1 died"), 503),
        (GroupError("the group ended"), 503),
        (FastServeError("disk full"), 500),
        (RuntimeError("a secret of ours"), 500),
    ],
)
async def test_a_refusal_has_its_status_also_when_streaming(
    client: httpx.AsyncClient, service: FakeService, raised: Exception, status: int, stream: bool
) -> None:
    service.refuse = raised
    response = await client.post(COMPLETIONS, json={"prompt": ["w1", "w2"], "stream": stream})
    error = error_of(response, status)
    assert "secret" not in error["message"]
    if status == 429:
        assert response.headers["retry-after"] == "3"


async def test_a_failure_inside_a_stream_is_its_last_event(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    service.fail_after = (2, RankLostError("rank 1 died"))
    response = await client.post(COMPLETIONS, json={"prompt": "w1", "stream": True})
    assert response.status_code == 200
    framed = [part.removeprefix("data: ") for part in response.text.split("\n\n") if part]
    assert json.loads(framed[-2])["error"]["message"] == "rank 1 died"
    assert framed[-1] == "[DONE]"


async def test_a_request_that_is_no_http_gets_json_too(client: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"NOT HTTP AT ALL\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_an_unknown_error_keeps_its_text_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    error = to_api_error(KeyError("inner detail"))
    assert error.status == 500
    assert "inner detail" not in error.message
    assert "inner detail" in caplog.text
