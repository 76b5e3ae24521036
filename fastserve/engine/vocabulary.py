"""The tokens a model knows, read from its own description and checked before anything relies on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from fastserve.errors import ModelConfigError

# Ends of a turn or of a text, whichever family trained the model; as in llama.cpp these are control tokens
# even where a careless conversion has marked them as ordinary ones.
END_TEXTS = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>"}
)
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
PREFIX = "tokenizer.ggml."


class TokenType(IntEnum):
    """GGUF's `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself if visible Latin-1, else the next from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}


CHAR_OF_BYTE = _byte_alphabet()
BYTE_OF_CHAR = {char: byte for byte, char in CHAR_OF_BYTE.items()}
SPECIAL_TYPES = frozenset({TokenType.CONTROL, TokenType.UNKNOWN})


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary whose parts agree with one another."""

    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[tuple[str, str], ...]
    bos_id: int | None
    eos_id: int | None
    end_ids: frozenset[int]  # all that end a generation
    add_bos: bool | None  # None: not said
    add_eos: bool

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> Vocabulary:
        """Raises ModelConfigError naming the key that is missing, of the wrong kind or out of range."""
        model = _string(metadata, "model")
        if model != "gpt2":
            raise ModelConfigError(
                f"tokenizer model {model!r} is not supported; supported: 'gpt2' (byte-level BPE)"
            )
        tokens = _strings(metadata, "tokens")
        types = _types(metadata, tokens)
        _refuse_duplicates(tokens, types)
        ends = {_token_id(metadata, key, len(tokens)) for key in END_KEYS}
        ends |= {i for i, text in enumerate(tokens) if text in END_TEXTS and types[i] is TokenType.CONTROL}
        return cls(
            pre=_string(metadata, "pre"),
            tokens=tokens,
            types=types,
            merges=_merges(metadata),
            bos_id=_token_id(metadata, "bos_token_id", len(tokens)),
            eos_id=_token_id(metadata, "eos_token_id", len(tokens)),
            end_ids=frozenset(ends - {None}),  # type: ignore[arg-type]
            add_bos=_flag(metadata, "add_bos_token"),
            add_eos=bool(_flag(metadata, "add_eos_token")),
        )

    def is_special(self, token_id: int) -> bool:
        return self.types[token_id] in SPECIAL_TYPES

    def ids_of(self, types: frozenset[TokenType]) -> list[int]:
        """The tokens of these types, in order."""
        return [token_id for token_id, kind in enumerate(self.types) if kind in types]

    def bytes_of(self, token_id: int) -> bytes:
        """What the token adds to the text: control and user-defined ones their spelling, unused nothing."""
        text, kind = self.tokens[token_id], self.types[token_id]
        if kind in (TokenType.NORMAL, TokenType.UNDEFINED):
            return b"".join(
                bytes((BYTE_OF_CHAR[char],)) if char in BYTE_OF_CHAR else char.encode(errors="replace")
                for char in text
            )
        if kind is TokenType.BYTE:
            return bytes((int(text[3:5], 16),))
        return b"" if kind is TokenType.UNUSED else text.encode(errors="replace")


def _malformed(key: str, rule: str, value: object) -> ModelConfigError:
    shown = repr(value)
    return ModelConfigError(
        f"{PREFIX}{key} must be {rule}, got {shown[:80]}{'...' if len(shown) > 80 else ''}"
    )


def _string(metadata: Mapping[str, object], key: str) -> str:
    value = metadata.get(PREFIX + key)
    if not isinstance(value, str):
        raise _malformed(key, "a string", value)
    return value


def _flag(metadata: Mapping[str, object], key: str) -> bool | None:
    value = metadata.get(PREFIX + key)
    if value is not None and not isinstance(value, bool):
        raise _malformed(key, "true or false", value)
    return value


def _token_id(metadata: Mapping[str, object], key: str, num_tokens: int) -> int | None:
    value = metadata.get(PREFIX + key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < num_tokens:
        raise _malformed(key, f"a token id in [0, {num_tokens})", value)
    return value


def _sequence(metadata: Mapping[str, object], key: str) -> Sequence[object]:
    value = metadata.get(PREFIX + key)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _malformed(key, "an array", value)
    return value


def _strings(metadata: Mapping[str, object], key: str) -> tuple[str, ...]:
    values = _sequence(metadata, key)
    strings = tuple(value for value in values if isinstance(value, str))
    if not strings or len(strings) != len(values):
        raise _malformed(key, "a non-empty array of strings", values)
    return strings


def _types(metadata: Mapping[str, object], tokens: tuple[str, ...]) -> tuple[TokenType, ...]:
    if metadata.get(PREFIX + "token_type") is None:
        raw: Sequence[object] = (TokenType.NORMAL,) * len(tokens)
    else:
        raw = _sequence(metadata, "token_type")
    if len(raw) != len(tokens):
        raise ModelConfigError(
            f"{PREFIX}token_type has {len(raw)} entries but {PREFIX}tokens has {len(tokens)}"
        )
    known = {kind.value: kind for kind in TokenType}
    try:
        types = [known[value] for value in raw]  # type: ignore[index]
    except (KeyError, TypeError):
        wrong = next(value for value in raw if value not in known.values())
        raise _malformed("token_type", "an array of types in [0, 6]", wrong) from None
    if TokenType.BYTE in types:
        for text, kind in zip(tokens, types, strict=True):
            if kind is TokenType.BYTE and not _is_byte_text(text):
                raise _malformed("tokens", "written <0xXX> where the type is BYTE", text)
    return tuple(
        TokenType.CONTROL if text in END_TEXTS else kind for text, kind in zip(tokens, types, strict=True)
    )


def _is_byte_text(text: str) -> bool:
    digits = text[3:5]
    return len(text) == 6 and text == f"<0x{digits}>" and set(digits) <= set("0123456789abcdefABCDEF")


def _refuse_duplicates(tokens: tuple[str, ...], types: tuple[TokenType, ...]) -> None:
    if len(set(tokens)) == len(tokens):
        return
    seen: dict[str, int] = {}
    for token_id, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind is not TokenType.UNUSED and seen.setdefault(text, token_id) != token_id:
            raise ModelConfigError(
                f"{PREFIX}tokens holds {text[:80]!r} twice: ids {seen[text]} and {token_id}"
            )


def _merges(metadata: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for line in _sequence(metadata, "merges"):
        left, _, right = line.partition(" ") if isinstance(line, str) else ("", "", "")
        if not left or not right or " " in right:
            raise _malformed("merges", "an array of two tokens with one space between", line)
        pairs.append((left, right))
    return tuple(pairs)
