"""Tokens to text while they arrive: a token may end in the middle of a character."""

from __future__ import annotations

import codecs
from typing import Protocol


class TokenBytes(Protocol):
    """What a Detokenizer asks of a tokenizer."""

    def token_bytes(self, token_id: int) -> bytes: ...

    def is_special(self, token_id: int) -> bool: ...


class Detokenizer:
    """Yields a request's text as its tokens come; joined, it is what `Tokenizer.decode` gives at once.

    push(token_id)  the text that is complete now; "" while a character's bytes are still to come
    flush()         the rest at the end: U+FFFD where a character was never completed
    """

    def __init__(self, tokenizer: TokenBytes, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
