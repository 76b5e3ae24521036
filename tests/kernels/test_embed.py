from __future__ import annotations

import gguf
import pytest
import torch
from fastserve.kernels.embed import Piece, choose_piece, embed

from fastserve.ops import FileRows, reference
from fastserve.ops.file_rows import GGUF_TYPES, FileType, of_tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
QUANTISED: list[FileType] = ["Q4_0", "Q4_1", "Q8_0"]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20245)


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def file_rows(file_type: FileType, generator: torch.Generator, d: int) -> FileRows:
    plain = torch.randn(50, d, generator=generator).numpy()
    data = gguf.quantize(plain, gguf.GGMLQuantizationType(GGUF_TYPES[file_type]))
    return FileRows(torch.from_numpy(data), file_type, d)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "d"), [(1, 1), (7, 33), (3, 576), (2, 4099)])
def test_fast_equals_slow(generator: torch.Generator, dtype: torch.dtype, num_tokens: int, d: int) -> None:
    table = torch.randn(50, d, generator=generator).to(dtype)
    token_ids = torch.randint(50, (num_tokens,), generator=generator, dtype=torch.int32)
    for out_dtype in (dtype, torch.float32):
        out = torch.empty(num_tokens, d, dtype=out_dtype)
        embed(token_ids, table, out=out)
        assert torch.equal(out, reference.embed(token_ids, table).to(out_dtype))


@pytest.mark.parametrize("file_type", QUANTISED)
@pytest.mark.parametrize("d", [32, 96, 4128])
def test_rows_of_a_file_are_dequantised(generator: torch.Generator, file_type: FileType, d: int) -> None:
    table, token_ids = file_rows(file_type, generator, d), ids(49, 0, 7, 7)
    slow = reference.embed(token_ids, table)
    for dtype in DTYPES:
        out = torch.empty(4, d, dtype=dtype)
        embed(token_ids, table.data, gguf_type=GGUF_TYPES[file_type], out=out)
        if dtype == torch.bfloat16:  # Triton's interpreter truncates where the GPU rounds to nearest
            torch.testing.assert_close(out.float(), slow, rtol=2**-7, atol=0)
        else:
            assert torch.equal(out, slow.to(dtype))


@pytest.mark.parametrize("file_type", QUANTISED)
def test_rows_of_a_file_may_begin_at_an_odd_address(generator: torch.Generator, file_type: FileType) -> None:
    table, token_ids = file_rows(file_type, generator, 64), ids(3, 1)
    odd = torch.empty(table.data.numel() + 1, dtype=torch.uint8)[1:].view(table.data.shape)
    odd.copy_(table.data)
    out = torch.empty(2, 64)
    embed(token_ids, odd, gguf_type=GGUF_TYPES[file_type], out=out)
    assert torch.equal(out, reference.embed(token_ids, table))


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_rows_of_a_file_are_read_from_their_bytes(
    generator: torch.Generator, dtype: torch.dtype
) -> None:
    rows = of_tensor(torch.randn(50, 33, generator=generator).to(dtype))
    out = torch.empty(2, 33)
    embed(ids(49, 2), rows.data, gguf_type=GGUF_TYPES[rows.type], out=out)
    assert torch.equal(out, reference.embed(ids(49, 2), rows))


@pytest.mark.parametrize("file_type", [None, *QUANTISED])
def test_writes_columns_of_a_wider_matrix(generator: torch.Generator, file_type: FileType | None) -> None:
    table = file_rows(file_type, generator, 96) if file_type else torch.randn(50, 33, generator=generator)
    slow = reference.embed(ids(4, 9), table)
    wide = torch.full((2, 120), torch.nan)
    data = table.data if isinstance(table, FileRows) else table
    columns = slice(5, 5 + slow.shape[1])
    embed(ids(4, 9), data, gguf_type=GGUF_TYPES[file_type] if file_type else None, out=wide[:, columns])
    assert torch.equal(wide[:, columns], slow)
    assert wide[:, :5].isnan().all()
    assert wide[:, columns.stop :].isnan().all()


def test_no_tokens_give_no_rows() -> None:
    embed(ids(), torch.zeros(5, 8), out=torch.empty(0, 8))


def test_a_piece_has_enough_elements_for_its_threads() -> None:
    assert choose_piece(1) == Piece(block=32, num_warps=1)
    assert choose_piece(576) == Piece(block=1024, num_warps=2)
    assert choose_piece(4096) == Piece(block=2048, num_warps=4)
