from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

import fastserve.ops
from fastserve.ops import FileRows, reference
from fastserve.ops.file_rows import GGUF_TYPES, FileType, dequantise

QUANTISED: list[FileType] = ["Q4_0", "Q4_1", "Q8_0"]


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def file_rows(file_type: FileType, generator: torch.Generator) -> FileRows:
    plain = torch.randn(50, 96, generator=generator).numpy()
    data = gguf.quantize(plain, gguf.GGMLQuantizationType(GGUF_TYPES[file_type]))
    return FileRows(torch.from_numpy(data), file_type, 96)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "d"), [(1, 1), (3, 17), (130, 64)])
def test_fast_equals_slow(
    isa: str, generator: torch.Generator, dtype: torch.dtype, num_rows: int, d: int
) -> None:
    table = torch.randn(50, d, generator=generator).to(dtype)
    token_ids = torch.randint(50, (num_rows,), generator=generator, dtype=torch.int32)
    assert torch.equal(fastserve.ops.embed(token_ids, table), reference.embed(token_ids, table))


@pytest.mark.parametrize("file_type", QUANTISED)
def test_rows_of_a_file_are_dequantised(isa: str, generator: torch.Generator, file_type: FileType) -> None:
    table, token_ids = file_rows(file_type, generator), ids(49, 0, 7, 7)
    assert torch.equal(fastserve.ops.embed(token_ids, table), reference.embed(token_ids, table))


@pytest.mark.parametrize("file_type", QUANTISED)
def test_the_reference_reads_rows_as_gguf_does(generator: torch.Generator, file_type: FileType) -> None:
    table = file_rows(file_type, generator)
    oracle = gguf.dequantize(table.data.numpy(), gguf.GGMLQuantizationType(GGUF_TYPES[file_type]))
    np.testing.assert_array_equal(dequantise(table).numpy(), oracle)


def test_passes_opcheck(generator: torch.Generator) -> None:
    table = torch.randn(5, 8, generator=generator).view(torch.uint8)
    torch.library.opcheck(
        torch.ops.fastserve.embed.default, (ids(4, 1), table, GGUF_TYPES["F32"], 8, torch.float32)
    )


@pytest.mark.parametrize("token_id", [-1, 5])
def test_a_token_id_out_of_range_is_refused(token_id: int) -> None:
    with pytest.raises(ValueError, match=rf"token_ids must be in \[0, 5\), got {token_id}"):
        fastserve.ops.embed(ids(0, token_id), torch.zeros(5, 8))


@pytest.mark.parametrize(
    ("token_ids", "table", "message"),
    [
        (torch.tensor([0]), torch.zeros(5, 8), "token_ids must be contiguous int32"),
        (ids(0), torch.zeros(5, 8).double(), "table must be"),
        (ids(0), torch.zeros(8, 5).T, "table must be contiguous"),
    ],
)
def test_a_bad_argument_is_named(token_ids: torch.Tensor, table: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastserve.ops.embed(token_ids, table)


def test_the_operator_itself_refuses_rows_that_are_too_short() -> None:
    with pytest.raises(ValueError, match="table must"):
        torch.ops.fastserve.embed(
            ids(0), torch.zeros(5, 8, dtype=torch.uint8), GGUF_TYPES["F32"], 8, torch.float32
        )


def test_rows_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data must be contiguous uint8 \[V, 34\]"):
        FileRows(torch.zeros(3, 33, dtype=torch.uint8), "Q8_0", 32)
    with pytest.raises(ValueError, match="type must be one of"):
        FileRows(torch.zeros(3, 33, dtype=torch.uint8), "Q9_9", 32)  # type: ignore[arg-type]
