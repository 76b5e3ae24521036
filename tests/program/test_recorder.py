"""What a recorded forward pass becomes: which ops are one, who writes what a matmul multiplies; to the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fastserve import _C
from fastserve.program.recorder import Recorder
from fastserve.program.values import EmbeddingTable, Factors, FusedWeight, LayerCache, Value
from fastserve.testing.convert import convert
from fastserve.testing.rank_logits import rank_logits

D = 64
NORM = [1.0] * D
TABLE = EmbeddingTable(address=0, gguf_type=0, row_bytes=4 * D, width=D)


class Calls:
    """What a program is told to append: (op, arguments)."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **named: self.made.append((name, (*args, *named.values())))

    def attention_parts_bytes(self, num_heads: int, head_dim: int, group: int) -> int:
        return 4 * num_heads * head_dim

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [args for op, args in self.made if op == name]


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def recorder(calls: Calls) -> Recorder:
    return Recorder(calls, max_tokens=4, max_samples=4)  # type: ignore[arg-type]


def weight(*parts: tuple[str, int], k: int = D) -> FusedWeight:
    return FusedWeight(tuple(_C.PackedWeight(type, n, k) for type, n in parts))


def norm_of_tokens(recorder: Recorder) -> tuple[Value, Value]:
    residual = recorder.embed(None, TABLE)
    return residual, recorder.rms_norm(residual, NORM, 1e-5)


def test_a_norm_writes_what_the_matmul_behind_it_multiplies(recorder: Recorder, calls: Calls) -> None:
    _, hidden = norm_of_tokens(recorder)
    recorder.matmul(hidden, weight(("q4m", 96)))
    recorder.finish()
    ((*_, floats, operand),) = calls.of("add_rms_norm")
    ((_, x, _, scratch, *_),) = calls.of("add_matmul")
    assert (floats, x) == (None, None)
    assert operand == (scratch, "q4m", 0)


def test_floats_are_written_for_those_who_read_them(recorder: Recorder, calls: Calls) -> None:
    _, hidden = norm_of_tokens(recorder)
    recorder.matmul(hidden, weight(("q4m", 32), ("q8", 32), ("q4m", 32)))
    recorder.finish()
    ((*_, floats, operand),) = calls.of("add_rms_norm")
    first, other, last = calls.of("add_matmul")
    assert operand == (first[3], "q4m", 0)
    assert last[3] == first[3]
    assert (first[1], other[1], last[1]) == (None, floats, None)
    assert floats is not None
    assert other[3] != first[3]


@pytest.mark.parametrize("type", ["f32", "f16"])
def test_weights_that_multiply_floats_want_no_operand(recorder: Recorder, calls: Calls, type: str) -> None:
    _, hidden = norm_of_tokens(recorder)
    recorder.matmul(hidden, weight((type, 32)))
    recorder.finish()
    ((*_, floats, operand),) = calls.of("add_rms_norm")
    assert operand is None
    assert calls.of("add_matmul")[0][1] == floats


def test_a_value_that_has_changed_is_prepared_anew(recorder: Recorder, calls: Calls) -> None:
    residual, hidden = norm_of_tokens(recorder)
    recorder.matmul(hidden, weight(("q8", 32)))
    recorder.add_rms_norm(residual, hidden, NORM, 1e-5)  # adds to `hidden`
    recorder.matmul(hidden, weight(("q8", 32)))
    recorder.finish()
    before, after = calls.of("add_matmul")
    assert before[1] is None
    assert after[1] is not None


def test_an_operand_lives_from_its_producer_to_its_last_matmul(recorder: Recorder, calls: Calls) -> None:
    residual, hidden = norm_of_tokens(recorder)
    between = recorder.rms_norm(residual, NORM, 1e-5)
    recorder.select_rows(between, None)
    recorder.matmul(hidden, weight(("q8", 32)))
    recorder.finish()
    first, second = calls.of("add_rms_norm")
    offset, *_ = first[-1]
    floats, _ = second[-2]
    num_bytes = _C.matmul_scratch_bytes(_C.PackedWeight("q8", 32, D), 4)
    assert floats + 4 * D * 4 <= offset or offset + num_bytes <= floats


def copied_rows(
    calls: Calls, *, between: bool = False, floats: bool = False, num_copies: int = 2
) -> list[int]:
    """Of the norm behind a product, and of the matmul that reads it."""
    recorder = Recorder(calls, max_tokens=40, max_samples=4, num_copies=num_copies)  # type: ignore[arg-type]
    residual, hidden = norm_of_tokens(recorder)
    down = weight(("q8", D))
    out = recorder.matmul_all_reduce_add_rms_norm(hidden, down, None, residual, NORM, 1e-5)
    if between:
        recorder.rms_norm(residual, NORM, 1e-5)
    recorder.matmul(out, weight(("q8", 32)))
    if floats:
        recorder.select_rows(out, None)
    recorder.finish()
    ((*_, (_, _, of_norm)),) = calls.of("add_matmul_all_reduce")
    return [of_norm, calls.of("add_matmul")[0][-1]]


def test_threads_go_on_with_operands_of_their_own_where_nothing_else_needs_a_barrier(calls: Calls) -> None:
    assert copied_rows(calls) == [2048 // D, 2048 // D]


@pytest.mark.parametrize("options", [{"between": True}, {"floats": True}, {"num_copies": 0}], ids=str)
def test_an_operand_is_shared_where_a_barrier_is_needed(calls: Calls, options: dict[str, Any]) -> None:
    assert copied_rows(calls, **options) == [0, 0]


@pytest.mark.parametrize(
    ("parts", "ops"),
    [
        ([("q4m", 192)], ["add_matmul"]),
        ([("q4m", 96)], ["add_matmul", "add_silu_mul"]),  # 48 columns: one and a half blocks of an operand
        ([("q4m", 96), ("q8", 96)], ["add_matmul", "add_matmul", "add_silu_mul"]),
    ],
)
def test_a_matmul_ends_in_its_activation_where_blocks_allow(
    recorder: Recorder, calls: Calls, parts: Sequence[tuple[str, int]], ops: list[str]
) -> None:
    _, hidden = norm_of_tokens(recorder)
    recorder.matmul(hidden, weight(*parts), epilogue="silu_mul")
    recorder.finish()
    assert [name for name, _ in calls.made[3:]] == ops


@pytest.mark.parametrize(("head_dim", "writes"), [(64, True), (48, False)])
def test_attention_writes_whole_blocks_of_heads(
    recorder: Recorder, calls: Calls, head_dim: int, writes: bool
) -> None:
    qkv = recorder.embed(None, EmbeddingTable(0, 0, 8 * head_dim, 2 * head_dim))
    cache: Any = None
    out = recorder.paged_attention(qkv, LayerCache(cache, 0), None, (0, 0), scale=1.0)
    recorder.matmul_all_reduce(out, weight(("q8", 32), k=2 * head_dim), None)
    recorder.finish()
    ((*_, operand),) = calls.of("add_paged_attention")
    assert (operand is not None) is writes


def unfused_logits(path: Path, tokens: Sequence[int], **options: Any) -> torch.Tensor:
    """Every matmul prepares its activations itself, every activation is an op."""

    def factors(self: Recorder, x: Value, w: _C.PackedWeight, **_: bool) -> Factors:
        return Factors(x, w, self._scratch(_C.matmul_scratch_bytes(w, self._max_rows[x.rows])))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "_factors", factors)
        patch.setattr(Recorder, "_matmul_silu_mul", lambda self, x, w: self.silu_mul(self.matmul(x, w)))
        return rank_logits(path, tokens, **options)


@pytest.mark.parametrize("type_name", ["BF16", "Q8_0", "Q4_1"])
def test_fused_ops_give_the_bits_of_single_ones(type_name: str, smollm2_path: Path, tmp_path: Path) -> None:
    path = convert(smollm2_path, tmp_path / f"{type_name}.gguf", type_name, num_layers=2)
    tokens = [4093, 198, 1780, 314, 260, 3575, 282, 4649] * 5
    for num_tokens in (1, 3, 40):  # 3: each thread makes operands for itself; 40: rows share unpacked weights
        expected = unfused_logits(path, tokens[:num_tokens], kv_type="bf16", num_threads=1)
        for num_threads in (1, 2, 3):
            fused = rank_logits(path, tokens[:num_tokens], kv_type="bf16", num_threads=num_threads)
            assert torch.equal(fused, expected), (num_tokens, num_threads)


HEAD_DIM, HEADS, KV_HEADS = 8, 3, 1
WIDTHS = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM)
INV_FREQ = [1.0, 0.5, 0.25, 0.125]


class Recording:
    def __init__(self, kv_type: str = "bf16") -> None:
        self.program = _C.Program(
            max_tokens=4, max_samples=1, num_slots=1, max_blocks=1, vocab_size=16, num_blocks=[1]
        )
        self.ops = Recorder(self.program, max_tokens=4, max_samples=1)
        self.cache = LayerCache(self.program.add_kv_cache(kv_type, 0, KV_HEADS, HEAD_DIM), 0)
        x = self.ops.embed(None, EmbeddingTable(0, 0, 4 * sum(WIDTHS), sum(WIDTHS)))
        self.q, self.k, self.v = self.ops.split(x, WIDTHS)

    def rotary(self, q: Value, k: Value) -> None:
        self.ops.rotary(q, k, None, INV_FREQ, head_dim=HEAD_DIM)

    def store(self, k: Value) -> None:
        self.ops.store_kv(k, self.v, self.cache, None)

    def names(self) -> list[str]:
        self.ops.finish()
        return [name for name, _, _ in self.program.ops]


def test_a_key_that_was_just_turned_is_stored_by_the_same_op() -> None:
    recording = Recording()
    recording.rotary(recording.q, recording.k)
    recording.store(recording.k)
    assert recording.names() == ["embed", "rotary_store_kv"]


def test_another_key_is_stored_by_itself() -> None:
    recording = Recording()
    recording.store(recording.k)
    recording.rotary(recording.q, recording.v)
    recording.store(recording.k)
    assert recording.names() == ["embed", "store_kv", "rotary", "store_kv"]


def test_a_key_that_was_turned_before_another_op_is_stored_by_itself() -> None:
    recording = Recording()
    recording.rotary(recording.q, recording.k)
    recording.ops.silu_mul(recording.q)
    recording.store(recording.k)
    assert recording.names() == ["embed", "rotary", "silu_mul", "store_kv"]


@pytest.mark.parametrize("kv_type", ["f32", "bf16", "int8"])
def test_attention_is_called_by_what_it_reads(kv_type: str) -> None:
    recording = Recording(kv_type)
    recording.ops.paged_attention(recording.q, recording.cache, None, [0] * HEADS, scale=1.0)
    recording.names()
    assert recording.program.ops[-1] == ("paged_attention", f"{kv_type} {HEADS}x{HEAD_DIM}", kv_type)
