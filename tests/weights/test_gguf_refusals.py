"""csrc/weights/gguf_parser.cpp: whatever is wrong with a file is one error with file, offset and reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastserve import _C
from fastserve.errors import WeightFileError

U8, U32, F32, BOOL, STRING, ARRAY = 0, 4, 6, 7, 8, 9  # value type ids

Build = Callable[[Any], Any]
WRONG: dict[str, tuple[Build, int, str]] = {
    # what is wrong: the file, the offset that the message names, words of the message
    "no magic": (lambda new: _with(new(), b"GGML", at=0), 0, "no GGUF file"),
    "version 1": (lambda new: new(version=1), 4, "version 1 is not supported; supported are 2 and 3"),
    "version 4": (lambda new: new(version=4), 4, "version 4"),
    "big-endian": (lambda new: new(version=3 << 24), 4, "big-endian"),
    "too many tensors": (lambda new: new(num_tensors=2**63), 8, "number of tensors is 9223372036854775808"),
    "more tensors than bytes": (lambda new: new(num_tensors=1), 8, "more than the file's remaining"),
    "too many pairs": (lambda new: new(num_pairs=2**32), 16, "number of metadata pairs is 4294967296"),
    "a key longer than the file": (
        lambda new: new(num_pairs=1).raw("QQ", 60000, 0), 24, "length of a metadata key is 60000"
    ),
    "a key longer than allowed": (
        lambda new: new(num_pairs=1).raw("QQ", 2**16, 0), 24, "the limit is 65535"
    ),
    "a string of 2^64 - 1 bytes": (
        lambda new: new(num_pairs=1).text(b"k").raw("IQ", STRING, 2**64 - 1), 37, "length of 'k'"
    ),
    "an unknown value type": (lambda new: new(num_pairs=1).text(b"k").raw("II", 13, 0), 33, "value type 13"),
    "an unknown element type": (
        lambda new: new(num_pairs=1).text(b"k").raw("IIQ", ARRAY, 77, 1), 37, "value type 77"
    ),
    "an array of arrays": (
        lambda new: new(num_pairs=1).text(b"k").raw("IIQIQ", ARRAY, ARRAY, 1, U8, 0), 37, "array of arrays"
    ),
    "an array longer than the file": (
        lambda new: new(num_pairs=1).text(b"k").raw("IIQI", ARRAY, U32, 2, 5), 41, "length of array 'k' is 2"
    ),
    "an array of 2^61 + 1 words": (
        lambda new: new(num_pairs=1).text(b"k").raw("IIQQ", ARRAY, 10, 2**61 + 1, 5), 41, "the limit is"
    ),
    "a bool of 2": (lambda new: new(num_pairs=1).text(b"k").raw("IB", BOOL, 2), 37, "neither 0 nor 1"),
    "a bool of 2 in an array": (
        lambda new: new(num_pairs=1).text(b"k").raw("IIQBB", ARRAY, BOOL, 2, 1, 2), 50, "neither 0 nor 1"
    ),
    "a key twice": (
        lambda new: new(num_pairs=2).text(b"k").raw("IB", U8, 1).text(b"k").raw("IB", U8, 1), 38, "twice"
    ),
    "an alignment of 24": (
        lambda new: new(num_pairs=1).text(b"general.alignment").raw("II", U32, 24), 53, "power of two"
    ),
    "an alignment of 0": (
        lambda new: new(num_pairs=1).text(b"general.alignment").raw("II", U32, 0), 53, "power of two"
    ),
    "an alignment that is a float": (
        lambda new: new(num_pairs=1).text(b"general.alignment").raw("If", F32, 32.0), 53, "no uint32"
    ),
    "five dimensions": (lambda new: new(num_tensors=1).tensor(b"w", [1] * 5, 0), 33, "has 5 dimensions"),
    "a dimension of 0": (lambda new: new(num_tensors=1).tensor(b"w", [8, 0], 0), 45, "dimension 1 of"),
    "a dimension of 2^63": (lambda new: new(num_tensors=1).tensor(b"w", [2**63], 0), 37, "got 92233720"),
    "dimensions that overflow": (
        lambda new: new(num_tensors=1).tensor(b"w", [2**32, 2**32], 0), 45, "multiply to more than 2^63"
    ),
    "bytes that overflow": (
        lambda new: new(num_tensors=1).tensor(b"w", [2**31, 2**31], 27), 53, "more than 2^64"
    ),
    "rows that are no whole blocks": (
        lambda new: new(num_tensors=1).tensor(b"w", [33, 2], 3).data(100), 53, "Q4_1 needs a multiple of 32"
    ),
    "an offset between alignments": (
        lambda new: new(num_tensors=1).tensor(b"w", [8], 0, 33).data(64), 49, "not a multiple of"
    ),
    "an offset beyond the end": (
        lambda new: new(num_tensors=1).tensor(b"w", [8], 0, 2**64 - 32).data(32), 96, "ends before tensor 'w'"
    ),
    "a tensor twice": (
        lambda new: new(num_tensors=2).tensor(b"w", [8], 0).tensor(b"w", [8], 0, 32).data(64), 57, "twice"
    ),
    "tensors that overlap": (
        lambda new: new(num_tensors=2).tensor(b"a", [16], 0).tensor(b"b", [8], 0, 32).data(64), 128, "overlap"
    ),
    "bytes behind the last tensor": (
        lambda new: new(num_tensors=1).tensor(b"w", [8], 0).data(33), 96, "goes on for 1 bytes"
    ),
}  # fmt: skip


def _with(raw: Any, content: bytes, *, at: int) -> Any:
    raw.bytes = raw.bytes[:at] + content + raw.bytes[at + len(content) :]
    return raw


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named_with_file_and_offset(raw_gguf: Any, tmp_path: Path, wrong: str) -> None:
    build, offset, words = WRONG[wrong]
    path = build(raw_gguf).save(tmp_path)
    with pytest.raises(WeightFileError) as raised:
        _C.GgufFile(path)
    assert str(raised.value).startswith(f"{path}: byte {offset}: ")
    assert words in str(raised.value)


def test_a_file_cut_anywhere_is_refused(small_gguf: Path, tmp_path: Path) -> None:
    content = small_gguf.read_bytes()
    last = max(_C.GgufFile(str(small_gguf)).tensors.values(), key=lambda tensor: tensor.offset)
    cut = tmp_path / "cut.gguf"
    for num_bytes in range(last.offset + last.nbytes):
        cut.write_bytes(content[:num_bytes])
        with pytest.raises(WeightFileError, match=r"cut\.gguf: byte \d+: "):
            _C.GgufFile(str(cut))


def test_text_from_the_file_is_shown_without_control_characters(raw_gguf: Any, tmp_path: Path) -> None:
    raw = raw_gguf(num_tensors=1).tensor(b"\x1b[2J\n" + b"x" * 100, [0], 0)
    with pytest.raises(WeightFileError) as raised:
        _C.GgufFile(raw.save(tmp_path))
    assert "'\\x1b[2J\\x0a" + "x" * 59 + "...'" in str(raised.value)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for name, words in (
        ("pipe", "not a regular file"),
        ("empty", "is empty"),
        ("none", "No such file"),
        (".", "not a"),
    ):
        with pytest.raises(WeightFileError, match=words):
            _C.GgufFile(str(tmp_path / name))
