"""What the engine asks of a tokenizer; tests bring a small one."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol


class EngineTokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> Collection[int]: ...

    def encode(self, text: str, *, add_special: bool) -> list[int]: ...

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def token_text(self, token_id: int) -> str: ...

    def is_special(self, token_id: int) -> bool: ...
