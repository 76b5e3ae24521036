"""What a recorder works with: buffers, weights, and who reads what of them.

Values stand for buffers [rows, width] of fp32 whose row count is that of the step (its tokens, or its sampled rows);
room is planned for the largest step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastserve import _C

Rows = Literal["tokens", "samples"]
Address = tuple[int, int]  # byte offset in the arena, row stride in elements
Epilogue = Literal["none", "silu_mul"]


@dataclass(frozen=True, slots=True)
class Value:
    """Columns [begin, begin + width) of a buffer."""

    buffer: int
    begin: int
    width: int
    rows: Rows


@dataclass(frozen=True, slots=True)
class EmbeddingTable:
    """Rows of the mapped file, in their own layout; the file must stay mapped as long as the program runs."""

    address: int
    gguf_type: int
    row_bytes: int
    width: int


@dataclass(frozen=True, slots=True)
class FusedWeight:
    """Packed weights that read the same input, side by side along N: one where their types agree."""

    parts: tuple[_C.PackedWeight, ...]

    @property
    def n(self) -> int:
        return sum(part.n for part in self.parts)


@dataclass(frozen=True, slots=True)
class LayerCache:
    kv: _C.KvCache
    group: int


@dataclass(slots=True)
class Output:
    """A value of an op that writes it as floats, as the operand of matmuls, or as both."""

    value: Value
    op: int
    floats_read: bool = False
    operand: tuple[Value, str] | None = None  # the scratch of those matmuls, and the type of their weights
    copy_rows: int = 0  # up to so many, each thread makes the operand for itself, if nobody reads floats

    @property
    def rows_copied(self) -> int:
        return 0 if self.floats_read else self.copy_rows


@dataclass(frozen=True, slots=True)
class Factors:
    """What a matmul multiplies: x, or the operand that x's op has written to the scratch."""

    x: Value
    w: _C.PackedWeight
    scratch: Value
    output: Output | None = None  # of that op

    @property
    def reads(self) -> list[Value]:
        return [self.x if self.output is None else self.scratch]

    @property
    def rows_copied(self) -> int:
        return 0 if self.output is None else self.output.rows_copied
