"""What the engine asks of an executor, wherever the ranks live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fastserve.errors import GroupError
from fastserve.step import Step, StepResult


class RankTimes(NamedTuple):
    """What a rank did in steps, seconds since the group became whole."""

    busy_s: float
    waiting_s: float  # for other ranks


class Executor(Protocol):
    """Runs steps in the order of their submission. Used by one thread, but for `close`, `failure`, `rank_times`."""

    @property
    def num_blocks(self) -> tuple[int, ...]:
        """KV blocks, per layer group."""
        ...

    @property
    def block_size(self) -> int: ...

    @property
    def max_samples(self) -> int:
        """Sampled rows (draws and scores) that a step may have."""
        ...

    @property
    def makes_drafts(self) -> bool:
        """Whether its ranks obey draft budgets."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def failure(self) -> GroupError | None:
        """Why no step will run any more; None while all is well. May be asked by any thread."""
        ...

    @property
    def rank_times(self) -> Sequence[RankTimes]:
        """Of every rank; empty for a single device. May be asked by any thread."""
        ...

    def submit(self, step: Step) -> None:
        """Queues `step` and returns. Raises RankLostError if a rank was lost, GroupError if all is over."""
        ...

    def collect(self) -> StepResult:
        """The oldest result not collected yet; waits for it. Raises RankLostError."""
        ...

    def recover(self) -> None:
        """After a RankLostError: waits until ranks without slots are ready, to which nothing was submitted.

        Raises GroupError where there will be none.
        """
        ...

    def close(self) -> None:
        """Ends the ranks; again is harmless."""
        ...
