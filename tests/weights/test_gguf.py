"""csrc/weights/gguf.*: reads what the reference implementation writes."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from fastserve import _C
from fastserve.errors import WeightFileError

STRING, ARRAY = 8, 9  # value type ids
SUPPORTED = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}


def test_every_scalar_type_reads_as_written(write_gguf: Any) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_uint8("u8", 255)
        writer.add_int8("i8", -128)
        writer.add_uint16("u16", 65535)
        writer.add_int16("i16", -32768)
        writer.add_uint32("u32", 2**32 - 1)
        writer.add_int32("i32", -(2**31))
        writer.add_uint64("u64", 2**64 - 1)
        writer.add_int64("i64", -(2**63))
        writer.add_float32("f32", 0.5)
        writer.add_float64("f64", 0.1)
        writer.add_bool("yes", True)
        writer.add_bool("no", False)
        writer.add_string("text", "Grüße, 世界")

    metadata = _C.GgufFile(str(write_gguf(add))).metadata
    expected = {
        "general.architecture": "llama", "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1,
        "i32": -(2**31), "u64": 2**64 - 1, "i64": -(2**63), "f32": 0.5, "f64": 0.1, "yes": True, "no": False,
        "text": "Grüße, 世界",
    }  # fmt: skip
    assert metadata == expected
    assert {key: type(value) for key, value in metadata.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize(
    "values",
    [[1, -2, 3], [0.5, -1.5], [True, False, True], ["a", "", "ccc"]],
    ids=["int", "float", "bool", "str"],
)
def test_arrays_read_as_written(write_gguf: Any, values: list[Any]) -> None:
    metadata = _C.GgufFile(str(write_gguf(lambda writer: writer.add_array("list", values)))).metadata
    assert metadata["list"] == values
    assert [type(value) for value in metadata["list"]] == [type(value) for value in values]


def test_an_empty_array_is_an_empty_list(raw_gguf: Any, tmp_path: Path) -> None:
    raw = raw_gguf(num_pairs=1).text(b"none").raw("IIQ", ARRAY, STRING, 0)
    assert _C.GgufFile(raw.save(tmp_path)).metadata == {"none": []}


def test_strings_that_are_no_utf8_survive_a_round_trip(raw_gguf: Any, tmp_path: Path) -> None:
    raw = raw_gguf(num_pairs=1).text(b"key\xff").raw("I", STRING).text(b"\xc3(\x80")
    ((key, value),) = _C.GgufFile(raw.save(tmp_path)).metadata.items()
    assert key.encode(errors="surrogateescape") == b"key\xff"
    assert isinstance(value, str)
    assert value.encode(errors="surrogateescape") == b"\xc3(\x80"


def test_tensors_have_the_shape_type_and_bytes_that_were_written(write_gguf: Any) -> None:
    norm = np.linspace(-1, 1, 7, dtype=np.float32)
    half = np.arange(6 * 5, dtype=np.float16).reshape(6, 5)
    cube = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    path = write_gguf(
        lambda w: (w.add_tensor("norm", norm), w.add_tensor("half", half), w.add_tensor("cube", cube))
    )
    file = _C.GgufFile(str(path))
    assert list(file.tensors) == ["norm", "half", "cube"]
    assert file.path == str(path)
    found = file.tensors["half"]
    assert (found.name, found.type, found.type_name, found.supported) == ("half", 1, "F16", True)
    assert (found.shape, found.n, found.k, found.nbytes) == ((6, 5), 6, 5, 60)
    assert (file.tensors["norm"].shape, file.tensors["norm"].n, file.tensors["norm"].k) == ((7,), 1, 7)
    assert (file.tensors["cube"].shape, file.tensors["cube"].n, file.tensors["cube"].k) == ((2, 3, 4), 6, 4)
    for name, values in (("norm", norm), ("half", half), ("cube", cube)):
        tensor = file.tensors[name]
        assert file.read(name) == values.tobytes()
        assert path.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes] == values.tobytes()


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q8_0", "BF16"])
def test_quantised_tensors_read_as_the_reference_quantises(write_gguf: Any, type_name: str) -> None:
    kind = gguf.GGMLQuantizationType[type_name]
    values = np.linspace(-3, 3, 4 * 64, dtype=np.float32).reshape(4, 64)
    blocks = gguf.quants.quantize(values, kind)
    file = _C.GgufFile(str(write_gguf(lambda writer: writer.add_tensor("w", blocks, raw_dtype=kind))))
    tensor = file.tensors["w"]
    assert (tensor.type, tensor.type_name, tensor.shape) == (SUPPORTED[type_name], type_name, (4, 64))
    assert file.read("w") == blocks.tobytes()


def test_data_address_leads_to_the_mapped_bytes(write_gguf: Any) -> None:
    import ctypes

    values = np.arange(32, dtype=np.float32)
    file = _C.GgufFile(str(write_gguf(lambda writer: writer.add_tensor("w", values))))
    address = file.data_address("w")
    assert address % 32 == 0
    assert ctypes.string_at(address, 128) == values.tobytes()


def test_dictionaries_are_made_once(small_gguf: Path) -> None:
    file = _C.GgufFile(str(small_gguf))
    assert file.metadata is file.metadata
    assert file.tensors is file.tensors


def test_version_2_is_read(small_gguf: Path) -> None:
    content = bytearray(small_gguf.read_bytes())
    content[4] = 2
    small_gguf.write_bytes(content)
    assert _C.GgufFile(str(small_gguf)).version == 2


def test_the_alignment_of_the_file_is_obeyed(write_gguf: Any) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_custom_alignment(256)
        writer.add_tensor("a", np.ones(3, dtype=np.float32))
        writer.add_tensor("b", np.full(3, 2, dtype=np.float32))

    file = _C.GgufFile(str(write_gguf(add)))
    assert file.tensors["b"].offset - file.tensors["a"].offset == 256
    assert file.read("b") == np.full(3, 2, dtype=np.float32).tobytes()


def test_the_real_model_reads_as_the_reference_reads_it(smollm2_path: Path) -> None:
    file = _C.GgufFile(str(smollm2_path))
    reference = gguf.GGUFReader(smollm2_path)
    assert [t.name for t in reference.tensors] == list(file.tensors)
    for theirs in reference.tensors:
        ours = file.tensors[theirs.name]
        assert (ours.type, ours.nbytes, ours.offset) == (
            theirs.tensor_type,
            theirs.n_bytes,
            theirs.data_offset,
        )
        assert ours.shape == tuple(int(dim) for dim in reversed(theirs.shape))
        if ours.nbytes < 100_000:
            assert file.read(theirs.name) == theirs.data.tobytes()
    keys = [key for key in reference.fields if not key.startswith("GGUF.")]
    assert keys == list(file.metadata)
    for key in keys:
        assert reference.fields[key].contents() == file.metadata[key], key


def test_every_type_that_the_reference_knows_has_its_size(raw_gguf: Any, tmp_path: Path) -> None:
    checked = 0
    for kind, (block_weights, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":  # the reference counts its scales as floats; they are halves since 2023
            continue
        raw = raw_gguf(num_tensors=1).tensor(b"w", [block_weights * 2, 3], int(kind)).data(6 * block_bytes)
        tensor = _C.GgufFile(raw.save(tmp_path)).tensors["w"]
        if (
            tensor.type_name == "unknown" or kind.name == "Q8_1"
        ):  # the reference counts Q8_1's scales as floats
            continue
        assert (tensor.type_name, tensor.nbytes) == (kind.name, 6 * block_bytes)
        assert tensor.supported == (kind.name in SUPPORTED)
        checked += 1
    assert checked >= 30


@pytest.mark.parametrize(("type_id", "shown"), [(12, "Q4_K (12)"), (999, "unknown (999)")])
def test_an_unsupported_type_is_listed_and_refused_when_loaded(
    raw_gguf: Any, tmp_path: Path, type_id: int, shown: str
) -> None:
    raw = raw_gguf(num_tensors=1).tensor(b"blk.0.attn_q.weight", [256, 2], type_id).data(288)
    file = _C.GgufFile(raw.save(tmp_path))
    assert file.tensors["blk.0.attn_q.weight"].supported is False
    for load in (file.data_address, file.read):
        with pytest.raises(WeightFileError) as raised:
            load("blk.0.attn_q.weight")
        message = str(raised.value)
        assert f"tensor 'blk.0.attn_q.weight' has type {shown}, which is not supported" in message
        assert "supported are F32, F16, Q4_0, Q4_1, Q8_0, BF16" in message


def test_a_missing_tensor_is_named(small_gguf: Path) -> None:
    with pytest.raises(WeightFileError, match=r"written\.gguf: has no tensor 'output\\x00'"):
        _C.GgufFile(str(small_gguf)).read("output\0")


def test_a_file_name_that_is_no_utf8_is_read_and_shown(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.gguf")
    Path(path).write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    assert _C.GgufFile(path).path == path
    Path(path).write_bytes(b"GGUX")
    with pytest.raises(WeightFileError, match=r"\\xff\.gguf: byte 0"):
        _C.GgufFile(path)


def test_a_replaced_file_stays_readable_through_its_old_mapping(write_gguf: Any, tmp_path: Path) -> None:
    values = np.arange(32, dtype=np.float32)
    path = write_gguf(lambda writer: writer.add_tensor("w", values))
    file = _C.GgufFile(str(path))
    (tmp_path / "new").write_bytes(b"short")
    os.replace(tmp_path / "new", path)
    assert file.read("w") == values.tobytes()
