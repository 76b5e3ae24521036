"""Streamed text equals text decoded at once, and no character is ever shown in halves."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fastserve.engine.detokenizer import Detokenizer
from fastserve.engine.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(smollm2_metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_metadata(smollm2_metadata)


class Bytes:
    """One token per byte; 256 is special."""

    def token_bytes(self, token_id: int) -> bytes:
        return b"<end>" if token_id == 256 else bytes([token_id])

    def is_special(self, token_id: int) -> bool:
        return token_id == 256


@pytest.mark.parametrize("skip_special", [True, False])
def test_streamed_text_is_the_decoded_text(tokenizer: Tokenizer, skip_special: bool) -> None:
    draw = random.Random(7)
    byte_tokens = [i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1]
    assert len(byte_tokens) > 200
    for _ in range(300):
        pool: Any = draw.choice((range(tokenizer.vocab_size), byte_tokens, range(20)))
        ids = draw.choices(pool, k=draw.randint(0, 60))
        stream = Detokenizer(tokenizer, skip_special=skip_special)
        text = "".join(map(stream.push, ids)) + stream.flush()
        assert text == tokenizer.decode(ids, skip_special=skip_special)


def test_valid_text_is_shown_by_whole_characters_as_soon_as_they_are_complete() -> None:
    for char in ("a", "é", "漢", "😀"):
        stream = Detokenizer(Bytes(), skip_special=True)
        shown = [stream.push(byte) for byte in char.encode()]
        assert shown == [""] * (len(shown) - 1) + [char]
        assert stream.flush() == ""


def test_random_text_streams_without_replacement_characters() -> None:
    draw = random.Random(8)
    for _ in range(200):
        text = "".join(
            chr(draw.choice((0x41, 0xE9, 0x6F22, 0x1F600)) + draw.randrange(40)) for _ in range(20)
        )
        stream = Detokenizer(Bytes(), skip_special=True)
        shown = [stream.push(byte) for byte in text.encode()]
        assert "\ufffd" not in "".join(shown)
        assert "".join(shown) == text


def test_incomplete_tail_becomes_a_replacement_character_at_the_end() -> None:
    stream = Detokenizer(Bytes(), skip_special=True)
    assert [stream.push(byte) for byte in "😀".encode()[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_tokens_are_shown_only_if_asked_for() -> None:
    ids = [0x61, 256, 0x62]
    for skip_special, expected in ((True, ["a", "", "b"]), (False, ["a", "<end>", "b"])):
        stream = Detokenizer(Bytes(), skip_special=skip_special)
        assert [stream.push(i) for i in ids] == expected
