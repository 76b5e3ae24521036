"""Times are made up here, so that no clock is involved."""

from __future__ import annotations

import pytest

from fastserve.scheduler.prompt_pace import MIN_ROWS, PromptPace
from fastserve.step import Chunk, Drafted, Step, StepResult


def run(pace: PromptPace, *, num_prompt: int, num_decodes: int = 0, us_per_row: float = 1000) -> None:
    chunks = (Chunk(0, tuple(range(num_prompt)), False),) if num_prompt else ()
    elapsed_us = round((num_prompt + num_decodes) * us_per_row)
    pace.observe_step(
        Step(0, chunks=chunks, decodes=tuple(range(num_decodes))), StepResult(0, (), elapsed_us)
    )


def test_prompts_fill_what_decodes_leave_of_the_time() -> None:
    pace = PromptPace(50)
    run(pace, num_prompt=512)
    assert pace.num_rows(1) == 47
    assert pace.num_rows(20) == 28


def test_a_decode_is_slowed_down_to_half_at_most_and_prompts_still_go_on() -> None:
    pace = PromptPace(50)
    run(pace, num_prompt=512)
    assert pace.num_rows(48) == 48
    run(pace, num_prompt=512, us_per_row=100_000)  # a large model
    assert pace.num_rows(1) == MIN_ROWS


def test_before_a_prompt_came_back_prompts_get_the_least() -> None:
    assert PromptPace(50).num_rows(1) == MIN_ROWS
    assert PromptPace(50).num_rows(40) == 40


def test_steps_of_decodes_alone_teach_nothing_of_prompts() -> None:
    pace = PromptPace(50)
    run(pace, num_prompt=512)
    for _ in range(100):
        run(pace, num_prompt=0, num_decodes=1, us_per_row=20_000)
    assert pace.num_rows(10) == 38


def test_rows_that_become_dearer_are_followed_within_a_few_steps() -> None:
    pace = PromptPace(50)
    run(pace, num_prompt=512)
    for _ in range(25):
        run(pace, num_prompt=pace.num_rows(4), num_decodes=4, us_per_row=2000)
    assert pace.num_rows(4) == pytest.approx(21, abs=1)


def test_drafts_are_rows() -> None:
    pace = PromptPace(50)
    step = Step(0, chunks=(Chunk(0, tuple(range(30)), False),), decodes=(1,))
    pace.observe_step(step, StepResult(0, (), 40_000, (Drafted(1, 0, 9),)))
    assert pace.num_rows(10) == 38
