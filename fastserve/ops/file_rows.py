"""Rows of a matrix in the layout of a GGUF file, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fastserve.ops import arguments

FileType = Literal["F32", "F16", "Q4_0", "Q4_1", "Q8_0", "BF16"]
GGUF_TYPES: dict[FileType, int] = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
_PLAIN: dict[FileType, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCK = 32  # weights that share a scale
_BLOCK_BYTES: dict[FileType, int] = {"Q4_0": 2 + 16, "Q4_1": 2 + 2 + 16, "Q8_0": 2 + 32}


@dataclass(frozen=True, slots=True)
class FileRows:
    """A matrix [V, D] of which each row is a GGUF row of the given type.

    data  [V, row_bytes] uint8, contiguous
    dtype of what embed makes of them
    """

    data: Tensor
    type: FileType
    d: int
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Raises ValueError naming the field that is wrong."""
        arguments.require(
            "type", self.type in get_args(FileType), f"be one of {get_args(FileType)}", self.type
        )
        if self.type not in _PLAIN:
            arguments.require("d", self.d % _BLOCK == 0, f"be a multiple of {_BLOCK} for {self.type}", self.d)
        size = row_bytes(self.type, self.d)
        good = self.data.dtype == torch.uint8 and self.data.dim() == 2 and self.data.is_contiguous()
        good = good and self.data.shape[1] == size
        arguments.require("data", good, f"be contiguous uint8 [V, {size}]", arguments.describe(self.data))


def file_type(gguf_type: int) -> FileType:
    """Raises ValueError for a GGUF type that is not read here."""
    names = {number: name for name, number in GGUF_TYPES.items()}
    arguments.require("gguf_type", gguf_type in names, f"be one of {sorted(names)}", gguf_type)
    return names[gguf_type]


def row_bytes(file_type: FileType, d: int) -> int:
    if file_type in _PLAIN:
        return d * _PLAIN[file_type].itemsize
    return d // _BLOCK * _BLOCK_BYTES[file_type]


def of_tensor(table: Tensor) -> FileRows:
    """The bytes of a plain fp32, fp16 or bf16 matrix; nothing is copied."""
    names = {dtype: name for name, dtype in _PLAIN.items()}
    good = table.dim() == 2 and table.dtype in names and table.is_contiguous()
    arguments.require("table", good, "be contiguous fp32, fp16 or bf16 [V, D]", arguments.describe(table))
    dtype = table.dtype if table.is_cuda else torch.float32
    return FileRows(table.view(torch.uint8), names[table.dtype], table.shape[1], dtype)


def dequantise(rows: FileRows) -> Tensor:
    """[V, D] fp32. Source: the block layouts of ggml-common.h."""
    if rows.type in _PLAIN:
        return rows.data.view(_PLAIN[rows.type]).float()
    blocks = rows.data.reshape(len(rows.data), -1, _BLOCK_BYTES[rows.type])
    scale = blocks[..., :2].contiguous().view(torch.float16).float()
    if rows.type == "Q8_0":
        return (blocks[..., 2:].contiguous().view(torch.int8).float() * scale).flatten(-2)
    nibbles = torch.cat([blocks[..., -16:] & 15, blocks[..., -16:] >> 4], dim=-1).float()
    if rows.type == "Q4_0":
        return ((nibbles - 8) * scale).flatten(-2)
    minimum = blocks[..., 2:4].contiguous().view(torch.float16).float()
    return (nibbles * scale + minimum).flatten(-2)
