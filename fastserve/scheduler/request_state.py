"""A request as the scheduler sees it: which tokens it has, how many of them ran, what is under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastserve.scheduler.draft_record import DraftRecord
from fastserve.step import SlotSampling


@dataclass(slots=True, eq=False)
class RequestState:
    """One choice of a request (n > 1 makes n of these).

    A draw is *under way* from the step that asks for it until its result is collected. The ranks own the last
    drawn token, so a decode needs no token id and can be scheduled while the draw before it is under way.
    """

    request_id: str
    index: int  # which of the request's n choices
    prompt_token_ids: list[int]
    max_tokens: int
    sampling: SlotSampling
    wants_scores: bool = False  # logprobs of the prompt's own tokens
    arrival_idx: int = 0  # set by the scheduler
    output_token_ids: list[int] = field(default_factory=list)
    slot: int | None = None
    num_to_prefill: int = 0  # tokens known when the slot was opened: they run as chunks
    num_computed: int = 0  # positions filled since the slot was opened, by steps collected or not: at most,
    num_under_way: int = 0  # while drafts are under way; steps that draw, each at least a token
    num_drafts_under_way: int = 0  # rows of them that may turn out wrong
    num_scored: int = 0  # prompt tokens after the first whose logprob was asked for
    num_preemptions: int = 0
    drafts: DraftRecord = field(default_factory=DraftRecord)
    finished: bool = False

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_known(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def max_positions(self) -> int:
        """KV positions it can ever use: the last token drawn is not run."""
        return len(self.prompt_token_ids) + self.max_tokens - 1

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < self.num_to_prefill

    @property
    def has_drawn_all(self) -> bool:
        return len(self.output_token_ids) + self.num_under_way >= self.max_tokens

    def num_positions_after(self, num_drafts: int) -> int:
        """Positions that it has after one more step, at most."""
        return min(self.num_computed + 1 + num_drafts, self.max_positions)

    def leave_slot(self) -> None:
        self.slot = None
        self.num_computed = self.num_to_prefill = 0
        self.drafts.leave_slot()

    def tokens(self, start: int, end: int) -> tuple[int, ...]:
        """Known tokens at positions [start, end)."""
        num_prompt = len(self.prompt_token_ids)
        if end <= num_prompt:
            return tuple(self.prompt_token_ids[start:end])
        if start >= num_prompt:
            return tuple(self.output_token_ids[start - num_prompt : end - num_prompt])
        return (*self.prompt_token_ids[start:], *self.output_token_ids[: end - num_prompt])
