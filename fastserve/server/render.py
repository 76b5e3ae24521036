"""How each endpoint writes a choice: whole, or what is new of it since the last chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import UNSET

from fastserve.request import CompletionOutput, RequestOutput
from fastserve.server.logprobs import chat_logprobs, completion_logprobs
from fastserve.server.openai import ChatChoice, ChatMessage, CompletionChoice, CompletionLogprobs
from fastserve.server.service import Tokenizer


@dataclass(slots=True)
class Sent:
    """What of a choice has been sent: from nothing to all."""

    num_chars: int = 0
    num_tokens: int = 0  # whose logprobs have been sent
    text_offset: int = 0  # of the next token with logprobs; an echoed prompt counts
    opened: bool = False
    finished: bool = False


class Renderer(Protocol):
    whole_object: str
    chunk_object: str

    def whole(
        self, index: int, request: RequestOutput, output: CompletionOutput
    ) -> CompletionChoice | ChatChoice: ...

    def opening(self, index: int, request: RequestOutput, sent: Sent) -> CompletionChoice | ChatChoice | None:
        """What a stream says of a choice before its first token."""

    def delta(
        self, index: int, request: RequestOutput, output: CompletionOutput, sent: Sent
    ) -> CompletionChoice | ChatChoice: ...


class CompletionRenderer:
    """`echo` holds the prompts as they were given; None: answers do not repeat them."""

    whole_object = chunk_object = "text_completion"

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        n: int,
        echo: Sequence[str | list[int]] | None,
        only_echo: bool,
        num_logprobs: int | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._n = n
        self._echo = echo
        self._only_echo = only_echo
        self._num_logprobs = num_logprobs

    def whole(self, index: int, request: RequestOutput, output: CompletionOutput) -> CompletionChoice:
        sent = Sent()
        opening = self.opening(index, request, sent)
        choice = self.delta(index, request, output, sent)
        if opening is None:
            return choice
        choice.text = opening.text + choice.text
        if opening.logprobs and choice.logprobs:
            choice.logprobs = CompletionLogprobs(
                opening.logprobs.text_offset + choice.logprobs.text_offset,
                opening.logprobs.token_logprobs + choice.logprobs.token_logprobs,
                opening.logprobs.tokens + choice.logprobs.tokens,
                opening.logprobs.top_logprobs + choice.logprobs.top_logprobs,
            )
        return choice

    def opening(self, index: int, request: RequestOutput, sent: Sent) -> CompletionChoice | None:
        if self._echo is None:
            return None
        choice = CompletionChoice(index=index, text=self._prompt_text(self._echo[index // self._n]))
        sent.text_offset = len(choice.text)
        if self._num_logprobs is not None and request.prompt_logprobs is not None:
            first = self._tokenizer.token_text(request.prompt_token_ids[0])
            choice.logprobs = completion_logprobs(
                request.prompt_logprobs, first, num_top=self._num_logprobs, text_offset=0
            )
        return choice

    def delta(
        self, index: int, request: RequestOutput, output: CompletionOutput, sent: Sent
    ) -> CompletionChoice:
        choice = CompletionChoice(index=index, text="" if self._only_echo else output.text[sent.num_chars :])
        choice.finish_reason, choice.stop_reason = output.finish_reason, output.stop_reason
        if self._num_logprobs is not None and output.logprobs is not None:
            new = [] if self._only_echo else output.logprobs[sent.num_tokens :]
            choice.logprobs = completion_logprobs(
                new, "", num_top=self._num_logprobs, text_offset=sent.text_offset
            )
            sent.text_offset += sum(map(len, choice.logprobs.tokens))
        return choice

    def _prompt_text(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt, skip_special=False)


class ChatRenderer:
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, *, num_logprobs: int | None) -> None:
        self._tokenizer = tokenizer
        self._num_logprobs = num_logprobs

    def whole(self, index: int, request: RequestOutput, output: CompletionOutput) -> ChatChoice:
        choice = self.delta(index, request, output, Sent())
        choice.message, choice.delta = ChatMessage("assistant", output.text), UNSET
        return choice

    def opening(self, index: int, request: RequestOutput, sent: Sent) -> ChatChoice:
        return ChatChoice(index=index, delta=ChatMessage("assistant", ""))

    def delta(self, index: int, request: RequestOutput, output: CompletionOutput, sent: Sent) -> ChatChoice:
        choice = ChatChoice(index=index, delta=ChatMessage(content=output.text[sent.num_chars :]))
        choice.finish_reason, choice.stop_reason = output.finish_reason, output.stop_reason
        if self._num_logprobs is not None and output.logprobs is not None:
            choice.logprobs = chat_logprobs(
                output.logprobs[sent.num_tokens :], self._tokenizer, num_top=self._num_logprobs
            )
        return choice
