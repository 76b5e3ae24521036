"""Log probabilities as the two endpoints write them."""

from __future__ import annotations

from collections.abc import Sequence

from fastserve.request import Logprob, TokenLogprobs
from fastserve.server.openai import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob
from fastserve.server.service import Tokenizer


def completion_logprobs(
    tokens: Sequence[TokenLogprobs | None], first_text: str, *, num_top: int, text_offset: int
) -> CompletionLogprobs:
    """`None` is a token that nothing precedes: the first of an echoed prompt, whose text is `first_text`."""
    out = CompletionLogprobs([], [], [], [])
    for token in tokens:
        text = first_text if token is None else token.sampled.text
        out.tokens.append(text)
        out.text_offset.append(text_offset)
        out.token_logprobs.append(None if token is None else token.sampled.logprob)
        out.top_logprobs.append(None if token is None else _by_text(token, num_top))
        text_offset += len(text)
    return out


def _by_text(token: TokenLogprobs, num_top: int) -> dict[str, float]:
    """The likeliest and the sampled one. Of two tokens with one text the likelier stays."""
    found: dict[str, float] = {}
    for candidate in (*token.top[:num_top], token.sampled):
        found.setdefault(candidate.text, candidate.logprob)
    return found


def chat_logprobs(tokens: Sequence[TokenLogprobs], tokenizer: Tokenizer, *, num_top: int) -> ChatLogprobs:
    return ChatLogprobs([_chat_logprob(token, tokenizer, num_top) for token in tokens])


def _chat_logprob(token: TokenLogprobs, tokenizer: Tokenizer, num_top: int) -> ChatLogprob:
    top = [TopLogprob(*_shown(candidate, tokenizer)) for candidate in token.top[:num_top]]
    return ChatLogprob(*_shown(token.sampled, tokenizer), top)


def _shown(candidate: Logprob, tokenizer: Tokenizer) -> tuple[str, float, list[int]]:
    """The bytes are the token's own, also where they are part of a character that text cannot show."""
    return candidate.text, candidate.logprob, list(tokenizer.token_bytes(candidate.token_id))
