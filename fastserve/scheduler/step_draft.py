"""A step being put together: what it holds so far, and what still fits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import NamedTuple

from fastserve.scheduler.request_state import RequestState
from fastserve.step import BlockGrant, Chunk, DraftBudget, SlotOpening, Step

_SLOT = attrgetter("slot")


class RowKind(Enum):
    DRAW = "draw"  # the next token of the output
    SCORE = "score"  # the logprob of a prompt token
    FILLER = "filler"  # a score that nobody asked for


class SampledRow(NamedTuple):
    """Whom a sample of a step's result belongs to."""

    request: RequestState
    slot: int
    kind: RowKind
    max_drafts: int = 0  # it may turn out to be so many samples more


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """A step and, in the order of its result's samples, whose they are."""

    step: Step
    rows: tuple[SampledRow, ...]


class StepDraft:
    """Decodes and chunks within two budgets: rows of the step, and rows that are sampled."""

    def __init__(self, *, max_num_tokens: int, max_samples: int) -> None:
        self.tokens_left = max_num_tokens
        self.samples_left = max_samples
        self.drafts_left = 0  # of both budgets
        self.blocks: list[BlockGrant] = []
        self._opened: list[SlotOpening] = []
        self._chunks: list[Chunk] = []
        self._chunk_rows: list[SampledRow] = []
        self._budgets: list[DraftBudget] = []
        self._decodes: list[SampledRow] = []

    @property
    def is_empty(self) -> bool:
        return not self._chunks and not self._decodes

    def open(self, request: RequestState, *, speculates: bool) -> None:
        assert request.slot is not None
        self._opened.append(
            SlotOpening(
                request.slot, request.num_prompt_tokens, request.sampling, request.max_tokens, speculates
            )
        )

    def add_decode(self, request: RequestState, budgets: tuple[int, ...]) -> None:
        assert request.slot is not None
        if budgets != request.drafts.budgets:
            self._budgets.append(DraftBudget(request.slot, budgets))
            request.drafts.budgets = budgets
        max_drafts = max(budgets)
        assert max_drafts <= self.drafts_left
        assert self.tokens_left > max_drafts
        assert self.samples_left > max_drafts
        self.drafts_left -= max_drafts
        self._decodes.append(SampledRow(request, request.slot, RowKind.DRAW, max_drafts))
        self.tokens_left -= 1 + max_drafts
        self.samples_left -= 1 + max_drafts
        request.num_computed += 1 + max_drafts
        request.num_under_way += 1
        request.num_drafts_under_way += max_drafts

    def add_chunk(self, request: RequestState) -> None:
        """The largest next chunk of `request` that fits; none if nothing does."""
        slot, start = request.slot, request.num_computed
        assert slot is not None
        end = min(request.num_to_prefill, start + self.tokens_left)
        end, num_scores = self._fit_samples(request, start, end)
        if end <= start:
            return
        draws = end == request.num_to_prefill
        targets = self._score_targets(request, end, num_scores)
        self._chunks.append(Chunk(slot, request.tokens(start, end), draws, num_scores, targets))
        for position in range(end - num_scores + 1, end + 1):  # of the tokens scored
            is_new = request.num_scored < position < request.num_prompt_tokens
            self._chunk_rows.append(SampledRow(request, slot, RowKind.SCORE if is_new else RowKind.FILLER))
            request.num_scored += is_new
        if draws:
            self._chunk_rows.append(SampledRow(request, slot, RowKind.DRAW))
            request.num_under_way += 1
        request.num_computed = end
        self.tokens_left -= end - start
        self.samples_left -= num_scores + draws

    def _fit_samples(self, request: RequestState, start: int, end: int) -> tuple[int, int]:
        """(end, num_scores) of the longest chunk whose sampled rows still fit."""
        while end > start:
            draws = end == request.num_to_prefill
            num_scores = self._num_scores(request, start, end)
            excess = num_scores + draws - self.samples_left
            if excess <= 0:
                return end, num_scores
            # A row less is a score less, or it is the row that draws.
            end -= 1 if draws else excess
        return start, 0

    @staticmethod
    def _num_scores(request: RequestState, start: int, end: int) -> int:
        """Rows from the first unscored one to the chunk's last.

        Row p scores token p + 1. A chunk's scores are its last rows, so one that goes on beyond the prompt's
        last but one row scores those rows too, for nothing.
        """
        if not request.wants_scores:
            return 0
        first = max(start, request.num_scored)
        if first >= min(end, request.num_prompt_tokens - 1):
            return 0
        return end - first

    @staticmethod
    def _score_targets(request: RequestState, end: int, num_scores: int) -> tuple[int, ...]:
        if not num_scores:
            return ()
        targets = request.tokens(end - num_scores + 1, min(end + 1, request.num_known))
        return targets + (0,) * (num_scores - len(targets))  # nothing is known to follow the last row

    def finish(self, step_id: int, closed: tuple[int, ...]) -> ScheduledStep:
        # By slot, so that a steady batch is the same tuple in every step.
        decodes = sorted(self._decodes, key=_SLOT)
        step = Step(
            step_id,
            closed,
            tuple(self._opened),
            tuple(self.blocks),
            tuple(self._budgets),
            tuple(self._chunks),
            tuple(map(_SLOT, decodes)),
        )
        return ScheduledStep(step, (*self._chunk_rows, *decodes))
