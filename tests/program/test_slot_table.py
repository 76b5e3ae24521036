"""What a GPU's rank is told of a step: rows as columns, edits of logits as lists."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastserve import _C
from fastserve.step import GREEDY, BlockGrant, Chunk, SlotOpening, Step
from fastserve.worker.step_codec import StepEncoder, decode_result

MAX_TOKENS, MAX_SAMPLES, NUM_SLOTS = 6, 3, 4
DTYPES = {"i32": torch.int32, "i64": torch.int64, "f32": torch.float32}
WARM = replace(GREEDY, temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, seed=(1 << 63) + 5)


def make_slots() -> _C.SlotTable:
    return _C.SlotTable(
        max_tokens=MAX_TOKENS,
        max_samples=MAX_SAMPLES,
        num_slots=NUM_SLOTS,
        max_blocks=2,
        vocab_size=100,
        num_blocks=[8],
    )


def columns_of(slots: _C.SlotTable, num_rows: int, num_samples: int) -> dict[str, Tensor]:
    memory = torch.full((slots.columns_bytes,), 0xEE, dtype=torch.uint8)
    slots.write_columns(num_rows, num_samples, memory.data_ptr())
    columns, at = {}, 0
    for name, kind, of_samples in _C.STEP_COLUMNS:
        end = at + (MAX_SAMPLES if of_samples else MAX_TOKENS) * DTYPES[kind].itemsize
        columns[name] = memory[at:end].view(DTYPES[kind])[: num_samples if of_samples else num_rows]
        at = end
    assert at == slots.columns_bytes
    return columns


def two_requests() -> Step:
    return Step(
        1,
        opened=(SlotOpening(2, 2, WARM), SlotOpening(0, 3, GREEDY)),
        blocks=(BlockGrant(2, 0, 5), BlockGrant(0, 0, 1)),
        chunks=(Chunk(2, (11, 12), sample=True), Chunk(0, (21, 22), sample=False)),
    )


def applied(*steps: Step, tokens: tuple[int, ...] = ()) -> _C.SlotTable:
    """After the last step; what the steps before it drew are `tokens`, one each."""
    slots, encoder = make_slots(), StepEncoder()
    for i, step in enumerate(steps):
        slots.apply(encoder.encode(step))
        if i < len(steps) - 1:
            slots.commit([tokens[i]], [])
    return slots


def test_columns_are_the_steps_rows_and_then_padding() -> None:
    columns = columns_of(applied(two_requests()), 6, 3)
    assert columns["token_ids"].tolist() == [11, 12, 21, 22, 0, 0]
    assert columns["positions"].tolist() == [0, 1, 0, 1, 0, 0]
    assert columns["row_slot"].tolist() == [2, 2, 0, 0, NUM_SLOTS, NUM_SLOTS]
    assert columns["sample_rows"].tolist() == [1, 0, 0]
    assert columns["temperature"].tolist() == [0.5, 0.0, 0.0]
    assert columns["top_k"].tolist() == [7, 0, 0]
    assert columns["top_p"].tolist() == [0.25, 1.0, 1.0]
    assert columns["min_p"].tolist() == [0.125, 0.0, 0.0]
    assert columns["seed"].tolist() == [struct.unpack("<q", struct.pack("<Q", (1 << 63) + 5))[0], 0, 0]


def test_a_decode_continues_with_the_token_that_was_drawn() -> None:
    slots = applied(two_requests(), Step(2, decodes=(2,)), tokens=(77,))
    columns = columns_of(slots, 1, 1)
    assert (columns["token_ids"].item(), columns["positions"].item()) == (77, 2)
    assert columns["output_idx"].item() == 1
    assert not slots.granted


def test_tables_are_written_for_all_slots() -> None:
    slots = applied(two_requests())
    assert slots.granted
    tables = torch.full((NUM_SLOTS, 2), -1, dtype=torch.int32)
    slots.write_tables(0, tables.data_ptr())
    assert tables[:, 0].tolist() == [1, 0, 5, 0]


def test_edits_are_lists_of_what_is_done_to_logits() -> None:
    sampling = replace(
        GREEDY,
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        min_tokens=2,
        stop_ids=(3,),
        logit_bias=((4, 2.0),),
    )
    opening = Step(
        1,
        opened=(SlotOpening(1, 2, sampling),),
        blocks=(BlockGrant(1, 0, 0),),
        chunks=(Chunk(1, (8, 9), sample=True),),
    )
    edits = applied(opening, Step(2, decodes=(1,)), tokens=(9,)).edits()
    rows, ids, counts = (struct.unpack("<2i", values) for values in edits["penalties"][:3])
    assert (rows, dict(zip(ids, counts, strict=True))) == ((0, 0), {8: 0, 9: 1})
    assert [struct.unpack("<i", values)[0] for values in edits["bans"]] == [0, 3]
    assert struct.unpack("<f", edits["biases"][2]) == (2.0,)
    assert applied(two_requests()).edits() == {}


def test_results_hold_tokens_and_reports() -> None:
    slots = applied(two_requests())
    slots.commit([42], [(0, -0.5, 3, [42, 7], [-0.5, -1.5])])
    (sample,) = decode_result(slots.encode_result(9)).samples
    assert (sample.slot, sample.token_id, sample.logprob, sample.rank) == (2, 42, -0.5, 3)
    assert sample.top == ((42, -0.5), (7, -1.5))


@pytest.mark.parametrize(
    ("num_rows", "num_samples", "message"),
    [
        (3, 1, r"num_rows must be in \[4, 6\], got 3"),
        (7, 1, r"num_rows must be in \[4, 6\], got 7"),
        (4, 0, r"num_samples must be in \[1, 3\], got 0"),
    ],
)
def test_a_step_that_does_not_fit_is_not_written(num_rows: int, num_samples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        columns_of(applied(two_requests()), num_rows, num_samples)


@pytest.mark.parametrize(
    ("tokens", "reports", "message"),
    [
        ([], [], "tokens must be one of each sampled row, 1, got 0"),
        ([100], [], r"tokens must be in \[0, 100\), got 100"),
        ([1], [(1, 0.0, 1, [], [])], "a report is of no sampled row"),
        ([1], [(0, 0.0, 1, [1], [])], "a report has at most 20 likeliest tokens"),
    ],
)
def test_tokens_that_cannot_be_are_refused(
    tokens: list[int], reports: list[tuple[int, float, int, list[int], list[float]]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        applied(two_requests()).commit(tokens, reports)


def test_a_message_that_is_cut_short_is_refused() -> None:
    with pytest.raises(ValueError, match="the message ends too early"):
        make_slots().apply(StepEncoder().encode(two_requests())[:-4])
