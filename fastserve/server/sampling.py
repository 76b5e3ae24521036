"""SamplingParams of a wire request: what was not given keeps its default there, as do the ranges."""

from __future__ import annotations

from typing import Any

from fastserve.request import SamplingParams
from fastserve.server.errors import bad_request
from fastserve.server.openai import ChatRequest, CompletionRequest, SamplingRequest

_SAME_NAME = [
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "n",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "logit_bias",
]


def completion_params(request: CompletionRequest) -> SamplingParams:
    """With echo, max_tokens 0 scores the prompt alone: one token is drawn and left out of the answer."""
    given = _given(request)
    if request.max_tokens is not None:
        given["max_tokens"] = 1 if only_echoes(request) else request.max_tokens
    if request.logprobs is not None:
        given["logprobs"] = request.logprobs
        if request.echo:
            given["prompt_logprobs"] = request.logprobs
    return SamplingParams(**given)


def only_echoes(request: CompletionRequest) -> bool:
    return bool(request.echo) and request.max_tokens == 0


def chat_params(request: ChatRequest) -> SamplingParams:
    given = _given(request)
    if request.max_completion_tokens is not None:
        given["max_tokens"] = request.max_completion_tokens
    else:
        given["max_tokens"] = request.max_tokens
    if request.logprobs:
        given["logprobs"] = request.top_logprobs or 0
    elif request.top_logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", param="top_logprobs")
    return SamplingParams(**given)


def _given(request: SamplingRequest) -> dict[str, Any]:
    values = {name: getattr(request, name) for name in _SAME_NAME}
    return {name: value for name, value in values.items() if value is not None}
