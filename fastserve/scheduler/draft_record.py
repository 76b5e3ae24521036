"""How a request's drafts fared, by how long the match was that they came from."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastserve.step import NO_DRAFTS

# Of drafted tokens whose predecessors were right, the share that is right too: of a new request.
FIRST_GUESS = (0.3, 0.45, 0.6, 0.8)
_GUESS_WEIGHT = 1.0  # in tokens
_FADE = 0.9  # per draft: some 10 drafts count
_MEAN_WEIGHT = 0.1  # of the newest step in what the request adds to steps
_FIRST_WAIT, _MAX_WAIT = 16, 512  # tokens until a class that does not pay is tried again


@dataclass(slots=True)
class _Class:
    right: float
    tried: float
    wait: int = _FIRST_WAIT
    retry_at: int | None = None  # output tokens; None: it pays


def _new_classes() -> list[_Class]:
    return [_Class(_GUESS_WEIGHT * guess, _GUESS_WEIGHT) for guess in FIRST_GUESS]


@dataclass(slots=True)
class DraftRecord:
    budgets: tuple[int, ...] = NO_DRAFTS  # as its slot has them
    is_stale: bool = True  # the budgets were chosen before something was learned
    mean_rows: float = 1.0  # of a step
    mean_tokens: float = 1.0
    _classes: list[_Class] = field(default_factory=_new_classes)

    def leave_slot(self) -> None:
        self.budgets, self.is_stale = NO_DRAFTS, True

    def acceptance(self, match_class: int) -> float:
        found = self._classes[match_class]
        return found.right / found.tried

    def observe(self, match_class: int | None, num_drafted: int, num_accepted: int) -> None:
        """A step of the request came back; match_class: None if it drafted nothing."""
        self.mean_rows += _MEAN_WEIGHT * (1 + num_drafted - self.mean_rows)
        self.mean_tokens += _MEAN_WEIGHT * (1 + num_accepted - self.mean_tokens)
        if match_class is None:
            return
        found = self._classes[match_class]
        found.right = _FADE * found.right + num_accepted
        found.tried = _FADE * found.tried + num_accepted + (num_accepted < num_drafted)
        found.wait = _FIRST_WAIT if num_accepted else min(2 * found.wait, _MAX_WAIT)
        found.retry_at = None
        self.is_stale = True

    def retry_drafts(self, match_class: int, num_tokens: int) -> int:
        """Drafts of a class that does not pay: none, but after a while one, to see whether it does by now."""
        found = self._classes[match_class]
        if found.retry_at is None:
            found.retry_at = num_tokens + found.wait
        return int(num_tokens >= found.retry_at)
