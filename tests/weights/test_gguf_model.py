from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from fastserve.errors import WeightFileError
from fastserve.weights.gguf_model import ModelFile


def test_a_model_file_tells_architecture_metadata_and_tensors(small_gguf: Path) -> None:
    model = ModelFile(small_gguf)
    assert model.path == small_gguf
    assert model.architecture == "llama"
    assert model.metadata["small.count"] == 7
    assert "quantised" in model
    assert "absent" not in model
    view = model.tensor("quantised")
    assert (view.type, view.type_name, view.shape) == (3, "Q4_1", (3, 64))
    assert (view.n, view.k, view.row_bytes, view.num_bytes) == (3, 64, 40, 120)
    assert ctypes.string_at(view.address, view.num_bytes) == model.read("quantised") == bytes(range(120))


def test_an_unsupported_tensor_is_listed_and_refused_when_asked_for(write_gguf: Any) -> None:
    blocks = np.zeros((2, 144), dtype=np.uint8)
    kind = gguf.GGMLQuantizationType.Q4_K
    model = ModelFile(write_gguf(lambda writer: writer.add_tensor("w", blocks, raw_dtype=kind)))
    assert model.tensors["w"].type_name == "Q4_K"
    with pytest.raises(WeightFileError, match="tensor 'w' has type Q4_K"):
        model.tensor("w")


def test_a_missing_architecture_is_named(raw_gguf: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match=r"general\.architecture"):
        _ = ModelFile(raw_gguf().save(tmp_path)).architecture


def test_one_part_of_a_split_model_is_refused(write_gguf: Any) -> None:
    path = write_gguf(lambda writer: writer.add_uint16("split.count", 3))
    with pytest.raises(WeightFileError, match="one of 3 parts"):
        ModelFile(path)
