"""The scheduler alone: each step's results are made up by `answer`."""

from __future__ import annotations

import pytest

from fastserve.cache.block_manager import BlockManager
from fastserve.errors import CapacityError, OverloadedError
from fastserve.scheduler.fcfs import Fcfs
from fastserve.scheduler.prompt_pace import PromptPace
from fastserve.scheduler.request_state import RequestState
from fastserve.scheduler.scheduler import Scheduler
from fastserve.scheduler.step_draft import RowKind, ScheduledStep
from fastserve.step import SlotSampling, Step, StepResult

SAMPLING = SlotSampling(0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, 0, (), (), -1)


def make_scheduler(
    *,
    num_blocks: int = 64,
    max_num_tokens: int = 64,
    max_num_seqs: int = 8,
    max_samples: int = 8,
    max_model_len: int = 512,
    max_waiting: int = 16,
    pace: PromptPace | None = None,
) -> Scheduler:
    return Scheduler(
        blocks=BlockManager((num_blocks,), 16),
        policy=Fcfs(),
        max_num_tokens=max_num_tokens,
        max_num_seqs=max_num_seqs,
        max_samples=max_samples,
        max_model_len=max_model_len,
        max_waiting=max_waiting,
        pace=pace,
    )


def make_request(
    num_prompt: int, max_tokens: int = 8, *, scores: bool = False, name: str = "r"
) -> RequestState:
    return RequestState(name, 0, list(range(num_prompt)), max_tokens, SAMPLING, wants_scores=scores)


def run(scheduler: Scheduler) -> ScheduledStep:
    scheduled = scheduler.schedule(0.0)
    assert scheduled is not None
    return scheduled


def answer(scheduler: Scheduler, scheduled: ScheduledStep) -> Step:
    """Every draw yields 5; requests end only by max_tokens."""
    for row in scheduled.rows:
        if row.kind is RowKind.DRAW:
            scheduler.settle(row, 1)
            scheduler.collect(row.request, 5)
            if len(row.request.output_token_ids) == row.request.max_tokens:
                scheduler.finish(row.request, 0.0)
    return scheduled.step


def test_a_long_prompt_runs_in_chunks_of_the_budget_and_draws_at_its_end() -> None:
    scheduler = make_scheduler(max_num_tokens=40)
    scheduler.add([make_request(100)])
    chunks = [answer(scheduler, run(scheduler)).chunks[0] for _ in range(3)]
    assert [len(chunk.token_ids) for chunk in chunks] == [40, 40, 20]
    assert [chunk.sample for chunk in chunks] == [False, False, True]
    assert [token for chunk in chunks for token in chunk.token_ids] == list(range(100))


def test_decodes_come_before_chunks_within_the_budget() -> None:
    scheduler = make_scheduler(max_num_tokens=20)
    scheduler.add([make_request(5)])
    answer(scheduler, run(scheduler))
    scheduler.add([make_request(50, name="long")])
    step = answer(scheduler, run(scheduler))
    assert step.decodes == (0,)
    assert [len(chunk.token_ids) for chunk in step.chunks] == [19]


def test_beside_decodes_prompts_run_in_pieces_that_keep_to_the_time() -> None:
    scheduler = make_scheduler(max_num_tokens=64, pace=PromptPace(30))
    scheduler.add([make_request(64)])
    first = run(scheduler)
    assert [len(chunk.token_ids) for chunk in first.step.chunks] == [64]  # nobody decodes yet
    answer(scheduler, first)
    scheduler.observe(first.step, StepResult(0, (), 64_000))
    scheduler.add([make_request(20, name="a"), make_request(60, name="b")])
    step = answer(scheduler, run(scheduler))
    assert step.decodes == (0,)
    assert [len(chunk.token_ids) for chunk in step.chunks] == [20, 3]
    step = answer(scheduler, run(scheduler))
    assert step.decodes == (0, 1)
    assert [len(chunk.token_ids) for chunk in step.chunks] == [22]


def test_a_decode_is_scheduled_before_the_draw_ahead_of_it_is_collected() -> None:
    scheduler = make_scheduler()
    scheduler.add([make_request(5, 3)])
    first, second, third = run(scheduler), run(scheduler), run(scheduler)
    assert first.step.chunks
    assert second.step.decodes == third.step.decodes == (0,)
    assert scheduler.schedule(0.0) is None  # three draws were asked for: more would be surplus


def test_slots_and_blocks_of_a_last_draw_are_free_for_the_next_step() -> None:
    scheduler = make_scheduler(num_blocks=1, max_num_seqs=1)
    scheduler.add([make_request(4, 1, name="a"), make_request(4, 1, name="b")])
    first, second = run(scheduler), run(scheduler)
    assert first.rows[0].request.request_id == "a"
    assert second.rows[0].request.request_id == "b"
    assert second.step.closed == (0,)
    assert second.step.blocks[0].block_id == first.step.blocks[0].block_id


def test_when_blocks_run_out_the_latest_arrival_is_preempted_and_recomputed() -> None:
    scheduler = make_scheduler(num_blocks=4)
    early, late = make_request(30, 20, name="early"), make_request(14, 20, name="late")
    scheduler.add([early])
    answer(scheduler, run(scheduler))
    scheduler.add([late])
    while not scheduler.num_preemptions:
        answer(scheduler, run(scheduler))
    assert (early.num_preemptions, late.num_preemptions) == (0, 1)
    assert late.slot is None
    num_out = len(late.output_token_ids)
    assert num_out > 0
    while not early.finished:
        answer(scheduler, run(scheduler))
    reopening = run(scheduler).step
    assert reopening.opened[0].num_prompt_tokens == 14
    assert reopening.chunks[0].token_ids == (*range(14), *[5] * num_out)


def test_nobody_overtakes_the_head_of_the_queue() -> None:
    scheduler = make_scheduler(num_blocks=4)
    scheduler.add([make_request(20, 20, name="runs")])
    answer(scheduler, run(scheduler))
    scheduler.add([make_request(40, 4, name="big")])
    scheduler.add([make_request(2, 2, name="small")])
    step = answer(scheduler, run(scheduler))
    assert not step.opened
    assert scheduler.num_waiting == 2


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "message"),
    [
        (300, 213, "300 prompt tokens and max_tokens=213 make 513, but the context holds 512"),
        (300, 22, "300 prompt tokens and max_tokens=22 make 322, but the KV cache holds 320"),
    ],
)
def test_what_can_never_fit_is_refused_with_the_numbers(
    num_prompt: int, max_tokens: int, message: str
) -> None:
    scheduler = make_scheduler(num_blocks=20)
    with pytest.raises(CapacityError, match=message):
        scheduler.add([make_request(num_prompt, max_tokens)])
    scheduler.add([make_request(300, 21)])  # its last token is drawn but needs no block


def test_a_full_queue_refuses_all_choices_of_a_request_or_none() -> None:
    scheduler = make_scheduler(max_waiting=3)
    scheduler.add([make_request(4), make_request(4)])
    with pytest.raises(OverloadedError, match="2 requests wait already, of at most 3") as overload:
        scheduler.add([make_request(4), make_request(4)])
    assert overload.value.retry_after_s >= 1
    assert scheduler.num_waiting == 2


def test_retry_after_follows_how_fast_requests_end() -> None:
    scheduler = make_scheduler(max_waiting=1)
    for end_s in range(0, 1000, 10):
        request = make_request(4)
        scheduler.add([request])
        scheduler.finish(request, float(end_s))
    scheduler.add([make_request(4)])
    with pytest.raises(OverloadedError) as overload:
        scheduler.add([make_request(4)])
    assert overload.value.retry_after_s == pytest.approx(10, rel=0.01)


def test_an_aborted_request_frees_its_blocks_at_once_and_closes_its_slot_in_the_next_step() -> None:
    scheduler = make_scheduler()
    request, other = make_request(40, name="gone"), make_request(4, name="stays")
    scheduler.add([request, other])
    answer(scheduler, run(scheduler))
    scheduler.finish(request, 0.0)
    assert scheduler.blocks.num_free == 63
    assert run(scheduler).step.closed == (0,)


def test_prompt_scores_share_the_sampled_rows_of_a_step() -> None:
    scheduler = make_scheduler(max_num_tokens=8, max_num_seqs=4, max_samples=4)
    scheduler.add([make_request(10, 2, scores=True)])
    kinds: list[RowKind] = []
    targets: list[int] = []
    while (scheduled := scheduler.schedule(0.0)) is not None:
        assert len(scheduled.rows) <= 4
        answer(scheduler, scheduled)
        kinds += [row.kind for row in scheduled.rows if row.kind is not RowKind.FILLER]
        scored = [target for chunk in scheduled.step.chunks for target in chunk.score_targets]
        targets += [
            target for row, target in zip(scheduled.rows, scored, strict=False) if row.kind is RowKind.SCORE
        ]
    assert targets == list(range(1, 10))
    assert kinds == [RowKind.SCORE] * 9 + [RowKind.DRAW] * 2


def test_the_same_slots_decode_in_the_same_order_in_every_step() -> None:
    scheduler = make_scheduler()
    scheduler.add([make_request(4, name=str(i)) for i in range(5)])
    answer(scheduler, run(scheduler))
    assert [answer(scheduler, run(scheduler)).decodes for _ in range(3)] == [(0, 1, 2, 3, 4)] * 3
