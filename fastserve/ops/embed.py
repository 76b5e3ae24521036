"""Rows of the embedding table."""

from __future__ import annotations

import torch
from torch import Tensor

from fastserve import _C
from fastserve.ops import arguments, registry
from fastserve.ops.backend import activation_dtypes
from fastserve.ops.file_rows import GGUF_TYPES, FileRows, dequantise, file_type, of_tensor, row_bytes


def embed(token_ids: Tensor, table: Tensor | FileRows) -> Tensor:
    """table[token_ids], dequantised.

    token_ids [T] int32, each in [0, V)
    table     [V, D] contiguous fp32, fp16 or bf16; or FileRows, a table as it lies in a GGUF file
    out       [T, D] of rows.dtype: fp32, on GPUs also bf16 or fp16; a plain table on a GPU gives its own dtype
    Raises ValueError naming the argument whose shape, dtype or content is wrong.
    """
    rows = table if isinstance(table, FileRows) else of_tensor(table)
    return _op(token_ids, rows.data, GGUF_TYPES[rows.type], rows.d, rows.dtype)


def reference(token_ids: Tensor, table: Tensor | FileRows) -> Tensor:
    rows = table if isinstance(table, FileRows) else of_tensor(table)
    return dequantise(FileRows(rows.data[token_ids.long()], rows.type, rows.d)).to(rows.dtype)


def _allocate(token_ids: Tensor, table: Tensor, gguf_type: int, d: int, dtype: torch.dtype) -> Tensor:
    arguments.vector("token_ids", token_ids, dtype=torch.int32)
    good = table.dtype == torch.uint8 and table.dim() == 2 and table.is_contiguous()
    size = row_bytes(file_type(gguf_type), d)
    good = good and table.shape[1] == size
    arguments.require("table", good, f"be contiguous uint8 [V, {size}]", arguments.describe(table))
    dtypes = activation_dtypes(table.device)
    arguments.require("dtype", dtype in dtypes, f"be {arguments.names(*dtypes)}", dtype)
    return table.new_empty((token_ids.shape[0], d), dtype=dtype)


def _reference(token_ids: Tensor, table: Tensor, gguf_type: int, d: int, dtype: torch.dtype) -> Tensor:
    return reference(token_ids, FileRows(table, file_type(gguf_type), d, dtype))


def _triton(token_ids: Tensor, table: Tensor, gguf_type: int, d: int, dtype: torch.dtype) -> Tensor:
    from fastserve.kernels.embed import embed as kernel

    out = _allocate(token_ids, table, gguf_type, d, dtype)
    kernel(token_ids, table, gguf_type=gguf_type, out=out)
    return out


def _cpu(token_ids: Tensor, table: Tensor, gguf_type: int, d: int, dtype: torch.dtype) -> Tensor:
    out = _allocate(token_ids, table, gguf_type, d, dtype)
    if out.numel():
        _C.ops.embed(
            token_ids.data_ptr(), table.data_ptr(), table.shape[0], gguf_type, table.shape[1],
            token_ids.shape[0], d, out.data_ptr(), out.stride(0),
        )  # fmt: skip
    return out


_op = registry.register(
    "embed(Tensor token_ids, Tensor table, int gguf_type, int d, ScalarType dtype) -> Tensor",
    fake=_allocate,
    reference=_reference,
    cpu=_cpu,
    triton=_triton,
)
