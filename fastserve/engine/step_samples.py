"""Whose a step's samples are."""

from __future__ import annotations

from collections.abc import Iterator

from fastserve.scheduler.step_draft import SampledRow, ScheduledStep
from fastserve.step import Sampled, StepResult


def samples_of_rows(
    scheduled: ScheduledStep, result: StepResult
) -> Iterator[tuple[SampledRow, tuple[Sampled, ...]]]:
    """A score or a chunk's draw is one sample; a decode has one more for each draft that was right, or none."""
    samples = result.samples
    at = 0
    for row in scheduled.rows:
        end = at
        while end <= at + row.max_drafts and end < len(samples) and samples[end].slot == row.slot:
            end += 1
        yield row, samples[at:end]
        at = end
    assert at == len(samples), "samples come in the order of the rows"
