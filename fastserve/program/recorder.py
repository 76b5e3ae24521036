"""The op table, recorded instead of run: a model's forward, once, becomes a native Program.

Values stand for buffers [rows, width] of fp32 whose row count is that of the step (its tokens, or its sampled rows);
room is planned for the largest step. Ops are kept until `finish`, when lifetimes are known and addresses given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastserve import _C
from fastserve.program.arena import BufferLife, plan_offsets

Rows = Literal["tokens", "samples"]
Address = tuple[int, int]  # byte offset in the arena, row stride in elements
FLOAT_BYTES = 4


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


@dataclass(frozen=True, slots=True)
class Rotary:
    """One that was recorded, as op number `op`."""

    op: int
    q: Value
    k: Value
    inv_freq: Sequence[float]
    num_heads: int


class Recorder:
    """Records into `program`; what an op returns is a Value, what it mutates stays the same Value."""

    def __init__(self, program: _C.Program, *, max_tokens: int, max_samples: int) -> None:
        self._program = program
        self._max_rows: dict[Rows, int] = {"tokens": max_tokens, "samples": max_samples}
        self._lives: list[BufferLife] = []
        self._widths: list[int] = []
        self._emitters: list[Callable[[], None]] = []
        self._offsets: list[int] = []
        self._rotary: Rotary | None = None  # the last one

    def embed(self, token_ids: None, table: EmbeddingTable) -> Value:
        out = self._value(table.width, "tokens")

        def emit() -> None:
            self._program.add_embed(
                table.address, table.gguf_type, table.row_bytes, table.width, self._at(out)
            )

        self._record(emit, [], [out])
        return out

    def rms_norm(self, x: Value, weight: Sequence[float], eps: float) -> Value:
        out = self._value(x.width, x.rows)

        def emit() -> None:
            self._program.add_rms_norm(x.rows, None, self._at(x), list(weight), eps, self._at(out))

        self._record(emit, [x], [out])
        return out

    def add_rms_norm(self, x: Value, residual: Value, weight: Sequence[float], eps: float) -> Value:
        out = self._value(x.width, x.rows)

        def emit() -> None:
            self._program.add_rms_norm(
                x.rows, self._at(x), self._at(residual), list(weight), eps, self._at(out)
            )

        self._record(emit, [x, residual], [out])
        return out

    def matmul(self, x: Value, w: FusedWeight) -> Value:
        out = self._value(w.n, x.rows)
        begin = 0
        for part in w.parts:
            self._matmul_part(x, part, Value(out.buffer, begin, part.n, out.rows))
            begin += part.n
        return out

    def _matmul_part(self, x: Value, part: _C.PackedWeight, out: Value) -> None:
        scratch = self._scratch(_C.matmul_scratch_bytes(part, self._max_rows[x.rows]))

        def emit() -> None:
            self._program.add_matmul(x.rows, self._at(x), part, self._at(out), self._at(scratch)[0])

        self._record(emit, [x], [out, scratch])

    def matmul_all_reduce(self, x: Value, w: FusedWeight, group: None) -> Value:
        return self._matmul_all_reduce(x, w, [], list)

    def matmul_all_reduce_add_rms_norm(  # noqa: PLR0917 (as the op)
        self,
        x: Value,
        w: FusedWeight,
        group: None,
        residual: Value,
        norm_weight: Sequence[float],
        eps: float,
    ) -> Value:
        return self._matmul_all_reduce(x, w, [residual], lambda: [self._at(residual), list(norm_weight), eps])

    def _matmul_all_reduce(
        self, x: Value, w: FusedWeight, updated: list[Value], norm: Callable[[], list[Any]]
    ) -> Value:
        """norm: the arguments that follow the product's, once values have their places."""
        (part,) = w.parts
        out = self._value(part.n, x.rows)
        scratch = self._scratch(_C.matmul_scratch_bytes(part, self._max_rows[x.rows]))

        def emit() -> None:
            product = self._at(x), part, self._at(out), self._at(scratch)[0]
            self._program.add_matmul_all_reduce(*product, *norm())

        self._record(emit, [x, *updated], [out, scratch])
        return out

    def split(self, x: Value, sizes: Sequence[int]) -> tuple[Value, ...]:
        assert sum(sizes) == x.width, (sizes, x.width)
        begins = [x.begin + sum(sizes[:i]) for i in range(len(sizes))]
        return tuple(Value(x.buffer, b, s, x.rows) for b, s in zip(begins, sizes, strict=True))

    def rotary(
        self, q: Value, k: Value, positions: None, inv_freq: Sequence[float], *, head_dim: int
    ) -> None:
        def emit() -> None:
            self._program.add_rotary(
                self._at(q), self._at(k), list(inv_freq), q.width // head_dim, k.width // head_dim, head_dim
            )

        self._rotary = Rotary(len(self._emitters), q, k, inv_freq, q.width // head_dim)
        self._record(emit, [q, k], [])

    def store_kv(self, k: Value, v: Value, cache: LayerCache, index: None) -> None:
        """Of a k that was turned just before, in one op with that: a barrier less."""
        rotary = self._rotary
        if rotary is not None and rotary.op == len(self._emitters) - 1 and rotary.k == k:
            self._emitters.pop()
            self._rotary_store_kv(rotary, v, cache)
            return

        def emit() -> None:
            self._program.add_store_kv(self._at(k), self._at(v), cache.kv, cache.group)

        self._record(emit, [k, v], [])

    def _rotary_store_kv(self, rotary: Rotary, v: Value, cache: LayerCache) -> None:
        def emit() -> None:
            operands = self._at(rotary.q), self._at(rotary.k), self._at(v)
            self._program.add_rotary_store_kv(
                *operands, list(rotary.inv_freq), rotary.num_heads, cache.kv, cache.group
            )

        self._record(emit, [rotary.q, rotary.k, v], [])

    def paged_attention(
        self,
        q: Value,
        cache: LayerCache,
        index: None,
        kv_of_head: Sequence[int],
        *,
        scale: float,
        window: int = 0,
        max_group: int = 0,
    ) -> Value:
        out = self._value(q.width, q.rows)

        def emit() -> None:
            self._program.add_paged_attention(
                self._at(q), cache.kv, cache.group, list(kv_of_head), scale, window, self._at(out)
            )

        self._record(emit, [q], [out])
        return out

    def silu_mul(self, x: Value) -> Value:
        out = self._value(x.width // 2, x.rows)

        def emit() -> None:
            self._program.add_silu_mul(self._at(x), out.width, self._at(out))

        self._record(emit, [x], [out])
        return out

    def select_rows(self, x: Value, sample_rows: None) -> Value:
        out = self._value(x.width, "samples")

        def emit() -> None:
            self._program.add_select_rows(self._at(x), x.width, self._at(out))

        self._record(emit, [x], [out])
        return out

    def sample(self, logits: Value, *, vocab_begin: int, scratch_bytes: int) -> None:
        scratch = self._scratch(scratch_bytes)

        def emit() -> None:
            self._program.add_sample(self._at(logits), logits.width, vocab_begin, self._at(scratch)[0])

        self._record(emit, [logits], [scratch])

    def finish(self) -> None:
        """Plans the arena and gives the ops to the program, in order."""
        self._offsets, size = plan_offsets(self._lives)
        self._program.allocate_arena(size)
        for emit in self._emitters:
            emit()
        self._emitters.clear()  # they hold this recorder, and it the program with all its memory

    def address(self, value: Value) -> Address:
        """Where a value lies once finished: byte offset and row stride (elements)."""
        return self._at(value)

    def _value(self, width: int, rows: Rows) -> Value:
        self._lives.append(BufferLife(width * self._max_rows[rows] * FLOAT_BYTES, len(self._emitters), -1))
        self._widths.append(width)
        return Value(len(self._lives) - 1, 0, width, rows)

    def _scratch(self, num_bytes: int) -> Value:
        self._lives.append(BufferLife(max(num_bytes, FLOAT_BYTES), len(self._emitters), -1))
        self._widths.append(0)
        return Value(len(self._lives) - 1, 0, 0, "tokens")

    def _record(self, emit: Callable[[], None], reads: Sequence[Value], writes: Sequence[Value]) -> None:
        for value in (*reads, *writes):
            self._lives[value.buffer].last = len(self._emitters)
        self._emitters.append(emit)

    def _at(self, value: Value) -> Address:
        return self._offsets[value.buffer] + value.begin * FLOAT_BYTES, self._widths[value.buffer]
