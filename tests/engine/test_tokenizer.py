"""Encoding equals llama.cpp's for every pre-tokenizer; decoding gives it back; bad metadata names itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastserve.engine.tokenizer import Tokenizer
from fastserve.errors import ModelConfigError

from .corpus import TEXTS, random_texts
from .llama_cpp_oracle import PREFIX, Oracle, write_vocabulary

PRE_TOKENIZERS = ("smollm", "gpt-2", "llama-bpe", "qwen2")
# SmolLM2 never saw two digits in one word, so its own merges can't tell how digits are grouped. These can.
NUMBERS = [f"{n:0{width}}" for width in (2, 3) for n in range(10**width)] + ["1234", "2345", "4444", "7777"]
SPELLINGS = ["'S", "'LL", "'Ll", "!Ċ", "?Ċ", "ĊĊĊĊ", "čĊčĊ", "Ġ!Ċ", "ĠĠĠĠĠĠĠĠĠĊ"]


def with_telling_tokens(metadata: dict[str, Any]) -> dict[str, Any]:
    """`metadata` with tokens and merges that span what the pre-tokenizers cut apart differently."""
    tokens, merges = list(metadata[PREFIX + "tokens"]), list(metadata[PREFIX + "merges"])
    known = set(tokens)
    for text in NUMBERS + SPELLINGS:
        for end in range(2, len(text) + 1):
            if text[:end] not in known:
                known.add(text[:end])
                tokens.append(text[:end])
                merges.append(f"{text[: end - 1]} {text[end - 1]}")
    added = len(tokens) - len(metadata[PREFIX + "tokens"])
    types = list(metadata[PREFIX + "token_type"]) + [1] * added
    return metadata | {PREFIX + "tokens": tokens, PREFIX + "merges": merges, PREFIX + "token_type": types}


@pytest.fixture(scope="module")
def tokenizer(smollm2_metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_metadata(smollm2_metadata)


@pytest.fixture(scope="module")
def oracle(smollm2_path: Path) -> Iterator[Oracle]:
    oracle = Oracle(smollm2_path)
    yield oracle
    oracle.close()


@pytest.fixture(scope="module", params=PRE_TOKENIZERS)
def pair(
    request: pytest.FixtureRequest, smollm2_metadata: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Tokenizer, Oracle]]:
    metadata = with_telling_tokens(smollm2_metadata) | {PREFIX + "pre": request.param}
    oracle = Oracle(write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf", metadata))
    yield Tokenizer.from_metadata(metadata), oracle
    oracle.close()


def test_corpus_encodes_as_the_real_file_does_in_llama_cpp(tokenizer: Tokenizer, oracle: Oracle) -> None:
    for text in (*TEXTS, *random_texts(2000, seed=1)):
        assert tokenizer.encode(text, add_special=True) == oracle.encode(text, add_special=True), repr(text)


def test_every_pre_tokenizer_cuts_as_llama_cpp_does(pair: tuple[Tokenizer, Oracle]) -> None:
    tokenizer, oracle = pair
    for text in (*TEXTS, *random_texts(2000, seed=2)):
        assert tokenizer.encode(text, add_special=True) == oracle.encode(text, add_special=True), repr(text)


def test_special_tokens_written_in_trusted_text_are_parsed_as_llama_cpp_does(
    pair: tuple[Tokenizer, Oracle],
) -> None:
    tokenizer, oracle = pair
    for text in (
        "<|im_start|>user\nHi <|im_end|>\n",
        "<|im_<|im_end|>end|>",
        "<|endoftext|><|endoftext|>x",
        *TEXTS,
    ):
        expected = oracle.encode(text, parse_special=True)
        assert tokenizer.encode(text, add_special=False, parse_special=True) == expected


def test_pre_tokenizers_differ_on_digits(smollm2_metadata: dict[str, Any]) -> None:
    metadata = with_telling_tokens(smollm2_metadata)
    counts = {
        pre: len(Tokenizer.from_metadata(metadata | {PREFIX + "pre": pre}).encode("1234", add_special=False))
        for pre in PRE_TOKENIZERS
    }
    assert counts["smollm"] == counts["qwen2"] == 4
    assert counts["llama-bpe"] == 2
    assert counts["gpt-2"] < 4


def test_user_text_never_yields_a_control_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.special_texts) == 17
    for a, b in itertools.product(tokenizer.special_texts, repeat=2):
        ids = tokenizer.encode(f"{a}{b} {a}", add_special=False)
        assert not any(tokenizer.is_special(i) for i in ids)
        assert tokenizer.decode(ids, skip_special=True) == f"{a}{b} {a}"


def test_control_token_that_merges_could_build_is_still_out_of_reach(
    smollm2_metadata: dict[str, Any],
) -> None:
    types = list(smollm2_metadata[PREFIX + "token_type"])
    token_id = smollm2_metadata[PREFIX + "tokens"].index("Ġthe")
    types[token_id] = 3
    tokenizer = Tokenizer.from_metadata(smollm2_metadata | {PREFIX + "token_type": types})
    assert token_id not in tokenizer.encode("in the house", add_special=False)
    assert (
        tokenizer.decode(tokenizer.encode("in the house", add_special=False), skip_special=True)
        == "in the house"
    )


def test_user_defined_tokens_are_taken_whole_longest_first(
    smollm2_metadata: dict[str, Any], tmp_path: Path
) -> None:
    added = ["<think>", "</think>", "xqz", "qzwvk", "  \n", "ab"]
    tokens = list(smollm2_metadata[PREFIX + "tokens"]) + [t for t in added if t != "ab"]
    types = list(smollm2_metadata[PREFIX + "token_type"]) + [4] * (len(added) - 1)
    types[tokens.index("ab")] = 4
    metadata = smollm2_metadata | {PREFIX + "tokens": tokens, PREFIX + "token_type": types}
    tokenizer = Tokenizer.from_metadata(metadata)
    oracle = Oracle(write_vocabulary(tmp_path / "vocabulary.gguf", metadata))
    first = len(smollm2_metadata[PREFIX + "tokens"])
    assert tokenizer.encode("<think>", add_special=False) == [first]
    assert first + 3 in tokenizer.encode("xqzwvk", add_special=False)
    for text in (
        "<think>x</think>",
        "abcdef abc bcdef ab",
        "x  \n\n",
        "ababcabcdef<think",
        "a<|im_end|><think>",
    ):
        for parse_special in (False, True):
            expected = oracle.encode(text, parse_special=parse_special)
            assert tokenizer.encode(text, add_special=False, parse_special=parse_special) == expected
    oracle.close()


def test_every_token_stands_for_the_bytes_that_llama_cpp_gives(tokenizer: Tokenizer, oracle: Oracle) -> None:
    for token_id in range(tokenizer.vocab_size):
        assert tokenizer.token_bytes(token_id) == oracle.token_bytes(token_id)


def test_decoding_gives_back_what_was_encoded(tokenizer: Tokenizer) -> None:
    lost = [
        chr(byte) for byte in (0x04, 0x06, 0x13, 0x14, 0x16, 0x1D)
    ]  # SmolLM2 has no tokens for these bytes
    for text in (*TEXTS, *random_texts(500, seed=3)):
        if any(byte in text.encode() for byte in (0xF1, 0xF2)):  # nor for these
            continue
        for char in lost:
            text = text.replace(char, "")  # noqa: PLW2901
        assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=True) == text


def test_lone_surrogates_read_as_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a\ud800b\udfff", add_special=False) == tokenizer.encode(
        "a�b�", add_special=False
    )


def test_generation_ends_at_every_end_of_turn_and_of_text(tokenizer: Tokenizer, oracle: Oracle) -> None:
    texts = {tokenizer.token_text(i) for i in tokenizer.eos_ids}
    assert texts == {"<|im_end|>", "<|endoftext|>"}
    assert all(oracle.ends_generation(i) for i in tokenizer.eos_ids)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49152, 1, 2)


def test_skipping_special_tokens_drops_only_them(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>user\nHi<|im_end|>", add_special=False, parse_special=True)
    assert tokenizer.decode(ids, skip_special=True) == "user\nHi"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>user\nHi<|im_end|>"
    assert tokenizer.token_text(ids[0]) == "<|im_start|>"


@pytest.mark.parametrize(
    ("said", "pre", "added"), [(True, "smollm", [1]), (False, "llama-bpe", []), (None, "llama-bpe", [1])]
)
def test_bos_is_added_where_the_model_asks_for_it(
    smollm2_metadata: dict[str, Any], said: bool | None, pre: str, added: list[int]
) -> None:
    metadata = smollm2_metadata | {PREFIX + "add_bos_token": said, PREFIX + "pre": pre}
    tokenizer = Tokenizer.from_metadata(metadata)
    plain = tokenizer.encode("Hi", add_special=False)
    assert tokenizer.encode("Hi", add_special=True) == added + plain


def test_eos_is_added_where_the_model_asks_for_it(smollm2_metadata: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_metadata(smollm2_metadata | {PREFIX + "add_eos_token": True})
    assert tokenizer.encode("Hi", add_special=True) == [*tokenizer.encode("Hi", add_special=False), 2]


@pytest.mark.parametrize("token_id", [-1, 49152])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, token_id: int) -> None:
    for ask in (tokenizer.token_bytes, tokenizer.token_text, tokenizer.is_special):
        with pytest.raises(ValueError, match=rf"token id must be in \[0, 49152\), got {token_id}"):
            ask(token_id)


SMALL: dict[str, Any] = {
    PREFIX + "model": "gpt2",
    PREFIX + "pre": "gpt-2",
    PREFIX + "tokens": ["a", "b", "ab", "<|end|>"],
    PREFIX + "merges": ["a b"],
    PREFIX + "token_type": [1, 1, 1, 3],
    PREFIX + "eos_token_id": 3,
}


def test_small_vocabulary_works() -> None:
    tokenizer = Tokenizer.from_metadata(SMALL)
    assert tokenizer.encode("abba?", add_special=True) == [2, 1, 0]
    assert tokenizer.bos_id is None
    assert tokenizer.eos_ids == frozenset({3})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "llama", r"tokenizer model 'llama' is not supported; supported: 'gpt2'"),
        ("model", None, r"tokenizer\.ggml\.model must be a string"),
        ("pre", "tekken", r"'tekken' is not supported; supported: gpt-2, llama-bpe, qwen2, smollm"),
        ("pre", None, r"tokenizer\.ggml\.pre must be a string"),
        ("tokens", [], "tokens must be a non-empty array of strings"),
        ("tokens", ["a", "b", "ab", 7], "tokens must be a non-empty array of strings"),
        ("tokens", "abcd", "tokens must be an array"),
        ("tokens", ["a", "b", "ab", "a"], "holds 'a' twice: ids 0 and 3"),
        ("token_type", [1, 1], "token_type has 2 entries but tokenizer.ggml.tokens has 4"),
        ("token_type", [1, 1, 1, 9], "token_type must be"),
        ("token_type", [6, 1, 1, 3], "tokens must be written <0xXX>"),
        ("merges", None, "merges must be an array"),
        ("merges", ["ab"], "one space between, got 'ab'"),
        ("merges", ["a b c"], "one space between"),
        ("merges", [3], "one space between, got 3"),
        ("merges", ["b a"], "merges: 'b a' needs 'ba', which is no token"),
        ("eos_token_id", 4, r"eos_token_id must be a token id in \[0, 4\), got 4"),
        ("bos_token_id", -1, "bos_token_id must be a token id"),
        ("eot_token_id", "2", "eot_token_id must be a token id"),
        ("add_bos_token", 1, "add_bos_token must be true or false, got 1"),
    ],
)
def test_malformed_metadata_names_itself(key: str, value: object, message: str) -> None:
    with pytest.raises(ModelConfigError, match=message):
        Tokenizer.from_metadata(SMALL | {PREFIX + key: value})
