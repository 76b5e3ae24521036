"""What a recorded forward pass becomes: the ops of its program."""

from __future__ import annotations

import pytest

from fastserve import _C
from fastserve.program.recorder import EmbeddingTable, LayerCache, Recorder, Value

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
