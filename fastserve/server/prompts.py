"""Token ids of what a request brings: one or many prompts, as text or ids, or a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from fastserve.errors import ModelConfigError
from fastserve.request import SamplingParams
from fastserve.server.errors import bad_request
from fastserve.server.limits import Limits
from fastserve.server.openai import ChatRequest, Message
from fastserve.server.service import Service

T = TypeVar("T")

MAX_TOKEN_CHARS = 256  # no known vocabulary has a longer token: longer texts need no tokenizer to be refused
THREAD_CHARS = 16 * 1024  # about 1 ms of tokenizing; above, the event loop should not wait for it
ROLES = ("system", "developer", "user", "assistant")


def separate_prompts(prompt: str | list[str | int | list[int]]) -> Sequence[str | list[int]]:
    """One entry a prompt, in any of the four forms that a completion takes."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    texts = [item for item in prompt if isinstance(item, str)]
    lists = [item for item in prompt if isinstance(item, list)]
    for kind in (texts, lists):
        if len(kind) == len(prompt):
            return kind
    if len(ids) == len(prompt):
        return [ids]
    raise bad_request(
        "prompt must be a string, strings, token ids, or lists of token ids, not a mix", param="prompt"
    )


async def prompt_ids(given: Sequence[str | list[int]], service: Service, limits: Limits) -> list[list[int]]:
    if not 1 <= len(given) <= limits.max_prompts:
        raise bad_request(
            f"prompt must hold 1 to {limits.max_prompts} prompts, got {len(given)}", param="prompt"
        )
    prompts: list[list[int]] = []
    for prompt in given:
        if isinstance(prompt, str):
            prompts.append(await _off_loop(len(prompt), lambda text=prompt: _encode(text, service)))  # type: ignore[misc]
        else:
            prompts.append(_checked_ids(prompt, service))
    return prompts


def _encode(text: str, service: Service) -> list[int]:
    _check_length(text, service)
    ids = service.tokenizer.encode(text, add_special=True)
    if not ids:
        raise bad_request("prompt must hold at least one token, got an empty one", param="prompt")
    return ids


def _check_length(text: str, service: Service) -> None:
    max_chars = service.max_model_len * MAX_TOKEN_CHARS
    if len(text) > max_chars:
        raise bad_request(
            f"{len(text)} characters cannot fit the model's context of {service.max_model_len} tokens",
            code="context_length_exceeded",
        )


def _checked_ids(ids: list[int], service: Service) -> list[int]:
    vocab_size = service.tokenizer.vocab_size
    if not ids:
        raise bad_request("prompt must hold at least one token, got an empty one", param="prompt")
    wrong = next((token_id for token_id in ids if not 0 <= token_id < vocab_size), None)
    if wrong is not None:
        raise bad_request(f"prompt: token ids must be in [0, {vocab_size}), got {wrong}", param="prompt")
    return ids


async def chat_prompt(request: ChatRequest, service: Service) -> list[int]:
    if not request.messages:
        raise bad_request("messages must hold at least one message", param="messages")
    messages = [_plain(message, idx) for idx, message in enumerate(request.messages)]
    num_chars = sum(len(message["content"]) for message in messages)
    for message in messages:
        _check_length(message["content"], service)
    try:
        return await _off_loop(
            num_chars, lambda: service.chat_template.render_ids(messages, service.tokenizer)
        )
    except ValueError as error:
        raise bad_request(str(error), param="messages") from None
    except ModelConfigError as error:
        raise bad_request(str(error), code="cannot_chat") from None


def _plain(message: Message, idx: int) -> dict[str, str]:
    where = f"messages[{idx}]"
    if message.role not in ROLES:
        raise bad_request(
            f"{where}.role must be one of {', '.join(ROLES)}, got {message.role!r}", param="messages"
        )
    if message.tool_calls:
        raise bad_request(
            f"{where}.tool_calls is not supported", param="messages", code="unsupported_parameter"
        )
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return {"role": role, "content": message.content}
    texts = []
    for part in message.content or ():
        if part.type != "text" or part.text is None:
            raise bad_request(f"{where}.content may hold text only, got {part.type!r}", param="messages")
        texts.append(part.text)
    return {"role": role, "content": "".join(texts)}


def check_fits(prompts: list[list[int]], params: SamplingParams, service: Service, limits: Limits) -> None:
    """Raises a 400 for what can never run: too many choices, ids outside the vocabulary, no room for it."""
    num_choices = len(prompts) * params.n
    if num_choices > limits.max_choices:
        raise bad_request(
            f"n: {len(prompts)} prompts times n={params.n} is more than {limits.max_choices} choices",
            param="n",
        )
    vocab_size = service.tokenizer.vocab_size
    for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        wrong = next((token_id for token_id in ids if token_id >= vocab_size), None)
        if wrong is not None:
            raise bad_request(f"{name}: token ids must be in [0, {vocab_size}), got {wrong}", param=name)
    longest = max(map(len, prompts))
    wanted = params.max_tokens or 1
    if longest + wanted > service.max_model_len:
        raise bad_request(
            f"the model's context is {service.max_model_len} tokens; the prompt has {longest} "
            f"and at least {wanted} more are asked for",
            param="max_tokens" if longest < service.max_model_len else "prompt",
            code="context_length_exceeded",
        )


async def _off_loop(num_chars: int, work: Callable[[], T]) -> T:
    return work() if num_chars < THREAD_CHARS else await asyncio.to_thread(work)
