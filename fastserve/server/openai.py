"""The wire schemas of OpenAI's API that are understood here, with vLLM's extra fields.

Fields that nobody here knows are ignored, as vLLM does; those that are known to change the answer but are not
supported are refused by name.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from fastserve.server.errors import ApiError, bad_request

R = TypeVar("R", bound="SamplingRequest")


class StreamOptions(Struct):
    include_usage: bool = False


class SamplingRequest(Struct, kw_only=True):
    """What both endpoints share. None is "not given", as in OpenAI's schemas; SamplingParams checks them."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    logit_bias: dict[int, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Known and refused, unless empty.
    response_format: dict[str, Any] | None = None
    use_beam_search: bool | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
    truncate_prompt_tokens: Any = None


class CompletionRequest(SamplingRequest, kw_only=True):
    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    prompt_embeds: Any = None


class ContentPart(Struct):
    type: str
    text: str | None = None


class Message(Struct):
    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None


class ChatRequest(SamplingRequest, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    echo: bool | None = None
    chat_template: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    documents: list[Any] | None = None


# What each may hold without asking for anything that is not supported.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}
_REFUSED = [
    "response_format",
    "use_beam_search",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "truncate_prompt_tokens",
    "suffix",
    "prompt_embeds",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "modalities",
    "audio",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
]


def parse(body: bytes, schema: type[R]) -> R:
    """The request in `body`. Raises a 400 naming the field that is malformed or unsupported."""
    try:
        request = msgspec.json.decode(body, type=schema)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"the body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply", code="invalid_json") from None
    _refuse_unsupported(request)
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options needs stream to be true", param="stream_options")
    return request


def _invalid_field(message: str) -> ApiError:
    """msgspec says "Expected `int`, got `str` - at `$.n`" or "Object missing required field `prompt`"."""
    rule, _, path = message.partition(" - at ")
    field = re.search(r"\$\.(\w+)|required field `(\w+)`$", path or rule)
    where = f"{path.replace('`', '').replace('$.', '')}: " if path else ""
    return bad_request(where + rule, param=(field[1] or field[2]) if field else None)


def _refuse_unsupported(request: SamplingRequest) -> None:
    for name in _REFUSED:
        value = getattr(request, name, None)
        if value and value not in _HARMLESS.get(name, ()):
            raise bad_request(f"{name} is not supported", param=name, code="unsupported_parameter")
    if isinstance(request, CompletionRequest) and request.best_of not in (None, request.n or 1):
        raise bad_request(
            "best_of is not supported: ask for n", param="best_of", code="unsupported_parameter"
        )
    if isinstance(request, ChatRequest) and request.echo:
        raise bad_request("echo is not supported in a chat", param="echo", code="unsupported_parameter")


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(Struct):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[ChatLogprob]
    refusal: None = None


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class ChatMessage(Struct, omit_defaults=True):
    """An answer, or (as a delta) what is new of it."""

    role: str | None = None
    content: str | None = None


class ChatChoice(Struct, kw_only=True):
    index: int
    message: ChatMessage | UnsetType = UNSET
    delta: ChatMessage | UnsetType = UNSET
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Answer(Struct, kw_only=True):
    """A whole answer or one chunk of a stream. usage unset: the client did not ask; null: it comes last."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice] | list[ChatChoice]
    usage: Usage | UnsetType | None = UNSET


class Model(Struct, kw_only=True):
    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "fastserve"


class ModelList(Struct, kw_only=True):
    data: list[Model]
    object: str = "list"
