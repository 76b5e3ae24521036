"""llama.cpp's tokenizer as an oracle, over a vocabulary-only file of our own making."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import llama_cpp

PREFIX = "tokenizer.ggml."
# Only a header: a vocabulary-only load reads no tensor, but asks for what makes an architecture.
HEADER = {"block_count": 1, "context_length": 64, "embedding_length": 64, "feed_forward_length": 64}


def write_vocabulary(path: Path, metadata: Mapping[str, Any]) -> Path:
    """A GGUF file without tensors that holds the tokenizer that `metadata` describes."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in HEADER.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        if key.startswith(PREFIX):
            _add(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


class Oracle:
    """What llama.cpp makes of a text, with the file's own vocabulary."""

    def __init__(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ValueError(f"llama.cpp could not load {path}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        raw = text.encode()
        room = len(raw) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), ids, room, add_special, parse_special)
        assert 0 <= count <= room
        return list(ids[:count])

    def token_bytes(self, token_id: int) -> bytes:
        room = 1024
        buffer = llama_cpp.ctypes.create_string_buffer(room)
        count = llama_cpp.llama_token_to_piece(self._vocab, token_id, buffer, room, 0, True)
        assert 0 <= count <= room
        return buffer.raw[:count]

    def ends_generation(self, token_id: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token_id))

    def close(self) -> None:
        llama_cpp.llama_model_free(self._model)
