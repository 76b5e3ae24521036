"""The timeline of a program: every op of a step, in order, with what it costs; and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastserve import LLM, SamplingParams
from fastserve.benchmark.placement import Placement
from fastserve.benchmark.roofs import Roofs, Work
from fastserve.benchmark.timeline import BETWEEN, OpSpan, Pass, summarise, table, take_passes, write_trace
from fastserve.worker.local_executor import LocalExecutor

ROOFS = Roofs("none", 2, 10.0, {"f32": 100.0, "bf16": 200.0, "int8": 400.0}, Placement("single"))
HIDDEN, FEED_FORWARD, NUM_LAYERS = 576, 1536, 2


@pytest.fixture(scope="module")
def llm(short_model: Path) -> Iterator[LLM]:
    with LLM(str(short_model), num_threads=2, max_model_len=64, kv_cache_bytes=8 << 20) as llm:
        yield llm


def passes_of(llm: LLM, prompts: list[list[int]], max_tokens: int) -> list[Pass]:
    executor = llm._engine.executor
    assert isinstance(executor, LocalExecutor)
    executor.program.record_timeline()
    llm.generate(prompts, SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True))
    return take_passes(executor.program)


def test_a_step_is_told_op_by_op(llm: LLM) -> None:
    passes = passes_of(llm, [[5, 6, 7, 8]], 3)
    assert [(one.num_tokens, one.num_samples, one.phase) for one in passes] == [
        (4, 1, "prefill"),
        (1, 1, "decode"),
        (1, 1, "decode"),
    ]
    for one in passes:
        ops = [span.op for span in one.spans]
        assert ops[0] == "embed"
        assert ops[-1] == "sample"
        assert ops.count("matmul_all_reduce") == 2 * NUM_LAYERS
        assert ops.count("rotary_store_kv") == ops.count("paged_attention") == NUM_LAYERS
        assert all(len(span.threads) == 2 for span in one.spans)
        ends = [span.end for span in one.spans]
        assert ends == sorted(ends)
        for thread in range(2):
            times = [time for span in one.spans for time in span.threads[thread]]
            assert times == sorted(times)
        assert all(0 <= span.waited <= span.end - span.begin for span in one.spans)


def test_a_decode_step_waits_no_more_often_than_its_ops_depend_on_each_other(llm: LLM) -> None:
    _, decode, _ = passes_of(llm, [[5, 6, 7, 8]], 3)
    inside = 2 * NUM_LAYERS + 1  # row-parallel matmuls norm their sums; sample merges
    left_out = 2 * NUM_LAYERS  # each thread goes on with the norm that it has made
    assert decode.num_barriers == len(decode.spans) + inside - left_out


def test_an_op_costs_what_it_reads_and_multiplies(llm: LLM) -> None:
    prefill, decode, _ = passes_of(llm, [[5, 6, 7, 8]], 3)

    def works(one: Pass, op: str) -> list[tuple[str, Work]]:
        return [(span.shape, span.work) for span in one.spans if span.op == op]

    panel_bytes = HIDDEN // 32 * (32 + 512)  # of 16 columns: a half and 32 codes each
    shape, work = works(prefill, "matmul_all_reduce")[0]
    assert shape == f"q8 {HIDDEN}x{HIDDEN}"
    assert work == Work(HIDDEN // 16 * panel_bytes + 4 * 4 * 2 * HIDDEN, 2 * 4 * HIDDEN * HIDDEN, "int8")
    work = next(
        work for shape, work in works(prefill, "matmul") if shape == f"q8 {2 * FEED_FORWARD}x{HIDDEN}"
    )
    assert work.num_bytes == 2 * FEED_FORWARD // 16 * panel_bytes + 4 * 4 * (HIDDEN + FEED_FORWARD)
    heads, kv_heads, head_dim = 9, 3, 64
    shape, work = works(decode, "paged_attention")[0]
    assert shape == f"bf16 {heads}x{head_dim}"
    assert work.num_operations == 4 * 5 * heads * head_dim
    assert work.num_bytes == 5 * 2 * 2 * kv_heads * head_dim + 2 * 4 * heads * head_dim
    # Four rows of one slot read its four keys once, and see ten.
    shape, work = works(prefill, "paged_attention")[0]
    assert work.num_operations == 4 * 10 * heads * head_dim
    assert work.num_bytes == 4 * 2 * 2 * kv_heads * head_dim + 4 * 2 * 4 * heads * head_dim


def test_without_a_timeline_there_is_nothing_to_take(short_model: Path) -> None:
    with LLM(str(short_model), max_model_len=64, kv_cache_bytes=8 << 20) as llm:
        executor = llm._engine.executor
        assert isinstance(executor, LocalExecutor)
        with pytest.raises(ValueError, match="records no timeline"):
            take_passes(executor.program)


def one_pass(at: float) -> Pass:
    slow = OpSpan("matmul", "q8 2x2", Work(1e7, 4e8, "int8"), ((at, at + 3e-3), (at + 1e-3, at + 4e-3)))
    quick = OpSpan("embed", "2", Work(1e6, 0, "f32"), ((at + 5e-3, at + 6e-3), (at + 5e-3, at + 5e-3)))
    return Pass(1, 1, 7, (slow, quick))


def test_lines_hold_the_medians_of_a_step() -> None:
    lines, seconds, between = summarise([one_pass(0.0), one_pass(1.0)], ROOFS)
    assert seconds == pytest.approx(6e-3)
    assert between == pytest.approx(1e-3)
    matmul, embed = lines
    assert (matmul.op, matmul.calls) == ("matmul", 1)
    assert matmul.seconds == pytest.approx(4e-3)
    assert matmul.waited == pytest.approx(0.25)
    assert matmul.gbps == pytest.approx(2.5)
    assert matmul.gops == pytest.approx(100)
    assert matmul.roof_share == pytest.approx(0.25)
    assert embed.waited == pytest.approx(0.5)
    text = table([one_pass(0.0)], ROOFS)
    assert "7 barriers" in text
    assert [line.split()[0] for line in text.splitlines()] == [
        "op",
        "matmul",
        "embed",
        BETWEEN.split()[0],
        "step",
    ]
    with pytest.raises(ValueError, match="no pass"):
        summarise([], ROOFS)


def test_a_trace_has_a_track_for_each_thread(tmp_path: Path) -> None:
    write_trace([one_pass(2.0)], tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {(event["name"], event["tid"]) for event in events} == {
        ("matmul", 0), ("matmul", 1), ("embed", 0), ("embed", 1),
    }  # fmt: skip
    assert events[0]["ts"] == pytest.approx(2e6)
    assert events[0]["dur"] == pytest.approx(3e3)
    assert events[0]["args"]["bytes"] == 1e7
