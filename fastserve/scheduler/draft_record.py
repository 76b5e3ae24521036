"""How drafts fared, by how long the match was that they came from: of one request, and of all of a kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastserve.step import MATCH_CLASSES, NO_DRAFTS

# How many first drafts are right, and how many of those behind one that was right, by class: of prose. In code and
# repeated text it is more (SmolLM2, first drafts: 0.5, 0.65, 0.8, 0.95), which a request soon shows.
FIRST_GUESS = ((0.25, 0.5), (0.45, 0.65), (0.7, 0.8), (0.9, 0.93))
_MEAN_WEIGHT = 0.1  # of the newest step in what the request adds to steps
_FIRST_WAIT, _MAX_WAIT = 32, 512  # tokens until a class that does not pay is tried again


class Acceptance:
    """Shares of drafts that were right; older ones fade."""

    def __init__(self, guess: Sequence[tuple[float, float]], *, weight: float, fade: float) -> None:
        """The guess counts like `weight` drafts. A draft counts `fade` times what the next one does."""
        self._fade = fade
        self._right = [[share * weight for share in of_class] for of_class in guess]
        self._tried = [[weight, weight] for _ in guess]

    def of(self, match_class: int) -> tuple[float, float]:
        """How likely a first draft is right, and one behind a draft that was right."""
        first, after = self._right[match_class]
        first_tried, after_tried = self._tried[match_class]
        return first / first_tried, after / after_tried

    def add(self, match_class: int, num_drafted: int, num_right: int) -> None:
        self._add(match_class, 0, num_right > 0, 1)
        if num_right and num_drafted > 1:
            self._add(match_class, 1, num_right - 1, num_right - 1 + (num_right < num_drafted))

    def _add(self, match_class: int, place: int, num_right: int, num_tried: int) -> None:
        for counts, number in ((self._right, num_right), (self._tried, num_tried)):
            of_class = counts[match_class]
            of_class[place] = self._fade * of_class[place] + number


@dataclass(slots=True)
class _Retry:
    wait: int = _FIRST_WAIT
    at: int | None = None  # output tokens; None: the class pays


@dataclass(slots=True)
class DraftRecord:
    budgets: tuple[int, ...] = NO_DRAFTS  # as its slot has them
    wanted: tuple[int, ...] = NO_DRAFTS  # as they were chosen: rows or blocks may not have sufficed
    is_stale: bool = True  # something was learned since they were chosen
    acceptance: Acceptance | None = None  # None: it has not decoded yet
    mean_rows: float = 1.0  # of a step
    mean_tokens: float = 1.0
    _retries: list[_Retry] = field(default_factory=lambda: [_Retry() for _ in range(MATCH_CLASSES)])

    def leave_slot(self) -> None:
        self.budgets = NO_DRAFTS

    def observe_step(self, num_drafted: int, num_right: int) -> None:
        self.mean_rows += _MEAN_WEIGHT * (1 + num_drafted - self.mean_rows)
        self.mean_tokens += _MEAN_WEIGHT * (1 + num_right - self.mean_tokens)

    def observe_drafts(self, match_class: int, num_drafted: int, num_right: int) -> None:
        assert self.acceptance is not None, "it got a budget first"
        self.acceptance.add(match_class, num_drafted, num_right)
        retry = self._retries[match_class]
        retry.wait = _FIRST_WAIT if num_right else min(2 * retry.wait, _MAX_WAIT)
        retry.at = None
        self.is_stale = True

    def retry_drafts(self, match_class: int, num_tokens: int) -> int:
        """Drafts of a class that does not pay: none, but after a while one, to see whether it does by now."""
        retry = self._retries[match_class]
        if retry.at is None:
            retry.at = num_tokens + retry.wait
        return int(num_tokens >= retry.at)
