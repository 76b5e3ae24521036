"""How many tokens each request drafts: as many as make the batch's tokens come sooner, by what was measured.

A request that drafts d tokens, of which the first is right with probability p and each later one, if those before it
are, with q, adds p (1 + q + ... + q^(d-1)) tokens to a step and d rows to its cost. It drafts as many as give the most
tokens a second, beside the others as they lately were; none, where that is not MIN_GAIN above drafting none.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastserve.scheduler.draft_record import FIRST_GUESS, Acceptance
from fastserve.scheduler.request_state import RequestState
from fastserve.scheduler.step_costs import StepCosts
from fastserve.step import MATCH_CLASSES, NO_DRAFTS, Drafted, Step, StepResult

MAX_DRAFTS = (
    11  # a step of 12 rows takes some 3.5 times what one of 1 row does (SmolLM2), as products decide by then
)
# That run. Of a Zen 4, drafts of 2 alike were worth 1.2 times plain decode, of 4 nothing: four rows of plain decode
# already keep the cores multiplying all the time.
MAX_REQUESTS = 2
MIN_GAIN = 1.03  # as exact as the cost of a step is known
REFRESH_STEPS = 32  # after which budgets follow what steps were found to cost meanwhile


class Speculation:
    def __init__(self) -> None:
        self._costs = StepCosts()
        # What new requests start from: draws at a temperature are harder to foresee.
        self._greedy, self._sampled = (Acceptance(FIRST_GUESS, weight=4, fade=0.98) for _ in range(2))
        self._num_requests = 0
        self._steps_left = 0  # to the next refresh

    def observe_step(self, step: Step, result: StepResult) -> None:
        if not step.chunks and step.decodes:
            self._costs.observe(len(step.decodes) + result.num_drafts, result.elapsed_us)

    def observe(self, request: RequestState, drafted: Drafted | None, num_tokens: int) -> None:
        """A decode of `request` gave so many tokens."""
        record, num_right = request.drafts, num_tokens - 1
        if drafted is None:
            record.observe_step(0, 0)
            return
        record.observe_step(drafted.num_drafts, num_right)
        record.observe_drafts(drafted.match_class, drafted.num_drafts, num_right)
        self._usual(request).add(drafted.match_class, drafted.num_drafts, num_right)

    def budgets(self, decoding: Sequence[RequestState]) -> list[tuple[int, ...]]:
        """Of each of the requests that decode in the next step."""
        if len(decoding) > MAX_REQUESTS:
            return [NO_DRAFTS] * len(decoding)
        self._steps_left -= 1
        change = abs(len(decoding) - self._num_requests)
        refresh = self._steps_left <= 0 or change > self._num_requests // 8
        if refresh:
            self._steps_left, self._num_requests = REFRESH_STEPS, len(decoding)
        num_rows = sum(request.drafts.mean_rows for request in decoding)
        num_tokens = sum(request.drafts.mean_tokens for request in decoding)
        costs: dict[int, list[float]] = {}  # by the others' rows, which are the same for many
        for request in decoding:
            record = request.drafts
            if refresh or record.is_stale:
                other_rows = round(num_rows - record.mean_rows)
                if other_rows not in costs:
                    rows = range(other_rows + 1, other_rows + 2 + MAX_DRAFTS)
                    costs[other_rows] = [self._costs.of(count) for count in rows]
                record.wanted = self._choose(request, costs[other_rows], num_tokens - record.mean_tokens)
                record.is_stale = False
        return [request.drafts.wanted for request in decoding]

    def _choose(self, request: RequestState, costs: Sequence[float], other_tokens: float) -> tuple[int, ...]:
        record = request.drafts
        if record.acceptance is None:
            record.acceptance = Acceptance(self._guess(request), weight=2, fade=0.9)
        budgets = []
        for match_class in range(MATCH_CLASSES):
            count = best_count(record.acceptance.of(match_class), costs, other_tokens)
            if not count:
                count = record.retry_drafts(match_class, len(request.output_token_ids))
            budgets.append(count)
        return tuple(budgets)

    def _guess(self, request: RequestState) -> list[tuple[float, float]]:
        """For a new request: what is usual, but no more than of prose. A text that repeats itself soon shows it."""
        usual = self._usual(request)
        of_class = [usual.of(match_class) for match_class in range(MATCH_CLASSES)]
        return [
            (min(first, most), min(after, most_after))
            for (first, after), (most, most_after) in zip(of_class, FIRST_GUESS, strict=True)
        ]

    def _usual(self, request: RequestState) -> Acceptance:
        return self._sampled if request.sampling.temperature > 0 else self._greedy


def best_count(acceptance: tuple[float, float], costs: Sequence[float], other_tokens: float) -> int:
    """How many drafts give most tokens for a step's cost; costs [1 + the most drafts]: of the step with that many.

    acceptance: how likely the first draft is right, and one behind a draft that was right.
    """
    right, next_right = acceptance
    tokens = other_tokens + 1
    best, best_rate = 0, MIN_GAIN * tokens / costs[0]
    for count, cost in enumerate(costs[1:], start=1):
        tokens += right
        right *= next_right
        if tokens > best_rate * cost:
            best, best_rate = count, tokens / cost
    return best
