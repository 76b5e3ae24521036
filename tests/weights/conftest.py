"""GGUF files written by the reference implementation, and by hand where it refuses to write what is wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

WriteGguf = Callable[[Callable[[gguf.GGUFWriter], None]], Path]


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteGguf:
    """Writes a file with what the callback adds, and returns its path."""

    def write(add: Callable[[gguf.GGUFWriter], None]) -> Path:
        path = tmp_path / "written.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        add(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def small_gguf(write_gguf: WriteGguf) -> Path:
    """A little of everything: scalars, arrays, strings; tensors plain and quantised."""

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_uint32("small.count", 7)
        writer.add_float64("small.scale", 0.1)
        writer.add_bool("small.flag", True)
        writer.add_array("small.numbers", [1, -2, 3])
        writer.add_array("small.words", ["a", "bb", "", "ccc"])
        writer.add_tensor("norm", np.arange(32, dtype=np.float32))
        writer.add_tensor("half", np.arange(64, dtype=np.float16).reshape(2, 32))
        blocks = np.arange(3 * 40, dtype=np.uint8).reshape(3, 40)
        writer.add_tensor("quantised", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_1)

    return write_gguf(add)


class RawGguf:
    """A GGUF file, byte by byte."""

    def __init__(self, *, version: int = 3, num_tensors: int = 0, num_pairs: int = 0) -> None:
        self.bytes = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_pairs)

    def raw(self, layout: str, *values: int | float) -> RawGguf:
        self.bytes += struct.pack("<" + layout, *values)
        return self

    def text(self, value: bytes) -> RawGguf:
        self.bytes += struct.pack("<Q", len(value)) + value
        return self

    def tensor(self, name: bytes, dims: list[int], type_id: int, offset: int = 0) -> RawGguf:
        self.text(name).raw("I", len(dims))
        for dim in dims:
            self.raw("Q", dim)
        return self.raw("IQ", type_id, offset)

    def data(self, num_bytes: int, *, alignment: int = 32) -> RawGguf:
        self.bytes += b"\0" * (-len(self.bytes) % alignment + num_bytes)
        return self

    def save(self, folder: Path) -> str:
        path = folder / "raw.gguf"
        path.write_bytes(self.bytes)
        return str(path)


@pytest.fixture
def raw_gguf() -> type[RawGguf]:
    return RawGguf
