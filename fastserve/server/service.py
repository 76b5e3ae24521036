"""What the HTTP door needs of an engine, and nothing more: `AsyncEngine` satisfies it, tests bring a fake."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from fastserve.request import RequestOutput, SamplingParams


class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, *, add_special: bool) -> list[int]: ...

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str: ...

    def token_text(self, token_id: int) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class ChatTemplate(Protocol):
    def render_ids(self, messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
        """Token ids up to where the assistant speaks. Raises ValueError if the template refuses
        the messages, ModelConfigError if there is none (a base model) or it is broken."""


class Service(Protocol):
    """An engine that answers many requests at once."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def chat_template(self) -> ChatTemplate: ...

    @property
    def metrics(self) -> CollectorRegistry: ...

    @property
    def healthy(self) -> bool: ...  # False: a fatal error; no request will be answered any more

    @property
    def failure(self) -> BaseException | None: ...  # why it is not healthy

    @property
    def max_model_len(self) -> int: ...

    def generate(
        self, prompt_token_ids: list[int], params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        """Cumulative outputs, the last one finished. Closing the generator aborts the request within a step.

        Raises ValueError or CapacityError (it can never run), OverloadedError (come back later), GroupError
        (the engine is gone).
        """
