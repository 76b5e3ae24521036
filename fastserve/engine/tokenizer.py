"""Text to token ids and back, as the model was trained to read it.

A text is cut three times. First at tokens that are written literally: user-defined ones always, control
tokens only where the caller says that the text is trusted (`parse_special`). What lies between is cut into
words by the pre-tokenizer that the model names, and each word's bytes are merged by BPE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import tokenizers
from tokenizers import pre_tokenizers
from tokenizers.models import BPE

from fastserve.engine.vocabulary import BYTE_OF_CHAR, PREFIX, SPECIAL_TYPES, TokenType, Vocabulary
from fastserve.errors import ModelConfigError

# The originals write (?i:'s|...), which takes U+017F for an s too; spelled out, as in llama.cpp, it does not.
_SUFFIX = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _words(digits: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(tokenizers.Regex(_WORDS % digits), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt2,
    "llama-bpe": lambda: _words(r"\p{N}{1,3}"),
    "qwen2": lambda: _words(r"\p{N}"),
    "smollm": _smollm,
}


class Tokenizer:
    """A model's tokenizer. Threads may share it.

    `bos_id` and `eos_id` are None where the model names none; `eos_ids` are all tokens that end a generation.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        if vocabulary.pre not in _PRE_TOKENIZERS:
            raise ModelConfigError(
                f"pre-tokenizer {vocabulary.pre!r} is not supported; supported: {', '.join(_PRE_TOKENIZERS)}"
            )
        literal = [
            (vocabulary.tokens[token_id], token_id)
            for token_id in vocabulary.ids_of(SPECIAL_TYPES | {TokenType.USER_DEFINED})
            if vocabulary.tokens[token_id]
        ]
        literal.sort(key=lambda item: -len(item[0]))
        kinds = vocabulary.types
        self._vocabulary = replace(vocabulary, merges=())  # megabytes, which the BPE has in its own way
        self._literal = tuple(t for t in literal if kinds[t[1]] is TokenType.USER_DEFINED)
        self._literal_or_special = tuple(literal)
        self._bpe = _build_bpe(vocabulary)
        self._bytes: dict[int, bytes] = {}  # of the tokens that were asked for
        self.vocab_size = len(vocabulary.tokens)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.eos_ids = vocabulary.end_ids
        said = vocabulary.add_bos
        self.add_bos = self.bos_id is not None and (vocabulary.pre == "llama-bpe" if said is None else said)
        self.add_eos = self.eos_id is not None and vocabulary.add_eos

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """The tokenizer that a GGUF file's metadata describes.

        Raises ModelConfigError naming what is not supported (and what is), or what is malformed.
        """
        return cls(Vocabulary.from_metadata(metadata))

    @property
    def special_texts(self) -> tuple[str, ...]:
        """How the control tokens are written."""
        return tuple(text for text, token_id in self._literal_or_special if self.is_special(token_id))

    def encode(self, text: str, *, add_special: bool, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        add_special    put BOS in front and EOS at the end where the model asks for it
        parse_special  control tokens written in the text become their ids; else they are text like any other

        A lone surrogate, which no UTF-8 can hold, is read as U+FFFD. A byte for which the vocabulary has no
        token is left out, as the originals do.
        """
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        for piece in self.partition(text, parse_special=parse_special):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._encode_plain(piece)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def partition(self, text: str, *, parse_special: bool) -> list[str | int]:
        """`text` cut at the tokens written literally in it: ids of these, and the text between them.

        The longest token is looked for first, in all of the text, then the next: llama.cpp's order.
        """
        pieces: list[str | int] = [text] if text else []
        for token, token_id in self._literal_or_special if parse_special else self._literal:
            if token in text:
                pieces = [part for piece in pieces for part in _cut(piece, token, token_id)]
        return pieces

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(i) for i in ids if not (skip_special and self.is_special(i))).decode(
            errors="replace"
        )

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to the text."""
        known = self._bytes.get(token_id)
        if known is None:
            self._check_id(token_id)
            known = self._bytes[token_id] = self._vocabulary.bytes_of(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """The token alone, for people to read: part of a character is shown as U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token: never part of what a user wrote."""
        self._check_id(token_id)
        return self._vocabulary.is_special(token_id)

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id must be in [0, {self.vocab_size}), got {token_id}")

    def _encode_plain(self, text: str) -> list[int]:
        ids = self._bpe.encode(_LONE_SURROGATE.sub("\ufffd", text), add_special_tokens=False).ids
        return [token_id for token_id in ids if token_id < self.vocab_size]


def _cut(piece: str | int, token: str, token_id: int) -> Iterable[str | int]:
    """`piece` with every occurrence of `token` in it replaced by its id."""
    if isinstance(piece, int):
        return (piece,)
    parts: list[str | int] = []
    for text in piece.split(token):
        parts += [text, token_id] if text else [token_id]
    return parts[:-1]  # every occurrence is followed by a text, so one id too many was added


def _build_bpe(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The merging machine.

    It never sees control tokens, so no text can merge into one. A byte without a token of its own gets an id
    beyond the vocabulary: it keeps its neighbours apart while merging, and is dropped from the result.
    """
    special_ids = vocabulary.ids_of(SPECIAL_TYPES)
    special = {vocabulary.tokens[token_id] for token_id in special_ids}
    ids = {text: i for i, text in enumerate(vocabulary.tokens)}
    for token_id in special_ids:
        ids.pop(vocabulary.tokens[token_id], None)
    for char in BYTE_OF_CHAR:
        ids.setdefault(char, len(vocabulary.tokens) + len(ids))
    merges = []
    for left, right in vocabulary.merges:
        parts = left, right, left + right
        if left in ids and right in ids and parts[2] in ids:
            merges.append((left, right))
        elif special.isdisjoint(parts):
            unknown = next(part for part in parts if part not in ids)
            raise ModelConfigError(f"{PREFIX}merges: '{left} {right}' needs {unknown!r}, which is no token")
    machine = tokenizers.Tokenizer(
        BPE(
            vocab=ids, merges=merges, ignore_merges=vocabulary.pre == "llama-bpe"
        )  # whole words first, as trained
    )
    machine.pre_tokenizer = _PRE_TOKENIZERS[vocabulary.pre]()
    return machine
