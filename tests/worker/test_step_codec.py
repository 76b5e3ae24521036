"""Steps are applied by the native slot table; here the words are checked, and what the rank refuses."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from fastserve import _C
from fastserve.request import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS
from fastserve.step import BlockGrant, Chunk, DraftBudget, Drafted, SlotOpening, Step
from fastserve.testing.rank_logits import GREEDY
from fastserve.worker.step_codec import (
    MODEL_STOP_IDS,
    SAME_DECODES,
    StepEncoder,
    decode_result,
    mailbox_capacity,
)

SAMPLING = replace(GREEDY, seed=(1 << 63) - 5, stop_ids=(2,), logit_bias=((4, 0.5),))


def words(message: bytes) -> list[int]:
    return array("i", message).tolist()


def test_a_steady_decode_step_is_a_few_bytes_however_many_run() -> None:
    encoder = StepEncoder()
    slots = tuple(range(64))
    encoder.encode(Step(1, decodes=slots))
    assert words(encoder.encode(Step(2, decodes=slots))) == [2, 0, 0, 0, 0, 0, SAME_DECODES]


def test_decodes_are_repeated_once_they_change() -> None:
    encoder = StepEncoder()
    encoder.encode(Step(1, decodes=(1, 2)))
    assert words(encoder.encode(Step(2, decodes=(2,)))) == [2, 0, 0, 0, 0, 0, 1, 2]


def test_changes_are_laid_out_in_the_order_of_the_layout() -> None:
    step = Step(
        3,
        closed=(7,),
        opened=(SlotOpening(1, 2, SAMPLING, max_tokens=30, speculates=True),),
        blocks=(BlockGrant(1, 0, 9),),
        budgets=(DraftBudget(1, (0, 1, 2, 3)),),
        chunks=(Chunk(1, (5, 6), True, 1, (8,)),),
    )
    message = words(StepEncoder().encode(step))
    assert message[:8] == [3, 1, 1, 1, 1, 1, SAME_DECODES, 7]
    opening = message[8:28]
    assert opening[:6] == [1, 2, 30, 1, 0, 0]
    assert (opening[11] & 0xFFFFFFFF) | opening[12] << 32 == SAMPLING.seed
    assert opening[15:19] == [1, 1, 2, 4]
    assert message[28:] == [1, 0, 9, 1, 0, 1, 2, 3, 1, 2, 1, 1, 5, 6, 8]


def test_results_are_read_back_as_written() -> None:
    logprobs = array("f", [-0.5, -0.25, -1.5])
    bits = array("i", logprobs.tobytes()).tolist()
    message = array(
        "i",
        [4, 250, 1, 2, 3, 2, 5, 1, 11, 0, bits[0], 1, 2, 11, 12, bits[1], bits[2], 3, 13, 1, bits[0], 5, 0],
    )
    result = decode_result(message.tobytes())
    assert (result.step_id, result.elapsed_us) == (4, 250)
    assert result.drafted == (Drafted(slot=3, match_class=2, num_drafts=5),)
    assert result.samples[0].top == ((11, -0.25), (12, -1.5))
    assert (result.samples[1].slot, result.samples[1].scored, result.samples[1].rank) == (3, True, 5)


def test_a_result_with_words_left_over_is_our_own_fault() -> None:
    with pytest.raises(AssertionError):
        decode_result(array("i", [1, 0, 0, 0, 99]).tobytes())


@pytest.mark.parametrize(
    ("num_slots", "max_tokens", "num_blocks"),
    [(1, 1, 1), (1, 512, 1), (64, 512, 1000), (1024, 1024, 100_000)],
)
def test_the_largest_step_fits_a_mailbox_twice(num_slots: int, max_tokens: int, num_blocks: int) -> None:
    slots = tuple(range(num_slots))
    sampling = replace(
        SAMPLING,
        stop_ids=tuple(range(MAX_STOP_TOKEN_IDS + MODEL_STOP_IDS)),
        logit_bias=tuple((token_id, 1.0) for token_id in range(MAX_LOGIT_BIAS)),
    )
    tokens = [max_tokens // num_slots + (slot < max_tokens % num_slots) for slot in slots]
    step = Step(
        1,
        closed=slots,
        opened=tuple(SlotOpening(slot, 1, sampling) for slot in slots),
        budgets=tuple(DraftBudget(slot, (1, 2, 3, 4)) for slot in slots),
        blocks=tuple(BlockGrant(0, 0, block_id) for block_id in range(num_blocks)),
        chunks=tuple(
            Chunk(slot, (5,) * count, True, count, (5,) * count) for slot, count in enumerate(tokens)
        ),
    )
    capacity = mailbox_capacity(
        num_slots=num_slots, max_tokens=max_tokens, max_samples=max_tokens, num_blocks=num_blocks
    )
    message = StepEncoder().encode(step)
    mailbox = _C.Mailbox.local(capacity)
    assert mailbox.write(message, 0)
    assert mailbox.write(message, 0)
    assert mailbox.read(0, 0, 0) == message
