"""How many tokens each request drafts: as many as make the batch's tokens come sooner, by what was measured.

A request that drafts d tokens, each right with probability p if those before it are, adds p + p^2 + ... + p^d tokens
to a step and d rows to its cost. It drafts as many as give the most tokens a second, beside the others as they lately
were; none, where that is less than MIN_GAIN above not drafting at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastserve.scheduler.draft_record import DraftRecord
from fastserve.scheduler.request_state import RequestState
from fastserve.scheduler.step_costs import StepCosts
from fastserve.step import MATCH_CLASSES, NO_DRAFTS, Drafted, Step, StepResult

MAX_DRAFTS = 7  # rows beyond 8 cost as much as steps of their own (bench: step time by rows)
MAX_REQUESTS = (
    16  # that run: more of them fill the matmuls' tiles, and drafts would only wait for one another
)
MIN_GAIN = 1.02  # as exact as the cost of a step is known
REFRESH_STEPS = 32  # after which budgets follow what steps were found to cost meanwhile


class Speculation:
    def __init__(self) -> None:
        self._costs = StepCosts()
        self._num_requests = 0
        self._steps_left = 0  # to the next refresh

    def observe_step(self, step: Step, result: StepResult) -> None:
        if not step.chunks and step.decodes:
            num_rows = len(step.decodes) + sum(drafted.num_drafts for drafted in result.drafted)
            self._costs.observe(num_rows, result.elapsed_us)

    def observe(self, request: RequestState, drafted: Drafted | None, num_tokens: int) -> None:
        """A decode of `request` gave so many tokens."""
        record = request.drafts
        if drafted is None:
            record.observe(None, 0, 0)
        else:
            record.observe(drafted.match_class, drafted.num_drafts, num_tokens - 1)

    def budgets(self, decoding: Sequence[RequestState]) -> list[tuple[int, ...]]:
        """Of each of the requests that decode in the next step."""
        if len(decoding) > MAX_REQUESTS:
            return [NO_DRAFTS] * len(decoding)
        self._steps_left -= 1
        refresh = self._steps_left <= 0 or len(decoding) != self._num_requests
        if refresh:
            self._steps_left, self._num_requests = REFRESH_STEPS, len(decoding)
        num_rows = sum(request.drafts.mean_rows for request in decoding)
        num_tokens = sum(request.drafts.mean_tokens for request in decoding)
        found = []
        for request in decoding:
            record = request.drafts
            if refresh or record.is_stale:
                rows = round(num_rows - record.mean_rows)
                tokens = num_tokens - record.mean_tokens
                record.is_stale = False
                found.append(self._choose(request, record, rows, tokens))
            else:
                found.append(record.budgets)
        return found

    def _choose(
        self, request: RequestState, record: DraftRecord, other_rows: int, other_tokens: float
    ) -> tuple[int, ...]:
        budgets = []
        for match_class in range(MATCH_CLASSES):
            count = self._best_count(record.acceptance(match_class), other_rows, other_tokens)
            if not count:
                count = record.retry_drafts(match_class, len(request.output_token_ids))
            budgets.append(count)
        return tuple(budgets)

    def _best_count(self, acceptance: float, other_rows: int, other_tokens: float) -> int:
        cost = self._costs.of
        tokens, right = other_tokens + 1, 1.0
        best, best_rate = 0, MIN_GAIN * tokens / cost(other_rows + 1)
        for count in range(1, MAX_DRAFTS + 1):
            right *= acceptance
            tokens += right
            rate = tokens / cost(other_rows + 1 + count)
            if rate > best_rate:
                best, best_rate = count, rate
        return best
