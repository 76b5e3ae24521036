"""Both endpoints, whole and streamed, as raw HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from fastserve.testing.fake_service import FakeService

pytestmark = pytest.mark.anyio
MODEL = "fake-model"


async def complete(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json={"model": MODEL, "prompt": "w1 w2 w3", **body})
    assert response.status_code == 200, response.text
    return response.json()


async def chat(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "w1 w2 w3"}]
    response = await client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, **body})
    assert response.status_code == 200, response.text
    return response.json()


async def events(client: httpx.AsyncClient, path: str, **body: Any) -> list[dict[str, Any]]:
    async with client.stream("POST", path, json={"model": MODEL, "stream": True, **body}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_models_lists_the_model_and_its_context(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [MODEL]
    assert listed["data"][0]["max_model_len"] == 64
    assert (await client.get(f"/v1/models/{MODEL}")).json() == listed["data"][0]


async def test_health_is_ok_until_the_engine_fails(client: httpx.AsyncClient, service: FakeService) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}
    service.healthy, service.failure = False, RuntimeError("rank 1 died")
    response = await client.get("/health")
    assert response.status_code == 503
    assert "rank 1 died" in response.json()["status"]


async def test_metrics_are_prometheus_text(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics")
    assert "fastserve_fake_total 1.0" in response.text
    assert response.headers["content-type"].startswith("text/plain")


async def test_completion_answers_with_text_finish_reason_and_usage(client: httpx.AsyncClient) -> None:
    answer = await complete(client, max_tokens=4)
    assert answer["object"] == "text_completion"
    assert answer["model"] == MODEL
    assert answer["id"].startswith("cmpl-")
    choice = answer["choices"][0]
    assert choice["text"] == "w1 w2 w3 w1 "
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


async def test_chat_answers_as_the_assistant(client: httpx.AsyncClient) -> None:
    answer = await chat(client, max_completion_tokens=2)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "w1 w2 "}
    assert answer["usage"]["completion_tokens"] == 2


async def test_every_form_of_prompt_gives_its_ids(client: httpx.AsyncClient, service: FakeService) -> None:
    forms: list[tuple[Any, list[list[int]]]] = [
        ("w5 w6", [[5, 6]]),
        (["w5", "w6 w7"], [[5], [6, 7]]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ]
    for prompt, ids in forms:
        service.asked.clear()
        await complete(client, prompt=prompt, max_tokens=1)
        assert [asked[0] for asked in service.asked] == ids


async def test_prompts_times_n_choices_are_numbered_prompt_by_prompt(client: httpx.AsyncClient) -> None:
    answer = await complete(client, prompt=["w10", "w20"], n=2, max_tokens=1)
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [
        (0, "w10 "),
        (1, "w11 "),
        (2, "w20 "),
        (3, "w21 "),
    ]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}


async def test_sampling_fields_reach_the_engine(client: httpx.AsyncClient, service: FakeService) -> None:
    given = {
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.3,
        "seed": 42,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }
    await complete(client, max_tokens=3, stop="end", stop_token_ids=[9], logit_bias={"8": -1.5}, **given)
    await chat(client, max_tokens=3, stop=["end"], stop_token_ids=[9], logit_bias={"8": -1.5}, **given)
    for _, params, _ in service.asked:
        assert {name: getattr(params, name) for name in given} == given
        assert params.max_tokens == 3
        assert params.stop == ("end",)
        assert params.stop_token_ids == (9,)
        assert params.logit_bias == {8: -1.5}


async def test_max_tokens_defaults_to_16_and_in_a_chat_to_the_context(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    await complete(client)
    await chat(client)
    assert [params.max_tokens for _, params, _ in service.asked] == [16, None]


async def test_null_fields_are_defaults(client: httpx.AsyncClient, service: FakeService) -> None:
    await complete(client, temperature=None, stop=None, n=None, stream=None, logprobs=None, seed=None)
    assert service.asked[0][1].temperature == 1.0
    assert service.asked[0][1].n == 1


async def test_unknown_fields_are_ignored(client: httpx.AsyncClient) -> None:
    await complete(client, user="me", metadata={"a": [1]}, no_such_field=3)
    await chat(client, store=False, reasoning_effort="low")


async def test_streamed_completion_is_the_whole_one_in_pieces(client: httpx.AsyncClient) -> None:
    whole = await complete(client, prompt=["w1 w2", "w7"], n=2, max_tokens=5)
    chunks = await events(client, "/v1/completions", prompt=["w1 w2", "w7"], n=2, max_tokens=5)
    texts: dict[int, str] = {}
    for chunk in chunks:
        assert chunk["object"] == "text_completion"
        assert "usage" not in chunk
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert texts == {choice["index"]: choice["text"] for choice in whole["choices"]}
    assert len(chunks) > 4
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_streamed_chat_opens_with_the_role_and_ends_with_a_reason(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "w1"}]
    chunks = await events(client, "/v1/chat/completions", messages=messages, max_tokens=3)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:]] == ["w1 ", "w1 ", "w1 "]
    assert all("role" not in delta for delta in deltas[1:])
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None, None, None, "length"]


async def test_usage_comes_in_a_last_chunk_when_asked_for(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True}
    chunks = await events(client, "/v1/completions", prompt="w1 w2", max_tokens=3, stream_options=options)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_completion_logprobs_have_four_parallel_lists(client: httpx.AsyncClient) -> None:
    answer = await complete(client, logprobs=2, max_tokens=2)
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["w1 ", "w2 "],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"w1 ": -0.5, "w2 ": -1.5}, {"w2 ": -0.5, "w3 ": -1.5}],
        "text_offset": [0, 3],
    }


async def test_streamed_logprobs_are_the_whole_ones_in_pieces(client: httpx.AsyncClient) -> None:
    whole = (await complete(client, logprobs=1, max_tokens=4, echo=True))["choices"][0]["logprobs"]
    chunks = await events(client, "/v1/completions", prompt="w1 w2 w3", logprobs=1, max_tokens=4, echo=True)
    pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    for name in whole:
        assert [item for piece in pieces for item in piece[name]] == whole[name]


async def test_echo_with_logprobs_scores_the_prompt(client: httpx.AsyncClient) -> None:
    answer = await complete(client, prompt=[1, 2, 3], echo=True, logprobs=0, max_tokens=1)
    choice = answer["choices"][0]
    assert choice["text"] == "w1 w2 w3 w1 "
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5, -0.5]
    assert choice["logprobs"]["text_offset"] == [0, 3, 6, 9]


async def test_echo_repeats_the_prompt_as_it_was_written(client: httpx.AsyncClient) -> None:
    answer = await complete(client, prompt=["w1   w2", "w7"], n=2, echo=True, max_tokens=1)
    assert [choice["text"] for choice in answer["choices"]] == ["w1   w2w1 ", "w1   w2w2 ", "w7w7 ", "w7w8 "]


async def test_echo_with_no_tokens_is_the_scored_prompt_alone(client: httpx.AsyncClient) -> None:
    answer = await complete(client, prompt=[1, 2, 3], echo=True, logprobs=1, max_tokens=0)
    choice = answer["choices"][0]
    assert choice["text"] == "w1 w2 w3 "
    assert choice["logprobs"]["tokens"] == ["w1 ", "w2 ", "w3 "]
    assert answer["usage"]["completion_tokens"] == 0


async def test_chat_logprobs_hold_bytes_and_the_likeliest(client: httpx.AsyncClient) -> None:
    answer = await chat(client, logprobs=True, top_logprobs=2, max_tokens=1)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 1
    assert content[0]["token"] == "w1 "
    assert content[0]["bytes"] == list(b"w1 ")
    assert [top["token"] for top in content[0]["top_logprobs"]] == ["w1 ", "w2 "]


async def test_chat_content_may_come_in_text_parts(client: httpx.AsyncClient, service: FakeService) -> None:
    parts = [{"type": "text", "text": "w1 "}, {"type": "text", "text": "w2"}]
    messages = [{"role": "developer", "content": "w9"}, {"role": "user", "content": parts}]
    await chat(client, messages=messages, max_tokens=1)
    assert service.asked[0][0] == [9, 1, 2]
