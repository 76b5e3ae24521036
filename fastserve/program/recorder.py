"""The op table, recorded instead of run: a model's forward, once, becomes a native Program.

Ops are kept until `finish`, when lifetimes are known and addresses given, and who reads what: norms, activations,
attention and selected rows are written as what the matmul behind them multiplies (its operand), and as floats only
where somebody reads these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastserve import _C
from fastserve.program.arena import BufferLife, plan_offsets
from fastserve.program.values import (
    Address,
    EmbeddingTable,
    Epilogue,
    Factors,
    FusedWeight,
    LayerCache,
    Output,
    Rows,
    Value,
)

FLOAT_BYTES = 4
QUANT_BLOCK = 32  # columns: what an op that writes an operand writes at least
# Of an operand that each thread makes for itself: 64 blocks in 0.6 us. A barrier, and lines that other cores have
# written, cost 0.2 us where the cores share a cache and 1.5 us where they do not.
COPIED_VALUES = 2048


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

    def __init__(
        self, program: _C.Program, *, max_tokens: int, max_samples: int, num_copies: int = 0
    ) -> None:
        """num_copies: threads of a group of one, which may make small operands for themselves."""
        self._program = program
        self._num_copies = num_copies
        self._max_rows: dict[Rows, int] = {"tokens": max_tokens, "samples": max_samples}
        self._lives: list[BufferLife] = []
        self._widths: list[int] = []
        self._outputs: dict[int, Output] = {}  # of buffers that hold what their op wrote
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
        out = self._output(x.width, x.rows)

        def emit() -> None:
            self._program.add_rms_norm(x.rows, None, self._at(x), list(weight), eps, *self._places(out))

        self._record(emit, [x], [out.value])
        return out.value

    def add_rms_norm(self, x: Value, residual: Value, weight: Sequence[float], eps: float) -> Value:
        out = self._output(x.width, x.rows)

        def emit() -> None:
            self._program.add_rms_norm(
                x.rows, self._at(x), self._at(residual), list(weight), eps, *self._places(out)
            )

        self._record(emit, [x], [out.value], updated=[residual])
        return out.value

    def matmul(self, x: Value, w: FusedWeight, *, epilogue: Epilogue = "none") -> Value:
        if epilogue == "silu_mul":
            return self._matmul_silu_mul(x, w)
        out = self._value(w.n, x.rows)
        begin = 0
        for part in w.parts:
            self._matmul_part(x, part, Value(out.buffer, begin, part.n, out.rows))
            begin += part.n
        return out

    def _matmul_part(self, x: Value, part: _C.PackedWeight, out: Value) -> None:
        factors = self._factors(x, part, takes_copies=True)

        def emit() -> None:
            self._program.add_matmul(
                x.rows, *self._at_factors(factors), self._at(out), copy_rows=factors.rows_copied
            )

        self._record(emit, factors.reads, [out, factors.scratch])

    def _matmul_silu_mul(self, x: Value, w: FusedWeight) -> Value:
        if len(w.parts) > 1 or w.n // 2 % QUANT_BLOCK:
            return self.silu_mul(self.matmul(x, w))
        factors = self._factors(x, w.parts[0], takes_copies=True)
        out = self._output(w.n // 2, x.rows)

        def emit() -> None:
            y, operand = self._places(out)
            self._program.add_matmul(
                x.rows, *self._at_factors(factors), y, "silu_mul", operand, factors.rows_copied
            )

        self._record(emit, factors.reads, [out.value, factors.scratch])
        return out.value

    def matmul_all_reduce(self, x: Value, w: FusedWeight, group: None) -> Value:
        (part,) = w.parts
        factors = self._factors(x, part)
        out = self._value(part.n, x.rows)

        def emit() -> None:
            self._program.add_matmul_all_reduce(x.rows, *self._at_factors(factors), self._at(out))

        self._record(emit, factors.reads, [out, factors.scratch])
        return out

    def matmul_all_reduce_add_rms_norm(  # noqa: PLR0917 (as the op)
        self,
        x: Value,
        w: FusedWeight,
        group: None,
        residual: Value,
        norm_weight: Sequence[float],
        eps: float,
    ) -> Value:
        (part,) = w.parts
        factors = self._factors(x, part)
        out = self._output(part.n, x.rows)
        if self._num_copies > 1:
            out.copy_rows = min(COPIED_VALUES // part.n, self._max_rows[x.rows])

        def emit() -> None:
            y, operand = self._places(out)
            self._program.add_matmul_all_reduce(
                x.rows, *self._at_factors(factors), y, self._at(residual), list(norm_weight), eps, operand
            )

        self._record(emit, factors.reads, [out.value, factors.scratch], updated=[residual])
        self._lives[residual.buffer].last += 1  # who has its own copy goes on while others still read this
        return out.value

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
        self._record(emit, [], [], updated=[q, k])

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

        self._record(emit, [v], [], updated=[rotary.q, rotary.k])

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
        head_dim = q.width // len(kv_of_head)
        out = self._output(q.width, q.rows, block=head_dim)
        parts = self._scratch(self._program.attention_parts_bytes(len(kv_of_head), head_dim, cache.group))

        def emit() -> None:
            self._program.add_paged_attention(
                self._at(q), cache.kv, cache.group, list(kv_of_head), scale, window, self._at(parts)[0],
                *self._places(out),
            )  # fmt: skip

        self._record(emit, [q], [out.value, parts])
        return out.value

    def silu_mul(self, x: Value) -> Value:
        out = self._output(x.width // 2, x.rows)

        def emit() -> None:
            self._program.add_silu_mul(self._at(x), out.value.width, *self._places(out))

        self._record(emit, [x], [out.value])
        return out.value

    def select_rows(self, x: Value, sample_rows: None) -> Value:
        out = self._output(x.width, "samples")

        def emit() -> None:
            self._program.add_select_rows(self._at(x), x.width, *self._places(out))

        self._record(emit, [x], [out.value])
        return out.value

    def sample(self, logits: Value, *, vocab_begin: int, scratch_bytes: int) -> None:
        scratch = self._scratch(scratch_bytes)

        def emit() -> None:
            self._program.add_sample(self._at(logits), logits.width, vocab_begin, self._at(scratch)[0])

        self._record(emit, [logits], [scratch])

    def finish(self) -> None:
        """Plans the arena and gives the ops to the program, in order."""
        for output in self._outputs.values():
            if not output.floats_read:
                self._lives[output.value.buffer].num_bytes = 0
        self._offsets, size = plan_offsets(self._lives)
        self._program.allocate_arena(size)
        for emit in self._emitters:
            emit()
        self._emitters.clear()  # they hold this recorder, and it the program with all its memory

    def address(self, value: Value) -> Address:
        """Where a value lies once finished: byte offset and row stride (elements)."""
        return self._at(value)

    def _value(self, width: int, rows: Rows) -> Value:
        self._widths.append(width)
        return Value(self._buffer(width * self._max_rows[rows] * FLOAT_BYTES), 0, width, rows)

    def _output(self, width: int, rows: Rows, *, block: int = QUANT_BLOCK) -> Output:
        """block: columns that the op writes at least."""
        output = Output(self._value(width, rows), len(self._emitters))
        if block % QUANT_BLOCK:
            output.floats_read = True
        else:
            self._outputs[output.value.buffer] = output
        return output

    def _scratch(self, num_bytes: int, first: int | None = None) -> Value:
        """first: the op that writes it, if not the next one."""
        self._widths.append(0)
        return Value(self._buffer(max(num_bytes, FLOAT_BYTES), first), 0, 0, "tokens")

    def _buffer(self, num_bytes: int, first: int | None = None) -> int:
        self._lives.append(BufferLife(num_bytes, len(self._emitters) if first is None else first, -1))
        return len(self._lives) - 1

    def _factors(self, x: Value, w: _C.PackedWeight, *, takes_copies: bool = False) -> Factors:
        """The first matmul of a value says which operand its op writes; those of the same type share it."""
        num_bytes = _C.matmul_scratch_bytes(w, self._max_rows[x.rows])
        output = self._outputs.get(x.buffer)
        if output is None or num_bytes == 0 or x != output.value:
            return Factors(x, w, self._scratch(num_bytes))
        # No barrier is behind copies: the next op reads them, and writes nothing that is still read.
        if not takes_copies or (output.operand is None and len(self._emitters) != output.op + 1):
            output.copy_rows = 0
        if output.operand is None:
            copies = self._num_copies * _C.operand_copy_bytes(w, output.copy_rows)
            output.operand = self._scratch(max(num_bytes, copies), output.op), w.type
        scratch, weight_type = output.operand
        if weight_type != w.type:
            return Factors(x, w, self._scratch(num_bytes))
        return Factors(x, w, scratch, output)

    def _record(
        self,
        emit: Callable[[], None],
        reads: Sequence[Value],
        writes: Sequence[Value],
        updated: Sequence[Value] = (),
    ) -> None:
        for value in (*reads, *updated):
            if value.buffer in self._outputs:
                self._outputs[value.buffer].floats_read = True
        for value in updated:
            self._outputs.pop(value.buffer, None)  # an operand would hold what it was
        for value in (*reads, *writes, *updated):
            self._lives[value.buffer].last = len(self._emitters)
        self._emitters.append(emit)

    def _at(self, value: Value) -> Address:
        return self._offsets[value.buffer] + value.begin * FLOAT_BYTES, self._widths[value.buffer]

    def _at_factors(self, factors: Factors) -> tuple[Address | None, _C.PackedWeight, int]:
        x = self._at(factors.x) if factors.output is None else None
        return x, factors.w, self._at(factors.scratch)[0]

    def _places(self, output: Output) -> tuple[Address | None, _C.Operand | None]:
        """Where floats go and where the operand goes."""
        floats = self._at(output.value) if output.floats_read else None
        if output.operand is None:
            return floats, None
        scratch, weight_type = output.operand
        return floats, (self._at(scratch)[0], weight_type, output.rows_copied)
